"""Cut a dataset into the shards that devices hold.

Every function here gives the same answer for the same arguments on every machine that runs the same numpy. Across
versions of numpy it is as stable as numpy promises: the bits of PCG64 never change, but what `Generator` makes of them
(permutation, gamma) may, although it seldom does. Devices that each cut the same dataset must run one version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from distreal_edge.errors import DataError
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from distreal_edge.data.dataset import Indices

Kind = Literal["iid", "dirichlet", "writer"]
Integers = npt.NDArray[np.integer[Any]]

TRIES: Final = 1_000
# One stream per purpose: the same seed for shards and for calibration images must not correlate them.
SHARD_STREAM: Final = 1
SPLIT_STREAM: Final = 2


def shard_indices(
    labels: Integers,
    *,
    kind: Kind,
    shards: int,
    seed: int,
    alpha: float = 0.5,
    writers: Integers | None = None,
    smallest: int = 1,
) -> tuple[Indices, ...]:
    """Partition the images 0..len(labels)-1 into shards: each image in exactly one, each shard sorted.

    kind "iid": a random permutation cut into equal parts; sizes differ by at most one.

    kind "dirichlet": skewed labels and sizes, as Hsu, Qi and Brown (2019) motivate, in the class-by-class form that
    most later work uses: for each class, shares ~ Dirichlet(alpha, ..., alpha) over the *shards* are drawn, and the
    class, shuffled, is cut in these shares. (Hsu et al. themselves draw a distribution over classes for each shard,
    all shards of one size.) All shares are drawn anew until each shard has `smallest` images. A large alpha tends to
    iid, a small one to one shard per class.

    kind "writer": whole writers, never split. The writer with most images goes first, each to the shard that is
    smallest then, ties among writers in an order drawn from the seed. With as many shards as writers, each shard is one
    writer.

    Raises DataError when arguments make no sense or `smallest` cannot be kept.
    """
    count = _check(labels, kind=kind, shards=shards, smallest=smallest)
    rng = _generator(seed, SHARD_STREAM)
    if kind == "iid":
        owner = np.empty(count, np.int64)
        for shard, part in enumerate(np.array_split(rng.permutation(count), shards)):
            owner[part] = shard
    elif kind == "dirichlet":
        owner = _dirichlet_owners(labels, shards, alpha, smallest, rng)
    else:
        owner = _writer_owners(writers, count, shards, rng)
    # A stable sort by owner keeps the images of each shard in ascending order.
    ends = np.cumsum(np.bincount(owner, minlength=shards))
    parts = tuple(np.split(np.argsort(owner, kind="stable").astype(np.int64), ends[:-1]))
    short = min(range(shards), key=lambda shard: len(parts[shard]))
    if len(parts[short]) < smallest:
        raise DataError(
            f"shards by {kind}: shard {short} has {count_of(len(parts[short]), 'image')}, at least {smallest} are"
            " asked for; make fewer shards"
        )
    return parts


def split_off(count_total: int, held_back: int, seed: int) -> tuple[Indices, Indices]:
    """Hold back some of `count_total` images, at random: (indices of the rest, indices held back), each sorted.

    Do this first and cut the rest into shards, then an aggregator's calibration images never lie in a shard.
    Raises DataError when held_back is not in 0..count_total.
    """
    if not 0 <= held_back <= count_total:
        raise DataError(f"cannot hold back {held_back} of {count_of(count_total, 'image')}")
    order = _generator(seed, SPLIT_STREAM).permutation(count_total).astype(np.int64)
    return np.sort(order[held_back:]), np.sort(order[:held_back])


def _check(labels: Integers, *, kind: str, shards: int, smallest: int) -> int:
    if kind not in get_args(Kind):
        raise DataError(f"shards are iid, dirichlet or writer, not {kind!r}")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"shards need labels as integers [N], not {labels.dtype} of shape {labels.shape}")
    if shards < 1 or smallest < 0:
        raise DataError(f"{count_of(shards, 'shard')} of at least {count_of(smallest, 'image')} make no sense")
    if shards * smallest > len(labels):
        raise DataError(
            f"{count_of(len(labels), 'image')} cannot fill {count_of(shards, 'shard')} of at least {smallest};"
            " make fewer shards or ask for fewer images"
        )
    return len(labels)


def _generator(seed: int, stream: int) -> np.random.Generator:
    if seed < 0:
        raise DataError(f"a seed is a whole number from 0, not {seed}")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stream,))))


def _dirichlet_owners(
    labels: Integers, shards: int, alpha: float, smallest: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    if not (np.isfinite(alpha) and alpha > 0):
        raise DataError(f"alpha must be a positive number, not {alpha}")
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    sizes = np.array([len(of_class) for of_class in members], np.int64)
    for _ in range(TRIES):
        shares = rng.dirichlet(np.full(shards, alpha), size=len(members))  # classes, shards
        if not np.isfinite(shares).all():
            raise DataError(f"alpha {alpha} is too small or too large for floating point; take one nearer 1")
        ends = np.rint(np.cumsum(shares, axis=1) * sizes[:, np.newaxis]).astype(np.int64)
        ends[:, -1] = sizes
        counts = np.diff(ends, axis=1, prepend=0)
        if int(counts.sum(axis=0).min()) >= smallest:
            break
    else:
        raise DataError(
            f"no Dirichlet draw of alpha {alpha} in {TRIES} gave each of {count_of(shards, 'shard')}"
            f" {count_of(smallest, 'image')}; make fewer shards, take a larger alpha or ask for fewer images"
        )
    owner = np.empty(len(labels), np.int64)
    for of_class, of_shards in zip(members, counts, strict=True):
        owner[rng.permutation(of_class)] = np.repeat(np.arange(shards), of_shards)
    return owner


def _writer_owners(
    writers: Integers | None, count: int, shards: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    if writers is None:
        raise DataError("shards by writer need writers, which this dataset does not have; use iid or dirichlet")
    if writers.shape != (count,):
        raise DataError(f"shards by writer: {count_of(count, 'label')} but writers of shape {writers.shape}")
    names, writer_of, sizes = np.unique(writers, return_inverse=True, return_counts=True)
    if len(names) < shards:
        raise DataError(
            f"shards by writer: {count_of(len(names), 'writer')} cannot fill {count_of(shards, 'shard')};"
            " make fewer shards"
        )
    shuffled = rng.permutation(len(names))
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    shard_of = np.empty(len(names), np.int64)
    loads = np.zeros(shards, np.int64)
    for writer in order:
        lightest = int(np.argmin(loads))
        shard_of[writer] = lightest
        loads[lightest] += sizes[writer]
    return shard_of[writer_of]

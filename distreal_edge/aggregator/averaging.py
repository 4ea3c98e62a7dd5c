"""Average the updates of a round into the next model, piece by piece: memory does not grow with their number."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from distreal_edge.aggregator.contribution import Contribution
from distreal_edge.aggregator.robust import krum_choice, median_of, most_trimmed, trimmed_mean_of
from distreal_edge.device import offsets_of, pieces_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from distreal_edge.device import Piece, UpdateReader
    from distreal_edge.network import Plan

__all__ = ["AverageKind", "AverageRule", "ClipNorm", "average_updates", "pool_statistics"]

AverageKind = Literal["touch", "fedavg", "holders", "median", "trimmed_mean", "krum", "multi_krum"]
ClipNorm = float | Literal["median"]

_MEAN: Final = ".running_mean"
_VARIANCE: Final = ".running_var"
_ELEMENTS: Final = 2**16
"""Of a piece of a plain average: its float64 sums and the changes that are added to them stay in a core's cache."""
_STACKED: Final = 2**21
"""Elements of all devices together in a piece of a robust average."""
_FEWEST_ELEMENTS: Final = 2**9


@dataclass(frozen=True, slots=True)
class AverageRule:
    """How updates are averaged.

    `touch`: an element's new value is the old one plus the mean of the devices' changes, each weighted by the images
    of the mini-batches in which that device trained that element. `fedavg`: the weights are each device's images,
    whatever it trained (McMahan et al., AISTATS 2017). With rate 0 everywhere they are equal. `holders`, for
    comparisons: the weights are each device's images where it trained an element, and 0 elsewhere (FjORD).

    The others withstand hostile devices. Each device has one vote on every element that it trained, whatever number of
    images it claims. `median` and `trimmed_mean` go element by element (Yin et al., ICML 2018), the latter without the
    share `hostile_share` of the votes at either end. `krum` takes the one update that is nearest to its neighbours,
    `multi_krum` the mean of all but that share (Blanchard et al., NeurIPS 2017).

    With `clip_norm` an update whose changes have a larger L2 norm is scaled down to it (Sun et al., 2019); `median`
    means the median of the round (Andrew et al., NeurIPS 2021), of norms per root of the elements that each trained.
    """

    kind: AverageKind = "touch"
    hostile_share: float = 0.2
    clip_norm: ClipNorm | None = None

    @property
    def robust(self) -> bool:
        """Whether it withstands hostile devices."""
        return self.kind not in {"touch", "fedavg", "holders"}


def average_updates(
    plan: Plan,
    weights: Mapping[str, NDArray[np.float32]],
    updates: Sequence[UpdateReader],
    rule: AverageRule,
    factors: Sequence[float] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Return the next model's tensors; elements that nobody trained, and statistics, keep every bit.

    The updates must have been checked, see `read_update`. The result depends on their order in its last bits only, and
    not even so with `median` and `krum`; give them in a fixed order. The changes of each count `factors` times, one for
    each update, in a mean whose weights stay as they are.
    """
    after = dict(weights)
    given = zip(updates, [1.0] * len(updates) if factors is None else factors, strict=True)
    trained = [(Contribution(update), factor) for update, factor in given if update.header.images]
    if not trained:
        return after
    contributions = [contribution for contribution, _ in trained]
    clipped = _clip_factors(plan, contributions, rule.clip_norm)
    for (contribution, factor), clip_factor in zip(trained, clipped, strict=True):
        contribution.factor = factor * clip_factor
    if rule.kind in {"krum", "multi_krum"}:
        chosen = krum_choice(plan, contributions, rule.hostile_share, one=rule.kind == "krum")
        contributions = [contributions[number] for number in chosen]
    stacked = rule.kind in {"median", "trimmed_mean"}
    most = max(_FEWEST_ELEMENTS, min(_ELEMENTS, _STACKED // len(contributions))) if stacked else _ELEMENTS
    offsets = offsets_of(plan)
    after |= {name: np.empty_like(weights[name]) for name in offsets}
    buffers = _Buffers(len(contributions) if stacked else 1)
    for piece in pieces_of(plan, most):
        begin = piece.begin - offsets[piece.name][0]
        part = slice(begin, begin + piece.end - piece.begin)
        old = weights[piece.name].reshape(-1)[part]
        change = (
            _middle(piece, contributions, rule, buffers) if stacked else _mean(piece, contributions, rule.kind, buffers)
        )
        # What nobody trained has no change, and -0.0 + 0.0 would not keep every bit.
        new = after[piece.name].reshape(-1)[part]
        np.add(old, change, out=new, casting="same_kind")
        np.copyto(new, old, where=change == 0.0)
    return after


class _Buffers:
    """Memory for pieces, taken once: float32 `[devices, elements]`, float64 `[elements]` twice."""

    def __init__(self, devices: int) -> None:
        self._devices = devices
        self._sizes = 0

    def of(self, elements: int) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
        if elements > self._sizes:
            self._sizes = elements
            self._changes = np.empty(self._devices * elements, dtype=np.float32)
            self._doubles = np.empty((2, elements))
        changes = self._changes[: self._devices * elements].reshape(self._devices, elements)
        return changes, self._doubles[0, :elements], self._doubles[1, :elements]


def _mean(
    piece: Piece, contributions: Sequence[Contribution], kind: AverageKind, buffers: _Buffers
) -> NDArray[np.float64]:
    """Return the weighted mean change of every element; 0 where the weights are."""
    (changes,), total, weighted = buffers.of(piece.end - piece.begin)
    total[...] = 0.0
    weights: NDArray[np.float64] | float = 0.0
    for contribution in contributions:
        contribution.read(piece, changes)
        weight = _weight(piece, contribution, kind)
        np.copyto(weighted, changes)
        if isinstance(weight, float):
            weighted *= weight * contribution.factor
        else:
            pairs = weighted.reshape(-1, piece.kernel)
            pairs *= (weight * contribution.factor)[:, None]
        total += weighted
        weights = weights + weight
    if isinstance(weights, float):
        total /= weights
    else:
        # Where nobody trained an element, nobody changed it.
        pairs = total.reshape(-1, piece.kernel)
        pairs /= np.where(weights > 0.0, weights, 1.0)[:, None]
    return total


def _weight(piece: Piece, contribution: Contribution, kind: AverageKind) -> NDArray[np.float64] | float:
    """Return the weight of a device, for every pair or for all of them."""
    images = float(contribution.reader.header.images)
    if kind == "fedavg":
        return images
    if contribution.whole:
        return 1.0 if kind == "multi_krum" else images
    if kind == "touch":
        return contribution.images(piece)
    return contribution.trained(piece).astype(np.float64) * (images if kind == "holders" else 1.0)


def _middle(
    piece: Piece, contributions: Sequence[Contribution], rule: AverageRule, buffers: _Buffers
) -> NDArray[np.float64]:
    """Return the median or trimmed mean of every element's changes by the devices that trained it; 0 for none."""
    changes, result, _ = buffers.of(piece.end - piece.begin)
    votes = np.zeros(changes.shape[1] // piece.kernel, dtype=np.int64)
    for row, contribution in zip(changes, contributions, strict=True):
        contribution.read(piece, row)
        if contribution.factor != 1.0:
            np.multiply(row, np.float32(contribution.factor), out=row)
        if contribution.whole:
            votes += 1
            continue
        trained = contribution.trained(piece)
        votes += trained
        if not trained.all():  # sorted behind all that was changed
            row.reshape(-1, piece.kernel)[~trained] = np.inf
    counts = piece.spread(votes)
    if rule.kind == "median":
        return median_of(changes, counts, out=result)
    most = most_trimmed(np.arange(len(changes) + 1), rule.hostile_share)
    return trimmed_mean_of(changes, counts, most[counts], out=result)


def _clip_factors(plan: Plan, contributions: Sequence[Contribution], clip_norm: ClipNorm | None) -> list[float]:
    """Return what each update's changes are multiplied by, at most 1."""
    if clip_norm is None:
        return [1.0] * len(contributions)
    if clip_norm != "median":
        norms = [sqrt(contribution.reader.squares) for contribution in contributions]
        return [min(1.0, clip_norm / norm) if norm else 1.0 for norm in norms]
    # A device that trained less of the network has a smaller norm for that reason alone.
    sizes = [contribution.elements(plan) for contribution in contributions]
    norms = [sqrt(each.reader.squares / size) for each, size in zip(contributions, sizes, strict=True)]
    middle = float(np.median(norms))
    return [min(1.0, middle / norm) if norm else 1.0 for norm in norms]


def pool_statistics(
    plan: Plan, measured: Iterable[tuple[int, Mapping[str, NDArray[np.float32]]]], *, robust: bool = False
) -> dict[str, NDArray[np.float32]]:
    """Pool batch-norm statistics that devices measured on one model, each with its number of images.

    Means and (unbiased) variances become those of all values that the devices' batch norms saw, taken together: a
    channel sees one value per image and position. `robust` takes the medians over the devices instead, of the means and
    of the mean squares around that. Returns nothing when nobody measured. Every result is finite.
    """
    parts = [(images, statistics) for images, statistics in measured if images]
    if not parts:
        return {}
    pooled: dict[str, NDArray[np.float32]] = {}
    for variance in plan.statistics:
        if not variance.endswith(_VARIANCE):
            continue
        layer = variance.removesuffix(_VARIANCE)
        positions = prod(plan.shapes[layer][1:])
        counts = np.array([float(images * positions) for images, _ in parts])[:, None]  # devices, 1
        means = np.array([statistics[layer + _MEAN] for _, statistics in parts], dtype=np.float64)  # devices, channels
        variances = np.array([statistics[variance] for _, statistics in parts], dtype=np.float64)
        if robust:
            mean = np.median(means, axis=0)
            square = np.median(variances + np.square(means - mean), axis=0)
        else:
            mean = (counts * means).sum(axis=0) / counts.sum()
            squares = ((counts - 1.0) * variances + counts * np.square(means - mean)).sum(axis=0)
            square = squares / max(1.0, counts.sum() - 1.0)
        pooled[layer + _MEAN] = mean.astype(np.float32)
        # What a hostile device claims may be finite, and its square too large for a float32.
        pooled[variance] = np.minimum(square, np.finfo(np.float32).max).astype(np.float32)
    return pooled

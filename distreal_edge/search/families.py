"""Families of dropout vectors: one number decides the whole vector, so that it can be fitted to any cost.

They are what a search starts from, and what its result is compared with.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from distreal_edge.dropout import counts_vector
from distreal_edge.errors import ConfigError
from distreal_edge.network.operations import Concat

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from distreal_edge.network import Network, Plan

__all__ = ["FAMILIES", "MEMBERS", "carried_groups", "family_members", "fit_family", "macs_of"]

MEMBERS = 8
"""How many costs a family is looked at, from the cheapest to just below the full network."""
_HALVINGS = 40
"""Steps of bisection: finer than any group has filters."""


def _uniform(width: float, _depth: float, _carried: bool) -> float:
    return width


def _inner(width: float, _depth: float, carried: bool) -> float:
    # From full width down to half of the way only what is inside the blocks is thinned, then the streams too.
    return min(1.0, 2.0 * width) if carried else max(0.0, 2.0 * width - 1.0)


def _balanced(width: float, _depth: float, carried: bool) -> float:
    return width if carried else width * width


def _steep(width: float, _depth: float, carried: bool) -> float:
    return width if carried else width**4


def _early(width: float, depth: float, _carried: bool) -> float:
    return float(width ** (1.5 - depth))


def _late(width: float, depth: float, _carried: bool) -> float:
    return float(width ** (0.5 + depth))


FAMILIES: Mapping[str, Callable[[float, float, bool], float]] = MappingProxyType(
    {
        "uniform": _uniform,
        "balanced": _balanced,
        "steep": _steep,
        "inner": _inner,
        "early": _early,
        "late": _late,
    }
)
"""The share of a group that each family keeps, from a width in [0, 1], its depth in [0, 1], and whether it is carried.

`uniform`: the same everywhere. `inner`: what is carried stays whole, what is inside the blocks is thinned; where even
one filter in each of those is too dear, the rest is thinned as well. `balanced`, `steep`: inside the blocks the square,
or the fourth power, of the share that is carried. `early`, `late`: more is dropped early, or late, in the network.
"""


def carried_groups(plan: Plan) -> frozenset[int]:
    """Return the positions of the groups that more than one block reads.

    They are those that an addition ties (residual streams) or a concatenation hands on (dense blocks). Where these are
    all the groups there are, nothing is inside a block, and none counts as carried.
    """
    layout = plan.layout
    of_filter = [position for position, group in enumerate(layout.groups) for _ in range(group.filters)]
    carried = set(layout.streams)
    for operation in plan.operations:
        if isinstance(operation, Concat):
            numbers = (number for value in operation.inputs for number in layout.of[value])
            carried.update(of_filter[number] for number in numbers if number >= 0)
    return frozenset(carried) if len(carried) < len(layout.groups) else frozenset()


def macs_of(network: Network, counts: Sequence[int]) -> int:
    """Return the multiply-accumulates of one training step per image that keeps these counts, as `Cost.macs`."""
    return network.cost(counts_vector(counts, network.plan.sizes)).macs


def fit_family(network: Network, family: str, share: float) -> tuple[int, ...]:
    """Return the widest counts of a family whose MACs are at most this share of the full network's.

    The narrowest member, one filter in each group, is returned when even that costs more. Raises `ConfigError` for an
    unknown family.
    """
    try:
        keep = FAMILIES[family]
    except KeyError:
        message = f"unknown family of vectors {family!r}; choose one of {', '.join(FAMILIES)}"
        raise ConfigError(message) from None
    sizes = network.plan.sizes
    carried = carried_groups(network.plan)
    last = max(1, len(sizes) - 1)

    def counts(width: float) -> tuple[int, ...]:
        shares = (keep(width, group / last, group in carried) for group in range(len(sizes)))
        return tuple(max(1, round(share * size)) for share, size in zip(shares, sizes, strict=True))

    limit = share * macs_of(network, sizes)
    if macs_of(network, counts(1.0)) <= limit:
        return counts(1.0)
    narrow, wide = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (narrow + wide) / 2.0
        if macs_of(network, counts(middle)) <= limit:
            narrow = middle
        else:
            wide = middle
    return counts(narrow)


def family_members(network: Network, family: str, cheapest: float) -> list[tuple[int, ...]]:
    """Return a family's members at eight costs, cheapest first, the full network left out.

    Shares of the MACs rise from `cheapest` by the same factor. In small networks some members may be equal.
    """
    shares = (cheapest ** (number / MEMBERS) for number in range(MEMBERS, 0, -1))
    return [fit_family(network, family, share) for share in shares]

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

import distreal_edge as de
from distreal_edge.dropout import counts_vector, filter_counts
from distreal_edge.errors import ConfigError
from distreal_edge.search.families import FAMILIES, carried_groups, fit_family, macs_of

if TYPE_CHECKING:
    from distreal_edge.network import Network

SHARES = (0.9, 0.5, 0.2, 0.08)


def members(network: Network, family: str) -> set[tuple[int, ...]]:
    """Return all counts of a family, by trying many more widths than there are filters."""
    sizes = network.plan.sizes
    carried = carried_groups(network.plan)
    depths = [group / max(1, len(sizes) - 1) for group in range(len(sizes))]
    keep = FAMILIES[family]
    widths = [number / 3000 for number in range(3001)]
    return {
        tuple(
            max(1, round(keep(width, depth, group in carried) * size))
            for group, (depth, size) in enumerate(zip(depths, sizes, strict=True))
        )
        for width in widths
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fitted_vector_is_the_dearest_member_of_its_family_within_the_share(family: str, network: Network) -> None:
    costs = {macs_of(network, counts) for counts in members(network, family)}
    full = macs_of(network, network.plan.sizes)
    for share in SHARES:
        within = [cost for cost in costs if cost <= share * full]
        fitted = macs_of(network, fit_family(network, family, share))
        assert fitted == max(within, default=min(costs))


@pytest.mark.parametrize("family", FAMILIES)
def test_more_may_be_spent_on_a_wider_share(family: str) -> None:
    network = de.zoo.resnet8(classes=4, image_size=8)
    fitted = [fit_family(network, family, share / 40) for share in range(1, 41)]
    for (narrow, wide), share in zip(pairwise(fitted), range(2, 41), strict=True):
        assert all(one <= other for one, other in zip(narrow, wide, strict=True))
        assert macs_of(network, wide) <= share / 40 * macs_of(network, network.plan.sizes)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_of_the_cost_is_the_full_network_and_none_of_it_the_narrowest(family: str, network: Network) -> None:
    assert fit_family(network, family, 1.0) == network.plan.sizes
    narrowest = fit_family(network, family, 1e-6)
    assert macs_of(network, narrowest) == min(macs_of(network, counts) for counts in members(network, family))


def test_the_inner_family_thins_what_is_carried_only_when_nothing_else_is_left(network: Network) -> None:
    carried = carried_groups(network.plan)
    for share in SHARES:
        counts = fit_family(network, "inner", share)
        whole = all(counts[group] == network.plan.sizes[group] for group in carried)
        thinnest = all(keep == 1 for group, keep in enumerate(counts) if group not in carried)
        assert whole or thinnest


def test_a_residual_stream_is_carried() -> None:
    network = de.zoo.resnet20(classes=10, image_size=8)
    carried = [network.groups[group].name for group in sorted(carried_groups(network.plan))]
    assert carried == ["conv1", "layer2.0.conv2", "layer3.0.conv2"]
    assert carried_groups(network.plan) == network.plan.layout.streams


def test_what_a_dense_block_hands_on_is_carried_and_its_bottlenecks_are_not() -> None:
    network = de.zoo.densenet40(classes=10, image_size=8)
    inside = {group for group in range(len(network.groups)) if network.groups[group].name.endswith(".conv1")}
    assert len(inside) == 18
    assert carried_groups(network.plan) == frozenset(range(len(network.groups))) - inside


def test_the_projections_of_a_mobile_network_are_carried_and_its_expansions_are_not() -> None:
    network = de.zoo.mobilenet_v2(classes=10, image_size=32)
    carried = [network.groups[group].name for group in sorted(carried_groups(network.plan))]
    assert carried == [f"features.{block}.conv.2" for block in (2, 4, 7, 11, 14)]


def test_a_plain_chain_carries_nothing() -> None:
    assert carried_groups(de.zoo.vgg_small(classes=10, image_size=32).plan) == frozenset()


def test_an_unknown_family_is_refused(network: Network) -> None:
    with pytest.raises(
        ConfigError, match=r"unknown family of vectors 'wide'; choose one of uniform, balanced, steep, inner"
    ):
        fit_family(network, "wide", 0.5)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 12, 16, 24, 48, 64, 128, 255, 512, 1280])
def test_rates_give_back_the_counts_that_they_were_made_from(size: int) -> None:
    for keep in range(1, size + 1):
        vector = counts_vector((keep,), (size,))
        assert filter_counts(vector, (size,)) == (keep,)
        assert 0.0 <= vector[0] < 1.0

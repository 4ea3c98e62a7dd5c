"""A fifth of the devices are hostile, and no two devices have the same kinds of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from distreal_edge.aggregator import AverageRule

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        not Path("/usr/share/datasets/fashion-mnist").is_dir(),
        reason="Fashion-MNIST is absent: apt install dataset-fashion-mnist",
    ),
]

OTHERS = ("touch", "median", "trimmed_mean")


def test_multi_krum_loses_little_to_hostile_devices_and_the_plain_average_everything(
    beside: Callable[[str], Any], times: Callable[[int, int], int], figure: Callable[[str, str, str], None]
) -> None:
    hostile = beside("hostile")
    rounds = times(8, 30)
    federation = hostile.Federation.make(times(3000, 10_000), times(1000, 10_000))

    def lost(rule: AverageRule, attacks: tuple[str, ...]) -> dict[str, float]:
        """Return how many points of accuracy are lost against the same average with the hostile devices away."""
        best = hostile.accuracy(federation, rule, rounds=rounds, hostile=False)
        left = {attack: hostile.accuracy(federation, rule, rounds=rounds, attack=attack) for attack in attacks}
        return {attack: 100 * (best - accuracy) for attack, accuracy in left.items()}

    robust = lost(AverageRule("multi_krum"), hostile.ATTACKS)
    plain = lost(AverageRule("touch"), hostile.ATTACKS[:1])
    # In a few rounds the model learns fast, and how fast is a matter of chance.
    assert max(robust.values()) <= times(8, 2), robust
    assert plain["sign flip x10"] > 25, plain
    found = {"multi_krum": robust}
    if rounds == 30:
        found |= {kind: lost(AverageRule(kind), hostile.ATTACKS) for kind in OTHERS}  # type: ignore[arg-type]
    told = "; ".join(
        f"{kind}: " + ", ".join(f"{points:.1f} ({attack})" for attack, points in points_of.items())
        for kind, points_of in found.items()
    )
    figure(
        f"2 of 10 devices hostile, Dirichlet 0.5, {rounds} rounds",
        f"points lost: {told}",
        "multi_krum loses at most 2 points, plain average shown failing",
    )

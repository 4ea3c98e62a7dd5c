from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distreal_edge.aggregator import measure_statistics, pool_statistics, with_statistics
from distreal_edge.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from distreal_edge.data import Dataset
    from distreal_edge.network import Network


def measured(values: NDArray[np.float64]) -> dict[str, NDArray[np.float32]]:
    """Return what a device says of the values [images, channels, positions] that its batch norm saw."""
    flat = values.transpose(1, 0, 2).reshape(values.shape[1], -1)
    return {
        "bn1.running_mean": flat.mean(axis=1).astype(np.float32),
        "bn1.running_var": flat.var(axis=1, ddof=1).astype(np.float32),
    }


@settings(deadline=None, max_examples=50)
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 1e3]),
)  # fmt: skip
def test_pooled_statistics_are_those_of_all_values_together(
    network_of: Callable[..., Network], counts: list[int], seed: int, scale: float
) -> None:
    plan = network_of("plain").plan
    rng = np.random.default_rng(seed)
    # Each device's images differ from the others' in their mean, as non-iid shards do.
    parts = [rng.normal(scale * rng.normal(), scale, size=(count, 4, 36)) for count in counts]
    pooled = pool_statistics(plan, [(len(part), measured(part)) for part in parts])
    expected = measured(np.concatenate(parts))
    for name, tensor in expected.items():
        np.testing.assert_allclose(pooled[name], tensor, rtol=1e-4, atol=1e-5 * scale)
        assert pooled[name].dtype == np.float32


def test_a_batch_norm_over_features_sees_one_value_per_image(network_of: Callable[..., Network]) -> None:
    plan = network_of("linear").plan
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(count, 5)) for count in (3, 7)]
    told = [
        (
            len(part),
            {
                "bn.running_mean": part.mean(axis=0).astype(np.float32),
                "bn.running_var": part.var(axis=0, ddof=1).astype(np.float32),
            },
        )
        for part in parts
    ]
    together = np.concatenate(parts)
    pooled = pool_statistics(plan, told)
    np.testing.assert_allclose(pooled["bn.running_mean"], together.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pooled["bn.running_var"], together.var(axis=0, ddof=1), rtol=1e-5)


def test_who_measured_nothing_counts_for_nothing(network_of: Callable[..., Network]) -> None:
    plan = network_of("plain").plan
    told = measured(np.random.default_rng(0).normal(size=(4, 4, 36)))
    assert pool_statistics(plan, []) == {}
    assert pool_statistics(plan, [(0, {})]) == {}
    alone, beside = pool_statistics(plan, [(4, told)]), pool_statistics(plan, [(0, {}), (4, told)])
    for name, tensor in alone.items():
        np.testing.assert_array_equal(tensor, beside[name])
        np.testing.assert_allclose(tensor, told[name], rtol=1e-6)


def test_pooling_stays_finite_whatever_devices_claim(network_of: Callable[..., Network]) -> None:
    network = network_of("plain")
    largest = np.float32(3e38)
    told = [
        (2, {"bn1.running_mean": np.full(4, sign * largest, np.float32), "bn1.running_var": np.full(4, largest)})
        for sign in (1, -1)
    ]
    with_statistics(network, pool_statistics(network.plan, told))  # a network refuses what is not finite


def test_statistics_of_calibration_images_are_those_of_all_of_them(
    network_of: Callable[..., Network], images_of: Callable[..., Dataset]
) -> None:
    network, images = network_of("plain"), images_of(100)  # no multiple of the batch
    found = measure_statistics(network, images, threads=1)
    # The first batch norm sees values that do not depend on how the images are cut into batches.
    one_batch = Engine(network).measure_statistics([images.images])
    for name, tensor in one_batch.items():
        np.testing.assert_allclose(found[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", [2, 63, 64, 65, 129])
def test_any_number_of_calibration_images_can_be_measured_on(
    network_of: Callable[..., Network], images_of: Callable[..., Any], count: int
) -> None:
    found = measure_statistics(network_of("linear"), images_of(count), threads=1)
    assert all(np.isfinite(tensor).all() for tensor in found.values())

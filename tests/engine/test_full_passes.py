"""Passes over the full network: predictions from running statistics, and measuring those statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from distreal_edge import Engine, Network, Plan, PlanBuilder
from distreal_edge.engine import engine as engine_module
from distreal_edge.errors import DataError


def test_predictions_are_those_of_the_module_in_eval_mode(
    backend: str, every_operation: Plan, shuffled: Any, plan_module: Any, draw_batch: Any
) -> None:
    network: Network = shuffled(every_operation, 1)
    images, _ = draw_batch(every_operation, 7, 1)
    with torch.no_grad():
        expected = plan_module(network, torch.float32).eval()(torch.from_numpy(images)).numpy()
    scores = Engine(network, backend).predict(images)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_predictions_do_not_depend_on_how_many_images_go_together(
    backend: str, every_operation: Plan, shuffled: Any, draw_batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(shuffled(every_operation, 1), backend)
    images, _ = draw_batch(every_operation, 11, 1)
    together = engine.predict(images)
    monkeypatch.setattr(engine_module, "_MAXIMUM_PREDICTED_AT_ONCE", 4)
    np.testing.assert_allclose(engine.predict(images), together, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(engine_module, "_MAXIMUM_VALUE_ELEMENTS", 1)  # even an image that is too large is one image
    np.testing.assert_allclose(engine.predict(images), together, rtol=1e-5, atol=1e-6)


def test_predicting_changes_nothing(backend: str, every_operation: Plan, shuffled: Any, draw_batch: Any) -> None:
    network: Network = shuffled(every_operation, 2)
    engine = Engine(network, backend)
    images, _ = draw_batch(every_operation, 3, 0)
    np.testing.assert_array_equal(engine.predict(images), engine.predict(images))
    for name, tensor in network.weights.items():
        np.testing.assert_array_equal(engine.weights[name], tensor)


def _batch_norms(module: Any) -> dict[str, nn.Module]:
    return {
        key.replace("/", "."): layer
        for key, layer in module.layers.items()
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))
    }


def _training_module(network: Network, plan_module: Any) -> Any:
    module = plan_module(network).train()
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.eval()
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.reset_running_stats()
            layer.momentum = None  # PyTorch's cumulative average
    return module


def test_statistics_of_one_batch_are_pytorchs(
    backend: str, every_operation: Plan, shuffled: Any, plan_module: Any, draw_batch: Any
) -> None:
    network: Network = shuffled(every_operation, 3)
    images, _ = draw_batch(every_operation, 6, 3)
    statistics = Engine(network, backend).measure_statistics([images])
    module = _training_module(network, plan_module)
    module(torch.from_numpy(images).double())
    assert set(statistics) == set(every_operation.statistics)
    for name, layer in _batch_norms(module).items():
        for which in ("running_mean", "running_var"):
            measured = statistics[f"{name}.{which}"]
            assert measured.dtype == np.float32
            np.testing.assert_allclose(measured, getattr(layer, which).numpy(), rtol=1e-4, atol=1e-5)


def test_statistics_of_several_batches_are_those_of_all_images_together(
    backend: str, every_operation: Plan, shuffled: Any, plan_module: Any, draw_batch: Any
) -> None:
    network: Network = shuffled(every_operation, 4)
    batches = [draw_batch(every_operation, count, count)[0] * np.float32(count / 4) for count in (2, 6, 4)]
    seen: dict[str, list[torch.Tensor]] = {}
    module = _training_module(network, plan_module)
    for name, layer in _batch_norms(module).items():
        layer.register_forward_pre_hook(
            lambda _, args, name=name: seen.setdefault(name, []).append(args[0].detach().transpose(0, 1).flatten(1))
        )
    for batch in batches:
        module(torch.from_numpy(batch).double())
    statistics = Engine(network, backend).measure_statistics(iter(batches))
    assert len(seen) == 3
    for name, values in seen.items():
        together = torch.cat(values, dim=1)  # C, everything
        np.testing.assert_allclose(statistics[f"{name}.running_mean"], together.mean(1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            statistics[f"{name}.running_var"], together.var(1, correction=1), rtol=1e-4, atol=1e-5
        )


def test_measuring_statistics_changes_nothing_in_the_engine(
    backend: str, every_operation: Plan, shuffled: Any, draw_batch: Any
) -> None:
    network: Network = shuffled(every_operation, 5)
    measured, untouched = Engine(network, backend, seed=9), Engine(network, backend, seed=9)
    images, labels = draw_batch(every_operation, 4, 5)
    measured.measure_statistics([images])
    for name, tensor in network.weights.items():
        np.testing.assert_array_equal(measured.weights[name], tensor)
    subset = network.draw([0.3] * len(network.groups), np.random.default_rng(0))
    # Element-wise dropout and augmentation go on where they were, too.
    assert measured.step(images, labels, subset, lr=0.1) == untouched.step(images, labels, subset, lr=0.1)


def test_statistics_written_into_the_engine_are_used(
    backend: str, every_operation: Plan, shuffled: Any, draw_batch: Any
) -> None:
    engine = Engine(shuffled(every_operation, 6), backend)
    images, _ = draw_batch(every_operation, 40, 6)
    before = engine.predict(images)
    for name, tensor in engine.measure_statistics([images]).items():
        engine.weights[name][...] = tensor
    assert not np.allclose(before, engine.predict(images), rtol=1e-2)


def test_a_network_without_batch_norm_has_no_statistics(backend: str) -> None:
    b = PlanBuilder((1, 2, 2))
    plan = b.finish(b.linear("fc", b.flatten(b.input), 2))
    assert Engine(Network.initialise(plan), backend).measure_statistics([np.zeros((1, 1, 2, 2), np.float32)]) == {}


def test_measuring_statistics_on_nothing_is_an_error(backend: str, every_operation: Plan, shuffled: Any) -> None:
    with pytest.raises(DataError, match="at least one batch"):
        Engine(shuffled(every_operation, 0), backend).measure_statistics([])

"""What an engine owns, what it shares, and which backends there are."""

from __future__ import annotations

import gc
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from distreal_edge import Engine, Network, Plan, Subset, _native, zoo
from distreal_edge.errors import ConfigError


@pytest.fixture
def network(every_operation: Plan, shuffled: Any) -> Network:
    made: Network = shuffled(every_operation, 0)
    return made


def _losses(engine: Engine, network: Network, draw_batch: Any, steps: int, first_seed: int = 0) -> list[float]:
    losses = []
    for seed in range(first_seed, first_seed + steps):
        images, labels = draw_batch(network.plan, 4, seed)
        subset = network.draw([0.4] * len(network.groups), np.random.default_rng(seed), "random")
        losses.append(engine.step(images, labels, subset, lr=0.1))
    return losses


def test_the_network_that_an_engine_was_made_from_stays_as_it_was(
    backend: str, network: Network, draw_batch: Any
) -> None:
    before = {name: tensor.tobytes() for name, tensor in network.weights.items()}
    _losses(Engine(network, backend), network, draw_batch, 3)
    assert {name: tensor.tobytes() for name, tensor in network.weights.items()} == before


def test_a_network_read_from_a_file_can_be_trained(backend: str, network: Network, draw_batch: Any) -> None:
    # Arrays that were read from bytes may be read-only.
    again = Network.from_bytes(network.to_bytes())
    expected = _losses(Engine(network, backend), network, draw_batch, 2)
    assert _losses(Engine(again, backend), again, draw_batch, 2) == expected


def test_two_engines_do_not_disturb_each_other(backend: str, network: Network, draw_batch: Any) -> None:
    alone = _losses(Engine(network, backend, seed=1), network, draw_batch, 6)
    one, other = Engine(network, backend, seed=1), Engine(network, backend, seed=2)
    mixed = []
    for seed in range(6):
        mixed += _losses(one, network, draw_batch, 1, seed)
        _losses(other, network, draw_batch, 1, 100 + seed)
    assert mixed == alone


def test_weights_are_a_live_view(backend: str, network: Network, draw_batch: Any) -> None:
    engine = Engine(network, backend)
    held = engine.weights["stem.weight"]
    before = held.copy()
    _losses(engine, network, draw_batch, 1)
    assert not np.array_equal(held, before)
    assert held is engine.weights["stem.weight"]
    with pytest.raises(TypeError):
        engine.weights["stem.weight"] = before  # type: ignore[index]


def test_an_engine_goes_on_from_weights_that_are_written_into_it(
    backend: str, network: Network, draw_batch: Any
) -> None:
    engine, fresh = Engine(network, backend), Engine(network, backend)
    _losses(engine, network, draw_batch, 3)
    assert any(np.any(momentum != 0) for momentum in engine._backend.momentum.values())
    for name, tensor in network.weights.items():
        engine.weights[name][...] = tensor
    engine.reset_momentum()
    fresh._rng = engine._rng = np.random.default_rng(0)
    ours = _losses(engine, network, draw_batch, 3)
    fresh._rng = np.random.default_rng(0)
    assert ours == _losses(fresh, network, draw_batch, 3)


def test_momentum_goes_on_from_step_to_step_until_it_is_reset(backend: str, network: Network, draw_batch: Any) -> None:
    images, labels = draw_batch(network.plan, 4, 0)
    everything = Subset.full(network.plan.sizes)
    weight = {}
    for momentum in (0.0, 0.9):
        engine = Engine(network, backend)
        for _ in range(2):
            engine.step(images, labels, everything, lr=0.01, momentum=momentum)
        weight[momentum] = engine.weights["stem.weight"].copy()
    assert not np.array_equal(weight[0.0], weight[0.9])


def test_pytorchs_memory_does_not_grow_from_step_to_step(network: Network, draw_batch: Any) -> None:
    engine = Engine(network, "reference")

    def tensors() -> int:
        gc.collect()
        return sum(type(thing) is torch.Tensor for thing in gc.get_objects())

    _losses(engine, network, draw_batch, 2)
    before = tensors()
    _losses(engine, network, draw_batch, 8)
    assert tensors() == before


def test_a_step_works_where_somebody_has_switched_gradients_off(network: Network, draw_batch: Any) -> None:
    expected = _losses(Engine(network, "reference"), network, draw_batch, 2)
    with torch.no_grad():
        assert _losses(Engine(network, "reference"), network, draw_batch, 2) == expected


def test_the_number_of_threads_of_the_reference_is_pytorchs(network: Network, draw_batch: Any) -> None:
    images, labels = draw_batch(network.plan, 4, 0)
    engine = Engine(network, "reference")
    try:
        engine.step(images, labels, Subset.full(network.plan.sizes), lr=0.1, threads=2)
        assert torch.get_num_threads() == 2
        engine.predict(images)
        assert torch.get_num_threads() == 1
        engine.measure_statistics([images], threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_the_native_backend_names_its_instruction_set(network: Network) -> None:
    assert Engine(network, "native").instruction_set == _native.instruction_set()
    assert Engine(network, "reference").instruction_set is None


def test_an_unknown_backend_names_those_there_are(network: Network) -> None:
    with pytest.raises(ConfigError, match="unknown backend 'tpu'; choose one of native, reference"):
        Engine(network, "tpu")


def test_without_pytorch_only_the_reference_backend_is_missing(
    network: Network, draw_batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "distreal_edge.network.reference", raising=False)
    assert len(_losses(Engine(network, "native"), network, draw_batch, 1)) == 1
    with pytest.raises(ConfigError, match=r"pip install 'distreal-edge\[torch\]'"):
        Engine(network, "reference")


def test_importing_the_package_does_not_import_pytorch() -> None:
    code = "import sys, distreal_edge; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_a_diverging_step_says_so_by_its_loss(backend: str, draw_batch: Any) -> None:
    network = zoo.femnist_cnn(image_size=8)
    engine = Engine(network, backend)
    images, labels = draw_batch(network.plan, 4, 0)
    everything = Subset.full(network.plan.sizes)
    losses = [engine.step(images, labels, everything, lr=1e6) for _ in range(20)]
    assert not np.isfinite(losses[-1])

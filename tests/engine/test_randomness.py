"""Normalisation, augmentation and element-wise dropout: from one seed, in the documented order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from distreal_edge import Engine, Network, Plan, PlanBuilder, Preprocessing
from distreal_edge.network.reference import ReferenceExecutor

MEAN, STD = (0.3, 0.5), (0.2, 0.4)


def _plan(preprocessing: Preprocessing | None = None, *, p: float = 0.4) -> Plan:
    b = PlanBuilder((2, 5, 4))
    x = b.dropout(b.relu(b.conv2d("conv", b.input, 6, kernel=3)), p)
    x = b.dropout(b.flatten(x), p / 2)
    return b.finish(b.linear("fc", x, 3), preprocessing=preprocessing)


def _bytes_batch() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (6, 2, 5, 4)).astype(np.uint8), rng.integers(0, 3, 6)


def _half(network: Network) -> Any:
    return network.draw([0.5], np.random.default_rng(1), "random")


def test_bytes_are_images_between_zero_and_one(backend: str) -> None:
    network = Network.initialise(_plan(Preprocessing(mean=MEAN, std=STD)))
    images, labels = _bytes_batch()
    fractions = images.astype(np.float32) / np.float32(255)
    of_bytes, of_fractions = Engine(network, backend), Engine(network, backend)
    for _ in range(3):
        loss = of_bytes.step(images, labels, _half(network), lr=0.1)
        assert loss == of_fractions.step(fractions, labels, _half(network), lr=0.1)
    np.testing.assert_array_equal(of_bytes.predict(images), of_fractions.predict(fractions))


def test_images_are_normalised_by_channel(backend: str) -> None:
    images, labels = _bytes_batch()
    network = Network.initialise(_plan(Preprocessing(mean=MEAN, std=STD)))
    plain = Network(_plan(), network.weights)
    by_hand = (images / 255.0 - np.reshape(MEAN, (2, 1, 1))) / np.reshape(STD, (2, 1, 1))
    ready = by_hand.astype(np.float32)
    np.testing.assert_allclose(
        Engine(network, backend).predict(images), Engine(plain, backend).predict(ready), rtol=1e-4, atol=1e-6
    )
    loss = Engine(network, backend).step(images, labels, _half(network), lr=0.1)
    assert loss == pytest.approx(Engine(plain, backend).step(ready, labels, _half(network), lr=0.1), rel=1e-5)


def test_memory_layout_does_not_matter(backend: str) -> None:
    images, labels = _bytes_batch()
    network = Network.initialise(_plan(Preprocessing(mean=MEAN, std=STD)))
    expected = Engine(network, backend).step(images, labels, _half(network), lr=0.1)
    last = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    mirrored = images[:, :, ::-1, ::-1].copy()[:, :, ::-1, ::-1]
    read_only = images.copy()
    read_only.flags.writeable = False
    every_other = np.repeat(images, 2, axis=0)[::2]
    for same in (last, mirrored, read_only, every_other):
        assert Engine(network, backend).step(same, labels, _half(network), lr=0.1) == expected
    frozen = labels.copy()
    frozen.flags.writeable = False
    for same in (np.repeat(labels, 2)[::2], labels[::-1].copy()[::-1], frozen):
        assert Engine(network, backend).step(images, same, _half(network), lr=0.1) == expected


def test_the_seed_decides_all_random_draws(backend: str) -> None:
    network = Network.initialise(_plan(Preprocessing(crop_padding=2, horizontal_flip=True)))
    images, labels = _bytes_batch()

    def losses(seed: int | tuple[int, ...]) -> list[float]:
        engine = Engine(network, backend, seed=seed)
        return [engine.step(images, labels, _half(network), lr=0.05) for _ in range(4)]

    assert losses(3) == losses(3)
    assert losses((3, 1)) == losses((3, 1))
    assert len({tuple(losses(3)), tuple(losses(4)), tuple(losses((3, 1))), tuple(losses((3, 2)))}) == 4


def test_draws_are_made_in_the_documented_order(backend: str) -> None:
    # Written from docs/engine.md alone, as another engine would be.
    network = Network.initialise(_plan(Preprocessing(crop_padding=2, horizontal_flip=True)), seed=1)
    images, labels = _bytes_batch()
    subset = _half(network)
    engine = Engine(network, backend, seed=11)
    rng = np.random.default_rng(11)
    kept = subset.survivors[0]
    features = np.concatenate([np.arange(6 * channel, 6 * channel + 6) for channel in kept])  # maps of 3x2
    tensors = {name: torch.from_numpy(tensor.copy()).double() for name, tensor in network.weights.items()}
    for _ in range(3):
        corners = rng.integers(0, 4, size=(6, 2), endpoint=True)
        flips = rng.integers(0, 1, size=6, endpoint=True)
        batch = np.zeros((6, 2, 5, 4))
        for index, image in enumerate(images):
            dark = np.zeros((2, 9, 8))
            dark[:, 2:7, 2:6] = image / 255.0
            top, left = corners[index]
            batch[index] = dark[:, top : top + 5, left : left + 4][..., :: -1 if flips[index] else 1]
        x = functional.conv2d(torch.from_numpy(batch), tensors["conv.weight"][kept], tensors["conv.bias"][kept]).relu()
        x = x * torch.from_numpy(rng.random((6, 3, 3, 2), dtype=np.float32) >= np.float32(0.4)) / 0.6
        x = x.flatten(1)
        x = x * torch.from_numpy(rng.random((6, 18), dtype=np.float32) >= np.float32(0.2)) / 0.8
        scores = functional.linear(x * 2, tensors["fc.weight"][:, features], tensors["fc.bias"])  # 6 / 3 are kept
        expected = functional.cross_entropy(scores, torch.from_numpy(labels)).item()
        assert engine.step(images, labels, subset, lr=0.0) == pytest.approx(expected, rel=1e-5)


def test_element_dropout_of_rate_zero_draws_all_the_same() -> None:
    network = Network.initialise(_plan(p=0.0))
    images, labels = _bytes_batch()
    executor = ReferenceExecutor(network.plan, network.weights, torch.float64)
    rng, expected = np.random.default_rng(0), np.random.default_rng(0)
    executor.step(images.astype(np.float32), labels, _half(network), 0.1, 0.9, 0.0, rng)
    expected.random((6, 3, 3, 2), dtype=np.float32)
    expected.random((6, 18), dtype=np.float32)
    assert rng.bit_generator.state == expected.bit_generator.state


def test_predictions_are_neither_augmented_nor_thinned(backend: str) -> None:
    network = Network.initialise(_plan(Preprocessing(crop_padding=2, horizontal_flip=True)))
    plain = Network(_plan(p=0.0), network.weights)
    images, _ = _bytes_batch()
    np.testing.assert_array_equal(Engine(network, backend).predict(images), Engine(plain, backend).predict(images))

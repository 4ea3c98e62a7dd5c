"""Damaged and hostile updates: the answer is an update or a ProtocolError, soon and in little memory."""

from __future__ import annotations

import time
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest

from distreal_edge.device import Update, UpdateHeader, decode_update, encode_update
from distreal_edge.errors import ProtocolError

if TYPE_CHECKING:
    from distreal_edge.network import Plan

ROUNDS = 3000
REASONS = {"form", "shape", "type", "finite", "samples", "size", "digest", "untrained"}


@pytest.fixture(scope="module")
def sound(plan: Plan) -> bytes:
    rng = np.random.default_rng(1)
    header = UpdateHeader(
        uid="u1", device="pi", round=3, model="a" * 64, images=24, mini_batches=3, loss=0.5, statistics_images=8
    )
    changes = {
        name: rng.standard_normal(parameter.shape).astype(np.float32) for name, parameter in plan.parameters.items()
    }
    statistics = {name: rng.random(shape).astype(np.float32) for name, shape in plan.statistics.items()}
    kept = np.ones((3, plan.filters + 1), np.bool_)
    return encode_update(Update(header, changes, statistics, kept, np.array([8, 8, 8])))


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip, cut, insert, repeat or swap; mostly in the header, where there is something to understand."""
    spoilt = bytearray(data)
    header = 8 + int.from_bytes(data[:8], "little")
    for _ in range(int(rng.integers(1, 4))):
        end = len(spoilt) if rng.random() < 0.2 else min(header, len(spoilt))
        place = int(rng.integers(0, max(1, end)))
        length = int(rng.integers(1, 9))
        match rng.integers(6):
            case 0:
                spoilt[place] ^= 1 << int(rng.integers(8))
            case 1:
                spoilt[place : place + length] = b""
            case 2:
                spoilt[place:place] = rng.bytes(length)
            case 3:
                spoilt[place:place] = spoilt[place : place + length]
            case 4:
                # one digit for another keeps the header's form and changes what it says
                digits = [at for at in range(8, min(header, len(spoilt))) if chr(spoilt[at]).isdigit()]
                if digits:
                    spoilt[digits[int(rng.integers(len(digits)))]] = ord("0") + int(rng.integers(10))
            case _:
                del spoilt[place:]
        if not spoilt:
            break
    return bytes(spoilt)


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_update_is_refused_or_read_and_nothing_else(plan: Plan, sound: bytes, seed: int) -> None:
    rng = np.random.default_rng(seed)
    refusals: list[str] = []
    slowest_s = 0.0
    tracemalloc.start()
    for _ in range(ROUNDS // 4):
        data = damage(sound, rng)
        began_s = time.thread_time()
        try:
            update = decode_update(data, plan)
        except ProtocolError as error:
            refusals.append(str(error).partition(":")[0])
        else:
            assert all(np.isfinite(change).all() for change in update.changes.values())
            assert int(update.kept_images.sum()) == update.header.images
        slowest_s = max(slowest_s, time.thread_time() - began_s)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(refusals) > 0.8 * ROUNDS // 4
    assert set(refusals) <= REASONS
    assert slowest_s < 0.5
    assert peak_bytes < 20 * len(sound) + 2**20

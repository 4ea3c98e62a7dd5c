"""A tiny network with its table and images, manifests, and a board in virtual time."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from distreal_edge.data import Dataset
from distreal_edge.device import Availability, Ran, Trace
from distreal_edge.dropout import Profile, Row, Table
from distreal_edge.dropout.profile import ProfiledMachine, ProfiledRow, ProfiledStep
from distreal_edge.network import Network, PlanBuilder
from distreal_edge.search import uniform_table
from distreal_edge.transport import BlobReference, Manifest, Training, chunk_count

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from distreal_edge.network import Plan


class VirtualBoard:
    """A board whose time passes only when it runs or waits.

    Its cores follow `trace`; work takes as many core-seconds as `cost(work's number)` says once it is done.
    """

    emulated = True

    def __init__(self, trace: Trace, cost: Callable[[int], float], memory_bytes: float | None = None) -> None:
        self.time_s = 1000.0
        self.start_s = 1000.0
        self.trace = trace
        self.cost = cost
        self.memory_bytes = memory_bytes
        self.threads: list[int] = []

    def now(self) -> float:
        return self.time_s

    def availability(self) -> Availability:
        return Availability(self.trace.at(self.time_s - self.start_s), self.memory_bytes)

    def run(self, work: Callable[[int], float], threads: int, macs: int = 0) -> Ran:
        result = work(threads)
        core_seconds = self.cost(len(self.threads))
        self.threads.append(threads)
        began = self.time_s - self.start_s
        return Ran(result, self.trace.finish(began, core_seconds, threads) - began, core_seconds)

    def wait_until(self, time_s: float, stopped: Callable[[], bool]) -> None:
        self.time_s = max(self.time_s, time_s)

    def call_at(self, time_s: float, action: Callable[[], object]) -> AbstractContextManager[None]:
        return nullcontext()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Compute with one thread: the tensors are tiny."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def virtual_board() -> type[VirtualBoard]:
    return VirtualBoard


@pytest.fixture(scope="session")
def constant_cores() -> Callable[[float], Trace]:
    return lambda cores: Trace((0.0,), (cores,))


@pytest.fixture(scope="session")
def plan() -> Plan:
    b = PlanBuilder((1, 8, 8))
    x = b.relu(b.batch_norm("bn1", b.conv2d("conv1", b.input, 8, kernel=3, padding=1, bias=False)))
    x = b.relu(b.batch_norm("bn2", b.conv2d("conv2", x, 12, kernel=3, stride=2, padding=1, bias=False)))
    return b.finish(b.linear("head", b.flatten(b.global_avg_pool(x)), 3))


@pytest.fixture(scope="session")
def network(plan: Plan) -> Network:
    return Network.initialise(plan, seed=3)


@pytest.fixture(scope="session")
def table(network: Network) -> Table:
    return uniform_table(network, batch=8, rows=4, cheapest=0.1)


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    """Return 40 images of three classes that differ in brightness."""
    rng = np.random.default_rng(7)
    labels = np.arange(40, dtype=np.int64) % 3
    images = rng.integers(0, 80, (40, 1, 8, 8)) + 80 * labels[:, None, None, None]
    return Dataset(images.astype(np.uint8), labels, 3, name="bright")


@pytest.fixture(scope="session")
def row_table() -> Callable[..., Table]:
    """Make a table from MACs alone; memory in bytes is the MACs, and the score is the MACs' share, unless given."""

    def make(macs: list[int], *, peak_bytes: list[int] | None = None, batch: int = 1) -> Table:
        memory = macs if peak_bytes is None else peak_bytes
        rows = tuple(
            Row((0.0,) if number == len(macs) - 1 else (0.5,), each, memory[number], each / macs[-1])
            for number, each in enumerate(macs)
        )
        return Table(1, "0" * 64, (8,), "ordered", "any", "by hand", batch, rows)

    return make


@pytest.fixture(scope="session")
def profile_of() -> Callable[..., Profile]:
    """Make a profile of a table from the seconds of each row, by the number of threads."""

    def make(table: Table, seconds: dict[int, list[float]]) -> Profile:
        return Profile(
            schema=1,
            network=table.network,
            table=table.digest,
            draw=table.draw,
            batch=table.batch,
            instruction_set="plain",
            machine=ProfiledMachine("a board", 4, None, None, None, 0.0, 0.0),
            disturbed=(),
            threads=tuple(seconds),
            rows=tuple(
                ProfiledRow(
                    row.vector,
                    row.macs,
                    tuple(ProfiledStep(own[number], own[number], 0.0, 5, row.peak_bytes) for own in seconds.values()),
                )
                for number, row in enumerate(table.rows)
            ),
        )

    return make


@pytest.fixture(scope="session")
def make_manifest() -> Callable[..., Manifest]:
    """Make a manifest for device `pi`; `model` and `table` are bytes, `training` overrides single settings."""

    def make(
        number: int = 1,
        *,
        model: bytes = b"model",
        table: bytes = b"table",
        training: dict[str, Any] | None = None,
        **overrides: Any,
    ) -> Manifest:
        settings: dict[str, Any] = {
            "batch": 8,
            "lr": 0.05,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "epochs": 1.0,
            "most_epochs": 2.0,
            "statistics_images": 0,
        }
        fields: dict[str, Any] = {
            "number": number,
            "model": _reference(model),
            "table": _reference(table),
            "ceiling": 1.0,
            "deadline_s": 1200.0,
            "train_until_s": 1100.0,
            "selected": ("pi",),
            "seed": 5,
            "draw": "ordered",
            "training": Training(**settings | (training or {})),
        }
        return Manifest(**fields | overrides)

    return make


def _reference(blob: bytes) -> BlobReference:
    return BlobReference(hashlib.sha256(blob).hexdigest(), len(blob), chunk_count(len(blob)))

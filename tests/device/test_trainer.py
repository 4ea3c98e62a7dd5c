from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from distreal_edge import Engine
from distreal_edge.data import Batches
from distreal_edge.device import (
    MiniBatch,
    Monitor,
    RealBoard,
    Speed,
    Trace,
    TraceBoard,
    Update,
    decode_update,
    encode_update,
    measure_speed,
    measuring,
    train_round,
    trainer,
)
from distreal_edge.device import survivors as survivors_module
from distreal_edge.dropout import DRAW_POLICIES, filter_counts
from distreal_edge.engine import Cancellation

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from distreal_edge.data import Dataset
    from distreal_edge.device import Ran
    from distreal_edge.dropout import Subset, Table
    from distreal_edge.network import Network
    from distreal_edge.transport import Manifest

PER_MAC = 4e-6
"""The full network takes 1.6 s for a mini-batch of 8 images on one core of the virtual board."""


@dataclass
class Outcome:
    update: Update
    steps: list[MiniBatch]
    subsets: list[Subset]
    images: list[NDArray[np.uint8]]
    board: Any

    @property
    def rows(self) -> list[int]:
        return [step.row for step in self.steps]


@pytest.fixture
def train(
    network: Network,
    table: Table,
    dataset: Dataset,
    make_manifest: Callable[..., Manifest],
    virtual_board: type[Any],
    constant_cores: Callable[[float], Trace],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Outcome]:
    """Train a round in virtual time: a mini-batch takes the MACs of its very subset, times PER_MAC, in core-seconds."""

    def run(
        *,
        trace: Trace | None = None,
        images: Dataset = dataset,
        stopped: Callable[[list[MiniBatch]], bool] = lambda _: False,
        device: str = "pi",
        memory_bytes: float | None = None,
        losses: Callable[[int], float | None] = lambda _: None,
        **manifest: Any,
    ) -> Outcome:
        steps: list[MiniBatch] = []
        subsets: list[Subset] = []
        batches: list[NDArray[np.uint8]] = []

        class Watched(Engine):
            def step(self, images: Any, labels: Any, subset: Subset, **settings: Any) -> float:
                subsets.append(subset)
                batches.append(images)
                loss = super().step(images, labels, subset, **settings)
                told = losses(len(subsets))
                return loss if told is None else told

        monkeypatch.setattr(trainer, "Engine", Watched)
        board = virtual_board(constant_cores(1.0) if trace is None else trace, None, memory_bytes)
        board.cost = lambda _: network.cost(subsets[-1]).macs * len(batches[-1]) * PER_MAC if subsets else 0.0
        update = train_round(
            manifest=make_manifest(**manifest),
            network=network,
            table=table,
            dataset=images,
            device=device,
            uid="u1",
            board=board,
            speed=Speed(table, {0: table.rows[0].macs * PER_MAC}),
            stopped=lambda: stopped(steps),
            report=steps.append,
        )
        return Outcome(update, steps, subsets, batches, board)

    return run


def trained_elements(network: Network, subsets: list[Subset]) -> dict[str, NDArray[np.bool_]]:
    """Which elements of conv1, bn1, conv2, bn2 and head were in any of the subsets: written down by hand."""
    touched = {name: np.zeros(parameter.shape, np.bool_) for name, parameter in network.plan.parameters.items()}
    for subset in subsets:
        first, second = subset.survivors
        touched["conv1.weight"][first] = True
        touched["conv2.weight"][np.ix_(second, first)] = True
        for name, group in (("bn1", first), ("bn2", second)):
            touched[f"{name}.weight"][group] = True
            touched[f"{name}.bias"][group] = True
        touched["head.weight"][:, second] = True
        touched["head.bias"][:] = True
    return touched


def test_a_round_without_hurry_trains_the_full_network_over_all_images(
    train: Callable[..., Outcome], dataset: Dataset, table: Table
) -> None:
    outcome = train()
    header = outcome.update.header
    assert outcome.rows == [len(table.rows) - 1] * 10  # 40 images, twice, 8 at a time
    assert (header.images, header.mini_batches, header.round) == (80, 10, 1)
    assert header.macs == 80 * table.rows[-1].macs
    assert header.loss == pytest.approx(sum(step.loss for step in outcome.steps) / 10)
    for epoch in (outcome.images[:5], outcome.images[5:]):
        seen = sorted(image.tobytes() for batch in epoch for image in batch)
        assert seen == sorted(image.tobytes() for image in dataset.images)


def test_rows_change_inside_a_round_when_cores_do(train: Callable[..., Outcome], table: Table) -> None:
    # Ten mini-batches in 40 s: the full network fits with one core, and hardly anything with a tenth of one.
    trace = Trace((0.0, 5.0, 30.0), (1.0, 0.1, 1.0))
    outcome = train(trace=trace, train_until_s=1040.0, training={"epochs": 2.0})
    rows = {cores: [step.row for step in outcome.steps if step.cores == cores] for cores in (1.0, 0.1)}
    assert max(rows[0.1]) < len(table.rows) - 1 == max(rows[1.0])
    changes = [
        (after.cores - before.cores, after.row - before.row)
        for before, after in zip(outcome.steps, outcome.steps[1:], strict=False)
        if after.cores != before.cores
    ]
    assert len(changes) == 2
    assert all(cores * row > 0 for cores, row in changes)  # the very next one
    assert outcome.board.now() <= 1040.0


def test_what_is_reported_is_what_was_run(train: Callable[..., Outcome], table: Table, network: Network) -> None:
    outcome = train(trace=Trace((0.0, 4.0), (2.0, 0.5)), train_until_s=1020.0)
    assert [step.mini_batch for step in outcome.steps] == list(range(1, len(outcome.steps) + 1))
    for step, subset in zip(outcome.steps, outcome.subsets, strict=True):
        assert subset.counts == filter_counts(table.rows[step.row].vector, network.plan.sizes)
        assert step.share == pytest.approx(table.rows[step.row].macs / table.rows[-1].macs)
        assert step.images == 8
        assert step.threads == max(1, round(step.cores))
    ends = [step.time_s + step.seconds for step in outcome.steps]
    assert [step.time_s for step in outcome.steps[1:]] == pytest.approx(ends[:-1])


@pytest.mark.parametrize("policy", DRAW_POLICIES)
def test_images_and_survivors_of_an_update_add_up(train: Callable[..., Outcome], network: Network, policy: str) -> None:
    outcome = train(trace=Trace((0.0, 5.0), (1.0, 0.2)), train_until_s=1015.0, draw=policy, ceiling=0.7)
    counted: dict[bytes, int] = {}
    for subset, batch in zip(outcome.subsets, outcome.images, strict=True):
        key = subset.mask(network.plan.sizes).tobytes()
        counted[key] = counted.get(key, 0) + len(batch)
    update = outcome.update
    told = {row.tobytes(): int(images) for row, images in zip(update.kept, update.kept_images, strict=True)}
    assert told == counted
    assert update.header.images == sum(counted.values())
    decode_update(encode_update(update), network.plan)


@pytest.mark.parametrize("policy", DRAW_POLICIES)
def test_changes_are_exactly_zero_outside_of_all_subsets_and_nowhere_inside(
    train: Callable[..., Outcome], network: Network, policy: str
) -> None:
    outcome = train(draw=policy, ceiling=0.3)
    touched = trained_elements(network, outcome.subsets)
    assert not all(part.all() for part in touched.values())
    for name, change in outcome.update.changes.items():
        assert not change[~touched[name]].any(), name
        assert np.mean(change[touched[name]] != 0.0) > 0.9, name


def test_a_changed_weight_is_the_trained_one_less_the_received_one(
    train: Callable[..., Outcome], network: Network, dataset: Dataset, make_manifest: Callable[..., Manifest]
) -> None:
    outcome = train(training={"epochs": 0.4, "most_epochs": 0.4})
    seed = trainer.round_seed(make_manifest(), "pi")
    engine, batches = Engine(network, seed=seed), Batches(dataset, 8, np.random.default_rng(seed))
    for subset in outcome.subsets:
        engine.step(*next(batches), subset, lr=0.05, momentum=0.9, weight_decay=5e-4)
    for name, change in outcome.update.changes.items():
        assert np.array_equal(change, engine.weights[name] - network.weights[name])


def test_the_network_that_was_received_is_left_as_it_is(train: Callable[..., Outcome], network: Network) -> None:
    before = {name: tensor.copy() for name, tensor in network.weights.items()}
    train(training={"statistics_images": 16})
    assert all(np.array_equal(network.weights[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("policy", DRAW_POLICIES)
def test_the_same_seeds_give_the_same_update_and_another_device_another(
    train: Callable[..., Outcome], policy: str
) -> None:
    first, again = train(draw=policy, ceiling=0.5), train(draw=policy, ceiling=0.5)
    assert encode_update(first.update) == encode_update(again.update)
    other = train(draw=policy, ceiling=0.5, device="pi-2")
    assert not np.array_equal(first.update.changes["conv1.weight"], other.update.changes["conv1.weight"])


def test_what_a_draw_keeps_depends_on_its_policy(train: Callable[..., Outcome]) -> None:
    def kept(policy: str, number: int = 1, device: str = "pi") -> list[tuple[int, ...]]:
        outcome = train(draw=policy, ceiling=0.3, number=number, device=device)
        assert len(set(outcome.rows)) == 1
        return [tuple(subset.survivors[1].tolist()) for subset in outcome.subsets]

    ordered, rolling, sticky, random = (kept(policy) for policy in ("ordered", "rolling", "sticky", "random"))
    assert len(set(ordered)) == len(set(rolling)) == len(set(sticky)) == 1
    assert ordered[0] == tuple(range(len(ordered[0])))
    assert len(set(random)) > 5
    assert kept("rolling", 2)[0] != rolling[0] == kept("rolling", 1, "pi-2")[0]
    assert len({sticky[0], *(kept("sticky", number, device)[0] for number in (1, 2) for device in ("a", "b"))}) > 2


def test_a_shard_smaller_than_a_batch_is_one_batch(train: Callable[..., Outcome], dataset: Dataset) -> None:
    outcome = train(images=dataset.take(range(5)), training={"epochs": 1.0, "most_epochs": 3.0})
    assert [step.images for step in outcome.steps] == [5, 5, 5]
    assert outcome.update.header.images == 15


def test_memory_that_is_short_keeps_wide_rows_away_at_the_rounds_batch(
    train: Callable[..., Outcome], table: Table, network: Network
) -> None:
    # Many more images, because the engine's vectors hold up to 16 of them, used or not.
    enough = float(network.cost(table.rows[1].vector, 32).peak_bytes)
    assert set(train(memory_bytes=enough, training={"batch": 32}).rows) == {1}
    # The table tells of batches of 8, which would be too good here.
    assert table.rows[2].peak_bytes < enough


# -- statistics ----------------------------------------------------------------------------------------------------


def test_a_round_that_only_measures_trains_nothing(train: Callable[..., Outcome], network: Network) -> None:
    outcome = train(measure_only=True, training={"statistics_images": 32})
    header = outcome.update.header
    assert (header.images, header.mini_batches, header.loss, header.statistics_images) == (0, 0, None, 32)
    assert outcome.steps == []
    assert not any(change.any() for change in outcome.update.changes.values())
    assert (
        decode_update(encode_update(outcome.update), network.plan).statistics.keys() == network.plan.statistics.keys()
    )


def test_statistics_are_what_the_engine_measures_on_the_received_model(
    train: Callable[..., Outcome], network: Network, dataset: Dataset
) -> None:
    # All 40 images are asked for; they are measured 32 at a time, and a part of a batch is left out.
    outcome = train(training={"statistics_images": 1000})
    assert outcome.update.header.statistics_images == 32
    chosen = np.random.default_rng((5, 1)).permutation(40)[:32]
    expected = Engine(network).measure_statistics([dataset.images[chosen]])
    assert outcome.update.statistics.keys() == expected.keys()
    for name, tensor in outcome.update.statistics.items():
        assert np.array_equal(tensor, expected[name])


@pytest.mark.parametrize("asked", [0, 1])
def test_statistics_that_would_say_nothing_are_not_measured(train: Callable[..., Outcome], asked: int) -> None:
    outcome = train(training={"statistics_images": asked})
    assert outcome.update.header.statistics_images == 0
    assert outcome.update.statistics == {}


def test_statistics_take_a_part_of_the_time_only(
    train: Callable[..., Outcome], dataset: Dataset, monkeypatch: pytest.MonkeyPatch, virtual_board: type[Any]
) -> None:
    monkeypatch.setattr(measuring, "_STATISTICS_BATCH", 4)
    looks = 0

    def slow_clock(board: Any) -> float:
        nonlocal looks
        looks += 1
        board.time_s += 10.0 if not board.threads else 0.0  # until the statistics are done
        return float(board.time_s)

    monkeypatch.setattr(virtual_board, "now", slow_clock)
    outcome = train(training={"statistics_images": 40})
    assert outcome.update.header.statistics_images == 12
    assert outcome.update.header.images > 0


# -- the end of a round ----------------------------------------------------------------------------------------------


def test_it_stops_after_the_mini_batch_at_hand(train: Callable[..., Outcome]) -> None:
    assert len(train(stopped=lambda steps: len(steps) == 3).steps) == 3


def test_a_board_that_loses_its_cores_for_good_still_returns_in_time(train: Callable[..., Outcome]) -> None:
    outcome = train(trace=Trace((0.0, 0.5), (1.0, 0.0)))
    assert outcome.update.header.mini_batches == 0
    assert outcome.board.now() == 1100.0
    assert outcome.steps == []
    assert not any(change.any() for change in outcome.update.changes.values())


def test_a_board_without_any_cores_returns_an_update_without_training(train: Callable[..., Outcome]) -> None:
    outcome = train(trace=Trace((0.0,), (0.0,)))
    assert outcome.update.header.images == 0
    assert outcome.board.now() == 1100.0


def test_a_board_waits_out_a_time_without_cores(train: Callable[..., Outcome]) -> None:
    outcome = train(trace=Trace((0.0, 3.0, 60.0), (1.0, 0.0, 1.0)))
    assert outcome.update.header.mini_batches == 10
    assert outcome.board.now() < 1080.0


def test_a_round_whose_time_is_over_already_trains_nothing(train: Callable[..., Outcome]) -> None:
    assert train(train_until_s=999.0).update.header.images == 0


def test_a_round_ends_when_an_update_can_tell_of_no_more_subsets(
    train: Callable[..., Outcome], network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survivors_module, "MAXIMUM_KINDS", 4)
    random = train(draw="random", ceiling=0.3)
    assert random.update.header.mini_batches == 4
    decode_update(encode_update(random.update), network.plan)
    assert train(draw="ordered", ceiling=0.3).update.header.mini_batches == 10


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_training_that_diverges_is_thrown_away_and_said_so(
    train: Callable[..., Outcome], network: Network, loss: float, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = train(losses=lambda number: loss if number == 3 else None, training={"statistics_images": 32})
    assert len(outcome.steps) == 3
    assert "diverged within 3 mini-batches" in caplog.text
    header = outcome.update.header
    assert (header.images, header.mini_batches, header.macs, header.loss) == (0, 0, 0, None)
    assert not any(change.any() for change in outcome.update.changes.values())
    # What was measured on the received model is as good as ever.
    got = decode_update(encode_update(outcome.update), network.plan)
    assert got.header.statistics_images == 32


def test_weights_that_overflow_with_the_last_step_do_not_get_out(
    train: Callable[..., Outcome], network: Network
) -> None:
    outcome = train(training={"lr": 1000.0, "weight_decay": 10.0, "epochs": 40.0, "most_epochs": 40.0})
    update = decode_update(encode_update(outcome.update), network.plan)
    assert update.header.images == 0


# -- speed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("until_s", "rows"), [(1000.0, (0, 3)), (999.0, (0,))])
def test_the_speed_is_measured_on_the_outermost_rows_without_the_slow_first_mini_batches(
    network: Network,
    table: Table,
    dataset: Dataset,
    virtual_board: type[Any],
    constant_cores: Callable[[float], Trace],
    until_s: float,
    rows: tuple[int, ...],
) -> None:
    seconds = [5.0, 0.25, 0.5, 9.0, 4.0, 2.0]
    board = virtual_board(constant_cores(0.0), seconds.__getitem__)
    measured = measure_speed(network, table, dataset, board, 8, until_s)
    assert measured == {row: pytest.approx(own / 8) for row, own in zip(rows, (0.25, 2.0), strict=False)}
    assert len(board.threads) == 3 * len(rows)
    assert board.now() == 1000.0  # even where no core is free nobody waits


def test_an_emulated_board_that_is_stopped_gives_up_waiting_at_once(
    network: Network, table: Table, dataset: Dataset, make_manifest: Callable[..., Manifest]
) -> None:
    now_s, stop = time.time(), threading.Event()
    board = TraceBoard(Trace((0.0,), (1e-6,)), core_speed=1e-3, stop=threading.Event())
    steps: list[MiniBatch] = []
    training = threading.Thread(
        target=train_round,
        kwargs={
            "manifest": make_manifest(train_until_s=now_s + 3600.0, deadline_s=now_s + 3600.0),
            "network": network,
            "table": table,
            "dataset": dataset,
            "device": "pi",
            "uid": "u1",
            "board": board,
            "speed": Speed(table, {0: table.rows[0].macs * PER_MAC}),
            "stopped": stop.is_set,
            "report": steps.append,
        },
    )
    training.start()
    training.join(1.0)
    assert training.is_alive()
    stop.set()
    training.join(10.0)
    assert not training.is_alive()
    assert steps == []


# -- a real board, whose mini-batches are cancelled --------------------------------------------------------------------


class HeldUp(RealBoard):
    """This machine; after a few mini-batches the next is held up before its work, until `go`."""

    def __init__(self, quick: int) -> None:
        super().__init__(Monitor())
        self.quick = quick
        self.held_up = threading.Event()
        self.go = threading.Event()

    def run(self, work: Callable[[int], float], threads: int, macs: int = 0) -> Ran:
        if self.quick == 0:
            self.held_up.set()
            self.go.wait(30.0)
        self.quick -= 1
        return super().run(work, threads, macs)


def changes_after(network: Network, table: Table, dataset: Dataset, manifest: Manifest, steps: int) -> dict[str, Any]:
    """Train so many mini-batches of the full network as the trainer draws them, and return what changed."""
    settings, seed = manifest.training, trainer.round_seed(manifest, "pi")
    engine = Engine(network, seed=seed)
    batches = Batches(dataset, settings.batch, np.random.default_rng(seed))
    subset = network.draw(table.rows[-1].vector, np.random.default_rng(0))
    for _ in range(steps):
        engine.step(
            *next(batches), subset, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    return {name: engine.weights[name] - network.weights[name] for name in network.plan.parameters}


@pytest.mark.parametrize("cancelled_by", ["the deadline", "somebody"])
def test_a_mini_batch_that_is_cancelled_leaves_what_was_trained_before_it(
    network: Network,
    table: Table,
    dataset: Dataset,
    make_manifest: Callable[..., Manifest],
    cancelled_by: str,
) -> None:
    board, cancellation = HeldUp(quick=2), Cancellation()
    now_s = time.time()
    lasts_s = 2.0 if cancelled_by == "the deadline" else 3600.0
    manifest = make_manifest(
        train_until_s=now_s + lasts_s, deadline_s=now_s + 3600.0, training={"epochs": 400.0, "most_epochs": 400.0}
    )
    found: list[Update] = []
    training = threading.Thread(
        target=lambda: found.append(
            train_round(
                manifest=manifest,
                network=network,
                table=table,
                dataset=dataset,
                device="pi",
                uid="u1",
                board=board,
                speed=Speed(table, {0: 1e-9, 3: 1e-8}),
                stopped=lambda: False,
                report=lambda _step: None,
                cancellation=cancellation,
            )
        )
    )
    training.start()
    assert board.held_up.wait(30.0)
    if cancelled_by == "somebody":
        cancellation.cancel()
    while not cancellation.cancelled:
        time.sleep(0.01)
    board.go.set()
    training.join(30.0)
    assert not training.is_alive()
    (update,) = found
    assert update.header.mini_batches == 2
    expected = changes_after(network, table, dataset, manifest, 2)
    # Sums of two threads are rounded in another order than those of one; a mini-batch more is a hundred times as much.
    for name, change in expected.items():
        np.testing.assert_allclose(update.changes[name], change, atol=1e-5)
    third = changes_after(network, table, dataset, manifest, 3)
    assert max(float(np.abs(third[name] - change).max()) for name, change in expected.items()) > 1e-3
    assert (time.time() >= now_s + lasts_s) == (cancelled_by == "the deadline")

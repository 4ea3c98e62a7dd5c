"""What rounding took from updates: sent later, exactly once, whatever is refused, skipped or cut off."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from distreal_edge.device import Spool, Update, UpdateHeader, decode_update
from distreal_edge.device import residuals as residuals_module
from distreal_edge.device.pieces import elements_of
from distreal_edge.device.residuals import Residuals
from distreal_edge.errors import FullDiskError, StateError
from distreal_edge.network import PlanBuilder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from distreal_edge.network import Plan

TASK = f"{1:010d}-{'a' * 16}"


class Cut(Exception):  # noqa: N818 - a power cut is no error of the program
    """The power is cut here."""


@pytest.fixture(scope="module")
def plan() -> Plan:
    b = PlanBuilder((1, 4, 4))
    value = b.relu(b.conv2d("conv", b.input, 6, kernel=3))
    return b.finish(b.linear("head", b.flatten(b.global_avg_pool(value)), 3))


@pytest.fixture
def make(plan: Plan) -> Callable[..., Update]:
    """Make an update by chance, of the whole network or of a part."""

    def update(seed: int, uid: str, number: int = 1, keep: float = 0.6, images: int = 8) -> Update:
        rng = np.random.default_rng(seed)
        kept = rng.random((1, plan.filters + 1)) < keep
        kept[:, -1] = True
        changes = {
            name: (rng.standard_normal(p.shape) * p.touched(kept[0])).astype(np.float32) * np.float32(images > 0)
            for name, p in plan.parameters.items()
        }
        header = UpdateHeader(
            uid=uid, device="pi", round=number, model="a" * 64, images=images, mini_batches=min(1, images)
        )
        return Update(header, changes, {}, kept[: min(1, images)], np.array([8][: min(1, images)]))

    return update


def in_a_row(update: Update) -> NDArray[np.float64]:
    return np.concatenate([change.reshape(-1) for change in update.changes.values()]).astype(np.float64)


def available(residuals: Residuals, plan: Plan) -> NDArray[np.float64]:
    return residuals._sum(residuals._state.available, elements_of(plan)).astype(np.float64)


@pytest.mark.parametrize("encoding", ["int8", "float16"])
def test_what_was_lost_is_sent_with_the_next_change_of_the_same_elements(
    plan: Plan, make: Callable[..., Update], tmp_path: Path, encoding: Any
) -> None:
    residuals = Residuals(tmp_path)
    first = make(1, "u1", keep=1.0)
    sent = decode_update(residuals.encode(first, plan, encoding, "none"), plan)
    lost = in_a_row(first) - in_a_row(sent)
    assert np.abs(lost).max() > 0
    residuals.stored("u1")
    residuals.settle("u1", counted=True)
    np.testing.assert_allclose(available(residuals, plan), lost, atol=1e-7)
    second = make(2, "u2", number=2, keep=0.5)
    again = decode_update(residuals.encode(second, plan, "float32", "none"), plan)
    trained = in_a_row(second) != 0
    np.testing.assert_allclose(in_a_row(again)[trained], (in_a_row(second) + lost)[trained], atol=1e-6)
    assert np.all(in_a_row(again)[~trained] == 0)
    residuals.settle("u2", counted=True)
    np.testing.assert_allclose(available(residuals, plan), np.where(trained, 0, lost), atol=1e-7)


def test_over_many_rounds_nothing_is_lost_but_one_rounding(
    plan: Plan, make: Callable[..., Update], tmp_path: Path
) -> None:
    residuals = Residuals(tmp_path)
    meant, arrived = np.zeros(elements_of(plan)), np.zeros(elements_of(plan))
    for number in range(1, 41):
        update = make(number, f"u{number}", number=number)
        meant += in_a_row(update)
        arrived += in_a_row(decode_update(residuals.encode(update, plan, "int8", "zstd"), plan))
        residuals.stored(f"u{number}")
        residuals.settle(f"u{number}", counted=True)
    step = 4 / 127
    assert np.abs(meant - arrived).max() < step
    np.testing.assert_allclose(arrived + available(residuals, plan), meant, atol=1e-4)


def test_a_refused_update_gives_back_what_it_took_and_leaves_nothing_of_its_own(
    plan: Plan, make: Callable[..., Update], tmp_path: Path
) -> None:
    residuals = Residuals(tmp_path)
    residuals.encode(make(1, "u1"), plan, "int8", "none")
    residuals.settle("u1", counted=True)
    before = available(residuals, plan)
    assert before.any()
    residuals.encode(make(2, "u2", number=2), plan, "int8", "none")
    assert not available(residuals, plan).any()  # held back while nobody knows
    residuals.settle("u2", counted=False)
    assert np.array_equal(available(residuals, plan), before)


def test_what_is_held_back_by_one_update_is_not_sent_with_another(
    plan: Plan, make: Callable[..., Update], tmp_path: Path
) -> None:
    residuals = Residuals(tmp_path)
    residuals.encode(make(1, "u1"), plan, "int8", "none")
    residuals.settle("u1", counted=True)
    residuals.encode(make(2, "u2", number=2), plan, "int8", "none")
    third = make(3, "u3", number=3)
    sent = decode_update(residuals.encode(third, plan, "float32", "none"), plan)
    assert np.array_equal(in_a_row(sent), in_a_row(third))


def test_an_update_that_gave_way_unanswered_is_counted_neither_way(
    plan: Plan, make: Callable[..., Update], tmp_path: Path
) -> None:
    residuals = Residuals(tmp_path)
    residuals.encode(make(1, "u1"), plan, "int8", "none")
    residuals.settle("u1", counted=None)
    assert not available(residuals, plan).any()
    residuals.settle("u1", counted=True)  # too late
    assert not available(residuals, plan).any()
    assert [path.name for path in tmp_path.iterdir()] == ["residuals.json"]


def test_without_rounding_nothing_is_written(plan: Plan, make: Callable[..., Update], tmp_path: Path) -> None:
    residuals = Residuals(tmp_path / "residuals")
    residuals.encode(make(1, "u1"), plan, "float32", "zstd")
    residuals.encode(make(1, "u2", images=0), plan, "int8", "none")
    residuals.stored("u1")
    residuals.settle("u1", counted=True)
    assert not (tmp_path / "residuals").exists()


def test_another_training_begins_with_nothing(plan: Plan, make: Callable[..., Update], tmp_path: Path) -> None:
    b = PlanBuilder((1, 4, 4))
    other = b.finish(b.linear("head", b.flatten(b.input), 3))
    for number, plan_of_next, forgotten in ((6, plan, False), (4, plan, True), (6, other, True)):
        residuals = Residuals(tmp_path / f"{number}-{forgotten}")
        residuals.encode(make(1, "u1", number=5), plan, "int8", "none")
        residuals.settle("u1", counted=True)
        found = residuals._available(plan_of_next, number)
        assert (found == ()) == forgotten


@pytest.mark.parametrize("damage", ["vector", "vector gone", "index"])
def test_what_is_damaged_is_told_and_left_out(
    plan: Plan, make: Callable[..., Update], tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    residuals = Residuals(tmp_path)
    residuals.encode(make(1, "u1"), plan, "int8", "none")
    residuals.settle("u1", counted=True)
    vector = tmp_path / "u1.residual"
    if damage == "vector":
        data = bytearray(vector.read_bytes())
        data[5] ^= 1
        vector.write_bytes(data)
    elif damage == "vector gone":
        vector.unlink()
    else:
        (tmp_path / "residuals.json").write_bytes(b'{"plan": 3}')
    with caplog.at_level(logging.WARNING):
        residuals = Residuals(tmp_path)
        update = make(2, "u2", number=2)
        sent = decode_update(residuals.encode(update, plan, "float32", "none"), plan)
    assert np.array_equal(in_a_row(sent), in_a_row(update))
    assert len(caplog.messages) == 1
    assert str(tmp_path) in caplog.messages[0]


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_cut_off_and_whenever_every_bit_is_counted_once(
    plan: Plan, make: Callable[..., Update], tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train, answer and cut the power by chance; at the end, what arrived and what is left are what was meant."""
    rng = np.random.default_rng(seed)
    writes_left = -1
    real = residuals_module.write_durably

    def write(path: Path, data: bytes) -> None:
        nonlocal writes_left
        writes_left -= 1
        if writes_left == 0 and rng.random() < 0.5:
            raise Cut
        real(path, data)
        if writes_left == 0:
            raise Cut

    monkeypatch.setattr(residuals_module, "write_durably", write)
    folder = tmp_path / "residuals"
    spool = Spool(tmp_path / "spool")
    residuals = Residuals(folder)
    meant, arrived = np.zeros(elements_of(plan)), np.zeros(elements_of(plan))
    changes: dict[str, NDArray[np.float64]] = {}
    counted: dict[str, bool] = {}
    cuts = 0
    for number in range(1, 121):
        writes_left = int(rng.integers(1, 5)) if rng.random() < 0.4 else -1
        try:
            if rng.random() < 0.5 and len(spool.waiting()) < 4:
                uid = f"u{number}"
                update = make(seed * 1000 + number, uid, number=number)
                changes[uid] = in_a_row(update)
                data = residuals.encode(update, plan, ("int8", "float16", "float32")[int(rng.integers(3))], "none")
                spool.add(uid, TASK, data)
                residuals.stored(uid)
            elif spool.waiting():
                uid = str(rng.choice(spool.waiting()))
                path = spool.path(uid)
                assert path is not None
                if uid not in counted:  # the aggregator answers the same whenever it is asked
                    counted[uid] = bool(rng.random() < 0.6)
                    if counted[uid]:
                        meant += changes[uid]
                        arrived += in_a_row(decode_update(path.read_bytes(), plan))
                residuals.settle(uid, counted=counted[uid])
                spool.remove(uid)
        except Cut:
            cuts += 1
            writes_left = -1
            spool = Spool(tmp_path / "spool")
            residuals = Residuals(folder, waiting=spool.waiting())
    writes_left = -1
    for uid in spool.waiting():
        residuals.settle(uid, counted=counted.get(uid, False))
    assert cuts > 5
    assert residuals._state.held == ()
    np.testing.assert_allclose(arrived + available(residuals, plan), meant, atol=1e-4)
    named = {vector.file for vector in residuals._state.available} | {"residuals.json"}
    assert {path.name for path in folder.iterdir()} == named


def test_an_update_lost_from_the_spool_is_told_and_counted_neither_way(
    plan: Plan, make: Callable[..., Update], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    residuals = Residuals(tmp_path)
    residuals.encode(make(1, "u1"), plan, "int8", "none")
    residuals.stored("u1")
    with caplog.at_level(logging.WARNING):
        residuals = Residuals(tmp_path, waiting=())
    assert "u1 is gone from the spool" in caplog.text
    assert not available(residuals, plan).any()


def test_a_full_disk_is_told_and_nothing_changes(
    plan: Plan, make: Callable[..., Update], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    residuals = Residuals(tmp_path)
    residuals.encode(make(1, "u1"), plan, "int8", "none")
    residuals.settle("u1", counted=True)
    before = available(residuals, plan)

    def full(path: Path, data: bytes) -> None:
        raise StateError(f"{path}: cannot be written: No space left on device; check the disk's space")

    with monkeypatch.context() as patched:
        patched.setattr(residuals_module, "write_durably", full)
        with pytest.raises(StateError):
            residuals.encode(make(2, "u2", number=2), plan, "int8", "none")
    assert np.array_equal(available(residuals, plan), before)


@pytest.mark.parametrize("counted", [True, False])
def test_a_full_disk_keeps_no_update_in_the_spool_and_no_device_from_starting(
    plan: Plan,
    make: Callable[..., Update],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    counted: bool,
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise FullDiskError(f"{path}: cannot be written: No space left on device; check the disk's space")

    residuals = Residuals(tmp_path)
    residuals.encode(make(1, "u0"), plan, "int8", "none")
    residuals.stored("u0")
    residuals.settle("u0", counted=True)
    carried = available(residuals, plan)
    residuals.encode(make(2, "u1", keep=1.0), plan, "int8", "none")
    residuals.stored("u1")
    with monkeypatch.context() as patched:
        patched.setattr(residuals_module, "write_durably", full)
        residuals = Residuals(tmp_path, waiting=("u1",))
        residuals.settle("u1", counted=counted)
        assert caplog.text.count("what became of update u1 is kept in memory") == 1
        assert np.array_equal(available(residuals, plan), carried) != counted
        assert available(residuals, plan).any()
        # What is in memory alone is forgotten with it, and nothing is ever counted twice.
        assert not available(Residuals(tmp_path), plan).any()
    residuals.encode(make(3, "u2", keep=1.0), plan, "int8", "none")
    assert [held.uid for held in Residuals(tmp_path, waiting=("u2",))._state.held] == ["u2"]

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distreal_edge.device import Availability, MiniBatch
from distreal_edge.device.health import health_of
from distreal_edge.device.steps import StepLog
from distreal_edge.errors import StateError
from distreal_edge.transport import DeviceHealth, decode, encode

anything = st.floats(allow_nan=True, allow_infinity=True)


def step(**fields: Any) -> MiniBatch:
    usual: dict[str, Any] = {
        "time_s": 5.0,
        "round": 2,
        "mini_batch": 7,
        "cores": 2.0,
        "row": 3,
        "share": 0.5,
        "threads": 2,
        "predicted_s": 0.4,
        "seconds": 0.5,
        "loss": 1.5,
        "images": 32,
    }
    return MiniBatch(**usual | fields)


@given(
    time_s=anything,
    cores=anything,
    memory=st.one_of(st.none(), anything),
    temperature=st.one_of(st.none(), anything),
    spool=st.integers(0, 10**9),
    training=st.booleans(),
    seconds=anything,
    loss=anything,
    share=anything,
    threads=st.integers(1, 10**6),
)
def test_health_can_be_told_whatever_the_numbers_are(
    time_s: float,
    cores: float,
    memory: float | None,
    temperature: float | None,
    spool: int,
    training: bool,
    seconds: float,
    loss: float,
    share: float,
    threads: int,
) -> None:
    latest = step(seconds=seconds, loss=loss, share=share, threads=threads)
    health = health_of(time_s, Availability(cores, memory, temperature), spool, latest, training=training)
    assert decode(DeviceHealth, encode(health), where="test") == health


def test_ordinary_numbers_are_told_as_they_are() -> None:
    health = health_of(5.0, Availability(1.5, 1e9, 61.5), 2, step(), training=True)
    assert health == DeviceHealth(
        time_s=5.0,
        cores=1.5,
        memory_bytes=10**9,
        temperature_c=61.5,
        row=3,
        threads=2,
        images_per_s=64.0,
        spool=2,
        round=2,
        mini_batches=7,
        loss=1.5,
        vector_macs_share=0.5,
    )


def test_a_device_that_does_not_train_tells_of_no_round() -> None:
    health = health_of(5.0, Availability(1.5), 0, step(), training=False)
    assert (health.row, health.round, health.loss, health.vector_macs_share, health.threads) == (None,) * 4 + (0,)
    assert (health.images_per_s, health.mini_batches, health.memory_bytes) == (0.0, 7, 0)
    assert health.temperature_c is None


def test_mini_batches_are_written_down_a_line_each_and_a_second_run_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "steps.csv"
    for number in (1, 2):
        with StepLog(file) as log:
            log.write(step(mini_batch=number, loss=math.nan))
        log.write(step())  # the trainer's thread was late
    assert file.read_text().splitlines() == [
        "time_s,round,mini_batch,cores,row,share,threads,predicted_s,seconds,loss,images",
        "5.0,2,1,2.0,3,0.5,2,0.4,0.5,nan,32",
        "5.0,2,2,2.0,3,0.5,2,0.4,0.5,nan,32",
    ]


@pytest.mark.parametrize("left", [b"", b"time_s,rou", b"%b\n5.0,2,1,2", b"%b\n1\n5.0"])
def test_what_a_kill_or_a_full_disk_left_of_a_line_does_not_spoil_the_next(tmp_path: Path, left: bytes) -> None:
    header = b"time_s,round,mini_batch,cores,row,share,threads,predicted_s,seconds,loss,images"
    file = tmp_path / "steps.csv"
    file.write_bytes(left.replace(b"%b", header))
    with StepLog(file) as log:
        log.write(step())
    earlier = [b"1"] if b"1\n" in left else []
    assert file.read_bytes().splitlines() == [header, *earlier, b"5.0,2,7,2.0,3,0.5,2,0.4,0.5,1.5,32"]


def test_nothing_is_written_without_a_file() -> None:
    with StepLog(None) as log:
        log.write(step())


def test_a_full_disk_ends_the_file_with_a_word_and_not_the_training(caplog: pytest.LogCaptureFixture) -> None:
    with StepLog(Path("/dev/full")) as log:
        log.write(step())
        log.write(step())
    assert caplog.text.count("No space left on device") == 1


def test_a_file_that_cannot_be_opened_is_a_state_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot be written"), StepLog(tmp_path / "none" / "steps.csv"):
        pass

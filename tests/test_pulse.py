"""Threads that work, wait, starve or are stuck, seen from outside."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from distreal_edge import Engine, zoo
from distreal_edge.pulse import Pulse, Sign, is_alive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAIT_S = 30.0


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (None, None),
        (None, Sign(1)),
        (Sign(1), None),
        (Sign(1, 5), Sign(2, 5)),
        (Sign(1, 5), Sign(1, 6)),
        (Sign(1, 5), Sign(1, 4)),  # a thread has ended, and its time is counted no more
        (Sign(1, 5), Sign(1, 5, wanting=True)),
    ],
)
def test_what_is_at_rest_or_got_on_or_wants_to_is_alive(before: Sign | None, now: Sign | None) -> None:
    assert is_alive(before, now)


@pytest.mark.parametrize("wanted", [False, True])
def test_what_finished_nothing_and_used_and_wants_no_cpu_is_stuck(wanted: bool) -> None:
    assert not is_alive(Sign(1, 5, wanting=wanted), Sign(1, 5))


@pytest.fixture
def at_work() -> Iterator[Callable[..., Pulse]]:
    """Do work in a thread under a pulse; the thread is ended after the test by the event that it is given."""
    threads: list[threading.Thread] = []
    end = threading.Event()

    def begin(work: Callable[[threading.Event, Pulse], None], *, strict: bool = False) -> Pulse:
        pulse, begun = Pulse(strict=strict), threading.Event()

        def run() -> None:
            with pulse.working():
                begun.set()
                work(end, pulse)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        assert begun.wait(WAIT_S)
        return pulse

    yield begin
    end.set()
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()


def until_asleep(pulse: Pulse) -> Sign:
    """Return the sign of a thread that has come to where it waits."""
    give_up_s = time.monotonic() + WAIT_S
    while (sign := pulse.sign()) is None or sign.wanting:
        assert time.monotonic() < give_up_s
        time.sleep(0.01)
    return sign


def until_wanting(pulse: Pulse) -> Sign:
    give_up_s = time.monotonic() + WAIT_S
    while (sign := pulse.sign()) is None or not sign.wanting:
        assert time.monotonic() < give_up_s
    return sign


def test_a_thread_that_waits_for_what_does_not_come_is_stuck(at_work: Callable[..., Pulse]) -> None:
    pulse = at_work(lambda end, _: end.wait())
    before = until_asleep(pulse)
    # Others in this process are busy meanwhile, which must not count.
    busy_until_s = time.thread_time() + 0.1
    while time.thread_time() < busy_until_s:
        pass
    assert not is_alive(before, pulse.sign())


def test_a_thread_in_native_code_is_alive_without_a_beat(at_work: Callable[..., Pulse]) -> None:
    network = zoo.resnet8()
    engine = Engine(network, backend="native")
    images, labels = np.zeros((64, 3, 32, 32), np.float32), np.zeros(64, np.int64)
    subset = network.draw([0.0] * len(network.groups), np.random.default_rng(0))

    def work(end: threading.Event, _: Pulse) -> None:
        while not end.is_set():
            engine.step(images, labels, subset, lr=0.1, threads=2)

    pulse = at_work(work)
    before = pulse.sign()
    assert before is not None
    give_up_s = time.monotonic() + WAIT_S
    while (now := pulse.sign()) is None or now.cpu_ticks == before.cpu_ticks:
        assert time.monotonic() < give_up_s
    assert now.beats == before.beats
    assert is_alive(before, now)


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """Have this thread, and those that it starts, share a single CPU."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    yield
    os.sched_setaffinity(0, allowed)


@pytest.mark.usefixtures("one_cpu")
def test_a_thread_that_waits_for_the_cpu_that_another_one_has_is_alive(at_work: Callable[..., Pulse]) -> None:
    def work(end: threading.Event, _: Pulse) -> None:
        while not end.is_set():
            hashlib.pbkdf2_hmac("sha256", b"", b"", 300_000)  # some tenths of a second without the interpreter

    pulse = at_work(work)
    until_wanting(pulse)


def test_a_wait_that_is_asked_about_beats(at_work: Callable[..., Pulse]) -> None:
    def work(end: threading.Event, pulse: Pulse) -> None:
        while not end.wait(0.001):
            pulse.beat()

    pulse = at_work(work)
    before = pulse.sign()
    assert before is not None
    give_up_s = time.monotonic() + WAIT_S
    while (now := pulse.sign()) is None or now.beats == before.beats:
        assert time.monotonic() < give_up_s


def test_a_loop_that_must_turn_is_stuck_however_busy_it_is(at_work: Callable[..., Pulse]) -> None:
    def work(end: threading.Event, _: Pulse) -> None:
        while not end.is_set():
            pass

    pulse = at_work(work, strict=True)
    assert not is_alive(pulse.sign(), pulse.sign())


def test_work_that_has_ended_is_at_rest_and_what_begins_next_is_alive(at_work: Callable[..., Pulse]) -> None:
    pulse = Pulse()
    assert pulse.sign() is None
    with pytest.raises(ZeroDivisionError), pulse.working():
        _ = 1 // 0
    assert pulse.sign() is None
    with pulse.working():
        first = pulse.sign()
    with pulse.working():
        assert is_alive(first, pulse.sign())

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from distreal_edge.errors import ProtocolError
from distreal_edge.observe import changes, hear, new_view, update
from distreal_edge.observe.view import seconds_left, share_done
from distreal_edge.transport import (
    AggregatorHealth,
    AggregatorState,
    BlobReference,
    DeviceHealth,
    DeviceState,
    Manifest,
    Message,
    Topics,
    Training,
    encode,
)

if TYPE_CHECKING:
    import msgspec

    from distreal_edge.observe import FederationView

TOPICS = Topics("demo")


def manifest(number: int, *, ceiling: float = 0.25, deadline_s: float = 115.0, finished: bool = False) -> Manifest:
    blob = BlobReference("0" * 64, 100, 1)
    training = Training(32, 0.1, 0.9, 0.0, 1.0, 2.0, 0)
    until_s = deadline_s - 2
    names = () if finished else ("a", "b")
    return Manifest(number, blob, blob, ceiling, deadline_s, until_s, names, 0, "ordered", training, finished=finished)


def aggregator(phase: str, number: int, accuracy: float | None, answered: tuple[str, ...] = ()) -> AggregatorHealth:
    return AggregatorHealth(0.0, number, 4, phase, accuracy, ("a", "b"), answered)  # type: ignore[arg-type]


def health(*, number: int | None = 1, row: int | None = 3) -> DeviceHealth:
    return DeviceHealth(
        time_s=0.0,
        cores=2.5,
        memory_bytes=10**9,
        temperature_c=None,
        row=row,
        threads=2,
        images_per_s=120.0,
        spool=0,
        round=number,
        mini_batches=17,
        loss=1.25,
        vector_macs_share=0.4,
    )


def heard(view: FederationView, topic: str, said: msgspec.Struct, now_s: float = 100.0) -> FederationView:
    what = hear(TOPICS, Message(topic, encode(said)))
    assert what is not None
    return update(view, *what, now_s)


def test_health_of_a_device_changes_that_device_alone() -> None:
    before = new_view(["a", "b"])
    after = heard(before, TOPICS.device_health("b"), health())
    assert after.devices[0] == before.devices[0]
    device = after.devices[1]
    assert (device.cores, device.row, device.share, device.images_per_s) == (2.5, 3, 0.4, 120.0)
    assert (device.mini_batches, device.loss) == (17, 1.25)


def test_an_idle_device_has_no_speed() -> None:
    view = heard(new_view(["a"]), TOPICS.device_health("a"), health(number=None, row=None))
    assert view.devices[0].images_per_s is None


def test_an_unknown_device_is_left_aside() -> None:
    assert heard(new_view(["a"]), TOPICS.device_health("z"), health()) == new_view(["a"])


def test_a_malformed_message_is_an_error_and_a_useless_one_is_nothing() -> None:
    with pytest.raises(ProtocolError):
        hear(TOPICS, Message(TOPICS.device_health("a"), b"{}"))
    assert hear(TOPICS, Message(TOPICS.want("a"), b"whatever")) is None


def test_accuracies_belong_to_the_round_before_while_a_round_runs_and_to_the_last_one_at_the_end() -> None:
    view = new_view(["a", "b"])
    for phase, number, accuracy in (
        ("waiting", 0, None),
        ("collecting", 1, None),
        ("evaluating", 1, None),
        ("waiting", 1, 0.5),
        ("collecting", 2, 0.5),
        ("averaging", 2, 0.5),
        ("collecting", 3, 0.6),
        ("evaluating", 4, 0.7),
        ("finished", 4, 0.8),
    ):
        view = heard(view, TOPICS.aggregator_health, aggregator(phase, number, accuracy))
    assert view.accuracies == ((1, 0.5), (2, 0.6), (3, 0.7), (4, 0.8))


def test_progress_runs_from_round_to_round_and_never_backwards() -> None:
    view = heard(new_view(["a", "b"]), TOPICS.aggregator_health, aggregator("collecting", 1, None))
    assert share_done(view, 100.0) == 0.0
    shares = []
    for number in (1, 2, 3, 4):
        began_s = 100.0 + 20.0 * (number - 1)
        view = heard(view, TOPICS.round, manifest(number, deadline_s=began_s + 15), began_s)
        shares += [share_done(view, began_s + second) for second in range(20)]
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert shares[20] == 0.25
    finished = heard(view, TOPICS.aggregator_health, aggregator("finished", 4, 0.8))
    assert share_done(finished, 1000.0) == 1.0


def test_time_left_follows_what_rounds_really_took() -> None:
    view = heard(new_view(["a", "b"]), TOPICS.aggregator_health, aggregator("collecting", 1, None))
    assert seconds_left(view, 0.0, 100.0) is None
    view = heard(view, TOPICS.round, manifest(1, deadline_s=115.0), 100.0)
    assert seconds_left(view, 0.0, 100.0) == pytest.approx(4 * 15.0)
    view = heard(view, TOPICS.round, manifest(3, deadline_s=155.0), 140.0)
    assert seconds_left(view, 40.0, 140.0) == pytest.approx(40.0)


def test_every_change_of_state_is_one_line() -> None:
    view = heard(new_view(["a", "b"]), TOPICS.aggregator_health, aggregator("collecting", 1, None))
    after = heard(view, TOPICS.round, manifest(1))
    assert changes(view, after) == ("round 1 of 4, up to 25% of the network",)
    training = heard(after, TOPICS.device_state("a"), DeviceState("training", 1, 100, "1"))
    assert changes(after, training) == ("a: training",)
    assert changes(training, training) == ()
    assert changes(training, heard(training, TOPICS.device_health("a"), health())) == ()
    closed = heard(training, TOPICS.aggregator_health, aggregator("collecting", 2, 0.815))
    assert changes(training, closed) == ("round 1 closed: accuracy 81.50%",)
    assert changes(closed, heard(closed, TOPICS.round, manifest(5))) == (
        "round 5, the closing measurement, up to 25% of the network",
    )
    gone = heard(closed, TOPICS.aggregator_state, AggregatorState("offline", 1, "fed"))
    assert changes(closed, gone) == ("aggregator: offline",)


def test_the_manifest_that_ends_the_training_begins_no_round() -> None:
    view = heard(new_view(["a", "b"]), TOPICS.round, manifest(4))
    assert heard(view, TOPICS.round, manifest(4, finished=True), 500.0) == view

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from distreal_edge.device import DeviceRounds
from distreal_edge.device.rounds import (
    ACK_PATIENCE_S,
    FETCH_PATIENCE_S,
    MOST_WAITING,
    AskForChunks,
    Forget,
    OfferUpdate,
    Phase,
    Send,
    StopTraining,
    Train,
    task_of,
)
from distreal_edge.transport import Ack

if TYPE_CHECKING:
    from collections.abc import Callable

    from distreal_edge.transport import Manifest

NOW = 1000.0


def durable(uid: str) -> Ack:
    return Ack(uid, "durable", None)


def connected(**arguments: object) -> DeviceRounds:
    rounds = DeviceRounds("pi", **arguments)  # type: ignore[arg-type]
    rounds.connected(NOW)
    return rounds


def training(manifest: Manifest) -> DeviceRounds:
    rounds = connected()
    assert rounds.announced(manifest, NOW) == [AskForChunks()]
    assert rounds.blobs_complete(NOW) == [Train(manifest)]
    return rounds


def test_a_round_goes_from_its_manifest_to_an_empty_spool(make_manifest: Callable[..., Manifest]) -> None:
    manifest, rounds = make_manifest(), connected()
    assert rounds.phase is Phase.IDLE
    assert rounds.announced(manifest, NOW) == [AskForChunks()]
    assert rounds.phase is Phase.FETCHING
    rounds.chunk_arrived(NOW + 1)
    assert rounds.blobs_complete(NOW + 1) == [Train(manifest)]
    assert rounds.phase is Phase.TRAINING
    assert rounds.trained("u1", NOW) == [OfferUpdate("u1")]
    assert rounds.phase is Phase.UPLOADING
    rounds.sent("u1", NOW + 20)
    assert rounds.acknowledged(durable("u1"), NOW) == [Forget("u1")]
    assert rounds.phase is Phase.IDLE


def test_a_manifest_that_comes_again_changes_nothing(make_manifest: Callable[..., Manifest]) -> None:
    rounds = training(make_manifest())
    assert rounds.announced(make_manifest(), NOW) == []
    assert rounds.blobs_complete(NOW) == []
    rounds.trained("u1", NOW)
    assert rounds.announced(make_manifest(), NOW) == []
    assert rounds.blobs_complete(NOW) == []


def test_a_round_of_a_federation_that_has_begun_anew_is_another_one(make_manifest: Callable[..., Manifest]) -> None:
    first, rounds = make_manifest(), training(make_manifest())
    anew = msgspec.structs.replace(first, deadline_s=first.deadline_s + 100.0)
    assert task_of(anew) == task_of(first)
    rounds.trained("u1", NOW)
    # What was not answered yet is as good for this one.
    assert rounds.announced(anew, NOW) == []
    rounds.announced(first, NOW)
    rounds.acknowledged(durable("u1"), NOW)
    assert rounds.announced(first, NOW) == []
    assert rounds.announced(anew, NOW) == [AskForChunks()]
    assert rounds.blobs_complete(NOW) == [Train(anew)]
    rounds.trained("u2", NOW)
    rounds.acknowledged(durable("u2"), NOW)
    # What a broker kept of an older round does not make this one forgotten.
    assert rounds.announced(make_manifest(99, selected=()), NOW) == []
    assert rounds.announced(anew, NOW) == []


@pytest.mark.parametrize("change", [{"finished": True}, {"selected": ("other",)}, {"train_until_s": NOW}])
def test_a_round_that_is_not_for_this_device_is_not_trained(
    make_manifest: Callable[..., Manifest], change: dict[str, object]
) -> None:
    rounds = connected()
    assert rounds.announced(make_manifest(**change), NOW) == []
    assert rounds.phase is Phase.IDLE
    assert rounds.blobs_complete(NOW) == []


def test_a_round_that_only_measures_is_worked_on_like_any_other(make_manifest: Callable[..., Manifest]) -> None:
    assert training(make_manifest(measure_only=True)).phase is Phase.TRAINING


def test_a_model_that_comes_too_late_is_not_trained_on(make_manifest: Callable[..., Manifest]) -> None:
    rounds = connected()
    rounds.announced(make_manifest(), NOW)
    assert rounds.blobs_complete(1100.0) == []
    assert rounds.phase is Phase.IDLE


def test_fetching_ends_when_the_time_for_training_does(make_manifest: Callable[..., Manifest]) -> None:
    rounds = connected()
    rounds.announced(make_manifest(), NOW)
    assert rounds.tick(1100.0) == []
    assert rounds.phase is Phase.IDLE


def test_missing_chunks_are_asked_for_once_in_a_while_and_less_and_less_often(
    make_manifest: Callable[..., Manifest],
) -> None:
    rounds = connected()
    rounds.announced(make_manifest(train_until_s=NOW + 100, deadline_s=NOW + 101), NOW)
    asked = [second for second in range(100) if rounds.tick(NOW + second) == [AskForChunks()]]
    assert asked == [10, 30, 70]


def test_nothing_is_asked_for_while_chunks_arrive_or_nobody_can_hear_it(make_manifest: Callable[..., Manifest]) -> None:
    rounds = connected()
    rounds.announced(make_manifest(), NOW)
    for second in range(20):
        rounds.chunk_arrived(NOW + second)
        assert rounds.tick(NOW + second + 0.9 * FETCH_PATIENCE_S) == []
    rounds.disconnected()
    assert rounds.tick(NOW + 60) == []
    assert rounds.connected(NOW + 61) == [AskForChunks()]
    assert rounds.tick(NOW + 61 + FETCH_PATIENCE_S) == [AskForChunks()]


def test_a_new_round_stops_the_training_and_begins_when_it_has_stopped(make_manifest: Callable[..., Manifest]) -> None:
    rounds = training(make_manifest(1))
    assert rounds.announced(make_manifest(2), NOW) == [StopTraining(), AskForChunks()]
    assert rounds.blobs_complete(NOW) == []
    assert rounds.trained(None, NOW) == []
    assert rounds.blobs_complete(NOW) == [Train(make_manifest(2))]


@pytest.mark.parametrize("change", [{"finished": True}, {"selected": ()}])
def test_a_round_that_is_over_stops_the_training_for_good(
    make_manifest: Callable[..., Manifest], change: dict[str, object]
) -> None:
    rounds = training(make_manifest(1))
    assert rounds.announced(make_manifest(2, **change), NOW) == [StopTraining()]
    rounds.trained(None, NOW)
    assert rounds.phase is Phase.IDLE


def test_an_update_that_was_ready_when_the_stop_came_is_sent_and_the_new_round_trained(
    make_manifest: Callable[..., Manifest],
) -> None:
    rounds = training(make_manifest(1))
    rounds.announced(make_manifest(2), NOW)
    assert rounds.trained("u1", NOW) == [OfferUpdate("u1")]
    assert rounds.blobs_complete(NOW) == [Train(make_manifest(2))]


def test_a_round_that_is_announced_anew_with_another_deadline_is_trained_once(
    make_manifest: Callable[..., Manifest],
) -> None:
    rounds = training(make_manifest(1))
    again = make_manifest(1, deadline_s=1300.0)
    assert rounds.announced(again, NOW) == [StopTraining(), AskForChunks()]
    rounds.trained("u1", NOW)  # too late to stop
    assert rounds.blobs_complete(NOW) == []
    assert rounds.announced(make_manifest(1), NOW) == []
    assert rounds.blobs_complete(NOW) == []


def test_training_that_gave_no_update_leaves_the_round_alone(make_manifest: Callable[..., Manifest]) -> None:
    rounds = training(make_manifest())
    assert rounds.trained(None, NOW) == []
    assert rounds.announced(make_manifest(), NOW) == []
    assert rounds.blobs_complete(NOW) == []
    assert rounds.phase is Phase.IDLE


def test_what_an_earlier_run_left_is_sent_and_its_round_not_trained_again(
    make_manifest: Callable[..., Manifest],
) -> None:
    manifest = make_manifest(3)
    rounds = DeviceRounds("pi", waiting=("new", "old"), done={task_of(manifest), task_of(make_manifest(2))})
    assert rounds.connected(NOW) == [OfferUpdate("new")]
    rounds.announced(manifest, NOW)
    assert rounds.blobs_complete(NOW) == []
    assert rounds.acknowledged(durable("new"), NOW) == [Forget("new"), OfferUpdate("old")]


def test_a_round_of_the_same_number_but_of_another_model_is_trained(make_manifest: Callable[..., Manifest]) -> None:
    rounds = connected(waiting=("left",), done={task_of(make_manifest(3, model=b"of a federation that was wiped"))})
    rounds.announced(make_manifest(3), NOW)
    assert rounds.blobs_complete(NOW) == [Train(make_manifest(3))]


def test_a_new_update_goes_first_however_many_wait(make_manifest: Callable[..., Manifest]) -> None:
    rounds = connected(waiting=("old",))
    rounds.announced(make_manifest(), NOW)
    rounds.blobs_complete(NOW)
    assert rounds.trained("new", NOW) == [OfferUpdate("new")]
    assert rounds.acknowledged(durable("new"), NOW) == [Forget("new"), OfferUpdate("old")]


def test_the_oldest_give_way_when_too_many_wait(make_manifest: Callable[..., Manifest]) -> None:
    left = [f"u{number}" for number in range(MOST_WAITING + 2)]
    rounds = DeviceRounds("pi", waiting=left)
    assert rounds.connected(NOW) == [*(Forget(uid) for uid in left[MOST_WAITING:]), OfferUpdate("u0")]
    rounds.announced(make_manifest(), NOW)
    rounds.blobs_complete(NOW)
    assert rounds.trained("new", NOW) == [Forget(left[MOST_WAITING - 1]), OfferUpdate("new")]


def test_nothing_is_sent_without_a_connection(make_manifest: Callable[..., Manifest]) -> None:
    rounds = training(make_manifest())
    rounds.disconnected()
    assert not rounds.fetching
    assert rounds.trained("u1", NOW) == []
    assert rounds.tick(NOW + 1000) == []
    assert rounds.connected(NOW + 1000) == [OfferUpdate("u1")]


def test_an_update_is_sent_again_after_every_reconnect(make_manifest: Callable[..., Manifest]) -> None:
    rounds = training(make_manifest())
    rounds.trained("u1", NOW)
    rounds.sent("u1", NOW)
    rounds.disconnected()
    assert rounds.connected(NOW + 1) == [OfferUpdate("u1")]


def test_patience_runs_from_the_end_of_sending_however_slow_the_line_is(
    make_manifest: Callable[..., Manifest],
) -> None:
    rounds = training(make_manifest())
    rounds.trained("u1", NOW)
    rounds.acknowledged(Ack("u1", "resend", None, (0,)), NOW + 1)
    assert rounds.tick(NOW + 500) == []
    rounds.sent("u1", NOW + 500)
    assert rounds.tick(NOW + 500 + 0.9 * ACK_PATIENCE_S) == []
    assert rounds.tick(NOW + 500 + ACK_PATIENCE_S) == [OfferUpdate("u1")]


def test_a_clock_that_is_set_back_does_not_make_patience_endless(make_manifest: Callable[..., Manifest]) -> None:
    year_s = 365 * 86400.0
    fetching, sending = connected(), connected(waiting=("a",))
    fetching.announced(make_manifest(), NOW)
    sending.sent("a", NOW)
    for rounds, action in ((fetching, AskForChunks()), (sending, OfferUpdate("a"))):
        assert rounds.tick(NOW - year_s) == []
        assert rounds.tick(NOW - year_s + ACK_PATIENCE_S) == [action]


def test_an_answer_that_does_not_come_makes_room_for_the_others_in_turn() -> None:
    rounds = connected(waiting=("a", "b", "c"))
    now, sent = NOW, []
    uid = "a"
    for _ in range(6):
        rounds.sent(uid, now)
        now += 200.0
        (action,) = rounds.tick(now)
        assert isinstance(action, OfferUpdate)
        uid = action.uid
        sent.append(uid)
    assert sent == ["b", "c", "a", "b", "c", "a"]


def test_an_aggregator_that_does_not_answer_is_sent_to_less_and_less_often_until_it_speaks(
    make_manifest: Callable[..., Manifest],
) -> None:
    rounds = training(make_manifest())
    rounds.trained("u1", NOW)
    rounds.sent("u1", NOW)
    sent = []
    for second in range(1, 320):
        if rounds.tick(NOW + second):
            sent.append(second)
            rounds.sent("u1", NOW + second)
    assert sent == [10, 30, 70, 150, 310]
    rounds.announced(make_manifest(), NOW + 320)
    assert rounds.tick(NOW + 320) == [OfferUpdate("u1")]


def test_an_aggregator_that_comes_back_in_the_round_is_sent_at_once_what_it_did_not_hear(
    make_manifest: Callable[..., Manifest],
) -> None:
    rounds = training(make_manifest())
    rounds.trained("u1", NOW)
    rounds.sent("u1", NOW)
    assert rounds.announced(make_manifest(), NOW) == []  # the broker's own copy says nothing of the aggregator
    assert rounds.announced(make_manifest(), NOW, live=True) == [OfferUpdate("u1")]
    rounds.sent("u1", NOW)
    rounds.acknowledged(durable("u1"), NOW)
    assert rounds.announced(make_manifest(), NOW, live=True) == []


def test_chunks_that_are_missing_are_sent_at_once(make_manifest: Callable[..., Manifest]) -> None:
    rounds = training(make_manifest())
    rounds.trained("u1", NOW)
    assert rounds.acknowledged(Ack("u1", "resend", None, (1, 4)), NOW) == [Send("u1", (1, 4))]
    assert rounds.acknowledged(Ack("u1", "resend", None, (5,)), NOW) == [Send("u1", (5,))]


def test_an_update_of_which_the_aggregator_knows_nothing_is_offered_once(
    make_manifest: Callable[..., Manifest],
) -> None:
    rounds = training(make_manifest())
    unknown = Ack("u1", "resend", None)
    assert rounds.trained("u1", NOW) == [OfferUpdate("u1")]
    assert rounds.acknowledged(unknown, NOW) == []  # about a chunk that was on its way before the offer
    rounds.acknowledged(Ack("u1", "resend", None, (0,)), NOW)
    assert rounds.acknowledged(unknown, NOW) == [OfferUpdate("u1")]
    assert rounds.acknowledged(unknown, NOW) == []


def test_an_offer_that_is_not_answered_is_repeated(make_manifest: Callable[..., Manifest]) -> None:
    rounds = training(make_manifest())
    rounds.trained("u1", NOW)
    assert rounds.tick(NOW + 0.9 * ACK_PATIENCE_S) == []
    assert rounds.tick(NOW + ACK_PATIENCE_S) == [OfferUpdate("u1")]


def test_a_late_question_for_an_older_update_does_not_interrupt_the_newest(
    make_manifest: Callable[..., Manifest],
) -> None:
    rounds = connected(waiting=("old",))
    rounds.announced(make_manifest(), NOW)
    rounds.blobs_complete(NOW)
    rounds.trained("new", NOW)
    assert rounds.acknowledged(Ack("old", "resend", None, (1,)), NOW) == []
    assert rounds.acknowledged(durable("old"), NOW) == [Forget("old")]


def test_a_refused_update_is_forgotten_and_its_round_not_trained_again(make_manifest: Callable[..., Manifest]) -> None:
    rounds = training(make_manifest())
    rounds.trained("u1", NOW)
    assert rounds.acknowledged(Ack("u1", "refused", "late: round 1 is closed"), NOW) == [Forget("u1")]
    rounds.announced(make_manifest(), NOW)
    assert rounds.blobs_complete(NOW) == []


def test_answers_to_updates_that_nobody_knows_are_ignored() -> None:
    rounds = connected()
    assert rounds.acknowledged(durable("u9"), NOW) == []
    assert rounds.acknowledged(Ack("u9", "resend", None, (1,)), NOW) == []
    rounds.sent("u9", NOW)
    rounds.sending_failed("u9", NOW)
    assert rounds.lost("u9", NOW) == []


def test_an_update_that_is_gone_from_the_spool_does_not_hold_up_the_others() -> None:
    rounds = connected(waiting=("gone", "there"))
    assert rounds.lost("gone", NOW) == [Forget("gone"), OfferUpdate("there")]


def test_an_update_that_could_not_be_sent_is_tried_again_even_without_a_reconnect() -> None:
    rounds = connected(waiting=("u1",))
    rounds.sending_failed("u1", NOW)
    assert rounds.tick(NOW + ACK_PATIENCE_S) == [OfferUpdate("u1")]


def test_an_acknowledged_update_that_the_aggregator_lost_is_trained_again(
    make_manifest: Callable[..., Manifest],
) -> None:
    manifest = make_manifest()
    rounds = training(manifest)
    rounds.trained("u1", NOW)
    rounds.acknowledged(durable("u1"), NOW)
    lost = Ack("u1", "resend", None)
    assert rounds.acknowledged(Ack("other", "resend", None), NOW) == []
    assert rounds.acknowledged(lost, NOW) == [AskForChunks()]
    assert rounds.blobs_complete(NOW) == [Train(manifest)]
    assert rounds.acknowledged(lost, NOW) == []  # said again, after every reconnect
    assert rounds.trained("u2", NOW) == [OfferUpdate("u2")]
    assert rounds.acknowledged(durable("u2"), NOW) == [Forget("u2")]


def test_what_was_lost_of_a_round_that_is_over_is_not_trained_again(make_manifest: Callable[..., Manifest]) -> None:
    for late in (True, False):
        manifest = make_manifest()
        rounds = training(manifest)
        rounds.trained("u1", NOW)
        rounds.acknowledged(durable("u1"), NOW)
        if not late:
            rounds.announced(make_manifest(manifest.number + 1), NOW)
        now = manifest.train_until_s if late else NOW
        assert rounds.acknowledged(Ack("u1", "resend", None), now) == []

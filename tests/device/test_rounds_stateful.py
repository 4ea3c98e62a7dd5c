"""Whatever happens in whatever order: never two trainings at once, no update stuck, none forgotten unanswered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from distreal_edge.device import DeviceRounds
from distreal_edge.device.rounds import (
    LONGEST_PATIENCE_S,
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
    from collections.abc import Callable, Iterable

    from distreal_edge.device.rounds import Action
    from distreal_edge.transport import Manifest


class Federation(RuleBasedStateMachine):
    """A device with its spool, trainer and upload, in the hands of an arbitrary world."""

    make_manifest: Callable[..., Manifest]

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.number = 0
        self.uids = 0
        self.spool: list[str] = []  # oldest first
        self.tasks: dict[str, str] = {}
        self.answered: set[str] = set()
        self.manifest: Manifest | None = None
        self.training: Manifest | None = None
        self.stopping = False
        self.trained_tasks: list[str] = []
        self.uploading: str | None = None
        self.offered: str | None = None
        self.online = False
        self.rounds = DeviceRounds("pi")

    # -- the device around the state machine -------------------------------------------------------------------------

    def act(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Train(manifest):
                    assert self.training is None
                    assert manifest == self.manifest
                    assert "pi" in manifest.selected
                    assert not manifest.finished
                    assert self.now < manifest.train_until_s
                    self.training, self.stopping = manifest, False
                case StopTraining():
                    assert self.training is not None
                    self.stopping = True
                case OfferUpdate(uid):
                    assert self.online
                    assert uid in self.spool
                    self.offered, self.uploading = uid, None
                case Send(uid, missing):
                    assert self.online
                    assert missing
                    assert uid == self.offered
                    assert uid in self.spool
                    self.uploading = uid
                case Forget(uid):
                    assert uid in self.spool
                    crowded = len(self.spool) > MOST_WAITING and uid == self.spool[0]
                    assert uid in self.answered or crowded
                    self.spool.remove(uid)
                    if self.uploading == uid:
                        self.uploading = None
                case AskForChunks():
                    assert self.rounds.phase in {Phase.FETCHING, Phase.TRAINING}
                    assert self.online

    # -- what the world does -----------------------------------------------------------------------------------------

    @rule()
    def connect(self) -> None:
        if self.online:
            self.disconnect()
        self.online = True
        self.act(self.rounds.connected(self.now))

    @rule()
    def disconnect(self) -> None:
        self.online, self.uploading = False, None
        self.rounds.disconnected()

    @rule(
        new=st.booleans(),
        kind=st.sampled_from(["ours", "ours", "ours", "measure only", "others'", "finished", "late"]),
        lasts_s=st.sampled_from([5.0, 30.0]),
        complete=st.booleans(),
    )
    def announce(self, new: bool, kind: str, lasts_s: float, complete: bool) -> None:
        """Announce a round, or the last one with another deadline; its model may be here at once."""
        self.number += 1 if new or not self.number else 0
        self.manifest = self.make_manifest(
            self.number,
            model=b"model %d" % self.number,
            train_until_s=self.now - 1.0 if kind == "late" else self.now + lasts_s,
            deadline_s=self.now + 40.0,
            selected=("others",) if kind == "others'" else ("pi",),
            finished=kind == "finished",
            measure_only=kind == "measure only",
        )
        self.act(self.rounds.announced(self.manifest, self.now))
        if complete:
            self.blobs_complete()

    @precondition(lambda self: self.manifest is not None)
    @rule()
    def announce_again(self) -> None:
        assert self.manifest is not None
        assert self.rounds.announced(self.manifest, self.now) == []

    @precondition(lambda self: self.manifest is not None)
    @rule()
    def announce_again_live(self) -> None:
        assert self.manifest is not None
        self.act(self.rounds.announced(self.manifest, self.now, live=True))

    @precondition(lambda self: self.manifest is not None)
    @rule()
    def blobs_complete(self) -> None:
        self.rounds.chunk_arrived(self.now)
        self.act(self.rounds.blobs_complete(self.now))

    @precondition(lambda self: self.training is not None)
    @rule(works=st.booleans())
    def training_ends(self, works: bool) -> None:
        assert self.training is not None
        task, self.training = task_of(self.training), None
        # The stop may come too late for the trainer to notice.
        if not works:
            self.act(self.rounds.trained(None, self.now))
            return
        assert task not in self.trained_tasks
        self.trained_tasks.append(task)
        self.uids += 1
        uid = f"u{self.uids}"
        self.spool.append(uid)
        self.act(self.rounds.trained(uid, self.now))

    @precondition(lambda self: self.uploading is not None)
    @rule(how=st.sampled_from(["sent", "failed", "lost"]))
    def upload_ends(self, how: str) -> None:
        uid, self.uploading = self.uploading, None
        assert uid is not None
        if how == "sent":
            self.rounds.sent(uid, self.now)
        elif how == "failed":
            self.rounds.sending_failed(uid, self.now)
        else:
            self.answered.add(uid)
            self.act(self.rounds.lost(uid, self.now))

    @rule(number=st.integers(1, 12), kind=st.sampled_from(["durable", "refused", "resend"]))
    def answer(self, number: int, kind: Any) -> None:
        uid = f"u{number}"
        if kind != "resend":
            self.answered.add(uid) if uid in self.spool else None
        missing = (0, 3) if kind == "resend" and number % 2 else ()
        self.act(self.rounds.acknowledged(Ack(uid, kind, "late" if kind == "refused" else None, missing), self.now))

    @rule(seconds=st.sampled_from([0.2, 1.0, 3.0, 11.0, 50.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.act(self.rounds.tick(self.now))

    @rule()
    def restart(self) -> None:
        """The process is killed: only the spool is left."""
        self.training, self.uploading, self.online, self.manifest = None, None, False, None
        self.rounds = DeviceRounds("pi", waiting=tuple(reversed(self.spool)), done=set(self.trained_tasks))

    # -- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def phase_tells_what_is_going_on(self) -> None:
        assert (self.rounds.phase is Phase.TRAINING) == (self.training is not None)
        if self.rounds.phase is Phase.IDLE:
            assert not self.spool

    @invariant()
    def the_spool_is_bounded(self) -> None:
        assert len(self.spool) <= MOST_WAITING

    def teardown(self) -> None:
        """From wherever we are: once there is a connection and an answer, every update gets out."""
        if not self.online:
            self.connect()
        for _ in range(200):
            if not self.spool:
                return
            if self.uploading is not None:
                uid = self.uploading
                self.uploading = None
                self.rounds.sent(uid, self.now)
                self.answered.add(uid)
                self.act(self.rounds.acknowledged(Ack(uid, "durable", None), self.now))
            elif self.offered in self.spool:
                self.act(self.rounds.acknowledged(Ack(self.offered, "resend", None, (0,)), self.now))
            self.now += LONGEST_PATIENCE_S / 4
            self.act(self.rounds.tick(self.now))
        pytest.fail(f"{self.spool} are stuck")


def test_the_rounds_of_a_device_in_an_arbitrary_world(make_manifest: Callable[..., Manifest]) -> None:
    Federation.make_manifest = staticmethod(make_manifest)
    run_state_machine_as_test(Federation, settings=settings(max_examples=200, stateful_step_count=40, deadline=None))


def test_without_answers_every_update_is_sent_again_and_again(make_manifest: Callable[..., Manifest]) -> None:
    rounds = DeviceRounds("pi", waiting=("d", "c", "b", "a"))
    sent: dict[str, int] = {}
    actions, now = rounds.connected(1000.0), 1000.0
    for _ in range(4000):
        for action in actions:
            assert isinstance(action, OfferUpdate)
            sent[action.uid] = sent.get(action.uid, 0) + 1
            rounds.sent(action.uid, now)
        now += 1.0
        actions = rounds.tick(now)
    assert set(sent) == {"a", "b", "c", "d"}
    assert min(sent.values()) >= 5

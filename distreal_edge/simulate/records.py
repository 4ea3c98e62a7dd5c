"""What a simulation tells of itself: a record a round, and what is needed to go on from one."""

from __future__ import annotations

import msgspec

__all__ = ["Checkpoint", "RoundRecord", "Score"]


class Score(msgspec.Struct, frozen=True):
    """Accuracy (0..1) and mean cross-entropy of the full network on held-out images; None when it has diverged."""

    accuracy: float | None
    loss: float | None


class RoundRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A closed round. Times are seconds of virtual time.

    `late` devices had an update that did not count. `rows` is how many mini-batches trained each row of the table. Of
    the devices' time `downloads_s` went into models, `busy_s` into training and `uploads_s` into updates, summed up
    over all that were selected. `score` is that of the model after the round, None when nobody looked.
    """

    round: int
    opened_s: float
    closed_s: float
    why: str
    ceiling: float
    lr: float
    selected: int
    answered: int
    late: int
    mini_batches: int
    images: int
    macs: int
    training_loss: float | None
    rows: dict[int, int]
    downloads_s: float
    busy_s: float
    uploads_s: float
    upload_bytes: int
    score: Score | None = None


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where a federation stands between two rounds: all that goes over from one to the next.

    `unscored` is the round that was closed last, when its model, which is `model`, is still to be scored. Devices in
    `knows_table` need not fetch the table again. `row_shares` are the rows' shares of the full network's MACs.
    `real_s` is how long it took here, which nothing depends on.
    """

    records: tuple[RoundRecord, ...]
    unscored: RoundRecord | None
    now_s: float
    knows_table: tuple[int, ...]
    row_shares: tuple[float, ...]
    model: bytes
    finished: bool
    real_s: float = 0.0

    @property
    def done(self) -> int:
        """The number of the round that was closed last."""
        if self.unscored is not None:
            return self.unscored.round
        return self.records[-1].round if self.records else 0

"""What a simulation tells of itself: a record a round, and what is needed to go on from one."""

from __future__ import annotations

import msgspec

__all__ = ["RoundRecord", "Score"]


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

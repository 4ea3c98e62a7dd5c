"""The averaging side: rounds, averaging, validation, ledger, and the program around them."""

from __future__ import annotations

from distreal_edge.aggregator.averaging import AverageKind, AverageRule, ClipNorm, average_updates, pool_statistics
from distreal_edge.aggregator.closing import (
    Averaged,
    Closed,
    Judged,
    Record,
    average_round,
    judge_round,
    record_round,
)
from distreal_edge.aggregator.evaluation import (
    HeldOut,
    Part,
    Scores,
    evaluate,
    measure_statistics,
    trained_part,
    with_statistics,
)
from distreal_edge.aggregator.ledger import Decision, Ledger, OpenRound, StoredUpdate
from distreal_edge.aggregator.lesson import Lesson
from distreal_edge.aggregator.rounds import AggregatorRounds, Close, Finish, Open, RoundSettings
from distreal_edge.aggregator.schedule import ceiling_at, ceiling_by_progress, check_ceilings, learning_rate_at
from distreal_edge.aggregator.server import Aggregator
from distreal_edge.aggregator.store import Keeping, Store
from distreal_edge.aggregator.validation import REASONS, check_sender, check_update, reason_of

__all__ = [
    "REASONS",
    "Aggregator",
    "AggregatorRounds",
    "AverageKind",
    "AverageRule",
    "Averaged",
    "ClipNorm",
    "Close",
    "Closed",
    "Decision",
    "Finish",
    "HeldOut",
    "Judged",
    "Keeping",
    "Ledger",
    "Lesson",
    "Open",
    "OpenRound",
    "Part",
    "Record",
    "RoundSettings",
    "Scores",
    "Store",
    "StoredUpdate",
    "average_round",
    "average_updates",
    "ceiling_at",
    "ceiling_by_progress",
    "check_ceilings",
    "check_sender",
    "check_update",
    "evaluate",
    "judge_round",
    "learning_rate_at",
    "measure_statistics",
    "pool_statistics",
    "reason_of",
    "record_round",
    "trained_part",
    "with_statistics",
]

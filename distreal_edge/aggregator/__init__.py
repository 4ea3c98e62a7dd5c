"""The averaging side: rounds, averaging, validation, ledger, and the program around them."""

from __future__ import annotations

from distreal_edge.aggregator.averaging import Average, AverageKind, pool_statistics
from distreal_edge.aggregator.evaluation import Scores, evaluate, measure_statistics, with_statistics
from distreal_edge.aggregator.ledger import Ledger, StoredUpdate
from distreal_edge.aggregator.rounds import AggregatorRounds, Close, Finish, Open, RoundSettings
from distreal_edge.aggregator.schedule import ceiling_at, check_ceilings, learning_rate_at
from distreal_edge.aggregator.server import Aggregator, Lesson, Record
from distreal_edge.aggregator.store import Store
from distreal_edge.aggregator.validation import check_update

__all__ = [
    "Aggregator",
    "AggregatorRounds",
    "Average",
    "AverageKind",
    "Close",
    "Finish",
    "Ledger",
    "Lesson",
    "Open",
    "Record",
    "RoundSettings",
    "Scores",
    "Store",
    "StoredUpdate",
    "ceiling_at",
    "check_ceilings",
    "check_update",
    "evaluate",
    "learning_rate_at",
    "measure_statistics",
    "pool_statistics",
    "with_statistics",
]

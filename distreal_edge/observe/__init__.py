"""What people see of a federation: the live view, the report from its logs, and pictures."""

from __future__ import annotations

from distreal_edge.observe.adaptation import Adaptation, DeviceRound
from distreal_edge.observe.pictures import draw_accuracy, draw_cores_and_rows
from distreal_edge.observe.records import RoundRecord, Steps, read_rounds, read_steps
from distreal_edge.observe.report import (
    DeviceSummary,
    Evidence,
    RoundSummary,
    TrainingReport,
    encode_report,
    summarise,
)
from distreal_edge.observe.screen import live_frame, result_table
from distreal_edge.observe.view import DeviceView, FederationView, changes, hear, new_view, update

__all__ = [
    "Adaptation",
    "DeviceRound",
    "DeviceSummary",
    "DeviceView",
    "Evidence",
    "FederationView",
    "RoundRecord",
    "RoundSummary",
    "Steps",
    "TrainingReport",
    "changes",
    "draw_accuracy",
    "draw_cores_and_rows",
    "encode_report",
    "hear",
    "live_frame",
    "new_view",
    "read_rounds",
    "read_steps",
    "result_table",
    "summarise",
    "update",
]

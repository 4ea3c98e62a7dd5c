"""The demonstration: one network, several emulated boards, real images and real messages, on one machine."""

from __future__ import annotations

from distreal_edge.demo.outcome import DemoReport
from distreal_edge.demo.processes import Ended, Processes
from distreal_edge.demo.run import run_demo
from distreal_edge.demo.scenario import Scenario, default_scenario
from distreal_edge.demo.traces import make_trace, trace_csv, trace_story

__all__ = [
    "DemoReport",
    "Ended",
    "Processes",
    "Scenario",
    "default_scenario",
    "make_trace",
    "run_demo",
    "trace_csv",
    "trace_story",
]

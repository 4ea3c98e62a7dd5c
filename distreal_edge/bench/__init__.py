"""Problems to time, the machine they are timed on, the figures, and the profiles of tables."""

from __future__ import annotations

from distreal_edge.bench.machine import Machine, State, cool_down, describe_machine, read_state
from distreal_edge.bench.problems import DIRECTIONS, Convolution, Problem, Step, kept_channels, parse_problem
from distreal_edge.bench.profile import Sensors, measure_profile
from distreal_edge.bench.run import (
    ConvolutionResult,
    Figures,
    StepResult,
    check_instruction_set,
    prepare_step,
    run_convolution,
    run_step,
    time_direction,
)
from distreal_edge.bench.timing import Timing, repeat, timed

__all__ = [
    "DIRECTIONS",
    "Convolution",
    "ConvolutionResult",
    "Figures",
    "Machine",
    "Problem",
    "Sensors",
    "State",
    "Step",
    "StepResult",
    "Timing",
    "check_instruction_set",
    "cool_down",
    "describe_machine",
    "kept_channels",
    "measure_profile",
    "parse_problem",
    "prepare_step",
    "read_state",
    "repeat",
    "run_convolution",
    "run_step",
    "time_direction",
    "timed",
]

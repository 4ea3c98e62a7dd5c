"""Look at a machine before, or after, something goes wrong on it: what is well, what is not, and how to mend it.

Every check is a pure judgement over what was read, and a reader beside it.
"""

from __future__ import annotations

from distreal_edge.doctor.broker import BrokerReading, judge_broker, read_broker
from distreal_edge.doctor.certificates import (
    CertificateReading,
    PairReading,
    judge_certificates,
    judge_pair,
    read_certificates,
    read_pair,
)
from distreal_edge.doctor.child import ChildFailure, run_child
from distreal_edge.doctor.clock import ClockReading, judge_clock, read_clock
from distreal_edge.doctor.disk import DiskReading, judge_disk, read_disk
from distreal_edge.doctor.engine import EngineReading, judge_engine, read_engine
from distreal_edge.doctor.finding import Finding
from distreal_edge.doctor.heat import HeatReading, judge_heat, read_heat
from distreal_edge.doctor.images import ImagesReading, judge_images
from distreal_edge.doctor.limits import LimitsReading, judge_limits, read_limits
from distreal_edge.doctor.profile import judge_profile, read_table_digest
from distreal_edge.doctor.program import ProgramReading, judge_program, read_program

__all__ = [
    "BrokerReading",
    "CertificateReading",
    "ChildFailure",
    "ClockReading",
    "DiskReading",
    "EngineReading",
    "Finding",
    "HeatReading",
    "ImagesReading",
    "LimitsReading",
    "PairReading",
    "ProgramReading",
    "judge_broker",
    "judge_certificates",
    "judge_clock",
    "judge_disk",
    "judge_engine",
    "judge_heat",
    "judge_images",
    "judge_limits",
    "judge_pair",
    "judge_profile",
    "judge_program",
    "read_broker",
    "read_certificates",
    "read_clock",
    "read_disk",
    "read_engine",
    "read_heat",
    "read_limits",
    "read_pair",
    "read_program",
    "read_table_digest",
    "run_child",
]

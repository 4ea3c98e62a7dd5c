"""What the doctor makes of readings: when it is well, when it is not, and that it always says what to do."""

from __future__ import annotations

import calendar
from pathlib import Path

import pytest

from distreal_edge.device import Availability, OwnerLimits
from distreal_edge.doctor import (
    BrokerReading,
    CertificateReading,
    ClockReading,
    DiskReading,
    EngineReading,
    Finding,
    HeatReading,
    ImagesReading,
    LimitsReading,
    PairReading,
    ProgramReading,
    judge_broker,
    judge_certificates,
    judge_clock,
    judge_disk,
    judge_engine,
    judge_heat,
    judge_images,
    judge_limits,
    judge_pair,
    judge_program,
)

STATE = Path("/var/lib/distreal-edge")
PEM = Path("/etc/distreal-edge/tls/device.pem")
NOW_S = float(calendar.timegm((2026, 11, 21, 12, 0, 0)))
DAY_S = 86400.0


def told(finding: Finding, *words: str) -> bool:
    """Hold that a finding is one line each way, and return whether it has these words."""
    assert finding.found
    assert "\n" not in finding.found + (finding.remedy or "")
    return all(word in f"{finding.found} | {finding.remedy}" for word in words)


@pytest.mark.parametrize(
    ("time_s", "error_s", "passed", "words"),
    [
        (NOW_S, 0.031, True, "within 0.031 s"),
        (NOW_S, None, True, "2026-11-21 12:00 UTC; whether a time server sets it cannot be seen"),
        (NOW_S, float("inf"), False, "no time server sets it | sudo apt-get install systemd-timesyncd"),
        (0.0, 0.031, False, "shows 1970-01-01 00:00 UTC | "),
        (calendar.timegm((2024, 12, 31, 23, 59, 59)), None, False, "timedatectl set-ntp true"),
        (calendar.timegm((2101, 1, 1, 0, 0, 0)), 0.1, False, "shows 2101"),
    ],
)
def test_a_clock_is_right_when_somebody_sets_it(time_s: float, error_s: float | None, passed: bool, words: str) -> None:
    finding = judge_clock(ClockReading(time_s, error_s))
    assert finding.passed is passed
    assert told(finding, words)


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (BrokerReading("pi.lan", 1883, "nothing", "Name or service not known"), "getent hosts NAME"),
        (BrokerReading("127.0.0.1", 1883, "name", "Connection refused"), "sudo apt-get install mosquitto"),
        (BrokerReading("192.168.1.9", 1883, "name", "no answer within 5 s"), "firewall"),
        (BrokerReading("192.168.1.9", 1883, "port", "Not authorized"), "journalctl -u mosquitto"),
        (
            BrokerReading("192.168.1.9", 8883, "port", "TLS: who are you; enroll"),
            "192.168.1.9:8883: TLS: who are you | enroll",
        ),
    ],
)
def test_a_broker_is_mended_where_the_way_to_it_ends(reading: BrokerReading, words: str) -> None:
    finding = judge_broker(reading)
    assert not finding.passed
    assert told(finding, reading.said.partition("; ")[0], words)


def test_a_broker_that_answers_is_well() -> None:
    finding = judge_broker(BrokerReading("127.0.0.1", 1883, "broker", seconds=0.0123))
    assert finding == Finding("broker", "127.0.0.1:1883 speaks MQTT 5, answered after 12 ms")
    shaken = judge_broker(BrokerReading("pi.lan", 8883, "handshake", seconds=0.0123))
    assert shaken.passed
    assert told(shaken, "we know each other, after 12 ms")


@pytest.mark.parametrize(
    ("reading", "now_s", "passed", "words"),
    [
        (CertificateReading(PEM, 0.0, NOW_S + 31 * DAY_S), NOW_S, True, "good until 2026-12-22"),
        (CertificateReading(PEM, 0.0, NOW_S + 29.6 * DAY_S), NOW_S, False, "good for 30 days only"),
        (CertificateReading(PEM, 0.0, NOW_S), NOW_S, False, "not good since 2026-11-21"),
        (CertificateReading(PEM, NOW_S + 1, NOW_S + 99 * DAY_S), NOW_S, False, "set the clock right"),
        (
            CertificateReading(PEM, failure="holds no certificate"),
            NOW_S,
            False,
            "holds no certificate | give a PEM file",
        ),
    ],
)
def test_a_certificate_is_good_for_a_month_or_to_be_renewed(
    reading: CertificateReading, now_s: float, passed: bool, words: str
) -> None:
    (finding,) = judge_certificates((reading,), now_s)
    assert finding.passed is passed
    assert told(finding, str(PEM), words)


def pair(**changes: object) -> PairReading:
    fields: dict[str, object] = {"belongs": True, "signed": True, "for_clients": True, "revoked": None}
    return PairReading(PEM, PEM.with_name("ca.pem"), PEM.with_suffix(".key"), **fields | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (pair(belongs=False), ["device.key: does not belong to", "device.pem | install them anew"]),
        (pair(signed=False), ["device.pem: was not signed by the authority in", "ca.pem"]),
        (pair(for_clients=False), ["is a server's"]),
        (pair(revoked=True), ["was revoked | distreal-edge keys add"]),
        (pair(open_to_others=True), ["others on this machine can read it | chmod 600"]),
        (pair(key_failure="Permission denied", belongs=None), ["device.key: Permission denied"]),
    ],
)
def test_certificate_and_key_that_do_not_fit_are_told_apart(reading: PairReading, words: list[str]) -> None:
    (finding,) = judge_pair(reading)
    assert not finding.passed
    assert told(finding, *words)


def test_certificate_and_key_that_fit_are_well_and_nothing_is_said_of_what_is_not_known() -> None:
    assert [finding.passed for finding in judge_pair(pair(revoked=False))] == [True]
    assert judge_pair(pair(signed=None)) == ()


def disk(**changes: object) -> DiskReading:
    fields: dict[str, object] = {
        "folder": STATE, "tried": STATE, "user": "pi", "owner": "pi", "free_bytes": 10**9,
        "writes_s": (0.02, 0.04, 0.03),
    }  # fmt: skip
    return DiskReading(**fields | changes)  # type: ignore[arg-type]


def test_a_disk_is_well_when_it_is_ours_roomy_and_quick() -> None:
    findings = judge_disk(disk(), needed_bytes=10**9)
    assert [finding.check for finding in findings] == ["state folder", "disk space", "disk speed"]
    assert all(finding.passed for finding in findings)
    assert told(findings[2], "30 ms, at worst 40 ms")


@pytest.mark.parametrize(
    ("reading", "check", "words"),
    [
        (disk(free_bytes=10**9 - 1), "disk space", "1.0 GB free; 1 GB may be needed | free some"),
        (disk(writes_s=(0.6, 0.6, 0.1)), "disk speed", "iotop"),
        (disk(writes_s=(0.01, 0.01, 3.1)), "disk speed", "at worst 3100 ms"),
        (disk(foreign=STATE / "lock"), "state folder", "sudo chown -R pi /var/lib/distreal-edge"),
        (disk(refused="Permission denied", owner="distreal-edge"), "state folder", "sudo -u distreal-edge"),
        (disk(refused="Permission denied", owner=""), "state folder", "sudo -u USER distreal-edge"),
        (disk(refused="Permission denied", owner="root", tried=Path("/var/lib")), "state folder",
         "/var/lib: Permission denied | make it: sudo install -d -m 700 -o pi /var/lib/distreal-edge"),
        (disk(refused="is no folder"), "state folder", "give state the path of a folder"),
        (disk(refused="Read-only file system", user="root"), "state folder", "worn out"),
    ],
)  # fmt: skip
def test_a_disk_that_cannot_be_used_is_told_with_what_to_do(reading: DiskReading, check: str, words: str) -> None:
    (problem,) = [each for each in judge_disk(reading, needed_bytes=10**9) if not each.passed]
    assert problem.check == check
    assert told(problem, words)


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (EngineReading("Pi", failure="killed by SIGILL"), "pip install --force-reinstall"),
        (EngineReading("Pi", failure="DISTREAL_EDGE_INSTRUCTION_SET=x does not run"), "unset DISTREAL_EDGE_INST"),
        (EngineReading("Pi", "neon", (1.0, 0.9), (1.0, 0.8)), "memtester"),
        (EngineReading("Pi", "neon", (float("nan"),), (float("nan"),)), "memtester"),
        (EngineReading("Pi", "neon", (float("inf"),), (1.0,)), "memtester"),
        (EngineReading("Pi", "neon"), "memtester"),
    ],
)
def test_an_engine_that_cannot_train_or_computes_wrongly_is_a_problem(reading: EngineReading, words: str) -> None:
    assert not judge_engine(reading).passed
    assert told(judge_engine(reading), words)


def test_an_engine_that_agrees_with_plain_code_is_well() -> None:
    finding = judge_engine(EngineReading("Pi 4", "neon", (1.38, 0.91), (1.3801, 0.9101)))
    assert finding == Finding("engine", "Pi 4: neon kernels train, as plain code does")


@pytest.mark.parametrize(
    ("reading", "problems"),
    [
        (HeatReading(), []),
        (HeatReading(79.9, 0, False, False), []),
        (HeatReading(80.0), ["heat"]),
        (HeatReading(50.0, 0x4), ["heat"]),
        (HeatReading(50.0, 0x8), ["heat"]),
        (HeatReading(50.0, 0x1), ["voltage"]),
        (HeatReading(50.0, 0x10000), ["voltage"]),
        (HeatReading(50.0, None, True), ["voltage"]),
        (HeatReading(50.0, 0x40000), []),
        (HeatReading(85.0, 0x50005), ["heat", "voltage"]),
        (HeatReading(50.0, 0, False, True), []),
    ],
)
def test_heat_and_voltage_are_problems_when_they_are_now_or_harm(reading: HeatReading, problems: list[str]) -> None:
    findings = judge_heat(reading)
    assert [finding.check for finding in findings if not finding.passed] == problems
    watched = reading.flags is not None or reading.low_voltage is not None
    assert ("voltage" in {finding.check for finding in findings}) is watched
    assert all(told(finding) for finding in findings)


def test_what_was_earlier_and_what_somebody_wanted_is_told_all_the_same() -> None:
    assert told(judge_heat(HeatReading(50.0, 0x40000))[0], "50 degrees; the firmware held the clock down earlier")
    assert told(judge_heat(HeatReading(50.0, capped=True))[0], "kept below its highest frequency")


@pytest.mark.parametrize(
    ("reading", "passed", "words"),
    [
        (ImagesReading("mnist", 2), True, "mnist: 2 images"),
        (ImagesReading("mnist", unfinished=True), True, "still being read"),
        (ImagesReading("mnist", 1), False, "training needs 2 images"),
        (ImagesReading("mnist", failure="dataset mnist: no train files in /x. Debian: ..."), False, "docs/data.md"),
    ],
)
def test_two_images_are_enough(reading: ImagesReading, passed: bool, words: str) -> None:
    assert judge_images(reading).passed is passed
    assert told(judge_images(reading), words)


FREE = Availability(3.9, 1e9, 50.0)


@pytest.mark.parametrize(
    ("reading", "available", "limits", "problems"),
    [
        (LimitsReading(4, 4), FREE, None, []),
        (LimitsReading(4, 1, 0.25, 10**9), FREE, None, []),
        (LimitsReading(4, 1, 0.24), FREE, None, ["processors"]),
        (LimitsReading(4, 4), FREE, OwnerLimits(most_cores=0.2), ["processors"]),
        (LimitsReading(4, 4), Availability(0.05, 1e9), None, []),
        (LimitsReading(4, 4), Availability(0.0, 1e9, paused="quiet hours"), OwnerLimits(), []),
        (LimitsReading(4, 4), Availability(4.0, 1.9e8), None, ["memory"]),
        (LimitsReading(4, 4, memory_limit_bytes=10**8), FREE, None, ["memory"]),
        (LimitsReading(4, 4), Availability(4.0, None), None, []),
        (LimitsReading(4, 4), FREE, OwnerLimits(highest_temperature_c=75.0), []),
        (LimitsReading(4, 4), Availability(4.0, 1e9), OwnerLimits(highest_temperature_c=75.0), ["temperature limit"]),
    ],
)
def test_limits_are_problems_when_they_leave_next_to_nothing_for_good(
    reading: LimitsReading, available: Availability, limits: OwnerLimits | None, problems: list[str]
) -> None:
    findings = judge_limits(reading, available, limits)
    assert [finding.check for finding in findings if not finding.passed] == problems
    assert all(told(finding) for finding in findings)


def test_limits_are_told_as_they_were_found() -> None:
    processors, memory = judge_limits(
        LimitsReading(4, 2, 1.5, 512_000_000, process_id=77),
        Availability(0.0, 4e8, paused="quiet hours 22:00-07:00"),
        OwnerLimits(most_cores=1.25, most_memory_bytes=450e6),
    )
    assert processors.found == (
        "process 77 may use 2 of 4 CPUs, a quota of 1.5 cores, most_cores 1.25; 0.00 cores are free beside it now; "
        "nothing is trained now: quiet hours 22:00-07:00"
    )
    assert memory.found == "400 MB can be had now, under a limit of 512 MB, most_memory 450 MB"


@pytest.mark.parametrize(
    ("reading", "passed", "words"),
    [
        (ProgramReading(STATE, "device"), True, "none runs with /var/lib/distreal-edge"),
        (ProgramReading(STATE, "device", held=True, answered="a device (process 7): idle", age_s=119.0), True, "idle"),
        (
            ProgramReading(STATE, "device", held=True, answered="a device: idle", age_s=121.0),
            False,
            "restart distreal-edge-d",
        ),
        (ProgramReading(STATE, "device", held=True, answered="degraded", safe_mode=True), False, "what crashed it"),
        (ProgramReading(STATE, "aggregator", held=True), False, "restart distreal-edge-aggregator"),
        (ProgramReading(STATE, "device", failure="belongs to another user"), False, "with sudo"),
    ],
)
def test_a_program_is_well_when_it_gets_on_or_when_none_runs(reading: ProgramReading, passed: bool, words: str) -> None:
    assert judge_program(reading).passed is passed
    assert told(judge_program(reading), words)

"""What the doctor reads of this very machine, and of machines of the tests' own."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distreal_edge.doctor import (
    ChildFailure,
    HeatReading,
    judge_engine,
    read_broker,
    read_certificates,
    read_clock,
    read_disk,
    read_engine,
    read_heat,
    read_limits,
    read_pair,
    read_program,
    run_child,
)
from distreal_edge.durable import held_folder
from distreal_edge.identity.checking import read_certificates as parse_certificates
from distreal_edge.machine import Roots
from distreal_edge.status import StatusSocket
from distreal_edge.transport import EmbeddedBroker, TlsFiles, connection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAIT_S = 30.0
SOURCES = Path(__file__).resolve().parents[2]


@pytest.fixture
def lay(tmp_path: Path) -> Callable[[dict[str, str]], Roots]:
    """Write files below /proc and /sys of a machine of the test's own, by their absolute paths."""

    def write(files: dict[str, str]) -> Roots:
        for name, text in files.items():
            path = tmp_path / name.removeprefix("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return Roots(tmp_path / "proc", tmp_path / "sys")

    return write


# -- clock ---------------------------------------------------------------------------------------------------------


def test_the_clocks_error_is_what_another_call_of_linux_says() -> None:
    class Ntptimeval(ctypes.Structure):
        _fields_ = (("time", ctypes.c_long * 2), ("maxerror", ctypes.c_long), ("more", ctypes.c_long * 16))

    other = Ntptimeval()
    before_s = time.time()
    reading = read_clock()
    if ctypes.CDLL(None).ntp_gettime(ctypes.byref(other)) < 0:
        pytest.skip("Linux does not say here")
    assert before_s <= reading.time_s <= time.time()
    assert reading.error_s is not None
    if other.maxerror >= 16_000_000:
        assert reading.error_s == float("inf")
    else:
        assert reading.error_s == pytest.approx(other.maxerror / 1e6, abs=0.01)


# -- broker --------------------------------------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        yield listening


def test_a_real_broker_answers_again_and_again_and_lets_us_go() -> None:
    threads = threading.active_count()
    with EmbeddedBroker() as broker:
        for _ in range(3):
            reading = read_broker(broker.host, broker.port)
            assert (reading.reached, reading.said) == ("broker", "")
            assert 0.0 < reading.seconds < WAIT_S
    assert threading.active_count() == threads


def test_a_port_where_nobody_listens_is_refused(listener: socket.socket) -> None:
    reading = read_broker("127.0.0.1", listener.getsockname()[1])
    assert (reading.reached, reading.said) == ("name", "Connection refused")


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a" * 64 + ".lan", "b..c"])
def test_a_name_that_nobody_knows_is_told(host: str) -> None:
    assert read_broker(host, 1883).reached == "nothing"


def test_somebody_who_never_answers_is_given_up(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT_S", 0.3)
    monkeypatch.setattr(connection, "TICK_S", 0.1)
    listener.listen()
    reading = read_broker("127.0.0.1", listener.getsockname()[1])
    assert reading.reached == "port"
    assert "did not answer" in reading.said


@pytest.mark.parametrize(
    ("answer", "said"),
    [(b"\x20\x03\x00\x84\x00", "does not speak MQTT 5"), (b"\x20\x03\x00\x87\x00", "does not authorise this client"),
     (b"HTTP/1.1 400 Bad Request\r\n\r\n", "")],
)  # fmt: skip
def test_a_broker_that_turns_us_away_says_why(
    listener: socket.socket, answer: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT_S", 2.0)
    listener.listen()

    def refuse() -> None:
        for _ in range(2):  # the first only looks whether somebody listens
            client, _ = listener.accept()
            with client:
                if client.recv(1000):
                    client.sendall(answer)
                    client.recv(1000)

    thread = threading.Thread(target=refuse)
    thread.start()
    reading = read_broker("127.0.0.1", listener.getsockname()[1])
    thread.join(WAIT_S)
    assert reading.reached == "port"
    assert reading.said
    assert said in reading.said


# -- certificates --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """Make an authority for ten days, and a certificate that is good from 2001 to 2052."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("tls")

    def make(name: str, *arguments: str) -> Path:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
             f"/CN={name}", "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem", *arguments],
            check=True, capture_output=True,
        )  # fmt: skip
        return folder / f"{name}.pem"

    return TlsFiles(make("ca", "-days", "10"), make("device", "-days", "9500"), folder / "device.key")


def test_certificates_are_good_for_as_long_as_openssl_says(certificates: TlsFiles) -> None:
    for reading in read_certificates(certificates):
        shown = subprocess.run(
            ["openssl", "x509", "-noout", "-startdate", "-enddate", "-in", reading.path],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        begin, end = (line.partition("=")[2] for line in shown.splitlines())
        assert reading.failure == ""
        assert (reading.from_s, reading.until_s) == (ssl.cert_time_to_seconds(begin), ssl.cert_time_to_seconds(end))


def test_a_time_after_2049_is_written_in_another_form_and_read_all_the_same(certificates: TlsFiles) -> None:
    assert b"\x18\x0f20" in ssl.PEM_cert_to_DER_cert(certificates.certificate.read_text())
    assert read_certificates(certificates)[1].until_s > 2.52e9


def test_of_several_certificates_in_a_file_the_first_to_end_counts(certificates: TlsFiles, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_text(certificates.certificate.read_text() + "\nsome words\n" + certificates.ca.read_text())
    reading, _ = read_certificates(TlsFiles(bundle, certificates.certificate, certificates.key))
    assert reading.until_s == read_certificates(certificates)[0].until_s


@pytest.mark.parametrize(
    ("text", "failure"),
    [(None, "No such file or directory"), ("no certificate", "holds no certificate"),
     ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "its certificate is damaged"),
     ("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----", "its certificate is damaged")],
)  # fmt: skip
def test_a_file_that_holds_no_certificate_is_told(tmp_path: Path, text: str | None, failure: str) -> None:
    if text is not None:
        (tmp_path / "x.pem").write_text(text)
    files = TlsFiles(tmp_path / "x.pem", tmp_path / "x.pem", tmp_path / "x.key")
    assert [reading.failure for reading in read_certificates(files)] == [failure] * 2


@given(data=st.data())
def test_a_damaged_certificate_is_refused_in_one_way(certificates: TlsFiles, data: st.DataObject) -> None:
    whole = bytearray(ssl.PEM_cert_to_DER_cert(certificates.ca.read_text()))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    pem = ssl.DER_cert_to_PEM_cert(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    with contextlib.suppress(ValueError):
        parse_certificates(pem.encode())


def test_our_own_certificate_is_compared_with_authority_and_key(certificates: TlsFiles, tmp_path: Path) -> None:
    # Both have signed themselves, so that the one is not the other's.
    reading = read_pair(certificates)
    assert (reading.belongs, reading.signed, reading.for_clients, reading.revoked) == (True, False, True, None)
    assert not reading.open_to_others
    foreign = read_pair(TlsFiles(certificates.ca, certificates.certificate, certificates.ca.with_suffix(".key")))
    assert foreign.belongs is False
    alone = read_pair(TlsFiles(certificates.certificate, certificates.certificate, certificates.key))
    assert alone.signed is True
    gone = read_pair(TlsFiles(tmp_path / "no", tmp_path / "no", tmp_path / "no"))
    assert (gone.key_failure, gone.belongs, gone.signed) == ("No such file or directory", None, None)
    assert "no private key" in read_pair(TlsFiles(certificates.ca, certificates.ca, certificates.ca)).key_failure


@pytest.mark.parametrize(("mode", "is_open"), [(0o600, False), (0o400, False), (0o644, True), (0o604, True)])
def test_a_key_that_others_can_read_is_noticed(
    certificates: TlsFiles, tmp_path: Path, mode: int, is_open: bool
) -> None:
    key = tmp_path / "key"
    key.write_bytes(certificates.key.read_bytes())
    key.chmod(mode)
    assert read_pair(TlsFiles(certificates.ca, certificates.certificate, key)).open_to_others is is_open


# -- disk ----------------------------------------------------------------------------------------------------------


def test_looking_at_a_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    reading = read_disk(tmp_path)
    assert reading.refused is None
    assert len(reading.writes_s) == 8
    assert all(0.0 < seconds < WAIT_S for seconds in reading.writes_s)
    assert reading.free_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_folder_that_is_still_to_be_made_is_not_made(tmp_path: Path) -> None:
    reading = read_disk(tmp_path / "a" / "b")
    assert (reading.refused, reading.tried) == (None, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "/state"])
def test_a_file_is_no_state_folder(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    assert read_disk(Path(f"{tmp_path}/file{below}")).refused == "is no folder"


def test_where_nobody_may_write_the_reason_is_linuxs(tmp_path: Path) -> None:
    reading = read_disk(Path("/proc/state"))
    assert reading.tried == Path("/proc")
    assert reading.refused in {"No such file or directory", "Permission denied"}


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_another_users_folder_is_closed_to_us_and_its_owner_is_named() -> None:
    folder = Path("/run") / f"distreal-edge-test-{os.getpid()}"
    (folder / "below").mkdir(parents=True)
    folder.chmod(0o700)
    try:
        for each, owner in ((folder, "root"), (folder / "below", "")):
            # The sources may be closed to others as well: they are read before.
            code = f"import os, pathlib, distreal_edge.doctor as d; os.setgroups([]); os.setuid(65534); \
r = d.read_disk(pathlib.Path({str(each)!r})); print(r.refused, r.owner, r.user, sep='|')"
            ran = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, cwd=SOURCES, timeout=WAIT_S, check=True
            )
            assert ran.stdout.strip() == f"Permission denied|{owner}|nobody"
    finally:
        shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
def test_a_file_that_is_not_the_folders_owners_is_found(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "update").touch()
    assert read_disk(tmp_path).foreign is None
    os.chown(tmp_path / "spool" / "update", 12345, 12345)
    assert read_disk(tmp_path).foreign == tmp_path / "spool" / "update"
    os.chown(tmp_path, 12345, 12345)
    assert read_disk(tmp_path).owner == "12345"


# -- engine --------------------------------------------------------------------------------------------------------


def test_this_processor_trains_as_plain_code_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISTREAL_EDGE_INSTRUCTION_SET", raising=False)
    reading = read_engine("this")
    assert judge_engine(reading).passed, reading
    assert reading.losses[-1] < reading.losses[0]
    monkeypatch.setenv("DISTREAL_EDGE_INSTRUCTION_SET", "abacus")
    assert "abacus is not an instruction set" in read_engine("this").failure


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("kill -ILL $$", "killed by SIGILL"),
        ("echo oh no >&2; exit 3", "exit code 3: oh no"),
        ("exit 0", "exit code 0: without a word"),
        ("echo 3", "answered 3"),
    ],
)
def test_however_a_child_ends_it_is_told_and_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert read_engine("this").failure == said


def test_a_child_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 600\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ChildFailure, match="not done after 0 s") as caught:
        run_child("some.module", timeout_s=0.2)
    assert caught.value.timed_out


def test_a_child_that_cannot_be_started_or_prints_no_text_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nprintf '\\377'\n")
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ChildFailure, match="python cannot be started: Permission denied"):
        run_child("some.module", timeout_s=10.0)
    python.chmod(0o755)
    with pytest.raises(ChildFailure, match="exit code 0: without a word"):
        run_child("some.module", timeout_s=10.0)


def test_what_lies_in_somebodys_folder_is_not_run_by_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('run!')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISTREAL_EDGE_INSTRUCTION_SET", raising=False)
    assert read_engine("this").failure == ""


# -- heat and limits -----------------------------------------------------------------------------------------------


def test_a_raspberry_pis_flags_and_alarm_are_read(lay: Callable[[dict[str, str]], Roots]) -> None:
    roots = lay(
        {
            "/sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
            "/sys/class/thermal/thermal_zone0/temp": "81200\n",
            "/sys/class/hwmon/hwmon0/name": "cpu_thermal\n",
            "/sys/class/hwmon/hwmon1/name": "rpi_volt\n",
            "/sys/class/hwmon/hwmon1/in0_lcrit_alarm": "1\n",
            "/sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "600000\n",
            "/sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq": "1800000\n",
        }
    )
    assert read_heat(roots) == HeatReading(81.2, 0x50005, low_voltage=True, capped=True)


@pytest.mark.parametrize(("alarm", "low"), [("0\n", False), ("1\n", True), ("perhaps\n", None), (None, None)])
def test_an_alarm_for_low_voltage_may_be_missing_or_odd(
    lay: Callable[[dict[str, str]], Roots], alarm: str | None, low: bool | None
) -> None:
    files = {"/sys/class/hwmon/hwmon1/name": "rpi_volt\n"}
    if alarm is not None:
        files["/sys/class/hwmon/hwmon1/in0_lcrit_alarm"] = alarm
    assert read_heat(lay(files)) == HeatReading(low_voltage=low)


def test_the_limits_of_a_group_are_read_as_they_stand(lay: Callable[[dict[str, str]], Roots], tmp_path: Path) -> None:
    group = "/sys/fs/cgroup/system.slice/device.service"
    files = {
        "/proc/meminfo": "MemTotal: 4000000 kB\nMemAvailable: 3000000 kB\n",
        "/proc/self/cgroup": "0::/system.slice/device.service\n",
        "/proc/self/mountinfo": "25 1 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "/sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
        f"{group}/cpu.max": "150000 100000\n",
        f"{group}/memory.max": "max\n",
        f"{group}/memory.high": "512000000\n",
        "/sys/fs/cgroup/system.slice/memory.max": "800000000\n",
    }
    reading = read_limits(lay(files))
    assert (reading.quota_cores, reading.memory_limit_bytes) == (1.5, 512_000_000)
    assert reading.allowed == len(os.sched_getaffinity(0))
    # Version 1 says no limit as a number that is larger than any memory.
    files["/proc/self/cgroup"] = "4:memory:/a\n"
    files["/proc/self/mountinfo"] = "25 1 0:22 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    files["/sys/fs/cgroup/memory/a/memory.limit_in_bytes"] = "9223372036854771712\n"
    assert read_limits(lay(files)).memory_limit_bytes is None
    files["/sys/fs/cgroup/memory/a/memory.limit_in_bytes"] = "300000000\n"
    assert read_limits(lay(files)).memory_limit_bytes == 300_000_000
    for nonsense in ("9" * 5000, "-5", "3e8", "\N{ARABIC-INDIC DIGIT THREE}"):
        files["/sys/fs/cgroup/memory/a/memory.limit_in_bytes"] = files["/proc/meminfo"] = nonsense
        assert read_limits(lay(files)).memory_limit_bytes is None
        files["/proc/meminfo"] = f"MemTotal: {nonsense} kB\n"
        assert read_limits(lay(files)).memory_limit_bytes is None


def test_the_limits_of_another_process_are_its_own(lay: Callable[[dict[str, str]], Roots]) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        os.sched_setaffinity(child.pid, {min(os.sched_getaffinity(0))})
        roots = lay({f"/proc/{child.pid}/cgroup": "", "/proc/self/mountinfo": ""})
        assert read_limits(roots, child.pid).allowed == 1
        assert read_limits(roots, child.pid).process_id == child.pid
        child.communicate(b"\n")
    assert read_limits(roots, child.pid).allowed == len(os.sched_getaffinity(0))  # it is gone


# -- program -------------------------------------------------------------------------------------------------------


def test_a_program_is_found_by_its_answer_and_by_its_lock(tmp_path: Path) -> None:
    assert not read_program(tmp_path, "device").held
    assert not read_program(tmp_path / "missing", "device").held
    with held_folder(tmp_path):
        reading = read_program(tmp_path, "device")
        assert (reading.held, reading.answered) == (True, "")
        with StatusSocket(tmp_path):
            reading = read_program(tmp_path, "device")
            assert (reading.held, reading.process_id) == (True, os.getpid())
            assert reading.answered == f"a program (process {os.getpid()}): starting"
    assert not read_program(tmp_path, "device").held


def test_looking_for_a_program_does_not_keep_one_from_starting(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    read_program(tmp_path, "device")
    with (tmp_path / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

"""`distreal-edge doctor`: the whole table on this machine, with brokers, folders and images that are well or not."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from distreal_edge import doctor as checks_of_doctor
from distreal_edge import zoo
from distreal_edge.cli import doctor as module
from distreal_edge.cli import service
from distreal_edge.config import FederationConfig, load_config
from distreal_edge.doctor import EngineReading
from distreal_edge.dropout import Profile, profile_path
from distreal_edge.dropout.profile import ProfiledMachine, ProfiledRow, ProfiledStep
from distreal_edge.search import uniform_table
from distreal_edge.status import StatusSocket
from distreal_edge.transport import BlobReference, EmbeddedBroker, Manifest, Session, Topics, Training, encode

if TYPE_CHECKING:
    from collections.abc import Callable

Run = "Callable[..., subprocess.CompletedProcess[str]]"

SOURCES = Path(__file__).resolve().parents[2]
EVERYWHERE = ["clock", "processors", "memory", "engine", "heat"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Try the engine, which takes seconds, in few tests only."""
    monkeypatch.setattr(module, "_WINDOW_S", 0.0)
    if "ready" not in request.node.name:
        monkeypatch.setattr(
            checks_of_doctor, "read_engine", lambda processor: EngineReading(processor, "x", (1.0,), (1.0,))
        )


@pytest.fixture(autouse=True)
def _no_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(service, "_SERVICES", (tmp_path / "etc" / "device.toml", tmp_path / "etc" / "federation.toml"))


@pytest.fixture
def device(tmp_path: Path) -> Callable[..., str]:
    """Write a device's file, with images of its own."""
    pixels, labels = np.zeros((8, 3, 8, 8), np.uint8), np.arange(8) % 2
    np.savez(tmp_path / "images.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)

    def write(*, port: int = 1, more: str = "", root: str = "images.npz") -> str:
        text = (
            f'federation = "farm"\ndevice = "pi-1"\nstate = "state"\n[broker]\nport = {port}\n'
            f'[data]\nname = "npz"\nroot = "{root}"\n{more}'
        )
        (tmp_path / "device.toml").write_text(text)
        return "device.toml"

    return write


def examined(cli: Run, *arguments: str) -> dict[str, dict[str, object]]:
    shown = cli("doctor", "--json", *arguments)
    assert shown.stderr == ""
    told = json.loads(shown.stdout)
    assert told["problems"] == sum(not each["passed"] for each in told["checks"])
    assert shown.returncode == (1 if told["problems"] else 0)
    assert all((each["fix"] is None) is each["passed"] for each in told["checks"])
    checks = {each["check"]: each for each in told["checks"]}
    assert len(checks) == len(told["checks"])
    return checks


def test_a_device_that_is_ready_is_found_so(cli: Run, device: Callable[..., str], tmp_path: Path) -> None:
    with EmbeddedBroker() as broker:
        checks = examined(cli, "--config", device(port=broker.port))
    mine = ["configuration", "program", "broker", "state folder", "disk space", "disk speed", "images"]
    assert set(EVERYWHERE + mine) <= set(checks)
    for name in ("configuration", "program", "broker", "state folder", "images", "engine"):
        assert checks[name]["passed"], checks[name]
    assert checks["images"]["found"] == "npz: 8 images"
    assert not (tmp_path / "state").exists()


def test_a_federation_is_looked_at_with_its_network_table_and_profile(cli: Run, tmp_path: Path) -> None:
    network = zoo.resnet8(image_size=8, classes=2)
    table = uniform_table(network, rows=2)
    network.save(tmp_path / "net.safetensors")
    table.save(tmp_path / "table.json")
    pixels, labels = np.zeros((8, 3, 8, 8), np.uint8), np.arange(8) % 2
    np.savez(tmp_path / "images.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    config = tmp_path / "federation.toml"
    text = (
        'federation = "farm"\nstate = "state"\n[broker]\nport = 1\n[network]\nfile = "net.safetensors"\n'
        '[table]\nfile = "table.json"\n[evaluation]\nname = "npz"\nroot = "images.npz"\n'
    )
    config.write_text(text)
    checks = examined(cli, "--config", str(config))
    assert checks["network and table"]["found"] == "net.safetensors, 2 rows made for it"
    assert checks["images"]["found"] == "npz: 8 images"
    assert "profile" not in checks

    def found() -> dict[str, tuple[bool, str, str | None]]:
        findings, _ = module._network(config, load_config(config, FederationConfig))
        return {each.check: (each.passed, each.found, each.remedy) for each in findings}

    measured = cli("profile", "net.safetensors", "--table", "table.json", "--threads", "1", "--batch", "2",
                   "--seconds", "0.001", "--cool-down", "0", "--force")  # fmt: skip
    assert measured.returncode == 0
    assert found()["profile"][0]
    path = profile_path(tmp_path / "table.json")
    elsewhere = json.loads(path.read_text())
    elsewhere["machine"]["processor"] = "a board"
    path.write_text(json.dumps(elsewhere))
    passed, said, remedy = found()["profile"]
    assert not passed
    assert said.startswith("measured on a board with ")
    assert remedy == "measure it on this board: distreal-edge profile net.safetensors --table table.json"
    path.write_text(json.dumps(elsewhere | {"table": "0" * 64}))
    assert "the profile belongs to the table" in found()["network and table"][1]
    path.unlink()
    config.write_text(text.replace('file = "net.safetensors"', 'zoo = "resnet20"'))
    passed, said, _ = found()["network and table"]
    assert not passed
    assert "table.json: the table belongs to the network" in said


def test_a_devices_profile_is_held_against_the_table_that_its_federation_trains_with(
    cli: Run, device: Callable[..., str], tmp_path: Path
) -> None:
    network = zoo.resnet8(image_size=8, classes=2)
    uniform_table(network, rows=2).save(tmp_path / "table.json")
    network.save(tmp_path / "net.safetensors")
    measured = cli("profile", "net.safetensors", "--table", "table.json", "--threads", "1", "--batch", "2",
                   "--seconds", "0.001", "--cool-down", "0", "--force")  # fmt: skip
    assert measured.returncode == 0
    profile = Profile.load(profile_path(tmp_path / "table.json"))
    more = '[resources]\nprofile = "table.profile.json"\n'
    assert "measured on " in str(examined(cli, "--config", device(more=more))["profile"]["found"])

    def manifest(digest: str) -> bytes:
        blob = BlobReference(digest, 10, 1)
        training = Training(8, 0.1, 0.9, 0.0, 1.0, 1.0, 0)
        return encode(Manifest(1, blob, blob, 1.0, 2e9, 2e9, ("pi-1",), 1, "ordered", training))

    topic = Topics("farm").round
    with EmbeddedBroker() as broker, Session(host=broker.host, port=broker.port, client_id="aggregator") as session:
        session.subscribe(topic)
        session.wait_connected(30.0)
        arguments = {"host": broker.host, "port": broker.port}
        for digest in ("0" * 64, profile.table):
            session.publish_retained(topic, manifest(digest)).wait()
            assert checks_of_doctor.read_table_digest("farm", **arguments) == digest
        found = examined(cli, "--config", device(port=broker.port, more=more))["profile"]
        assert found["passed"]
        assert str(found["found"]).endswith("and of the federation's table")
        session.publish_retained(topic, b"no manifest").wait()
        assert checks_of_doctor.read_table_digest("farm", **arguments) is None
        assert checks_of_doctor.read_table_digest("another", **arguments) is None


def test_a_profile_of_another_table_or_board_is_to_be_measured_again(tmp_path: Path) -> None:
    machine = ProfiledMachine("a board", 4, None, None, None, 0.0, 0.0)
    step = ProfiledStep(0.1, 0.1, 0.0, 5, 1000)
    profile = Profile(
        1, "a" * 64, "b" * 64, "ordered", 8, "neon", machine, (), (1,), (ProfiledRow((0.0,), 5, (step,)),)
    )
    judge = checks_of_doctor.judge_profile
    assert judge(profile, "a board", "MEASURE").passed
    assert judge(profile, "a board", "MEASURE", table="b" * 64).passed
    for finding, said in (
        (judge(profile, "another board", "MEASURE"), "measured on a board with neon kernels; this is another board"),
        (judge(profile, "a board", "MEASURE", table="c" * 64), "the federation trains with cccccccccccc"),
    ):
        assert said in finding.found
        assert (finding.remedy or "").endswith("MEASURE")


def test_images_that_do_not_fit_the_network_are_a_problem(cli: Run, tmp_path: Path) -> None:
    pixels, labels = np.zeros((8, 3, 8, 8), np.uint8), np.arange(8) % 2
    np.savez(tmp_path / "images.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    (tmp_path / "federation.toml").write_text(
        'federation = "farm"\nstate = "state"\n[broker]\nport = 1\n[network]\nzoo = "resnet8"\n'
        '[evaluation]\nname = "npz"\nroot = "images.npz"\n'
    )
    checks = examined(cli, "--config", "federation.toml")
    assert "its images are [3, 8, 8], the network takes [3, 32, 32]" in str(checks["images"]["found"])


def test_everything_that_is_wrong_is_found_at_once(cli: Run, device: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    checks = examined(cli, "--config", device(root="nowhere.npz", more="[resources]\nmost_cores = 0.1\n"))
    for name in ("broker", "state folder", "images", "processors"):
        assert not checks[name]["passed"], checks[name]
    assert "Connection refused" in str(checks["broker"]["found"])
    assert "nowhere.npz" in str(checks["images"]["found"])
    assert "disk speed" not in checks


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("federaton = 'x'\ndevice = 'pi'\nstate = 's'\n", "device.toml:1: unknown key federaton; did you mean"),
        (None, "device.toml: cannot read the configuration: No such file"),
    ],
)
def test_a_wrong_configuration_is_one_problem_and_the_machine_is_looked_at_all_the_same(
    cli: Run, tmp_path: Path, text: str | None, found: str
) -> None:
    if text is not None:
        (tmp_path / "device.toml").write_text(text)
    checks = examined(cli, "--config", "device.toml")
    assert found in str(checks["configuration"]["found"])
    assert [name for name in checks if name != "voltage"] == ["configuration", *EVERYWHERE]


def test_a_running_program_is_asked(cli: Run, device: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with StatusSocket(tmp_path / "state"):
        checks = examined(cli, "--config", device())
    assert checks["program"]["found"] == f"a program (process {os.getpid()}): starting"
    assert str(checks["processors"]["found"]).startswith(f"process {os.getpid()} may use ")


def test_a_service_that_is_configured_is_looked_at_without_being_named(
    cli: Run, device: Callable[..., str], tmp_path: Path
) -> None:
    assert set(examined(cli)) - {"voltage"} == set(EVERYWHERE)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "device.toml").write_text((tmp_path / device()).read_text())
    assert "state folder" in examined(cli)
    (tmp_path / "etc" / "federation.toml").touch()
    shown = cli("doctor")
    assert (shown.returncode, shown.stdout) == (2, "")
    assert "say --config: both " in shown.stderr


def test_images_that_take_long_are_left(cli: Run, device: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_READING_S", 0.01)
    checks = examined(cli, "--config", device())
    assert checks["images"]["found"] == "npz: there, and still being read when we stopped looking"


def test_people_get_lines_in_a_pipe(cli: Run, device: Callable[..., str]) -> None:
    shown = cli("doctor", "--config", device())
    lines = shown.stdout.splitlines()
    assert lines[0] == "PASSED   configuration: device.toml is sound"
    at = next(number for number, line in enumerate(lines) if line.startswith("PROBLEM  broker: 127.0.0.1:1: "))
    assert lines[at + 1].startswith("  HOW TO FIX: sudo apt-get install mosquitto")
    assert re.fullmatch(r"1 problem\.|\d+ problems\.", lines[-1])
    assert "With --config" not in shown.stdout
    assert cli("doctor").stdout.splitlines()[-1].startswith("With --config, ")


def test_people_get_a_table_on_a_terminal(device: Callable[..., str], tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key not in {"NO_COLOR", "COLUMNS"}}
    child = subprocess.Popen(
        [sys.executable, "-m", "distreal_edge", "doctor", "--config", device()],
        stdout=follower, stderr=follower, cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(SOURCES), "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(follower)
    shown = b""
    try:
        while part := os.read(leader, 65536):
            shown += part
    except OSError:  # how a terminal without anybody behind it ends
        pass
    os.close(leader)
    assert child.wait(60) == 1
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(r"check +found +how to fix", text)
    assert re.search(r"PROBLEM +broker +127\.0\.0\.1:1: Connection refused +sudo apt-get install", text)
    assert max(len(line) for line in text.replace("\r", "\n").split("\n")) <= 100


def test_what_is_printed_for_programs_is_json(cli: Run) -> None:
    assert set(msgspec.json.decode(cli("doctor", "--json").stdout)) == {"problems", "checks"}

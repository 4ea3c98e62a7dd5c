"""The programs themselves: `distreal-edge aggregate` ended by signals, and with real devices beside it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from distreal_edge.aggregator import Ledger
from distreal_edge.network import Network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from distreal_edge.transport import EmbeddedBroker

WAIT_S = 30.0
SOURCES = Path(__file__).resolve().parents[2]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `distreal-edge` with a verb; whatever is left after the test is killed."""
    children: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        log = (tmp_path / f"{len(children)}.log").open("w")
        children.append(
            subprocess.Popen(
                [sys.executable, "-m", "distreal_edge", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=SOURCES,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        )
        log.close()
        return children[-1]

    yield run
    for child in children:
        child.kill()
        child.wait(WAIT_S)


@pytest.mark.chaos
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_ended_in_mid_round_by_any_signal_it_continues_the_same_round(
    broker: EmbeddedBroker, start: Any, device_at: Any, network: Network, tmp_path: Path, number: int, code: int
) -> None:
    network.save(tmp_path / "network.safetensors")
    config = tmp_path / "federation.toml"
    config.write_text(
        f"""
        federation = "test"
        state = "{tmp_path / "state"}"
        network.file = "{tmp_path / "network.safetensors"}"
        broker.port = {broker.port}
        rounds = {{number = 1, seconds = 60, least_devices = 2}}
        """
    )
    first = start("aggregate", "--config", str(config))
    devices = [device_at(broker, f"pi-{n}") for n in (1, 2)]
    for device in devices:
        device.say("idle")
    before = devices[0].manifest(1)
    uids = {devices[0].answer(before, statistics_images=32)}
    first.send_signal(number)
    assert first.wait(WAIT_S) == code
    devices[1].manifest(1)
    devices[1].manifests.clear()
    second = start("aggregate", "--config", str(config))
    assert devices[1].manifest(1) == before
    uids.add(devices[1].answer(before, statistics_images=32))
    for device in devices:
        device.answer(device.manifest(2), steps=0, statistics_images=32)
    assert second.wait(WAIT_S) == 0
    with Ledger(tmp_path / "state" / "ledger.sqlite") as ledger:
        assert {update.uid for update in ledger.updates(1)} == uids
        assert ledger.refusals() == {}
    log = (tmp_path / "1.log").read_text()
    assert "round 1 goes on, 1 updates are here" in log
    assert "Traceback" not in log


FEDERATION = """
federation = "farm"
state = "{folder}/aggregator"
broker.port = {port}
[network]
zoo = "resnet8"
in_channels = 1
image_size = 28
mean = [0.2860]
std = [0.3530]
[rounds]
number = 2
seconds = 8
upload_seconds = 2
least_devices = 2
[training]
lr = 0.05
[evaluation]
name = "fashion-mnist"
images = 500
calibration_images = 128
"""
DEVICE = """
federation = "farm"
device = "{name}"
state = "{folder}/{name}"
log_steps = true
broker.port = {port}
[data]
name = "fashion-mnist"
[data.shard]
kind = "iid"
shards = 6
index = {index}
held_back = 128
[resources]
trace = "{folder}/{name}.csv"
core_speed = 0.5
"""


@pytest.mark.slow
def test_two_real_devices_train_on_real_images_and_follow_their_cores(
    broker: EmbeddedBroker, start: Any, tmp_path: Path
) -> None:
    if not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("dataset-fashion-mnist is not installed")
    fields = {"folder": tmp_path, "port": broker.port}
    (tmp_path / "federation.toml").write_text(FEDERATION.format(**fields))
    aggregator = start("aggregate", "--config", str(tmp_path / "federation.toml"))
    # Cores that change every second and a half, so several times within a round, and differ between the devices. From
    # plenty to hardly any, with more images planned than plenty can train: whatever the speed of this machine, the
    # widest row fits the one and not the other.
    traces = {"pi-1": (8.0, 0.05), "pi-2": (0.05, 6.0)}
    devices = []
    for index, (name, cores) in enumerate(traces.items()):
        lines = [f"{1.5 * step},{cores[step % 2]}" for step in range(60)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["seconds,cores", *lines, ""]))
        (tmp_path / f"{name}.toml").write_text(DEVICE.format(name=name, index=index, **fields))
        devices.append(start("run", "--config", str(tmp_path / f"{name}.toml")))
    assert aggregator.wait(100) == 0
    for device in devices:
        device.send_signal(signal.SIGTERM)
    assert [device.wait(WAIT_S) for device in devices] == [0, 0]
    records = [json.loads(line) for line in (tmp_path / "aggregator" / "rounds.jsonl").read_text().splitlines()]
    assert [record["answered"] for record in records] == [["pi-1", "pi-2"]] * 2
    assert all(record["accuracy"] is not None and record["evaluated_images"] == 500 for record in records)
    assert records[-1]["accuracy"] > 0.15  # a tenth would be guessing
    Network.load(tmp_path / "aggregator" / "latest.safetensors")
    for name in traces:
        with (tmp_path / name / "steps.csv").open(newline="") as file:
            steps = [step for step in csv.DictReader(file) if step["round"] == "2"]
        assert len({step["cores"] for step in steps}) == 2
        assert len({step["row"] for step in steps}) > 1
    logs = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert "Traceback" not in logs
    assert "refused" not in logs

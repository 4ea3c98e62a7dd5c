"""Models and updates get through whatever is killed, cut, slowed down or too much at once."""

from __future__ import annotations

import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest

from distreal_edge.aggregator import Ledger
from distreal_edge.device import Update, UpdateHeader, encode_update
from distreal_edge.device.upload import Upload
from distreal_edge.network import Network, PlanBuilder
from distreal_edge.transport import (
    Ack,
    Connected,
    DeviceState,
    DeviceTopic,
    EmbeddedBroker,
    Manifest,
    Message,
    RoundTopic,
    Session,
    Topics,
    decode,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(7200)]

WAIT_S = 60.0
TOPICS = Topics("farm")
MIB = 2**20
MOST_ROUNDS = 10**6


def large_network(parameters: int) -> Network:
    """Return a network of about so many weights for images of 1 x 6 x 6, cheap to train."""
    builder = PlanBuilder((1, 6, 6))
    value = builder.flatten(builder.relu(builder.conv2d("conv", builder.input, 40, kernel=3)))
    value = builder.relu(builder.linear("hidden", value, parameters // 643))
    return Network.initialise(builder.finish(builder.linear("fc", value, 3)), 0)


def stored(state: Path) -> Counter[tuple[str, str]]:
    """Return which updates the ledger holds, by round and uid."""
    with Ledger(state / "ledger.sqlite") as ledger:
        last = ledger.rounds_done() + 1
        return Counter(
            (stored.device, stored.uid) for number in range(1, last + 1) for stored in ledger.updates(number)
        )


def test_a_broker_that_is_killed_loses_no_update_that_was_acknowledged(
    beside: Callable[[str], Any],
    tmp_path: Path,
    times: Callable[[int, int], int],
    figure: Callable[[str, str, str], None],
) -> None:
    farms, rng, kills = beside("farm"), random.Random(5), times(1, 100)
    durable: set[str] = set()
    with ExitStack() as stack:
        broker = EmbeddedBroker(kind="mosquitto").__enter__()
        stack.callback(lambda: broker.__exit__(None, None, None))
        port = broker.port
        farm = farms.Farm(tmp_path, broker)
        stack.callback(farm.end)
        farm.aggregator(number=MOST_ROUNDS, seconds=60, upload_seconds=1, least_devices=2)
        for name in ("pi-1", "pi-2"):
            farm.device(name)
        for kill in range(kills + 1):
            with farms.Listener(broker, TOPICS) as listener:
                farms.wait_for(lambda: listener.answers("durable"), "an update after the broker came back")
                time.sleep(rng.uniform(0.0, 0.7))
                durable |= listener.answers("durable")
                assert not listener.answers("refused")
            if kill < kills:
                os.kill(broker.pid, signal.SIGKILL)
                broker.__exit__(None, None, None)
                broker = EmbeddedBroker(kind="mosquitto", port=port).__enter__()
        farm.end()
        known = stored(farm.state)
    lost = durable - {uid for _, uid in known}
    assert not lost
    assert max(known.values()) == 1
    figure(
        f"broker killed with -9, {kills} times", f"{len(lost)} of {len(durable)} acknowledged updates lost", "0 lost"
    )


def test_every_update_that_a_killed_device_had_finished_arrives_once(
    beside: Callable[[str], Any],
    tmp_path: Path,
    times: Callable[[int, int], int],
    figure: Callable[[str, str, str], None],
) -> None:
    farms, lines, rng, kills = beside("farm"), beside("line"), random.Random(6), times(1, 100)
    repeated, finished, states = [], set(), Counter[str]()
    with EmbeddedBroker(kind="mosquitto") as broker, lines.Line(("127.0.0.1", broker.port), bytes_per_s=2e6) as line:
        farm = farms.Farm(tmp_path, broker)
        large_network(500_000).save(tmp_path / "network.safetensors")  # two megabytes: a second each way
        try:
            farm.aggregator(number=MOST_ROUNDS, seconds=60, upload_seconds=1, least_devices=1)
            farm.device("pi-1", port=line.port)
            spool = tmp_path / "pi-1" / "spool"
            farms.wait_for(lambda: "idle" in farm.log("pi-1"), "the device")
            for kill in range(kills):
                before = len(farm.log("pi-1"))
                farms.wait_for(lambda before=before: "training until" in farm.log("pi-1")[before:], "training")
                if kill % 2 == 0:
                    farms.wait_for(lambda: waiting_in(spool), "an update")
                    time.sleep(rng.uniform(0.0, 0.5))
                else:
                    time.sleep(rng.uniform(0.0, 2.0))
                farm.kill("pi-1")
                waiting = waiting_in(spool)
                states["sending" if waiting else "other"] += 1
                finished |= waiting
                known = len(farm.log("pi-1"))
                rounds = trained(farm.log("pi-1"))
                # Or it would stop training for half an hour, as one should that crashes so often.
                (tmp_path / "pi-1" / "crashes.json").unlink(missing_ok=True)
                farm.device("pi-1", port=line.port)
                farms.wait_for(
                    lambda waiting=waiting: not waiting & waiting_in(spool),
                    "the answer to what it had finished",
                )
                farms.wait_for(lambda known=known: trained(farm.log("pi-1")[known:]), "a round after it came back")
                again = trained(farm.log("pi-1")[known:])
                repeated.append(len(set(again) & set(rounds[-1:])))
            farm.kill("pi-1")
        finally:
            farm.end()
        known_updates = stored(farm.state)
        with Ledger(farm.state / "ledger.sqlite") as ledger:
            refusals = ledger.refusals()
    missing = finished - {uid for _, uid in known_updates}
    # Killed after its answer and before the next round, it trains the round again, in vain.
    assert finished
    assert not missing
    assert set(refusals) <= {"duplicate"}
    assert max(known_updates.values()) == 1
    assert max(repeated) <= 1
    figure(
        f"device killed with -9, {kills} times, {states['sending']} of them while it was sending",
        f"{len(finished) - len(missing)} of {len(finished)} finished updates arrived, each once; "
        f"at most {max(repeated)} round repeated",
        "every finished update once, at most 1 round",
    )


def waiting_in(spool: Path) -> set[str]:
    """Return the uids of the updates that a device keeps."""
    return {path.name.split("-", 2)[2].partition(".")[0] for path in spool.glob("*.update")}


def trained(log: str) -> list[int]:
    """Return the rounds whose training began, as a device's log says."""
    return [int(part.split()[-1]) for line in log.splitlines() for part in line.split(": training until")[:-1]]


class Sender:
    """A device that has one update, and sends it as it is asked; in a thread of its own."""

    def __init__(self, broker: EmbeddedBroker, name: str, update: Callable[[Manifest], bytes], folder: Path) -> None:
        self.name, self._update, self._path = name, update, folder / f"{name}.update"
        self.session = Session(host=broker.host, port=broker.port, client_id=name)
        self.durable = threading.Event()
        self.ready, self.go, self._end = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)
        self._upload: Upload | None = None

    def __enter__(self) -> Self:
        self.session.__enter__()
        self.session.subscribe(TOPICS.round, TOPICS.ack(self.name))
        state = encode(DeviceState("idle", 1, 24, "test"))
        self.session.publish_retained(TOPICS.device_state(self.name), state)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(WAIT_S)
        self.session.close()

    def _run(self) -> None:
        offered = False
        while not self._end.is_set():
            if self._upload is not None and self.go.is_set() and not offered:
                self.session.publish(TOPICS.offer(self.name), encode(self._upload.offer()))
                offered = True
            if self._upload is not None and self._upload.busy:
                self._upload.advance()
            try:
                event = self.session.events.get(timeout=0.01)
            except queue.Empty:
                continue
            if isinstance(event, Message):
                self._take(event)

    def _take(self, message: Message) -> None:
        match TOPICS.parse(message.topic):
            case RoundTopic() if self._upload is None:
                self._path.write_bytes(self._update(decode(Manifest, message.payload, where="round")))
                self._upload = Upload(
                    "u1",
                    self._path,
                    lambda index, frame: self.session.publish(TOPICS.update(self.name, "u1", index), frame),
                )
                self.ready.set()
            case DeviceTopic(kind="ack"):
                ack = decode(Ack, message.payload, where="ack")
                assert ack.kind in {"durable", "resend"}, ack
                if ack.kind == "durable":
                    self.durable.set()
                assert self._upload is not None
                self._upload.ask(ack.missing)


def update_of(network: Network, device: str) -> Callable[[Manifest], bytes]:
    """Return what makes a sound update of a device, with a change of every weight."""

    def make(manifest: Manifest) -> bytes:
        changes = {name: np.full(p.shape, 1e-3, np.float32) for name, p in network.plan.parameters.items()}
        kept = np.ones((1, network.plan.filters + 1), dtype=np.bool_)
        header = UpdateHeader(
            uid="u1", device=device, round=manifest.number, model=manifest.model.digest, images=8, mini_batches=1
        )
        return encode_update(Update(header, changes, {}, kept, np.array([8], dtype=np.int64)))

    return make


def resident_bytes(pid: int, field: str = "VmRSS") -> int:
    """Return what a process has in memory now, or had at most (`VmHWM`) since `forget_most`."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def forget_most(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def test_eight_uploads_at_once_take_little_memory(
    beside: Callable[[str], Any],
    tmp_path: Path,
    times: Callable[[int, int], int],
    figure: Callable[[str, str, str], None],
) -> None:
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("needs to forget how much memory a process had at most")
    farms = beside("farm")
    network = large_network(times(1_500_000, 11_200_000))
    with EmbeddedBroker(kind="mosquitto") as broker, ExitStack() as stack:
        farm = farms.Farm(tmp_path, broker)
        stack.callback(farm.end)
        network.save(tmp_path / "network.safetensors")
        # One more than send: the round stays open, and only what is sent takes memory.
        aggregator = farm.aggregator(number=1, seconds=600, upload_seconds=1, least_devices=9)
        senders = [
            stack.enter_context(Sender(broker, name, update_of(network, name), tmp_path))
            for name in (f"d{number}" for number in range(9))
        ]
        for sender in senders:
            assert sender.ready.wait(WAIT_S)
        time.sleep(1.0)
        programs = {"broker": broker.pid, "aggregator": aggregator.pid}
        idle = {name: resident_bytes(pid) for name, pid in programs.items()}
        for pid in programs.values():
            forget_most(pid)
        began_s = time.monotonic()
        for sender in senders[:8]:
            sender.go.set()
        for sender in senders[:8]:
            assert sender.durable.wait(600)
        took_s = time.monotonic() - began_s
        more = {name: (resident_bytes(pid, "VmHWM") - idle[name]) / MIB for name, pid in programs.items()}
        update_mib = (tmp_path / "d0.update").stat().st_size / MIB
        for name in ("broker", "aggregator"):
            assert more[name] <= 64, more
    figure(
        f"8 uploads of {update_mib:.0f} MiB at once",
        f"broker {more['broker']:.0f} MiB, aggregator {more['aggregator']:.0f} MiB over idle, {took_s:.0f} s",
        "64 MiB over idle each",
    )


def test_many_devices_come_back_soon_and_not_at_once(
    times: Callable[[int, int], int], figure: Callable[[str, str, str], None]
) -> None:
    devices = times(24, 100)
    with ExitStack() as stack:
        first = EmbeddedBroker(kind="mosquitto").__enter__()
        port = first.port
        try:
            sessions = [
                stack.enter_context(Session(host="127.0.0.1", port=port, client_id=f"d{number}"))
                for number in range(devices)
            ]
            for session in sessions:
                session.clients = devices
                session.publish_retained(TOPICS.device_state("d"), b"here")
                session.wait_connected(WAIT_S)
        finally:
            os.kill(first.pid, signal.SIGKILL)
            first.__exit__(None, None, None)
        time.sleep(1.0)
        back: list[float] = []
        noted = threading.Lock()

        def wait(session: Session) -> None:
            while not isinstance(session.events.get(timeout=WAIT_S), Connected):
                pass
            while not isinstance(session.events.get(timeout=WAIT_S), Connected):
                pass
            with noted:
                back.append(time.monotonic())

        waiting = [threading.Thread(target=wait, args=(session,)) for session in sessions]
        for thread in waiting:
            thread.start()
        began_s = time.monotonic()
        with EmbeddedBroker(kind="mosquitto", port=port):
            for thread in waiting:
                thread.join(WAIT_S)
        assert len(back) == devices
    longest_s = max(back) - began_s
    most = max(sum(at <= other < at + 1.0 for other in back) for at in back)
    assert longest_s <= 30
    assert most <= 20
    figure(
        f"{devices} devices (real MQTT sessions), broker restarted",
        f"all back within {longest_s:.1f} s, at most {most} connects in a second",
        "30 s, 20 a second",
    )


SLOW_DEVICE = """
federation = "farm"
device = "{name}"
state = "{folder}/{name}"
broker = {{host = "{host}", port = {port}, allow_plaintext = true}}
[data]
name = "npz"
root = "{folder}/train.npz"
"""


def run_command(*words: object) -> None:
    done = subprocess.run([str(word) for word in words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stderr)


@contextmanager
def lossy_link(name: str, *, loss_percent: int, rate: str) -> Iterator[str]:
    """Make a network namespace behind a slow link that loses packets both ways; yield this machine's address on it."""
    outer, inner, address = f"{name}o", f"{name}i", "10.213.7.1"
    lose = f"meta nfproto ipv4 numgen random mod 100 < {loss_percent} drop"
    try:
        run_command("ip", "netns", "add", name)
        run_command("ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
        run_command("ip", "addr", "add", f"{address}/24", "dev", outer)
        run_command("ip", "link", "set", outer, "up")
        run_command("ip", "-n", name, "addr", "add", "10.213.7.2/24", "dev", inner)
        run_command("ip", "-n", name, "link", "set", inner, "up")
        shape = ("root", "tbf", "rate", rate, "burst", "16kb", "latency", "400ms")
        run_command("tc", "qdisc", "add", "dev", outer, *shape)
        run_command("tc", "-n", name, "qdisc", "add", "dev", inner, *shape)
        # Lost where they arrive, so that they are counted as carried.
        for where, device in (([], outer), (["ip", "netns", "exec", name], inner)):
            run_command(*where, "nft", "add", "table", "inet", name)
            chain = "{ type filter hook input priority 0 ; }"
            run_command(*where, "nft", "add", "chain", "inet", name, "lossy", chain)
            run_command(*where, "nft", "add", "rule", "inet", name, "lossy", "iifname", device, *lose.split())
        yield address
    finally:
        subprocess.run(["nft", "delete", "table", "inet", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", outer], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def carried_bytes(interface: str) -> int:
    folder = Path("/sys/class/net") / interface / "statistics"
    return sum(int((folder / name).read_text()) for name in ("rx_bytes", "tx_bytes"))


def test_a_bad_line_carries_a_model_and_an_update_with_little_waste(
    beside: Callable[[str], Any],
    tmp_path: Path,
    times: Callable[[int, int], int],
    figure: Callable[[str, str, str], None],
) -> None:
    farms, lines = beside("farm"), beside("line")
    full = times(0, 1) == 1
    if full and (os.geteuid() != 0 or not (shutil.which("nft") and shutil.which("tc"))):
        pytest.skip("needs root, iproute2 and nftables for a link that loses packets")
    name = f"dee{os.getpid() % 10_000}"
    with ExitStack() as stack:
        broker = stack.enter_context(EmbeddedBroker(kind="mosquitto"))
        host = stack.enter_context(lossy_link(name, loss_percent=5, rate="1mbit")) if full else "127.0.0.1"
        settings = (
            {"delay_s": 0.1, "reset_s": 30.0} if full else {"delay_s": 0.02, "reset_s": 3.0, "bytes_per_s": 1.5e6}
        )
        line = stack.enter_context(lines.Line(("127.0.0.1", broker.port), host=host, **settings))
        farm = farms.Farm(tmp_path, broker)
        stack.callback(farm.end)
        network = large_network(times(700_000, 11_200_000))
        network.save(tmp_path / "network.safetensors")
        farm.aggregator(number=1, seconds=times(300, 7000), upload_seconds=times(200, 3500), least_devices=1)
        path = tmp_path / "pi-1.toml"
        path.write_text(SLOW_DEVICE.format(folder=tmp_path, name="pi-1", host=host, port=line.port))
        before = carried_bytes(f"{name}o") if full else 0
        began_s = time.monotonic()
        inside = ["ip", "netns", "exec", name] if full else []
        farm.start("pi-1", [*inside, sys.executable, "-m", "distreal_edge", "run", "--config", str(path)])
        assert farm.running["aggregator"].wait(7000) == 0
        took_s = time.monotonic() - began_s
        carried = carried_bytes(f"{name}o") - before if full else line.up_bytes + line.down_bytes
        resets = line.resets
        log = farm.log("pi-1")
    assert not [line for line in log.splitlines() if "ERROR" in line or "refused" in line]
    assert sum(stored(farm.state).values()) == 1  # whole, as its digest says
    model_bytes = (tmp_path / "network.safetensors").stat().st_size
    share = carried / (2 * model_bytes)
    assert share <= 1.3
    assert resets > 0
    figure(
        f"200 ms, 5 % loss, 1 Mbit/s, resets every 30 s, {model_bytes / 1e6:.0f} MB both ways"
        if full
        else f"40 ms, 12 Mbit/s, resets every 3 s, {model_bytes / 1e6:.0f} MB both ways",
        f"arrived, digests equal, {share:.2f} times the bytes, {resets} resets, {took_s:.0f} s",
        "1.3 times the bytes",
    )


def test_a_slow_device_costs_the_broker_little_however_large_the_model_is(
    beside: Callable[[str], Any],
    tmp_path: Path,
    times: Callable[[int, int], int],
    figure: Callable[[str, str, str], None],
) -> None:
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("needs to forget how much memory a process had at most")
    farms, lines = beside("farm"), beside("line")
    network = large_network(times(4_000_000, 11_200_000))
    with ExitStack() as stack:
        broker = stack.enter_context(EmbeddedBroker(kind="mosquitto"))
        line = stack.enter_context(lines.Line(("127.0.0.1", broker.port), bytes_per_s=125_000))
        farm = farms.Farm(tmp_path, broker)
        stack.callback(farm.end)
        network.save(tmp_path / "network.safetensors")
        farm.aggregator(number=1, seconds=600, upload_seconds=1, least_devices=2)
        farm.device("slow", port=line.port)
        farms.wait_for(lambda: "slow is here" in farm.log("aggregator"), "the slow device")
        idle = resident_bytes(broker.pid)
        forget_most(broker.pid)
        farm.device("fast")
        farms.wait_for(lambda: "training until" in farm.log("fast"), "the fast device to have the model")
        more_mib = (resident_bytes(broker.pid, "VmHWM") - idle) / MIB
        carried_mib = line.down_bytes / MIB
    assert more_mib <= 16
    model_mib = (tmp_path / "network.safetensors").stat().st_size / MIB
    figure(
        f"a model of {model_mib:.0f} MiB fetched, by one device at 1 Mbit/s",
        f"broker {more_mib:.0f} MiB over idle, when the slow one had {carried_mib:.1f} MiB",
        "bounded, whatever the model",
    )

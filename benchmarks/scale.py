"""What one broker and one aggregator spend on a round, as devices grow from 10 to 10,000.

    .venv/bin/python benchmarks/scale.py --json scale.json --plot scale.png

A real mosquitto with the configuration that is shipped, a real aggregator (`scale_aggregator.py`), and devices that
speak the real protocol over a session each, but do not train (`scale_devices.py`): a round is announced, the model
fetched, updates offered, sent, checked, stored, acknowledged, averaged. The model is LeNet-5, 61,706 weights in one
chunk; no TLS; nothing is evaluated. All share this machine, so time is CPU time unless it says wall clock; figures are
medians of the rounds.

Devices are there before the aggregator is, so that it finds all of their states at once, as after a restart. Before
that they tell of their health every second for a while: what stands for itself, whether rounds go on or not.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from distreal_edge.bench import describe_machine
from distreal_edge.status import AggregatorStatus, ask
from distreal_edge.transport import Message, Session
from distreal_edge.transport.embedded_broker import find_mosquitto, mqtt_answers

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
CONFIGURATION = HERE.parent / "broker_config" / "mosquitto.conf"
LISTENER = "listener 1883 127.0.0.1"
CASES = ((10, None), (100, None), (1000, 100), (1000, None), (10_000, 100))
QUICK = ((10, None), (50, None))
DROPPED = "$SYS/broker/publish/messages/dropped"
START_S, ROUNDS_S, STALLED_S = 1200.0, 1800.0, 30.0


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def mosquitto(folder: Path) -> Iterator[tuple[int, int]]:
    """Run mosquitto as it is shipped, but for its port and for figures every second; give its process and port."""
    port = free_port()
    text = CONFIGURATION.read_text(encoding="utf-8").replace(LISTENER, f"listener {port} 127.0.0.1")
    file = folder / "mosquitto.conf"
    file.write_text(("user root\n" if os.geteuid() == 0 else "") + text + "sys_interval 1\n", encoding="utf-8")
    program = find_mosquitto()
    if program is None:
        sys.exit("mosquitto is not installed: apt install mosquitto")
    with (folder / "mosquitto.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen([program, "-c", file], cwd=folder, stderr=log)
    try:
        while not mqtt_answers("127.0.0.1", port):
            if process.poll() is not None:
                sys.exit(f"mosquitto ended: {(folder / 'mosquitto.log').read_text(encoding='utf-8')[-300:]}")
            time.sleep(0.05)
        yield process.pid, port
    finally:
        process.terminate()
        process.wait()


class Devices:
    """The process that speaks for all devices."""

    def __init__(self, port: int, devices: int, broker: int) -> None:
        """Start it."""
        asked = json.dumps({"port": port, "devices": devices, "broker": broker})
        command = [sys.executable, HERE / "scale_devices.py", asked]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.devices = devices

    def tell(self, command: str) -> dict[str, Any]:
        """Say what to do, and return where all stands."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found

    def connect(self) -> float:
        """Connect all; return how long it took."""
        began_s = time.monotonic()
        self.tell("connect")
        while (ready := self.tell("count")["ready"]) < self.devices:
            if time.monotonic() > began_s + START_S:
                sys.exit(f"{ready} of {self.devices} devices are connected after {START_S:.0f} s")
            time.sleep(0.1)
        return time.monotonic() - began_s

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def seen_at(state: Path) -> int:
    """Return how many devices the aggregator has seen."""
    answer = ask(state)
    known = None if answer is None else answer.status
    return len(known.devices) if isinstance(known, AggregatorStatus) else 0


def wait_seen(state: Path, devices: int) -> tuple[int, float]:
    """Wait until the aggregator has seen so many devices, or no more of them come; return how many, and after what."""
    began_s = moved_s = time.monotonic()
    seen = 0
    while seen < devices and time.monotonic() < moved_s + STALLED_S:
        time.sleep(0.2)
        now = seen_at(state)
        if now != seen:
            seen, moved_s = now, time.monotonic()
    return seen, moved_s - began_s


def standing(devices: Devices, seconds: float) -> dict[str, float]:
    """Have devices tell of their health; return what that takes in a second."""
    devices.tell("health 1")
    time.sleep(min(2.0, seconds))
    before = devices.tell("count")
    time.sleep(seconds)
    after = devices.tell("health 0")
    passed_s = after["wall_s"] - before["wall_s"]
    return {
        name: (after[name] - before[name]) / passed_s
        for name in ("messages_out", "bytes_out", "broker_cpu_s", "own_cpu_s")
    }


def run_case(devices: int, selected: int | None, rounds: int, seconds: float, profile: Path | None) -> dict[str, Any]:
    """Run a federation of so many devices; return a row of the table."""
    with tempfile.TemporaryDirectory() as name, mosquitto(Path(name)) as (broker, port):
        state = Path(name) / "aggregator"
        farm = Devices(port, devices, broker)
        asked = {"port": port, "state": str(state), "rounds": rounds, "least": devices, "selected": selected}
        if profile is not None:
            asked["profile"] = str(profile.with_suffix(f".{devices}-{selected or devices}.prof"))
        aggregator = None
        session = Session(host="127.0.0.1", port=port, client_id="figures").__enter__()
        session.subscribe(DROPPED)  # all the time: what does not change, mosquitto forgets after a minute
        try:
            connect_s = farm.connect()
            empty = farm.tell("count")
            health = standing(farm, seconds)
            command = [sys.executable, HERE / "scale_aggregator.py", json.dumps(asked)]
            aggregator = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            seen, seen_s = wait_seen(state, devices - 1)
            said_again = 0
            while seen < devices - 1 and said_again < 20 and aggregator.poll() is None:
                farm.tell("again")
                said_again += 1
                seen, _ = wait_seen(state, devices - 1)
            farm.tell("complete")
            printed, _ = aggregator.communicate(timeout=ROUNDS_S)
            time.sleep(2.0)
            after = farm.tell("count")
            dropped = dropped_at(session)
        finally:
            session.close()
            farm.end()
            if aggregator is not None:
                aggregator.kill()
                aggregator.wait()
        log = (Path(name) / "mosquitto.log").read_text(encoding="utf-8")
    dropping = sum("dropped" in line for line in log.splitlines())
    return {
        "devices": devices,
        "selected": selected or devices,
        "connect_s": connect_s,
        "seen": seen,
        "seen_s": seen_s,
        "said_again": said_again,
        "standing": health,
        "broker_connected_bytes": empty["broker_bytes"],
        "dropped": dropped,
        "dropping_lines": dropping,
        "repeated": after["repeated"],
        "refused": after["refused"],
        "rounds": json.loads(printed),
        "farm": after["rounds"],
    }


def dropped_at(session: Session) -> int:
    """Return how many messages the broker has dropped, as far as it was heard."""
    dropped = 0
    while not session.events.empty():
        event = session.events.get()
        if isinstance(event, Message):
            dropped = int(event.payload)
    return dropped


def figures_of(case: dict[str, Any]) -> dict[str, float]:
    """Return the figures of a case: medians of its rounds."""
    taken: dict[str, list[float]] = {}
    for number, each in enumerate(case["rounds"]):
        opened, closing, closed, after = (each[name] for name in ("opened", "closing", "closed", "after"))
        heard, next_heard = case["farm"][number], case["farm"][number + 1]
        spent = {name: after[name] - opened.get(name, 0) for name in after}
        spent |= {name: spent.get(name, 0.0) for name in ("storing_cpu_s", "storing_wall_s", "message_cpu_s")}
        farm = {name: next_heard[name] - heard[name] for name in heard if isinstance(heard[name], (int, float))}
        found = {
            "collecting_s": closing["wall_s"] - opened["wall_s"],
            "closing_s": closed["wall_s"] - closing["wall_s"],
            "network_cpu_s": spent["network_cpu_s"],
            "talking_cpu_s": spent["network_cpu_s"] + spent["message_cpu_s"] - spent["storing_cpu_s"],
            "messages_cpu_s": spent["message_cpu_s"] - spent["storing_cpu_s"],
            "storing_cpu_s": spent["storing_cpu_s"],
            "storing_wall_s": spent["storing_wall_s"],
            "averaging_cpu_s": spent["averaging_cpu_s"],
            "other_cpu_s": spent["main_cpu_s"] - spent["message_cpu_s"],
            "aggregator_cpu_s": spent["process_cpu_s"],
            "aggregator_bytes": closed["VmRSS"],
            "aggregator_peak_bytes": after["VmHWM"],
            "broker_cpu_s": farm["broker_cpu_s"],
            "broker_bytes": next_heard["broker_bytes"],
            "broker_peak_bytes": next_heard["broker_peak_bytes"],
            "broker_in_bytes": farm["bytes_out"] + spent["bytes_out"],
            "broker_out_bytes": farm["bytes_in"] + spent["bytes_in"],
            "broker_in_messages": farm["messages_out"] + spent["messages_out"],
            "broker_out_messages": farm["messages_in"] + spent["messages_in"],
            "aggregator_in_bytes": spent["bytes_in"],
            "aggregator_out_bytes": spent["bytes_out"],
            "devices_cpu_s": farm["own_cpu_s"],
            "answered": each["answered"],
        }
        for name, value in found.items():
            taken.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in taken.items()}


def show(case: dict[str, Any]) -> None:
    """Print what came of a case."""
    found = case["figures"]
    health, mega = case["standing"], 1e6
    print(
        f"{case['devices']:,} devices, {case['selected']:,} selected, {found['answered']:.0f} answered: "
        f"connected in {case['connect_s']:.1f} s, {case['seen']:,} seen by a new aggregator in {case['seen_s']:.1f} s"
        + (f", ALL ONLY AFTER THEY SAID IT {case['said_again']} TIMES MORE" if case["said_again"] else "")
    )
    print(
        f"    nothing but health: {health['messages_out']:.0f} messages, {health['bytes_out'] / 1e3:.0f} kB a second, "
        f"{1e6 * health['broker_cpu_s'] / max(1.0, health['messages_out']):.0f} µs of the broker's CPU for each"
    )
    print(
        f"    aggregator, CPU s: network {found['network_cpu_s']:.2f}, messages {found['messages_cpu_s']:.2f}, "
        f"storing {found['storing_cpu_s']:.2f}, averaging {found['averaging_cpu_s']:.2f}, "
        f"other {found['other_cpu_s']:.2f}, all {found['aggregator_cpu_s']:.2f}; "
        f"wall clock s: collecting {found['collecting_s']:.2f} (storing {found['storing_wall_s']:.2f}), "
        f"closing {found['closing_s']:.2f}; {found['aggregator_peak_bytes'] / mega:.0f} MB"
    )
    print(
        f"    broker: {found['broker_cpu_s']:.2f} CPU s, {found['broker_peak_bytes'] / mega:.0f} MB, "
        f"in {found['broker_in_bytes'] / mega:.1f} MB and {found['broker_in_messages']:.0f} messages, "
        f"out {found['broker_out_bytes'] / mega:.1f} MB and {found['broker_out_messages']:.0f} messages; "
        f"{case['dropped']} dropped, {case['repeated']} repeated, {len(case['refused'])} refused"
    )


def main() -> None:
    """Measure, print, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--standing", type=float, default=8.0, help="seconds of nothing but health")
    parser.add_argument("--cases", nargs="+", help="devices, or devices:selected")
    parser.add_argument("--quick", action="store_true", help="10 and 50 devices, two rounds: that it works")
    parser.add_argument("--profile", type=Path, help="where to put what cProfile says of the aggregator's loop")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--show", nargs="+", type=Path, help="measure nothing: print and draw what these files hold")
    arguments = parser.parse_args()
    if arguments.show:
        known = [case for path in arguments.show for case in json.loads(path.read_text(encoding="utf-8"))["cases"]]
        for case in known:
            show(case)
        if arguments.plot:
            draw(known, arguments.plot)
        return
    cases = QUICK if arguments.quick else CASES
    if arguments.cases:
        asked = [each.partition(":") for each in arguments.cases]
        cases = tuple((int(devices), int(selected) if selected else None) for devices, _, selected in asked)
    rounds, seconds = (2, 1.0) if arguments.quick else (arguments.rounds, arguments.standing)
    print(f"{describe_machine()}; load {psutil.getloadavg()[0]:.1f} before")
    done = []
    for devices, selected in cases:
        case = run_case(devices, selected, rounds, seconds, arguments.profile)
        case["figures"] = figures_of(case)
        show(case)
        done.append(case)
        if arguments.json:
            document = {"machine": str(describe_machine()), "rounds": rounds, "cases": done}
            arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        draw(done, arguments.plot)


def draw(cases: list[dict[str, Any]], path: Path) -> None:
    """Draw time, memory and traffic over devices; needs matplotlib."""
    import matplotlib as mpl  # noqa: PLC0415 - not everybody has it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - as above

    mpl.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    panels = (
        (
            "CPU seconds of a round",
            1.0,
            {
                "aggregator, storing": ("storing_cpu_s", "#0072B2"),
                "aggregator, averaging": ("averaging_cpu_s", "#D55E00"),
                "aggregator, network and messages": ("talking_cpu_s", "#009E73"),
                "broker": ("broker_cpu_s", "#666666"),
            },
        ),
        (
            "Resident memory, MB",
            1e6,
            {"aggregator": ("aggregator_peak_bytes", "#0072B2"), "broker": ("broker_peak_bytes", "#666666")},
        ),
        (
            "Through the broker in a round, MB",
            1e6,
            {"in": ("broker_in_bytes", "#0072B2"), "out": ("broker_out_bytes", "#D55E00")},
        ),
    )
    figure, places = plt.subplots(1, 3, figsize=(13.5, 5.0), layout="constrained")
    groups = (
        ("-", [case for case in cases if case["selected"] == case["devices"]]),
        ("--", [case for case in cases if case["selected"] == 100]),
    )
    for axes, (title, unit, lines) in zip(places, panels, strict=True):
        axes.set_title(title, loc="left", weight="bold", size=11)
        for what, (name, colour) in lines.items():
            for style, some in groups:
                # What is nothing has no place on a logarithmic axis.
                points = [(case["devices"], value / unit) for case in some if (value := case["figures"][name]) > 0]
                label = what if style == "-" else None
                marked: dict[str, Any] = {"marker": "o", "markersize": 5, "color": colour, "label": label}
                axes.plot([x for x, _ in points], [y for _, y in points], style, **marked)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(bottom=10.0 ** np.floor(np.log10(axes.get_ylim()[0])))
        axes.set_ylim(top=10.0 ** np.ceil(np.log10(axes.get_ylim()[1])))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _place: f"{value:,g}")
            axis.set_minor_formatter(lambda _value, _place: "")
        axes.set_xlabel("devices; solid: all are selected, dashed: 100 of them")
        axes.grid(visible=True, which="major", color="#E0E0E0", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()

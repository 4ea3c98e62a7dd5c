"""Run the demo: a broker, an aggregator and some devices, each a process of its own, watched over MQTT."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from rich.text import Text

from distreal_edge.config import build_table
from distreal_edge.data import load_dataset
from distreal_edge.demo.folder import claim_folder
from distreal_edge.demo.needs import check_needs
from distreal_edge.demo.outcome import Outcome, sentences, write_report
from distreal_edge.demo.processes import Processes, last_lines
from distreal_edge.demo.scenario import FEDERATION, write_files
from distreal_edge.demo.signals import Interruption
from distreal_edge.demo.stage import Stage
from distreal_edge.dropout import Table
from distreal_edge.errors import ProtocolError
from distreal_edge.network import Network
from distreal_edge.observe import hear, new_view, result_table, update
from distreal_edge.transport import Connected, Disconnected, EmbeddedBroker, Message, Session, Topics
from distreal_edge.words import count_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from distreal_edge.demo.outcome import DemoReport
    from distreal_edge.demo.scenario import Scenario
    from distreal_edge.observe import FederationView

__all__ = ["run_demo"]

_log = logging.getLogger(__name__)

_TICK_S: Final = 0.1
_CHECK_S: Final = 0.5
_BROKER_GRACE_S: Final = 10.0
_STARTUP_S: Final = 120.0
_LAST_LINES: Final = 12
_EVALUATED_AT_ONCE: Final = 1000


@dataclass(frozen=True, slots=True)
class _Ending:
    outcome: Outcome
    problem: str | None = None
    log: Path | None = None


def run_demo(scenario: Scenario, folder: Path, console: Console) -> DemoReport:
    """Train as the scenario says, show it on `console`, and leave logs, `report.json` and pictures in `folder`.

    A signal ends it early, with a report of what happened so far and the outcome `interrupted`; a process that fails
    ends it with the outcome `failed`. No process is left behind in either case, nor when this one is killed. Call it in
    the main thread. Raises the errors of ours for what is wrong before anything starts.
    """
    check_needs(scenario)
    table = build_table(scenario.table, scenario.network, scenario.training.batch)
    folder = folder.resolve()
    replaced = claim_folder(folder)
    stage = Stage(console, scenario, rows=len(table.rows))
    with _logging_to(folder / "logs" / "demo.log"), Interruption() as interruption:
        started_s = time.time()
        _introduce(stage, scenario, folder, replaced=replaced)
        with stage:
            ending = _train(scenario, folder, stage, interruption)
            final = None
            if ending.outcome == "finished":
                final = _evaluate_finally(scenario, folder, stage, interruption)
                if interruption.name:
                    ending = _Ending("interrupted", f"interrupted by {interruption.name}")
        report = write_report(
            folder,
            scenario,
            outcome=ending.outcome,
            problem=ending.problem,
            final=final,
            started_s=started_s,
            ended_s=time.time(),
            table_shares=_table_shares(folder),
        )
        _conclude(stage, report, folder, ending, unicode=console.encoding.startswith("utf"))
    return report


def _introduce(stage: Stage, scenario: Scenario, folder: Path, *, replaced: bool) -> None:
    minutes = max(round(scenario.expected_s / 60), 1)
    stage.say(
        f"One network is trained over MQTT: {scenario.title}, {count_of(scenario.rounds, 'round')} of"
        f" {scenario.round_s:g} s, about {minutes} min.\n"
        f"The boards are emulated: each is a process here whose free cores follow a"
        f" {'recorded' if scenario.recorded else 'made-up'} trace, and whose cores are"
        f" {scenario.core_speed:g} times as fast as one of this machine's. The training, the MQTT messages and the"
        f" choice of rows are real.\n"
        f"Logs, configuration, report and pictures: {folder}"
        + (" (an earlier report was replaced)" if replaced else "")
    )


def _train(scenario: Scenario, folder: Path, stage: Stage, interruption: Interruption) -> _Ending:
    with EmbeddedBroker() as broker, Processes() as processes:
        commands = write_files(scenario, folder, host=broker.host, port=broker.port)
        for name, arguments in commands.items():
            processes.start(name, [sys.executable, "-m", "distreal_edge", *arguments], folder / "logs" / f"{name}.log")
        with Session(host=broker.host, port=broker.port, client_id="demo-onlooker") as session:
            topics = Topics(FEDERATION)
            session.subscribe(
                topics.aggregator_state,
                topics.aggregator_health,
                topics.round,
                topics.device_states,
                topics.device_healths,
            )
            return _watch(scenario, processes, session, topics, stage, interruption)


def _watch(
    scenario: Scenario,
    processes: Processes,
    session: Session,
    topics: Topics,
    stage: Stage,
    interruption: Interruption,
) -> _Ending:
    view = new_view(scenario.names)
    give_up_s = time.monotonic() + _STARTUP_S + 2.0 * scenario.expected_s
    next_check_s = 0.0
    connected_s = time.monotonic()
    while not interruption.name:
        with contextlib.suppress(queue.Empty):
            match event := session.events.get(timeout=_TICK_S):
                case Message():
                    view = _heard(view, topics, event)
                case Connected():
                    connected_s = float("inf")
                case Disconnected():
                    connected_s = time.monotonic()
        stage.show(view, time.time())
        now_s = time.monotonic()
        if now_s < next_check_s:
            continue
        next_check_s = now_s + _CHECK_S
        for ended in processes.ended():
            if ended.name == "aggregator" and ended.code == 0:
                stage.show(view, time.time(), force=True)
                return _Ending("finished")
            problem = f"{ended.name} ended too early ({_how(ended.code)}); its log is {ended.log}"
            return _Ending("failed", problem, ended.log)
        if now_s > connected_s + _BROKER_GRACE_S:
            return _Ending("failed", "the connection to the embedded broker was lost")
        if now_s > give_up_s:
            return _Ending(
                "failed", f"not done after {_STARTUP_S + 2.0 * scenario.expected_s:.0f} s; this machine is too busy"
            )
    return _Ending("interrupted", f"interrupted by {interruption.name}")


def _heard(view: FederationView, topics: Topics, message: Message) -> FederationView:
    try:
        heard = hear(topics, message)
    except ProtocolError as error:
        _log.warning("ignored: %s", error)
        return view
    return view if heard is None else update(view, *heard, time.time())


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _evaluate_finally(
    scenario: Scenario, folder: Path, stage: Stage, interruption: Interruption
) -> tuple[float, int] | None:
    """Score the final network on the whole test split, if the rounds only took a part; None when interrupted."""
    from distreal_edge.aggregator import evaluate  # noqa: PLC0415 - heavy, and needed at the end only

    root = None if scenario.root is None else Path(scenario.root)
    test = load_dataset(scenario.data, root=root, split="test")
    if scenario.evaluated_images is None or scenario.evaluated_images >= len(test):
        return None
    stage.say(f"Scoring the final network on all {len(test):,} test images ...")
    network = Network.load(folder / "state" / "aggregator" / "latest.safetensors")
    right = 0.0
    for start in range(0, len(test), _EVALUATED_AT_ONCE):
        if interruption.name:
            return None
        part = test.take(np.arange(start, min(start + _EVALUATED_AT_ONCE, len(test))))
        right += evaluate(network, part, _threads()).accuracy * len(part)
    return right / len(test), len(test)


def _threads() -> int:
    return len(os.sched_getaffinity(0))


def _table_shares(folder: Path) -> tuple[float, ...]:
    path = folder / "state" / "aggregator" / "table.json"
    if not path.exists():
        return ()
    rows = Table.load(path).rows
    return tuple(row.macs / rows[-1].macs for row in rows)


def _conclude(stage: Stage, report: DemoReport, folder: Path, ending: _Ending, *, unicode: bool) -> None:
    if report.training.rounds:
        stage.say(result_table(report.training, unicode=unicode))
    for sentence in sentences(report):
        stage.say(sentence)
    if ending.log is not None:
        stage.say(Text(f"The last lines of {ending.log}:", style="bold"))
        for line in last_lines(ending.log, _LAST_LINES):
            stage.say(Text(f"  {line}"))
    stage.say(f"Report, pictures and logs: {folder}")


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Send this process's own log to a file: on the terminal it would tear the live view."""
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("distreal_edge")
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()

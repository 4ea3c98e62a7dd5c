"""What the demo trains, on which emulated boards, and for how long; written down as configuration files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from distreal_edge.config import (
    Broker,
    CeilingStep,
    DeviceConfig,
    DeviceData,
    Evaluation,
    FederationConfig,
    NetworkChoice,
    Resources,
    Rounds,
    Shard,
    TableChoice,
    Training,
)
from distreal_edge.demo.network import demo_network
from distreal_edge.demo.toml import to_toml
from distreal_edge.demo.traces import make_trace, trace_csv, trace_story
from distreal_edge.search import shipped_tables

if TYPE_CHECKING:
    from pathlib import Path

    from distreal_edge.device import Trace
    from distreal_edge.network import Network

__all__ = ["FEDERATION", "TARGET_ACCURACY", "Scenario", "default_scenario", "write_files"]

FEDERATION: Final = "demo"
TARGET_ACCURACY: Final = 0.85
ROUND_S: Final = 15.0
UPLOAD_S: Final = 1.5
BETWEEN_ROUNDS_S: Final = 2.0


# eq=False: a network is not compared.
@dataclass(frozen=True, slots=True, eq=False)
class Scenario:
    """Everything that the demo decides.

    `evaluated_images` of the test split are scored after each round, None for all of them. `core_speed` says how fast a
    board's core is, in cores of this machine. `root` is where the dataset lies when not in the usual places. Boards
    take turns with the `recorded` traces, each with its name; where there is none, traces are made up.
    """

    devices: int
    rounds: int
    round_s: float
    draw: str
    seed: int
    network: Network
    table: TableChoice
    training: Training
    ceiling: tuple[CeilingStep, ...]
    calibration_images: int
    evaluated_images: int | None
    data: str = "fashion-mnist"
    root: str | None = None
    alpha: float = 0.5
    core_speed: float = 0.06
    upload_s: float = UPLOAD_S
    target_accuracy: float = TARGET_ACCURACY
    recorded: tuple[tuple[str, Trace], ...] = ()

    @property
    def title(self) -> str:
        """What is done, in a few words."""
        data = {"fashion-mnist": "Fashion-MNIST"}.get(self.data, self.data)
        boards = "one emulated board" if self.devices == 1 else f"{self.devices} emulated boards"
        return f"{data} on {boards}"

    @property
    def names(self) -> tuple[str, ...]:
        """The devices' names."""
        return tuple(f"pi-{number + 1}" for number in range(self.devices))

    @property
    def stories(self) -> dict[str, str]:
        """How the cores of each device change, in words."""
        return {name: self._story(number) for number, name in enumerate(self.names)}

    @property
    def most_cores(self) -> float:
        """The most cores that a board ever has free, at least one."""
        return max(1.0, *(max(self.trace(number).cores) for number in range(self.devices)))

    def trace(self, number: int) -> Trace:
        """Return the trace that device `number`, counted from 0, follows."""
        if self.recorded:
            return self.recorded[number % len(self.recorded)][1]
        return make_trace(number, duration_s=2.0 * self.expected_s + 60.0, seed=self.seed)

    def _story(self, number: int) -> str:
        return f"recorded, {self.recorded[number % len(self.recorded)][0]}" if self.recorded else trace_story(number)

    @property
    def expected_s(self) -> float:
        """About how long all rounds take."""
        return self.rounds * (self.round_s + BETWEEN_ROUNDS_S)


def default_scenario(
    *,
    devices: int = 4,
    seconds: float = 195.0,
    draw: str = "ordered",
    seed: int = 1,
    recorded: tuple[tuple[str, Trace], ...] = (),
) -> Scenario:
    """Return the demo's scenario: Fashion-MNIST, with rounds for so many seconds, at least two.

    The ceiling rises from third to third: early on the number of mini-batches counts most, so narrow rows come first.
    """
    return Scenario(
        devices=devices,
        rounds=max(2, round(seconds / ROUND_S)),
        round_s=ROUND_S,
        draw=draw,
        seed=seed,
        network=demo_network(seed),
        table=_table_for(draw),
        training=Training(
            batch=32,
            lr=0.02,
            final_lr=0.001,
            epochs=0.33,
            most_epochs=1.5,
            # Of four boards only one or two ever train the widest filters, on their own classes: a plain average
            # damps what they alone changed, a touch-weighted one takes it over whole.
            average="fedavg",
            statistics_images=0,
        ),
        ceiling=(
            CeilingStep(from_share=0.0, ceiling=0.3),
            CeilingStep(from_share=0.33, ceiling=0.5),
            CeilingStep(from_share=0.66, ceiling=1.0),
        ),
        calibration_images=512,
        evaluated_images=2000,
        recorded=recorded,
    )


def _table_for(draw: str) -> TableChoice:
    # A table was searched for the draws that one is most likely to watch; for the others rates are uniform.
    name = f"demo-fashion-mnist-{draw}"
    return TableChoice(name=name) if name in shipped_tables() else TableChoice(rows=8, draw=draw)


def write_files(scenario: Scenario, folder: Path, *, host: str, port: int) -> dict[str, list[str]]:
    """Write traces and configuration files into a claimed folder; return, by name, each program's arguments."""
    broker = Broker(host=host, port=port)
    scenario.network.save(folder / "config" / "network.safetensors")
    commands = {"aggregator": ["aggregate", "--config", str(folder / "config" / "federation.toml")]}
    (folder / "config" / "federation.toml").write_text(
        to_toml(federation_config(scenario, folder, broker), "The aggregator of the demo, as it was run."),
        encoding="utf-8",
    )
    for number, name in enumerate(scenario.names):
        (folder / "traces" / f"{name}.csv").write_text(trace_csv(scenario.trace(number)), encoding="utf-8")
        config = folder / "config" / f"{name}.toml"
        comment = f"An emulated board of the demo, as it was run.\nIts cores: {scenario.stories[name]}."
        config.write_text(to_toml(device_config(scenario, folder, broker, number), comment), encoding="utf-8")
        commands[name] = ["run", "--config", str(config)]
    return commands


def federation_config(scenario: Scenario, folder: Path, broker: Broker) -> FederationConfig:
    """Return what the aggregator is told."""
    return FederationConfig(
        federation=FEDERATION,
        state=str(folder / "state" / "aggregator"),
        broker=broker,
        network=NetworkChoice(file=str(folder / "config" / "network.safetensors")),
        table=scenario.table,
        rounds=Rounds(
            number=scenario.rounds,
            seconds=scenario.round_s,
            upload_seconds=scenario.upload_s,
            least_devices=scenario.devices,
            seed=scenario.seed,
        ),
        training=scenario.training,
        ceiling=scenario.ceiling,
        evaluation=Evaluation(
            name=scenario.data,
            root=scenario.root,
            images=scenario.evaluated_images,
            calibration_images=scenario.calibration_images,
            seed=scenario.seed,
        ),
    )


def device_config(scenario: Scenario, folder: Path, broker: Broker, number: int) -> DeviceConfig:
    """Return what device `number`, counted from 0, is told."""
    name = scenario.names[number]
    return DeviceConfig(
        federation=FEDERATION,
        device=name,
        state=str(folder / "state" / name),
        broker=broker,
        data=DeviceData(
            name=scenario.data,
            root=scenario.root,
            shard=Shard(
                kind="dirichlet",
                alpha=scenario.alpha,
                shards=scenario.devices,
                index=number,
                seed=scenario.seed,
                held_back=scenario.calibration_images,
            ),
        ),
        resources=Resources(trace=str(folder / "traces" / f"{name}.csv"), core_speed=scenario.core_speed),
        log_steps=True,
    )

"""What an onlooker knows about a federation, from its messages alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from distreal_edge.transport import (
    AggregatorHealth,
    AggregatorState,
    AggregatorTopic,
    DeviceHealth,
    DeviceState,
    DeviceTopic,
    Manifest,
    RoundTopic,
    decode,
)
from distreal_edge.words import round_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from distreal_edge.transport import Message, Topics

__all__ = [
    "DeviceView",
    "FederationView",
    "Heard",
    "changes",
    "hear",
    "new_view",
    "seconds_left",
    "share_done",
    "update",
]

Heard: TypeAlias = AggregatorHealth | AggregatorState | DeviceHealth | DeviceState | Manifest


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device as last heard of. None: nothing was heard of it yet, or it trains no round."""

    name: str
    state: str = "awaited"
    cores: float | None = None
    row: int | None = None
    share: float | None = None
    images_per_s: float | None = None
    mini_batches: int | None = None
    loss: float | None = None
    images: int | None = None


@dataclass(frozen=True, slots=True)
class FederationView:
    """Everything that was heard. `accuracies` are (round, accuracy after it), oldest first."""

    devices: tuple[DeviceView, ...]
    phase: str = "awaited"
    round: int = 0
    rounds: int = 0
    ceiling: float | None = None
    round_began_s: float | None = None
    deadline_s: float | None = None
    answered: int = 0
    accuracies: tuple[tuple[int, float], ...] = ()

    @property
    def accuracy(self) -> float | None:
        """The last known accuracy."""
        return self.accuracies[-1][1] if self.accuracies else None


def new_view(devices: Sequence[str]) -> FederationView:
    """Return what is known before anything was heard of these devices."""
    return FederationView(tuple(DeviceView(name) for name in devices))


def hear(topics: Topics, message: Message) -> tuple[str | None, Heard] | None:
    """Parse a message: the device that sent it (None for the aggregator), and what it says.

    Returns None for what is of no use here. Raises ProtocolError when it is malformed.
    """
    match topics.parse(message.topic):
        case RoundTopic():
            return None, decode(Manifest, message.payload, where=message.topic)
        case AggregatorTopic("state"):
            return None, decode(AggregatorState, message.payload, where=message.topic)
        case AggregatorTopic("health"):
            return None, decode(AggregatorHealth, message.payload, where=message.topic)
        case DeviceTopic(device, "state"):
            return device, decode(DeviceState, message.payload, where=message.topic)
        case DeviceTopic(device, "health"):
            return device, decode(DeviceHealth, message.payload, where=message.topic)
    return None


def update(view: FederationView, sender: str | None, heard: Heard, now_s: float) -> FederationView:
    """Return what is known after one more message that arrived at `now_s`, in Unix seconds."""
    match heard:
        case Manifest():
            return _announced(view, heard, now_s)
        case AggregatorHealth():
            return _aggregator_health(view, heard)
        case AggregatorState():
            # Having finished, it goes: that is no news.
            lost = heard.state == "offline" and view.phase != "finished"
            return replace(view, phase="offline") if lost else view
        case DeviceState():
            return _device(view, sender, state=heard.state, images=heard.images)
        case DeviceHealth():
            return _device(
                view,
                sender,
                cores=heard.cores,
                row=heard.row,
                share=heard.vector_macs_share,
                images_per_s=heard.images_per_s if heard.round is not None else None,
                mini_batches=heard.mini_batches,
                loss=heard.loss,
            )


def _announced(view: FederationView, manifest: Manifest, now_s: float) -> FederationView:
    if manifest.finished or manifest.number == view.round:
        return view
    return replace(
        view,
        round=manifest.number,
        ceiling=manifest.ceiling,
        round_began_s=now_s,
        deadline_s=manifest.deadline_s,
        answered=0,
    )


def _aggregator_health(view: FederationView, health: AggregatorHealth) -> FederationView:
    view = replace(view, phase=health.phase, rounds=health.rounds, answered=len(health.answered))
    # While a round is collected, averaged and evaluated, the last known accuracy is that of the round before it.
    of_round = health.round if health.phase in {"waiting", "finished"} else health.round - 1
    known = view.accuracies[-1][0] if view.accuracies else 0
    if health.accuracy is not None and of_round > known:
        view = replace(view, accuracies=(*view.accuracies, (of_round, health.accuracy)))
    return view


def _device(view: FederationView, name: str | None, **news: object) -> FederationView:
    return replace(
        view,
        devices=tuple(
            replace(device, **news) if device.name == name else device  # type: ignore[arg-type]
            for device in view.devices
        ),
    )


def share_done(view: FederationView, now_s: float) -> float:
    """Return which share of all rounds is over, from 0 to 1; inside a round, by its time."""
    if view.phase == "finished":
        return 1.0
    if not view.rounds or not view.round or view.round_began_s is None or view.deadline_s is None:
        return 0.0
    length_s = max(view.deadline_s - view.round_began_s, 1e-9)
    inside = min(max((now_s - view.round_began_s) / length_s, 0.0), 1.0)
    return min((view.round - 1 + inside) / view.rounds, 1.0)


def seconds_left(view: FederationView, training_s: float, now_s: float) -> float | None:
    """Return how long the rest will take, if it goes on as in the `training_s` since the first round began.

    None while too little is known to say.
    """
    done = share_done(view, now_s)
    if done < 0.5 / max(view.rounds, 1):
        if view.round_began_s is None or view.deadline_s is None:
            return None
        return view.rounds * (view.deadline_s - view.round_began_s) - training_s
    return training_s * (1.0 - done) / done


def changes(before: FederationView, after: FederationView) -> tuple[str, ...]:
    """Return one line for every change of state that a person reading a log would want to see."""
    lines = []
    if after.phase != before.phase and after.phase in {"waiting", "finished", "offline"}:
        lines.append(f"aggregator: {after.phase}")
    if after.round != before.round:
        ceiling = f", up to {after.ceiling:.0%} of the network" if after.ceiling is not None else ""
        lines.append(f"{round_of(after.round, after.rounds)}{ceiling}")
    for old, new in zip(before.devices, after.devices, strict=True):
        if new.state != old.state:
            lines.append(f"{new.name}: {new.state}")
    lines += [
        f"round {number} closed: accuracy {accuracy:.2%}"
        for number, accuracy in after.accuracies[len(before.accuracies) :]
    ]
    return tuple(lines)

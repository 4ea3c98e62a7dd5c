"""The power is cut at any instant of a federation's run: what was said to others is still true afterwards."""

from __future__ import annotations

import logging
import random
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from distreal_edge.aggregator import Store
from distreal_edge.aggregator.recovery import open_ledger
from distreal_edge.aggregator.restoring import restore
from distreal_edge.device import Spool
from distreal_edge.device.safe_mode import SafeMode
from distreal_edge.transport import EmbeddedBroker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from distreal_edge.network import Network

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler to record what a program writes"),
]

DEVICES = ("pi-1", "pi-2")
DURABLE = re.compile(rb'/ack.{0,20}?\{"uid":"([A-Za-z0-9_-]+)","kind":"durable"')
ANNOUNCED = re.compile(rb'\{"number":([0-9]+),"model":\{"digest":"([0-9a-f]{64})"')
FINISHED = b'"finished":true'
OFFERED = re.compile(rb'/offer.{0,20}?\{"uid":"([A-Za-z0-9_-]+)"')


@dataclass
class Recorded:
    """One run of a federation, as its programs' writes and words."""

    federation: list[Any]
    devices: dict[str, list[Any]]
    network: Network
    folder: Path


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, beside: Callable[[str], Any]) -> Recorded:
    """Let an aggregator and two devices go through some rounds, with a restart of each in between."""
    folder = tmp_path_factory.mktemp("recorded")
    farms, power = beside("farm"), beside("powercut")
    library = power.build_recorder(folder)
    with EmbeddedBroker() as broker:
        farm = farms.Farm(folder, broker)

        def environment(name: str) -> dict[str, str]:
            found: dict[str, str] = power.recording(library, folder / name, folder / f"{name}.writes")
            return found

        def answered(count: int) -> bool:
            return len(re.findall(r"images in \d+ mini-batches", farm.log("aggregator"))) >= count

        try:
            aggregator = farm.aggregator(
                environment("aggregator"), number=4, seconds=30, upload_seconds=1, least_devices=2
            )
            for name in DEVICES:
                farm.device(name, environment(name))
            farms.wait_for(lambda: answered(3), "three updates")
            farm.kill("aggregator")
            aggregator = farm.aggregator(environment("aggregator"))
            assert aggregator.wait(farms.WAIT_S) == 0
        finally:
            farm.end()
        logs = {name: power.read_log(folder / f"{name}.writes") for name in ("aggregator", *DEVICES)}
        assert farm.log("aggregator").count(" answered, ") >= 8
    return Recorded(logs.pop("aggregator"), logs, farms.tiny_network(), folder)


@pytest.fixture
def left() -> Iterator[Path]:
    """Return an empty folder, in memory where there is such a place: its own writes need not last."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


def cuts(operations: Sequence[Any], count: int, rng: random.Random) -> list[int]:
    """Return after how many operations to cut the power: evenly over all that change the disk or say something."""
    points = [number for number, each in enumerate(operations, 1) if each.kind != "send" or b'"uid"' in each.data]
    return sorted(rng.choices(points, k=count))


@dataclass
class Promises:
    """What an aggregator has told others by now."""

    network: Network
    table: bytes
    durable: dict[bytes, int] = field(default_factory=dict)  # with the round that was announced last
    number: int = 0
    model: str = ""
    finished: bool = False

    def follow(self, operation: Any) -> None:
        if operation.kind != "send":
            return
        self.durable.update(dict.fromkeys(DURABLE.findall(operation.data), self.number))
        for number, model in ANNOUNCED.findall(operation.data):
            self.number, self.model = int(number), model.decode()
            self.finished = FINISHED in operation.data

    def broken(self, folder: Path) -> str | None:
        """Start an aggregator's state from what is left; return what is not as it was said."""
        store = Store(folder)
        with open_ledger(store, self.network) as ledger:
            found = restore(ledger, store, federation="farm", network=self.network, table=self.table)
            kept = {update.uid.encode() for number in range(1, 10) for update in ledger.updates(number)}
        # A ledger that was made anew has forgotten the updates of closed rounds, which are in the model by then.
        averaged = found.done if (folder / "quarantine").exists() else 0
        lost = [uid for uid, number in self.durable.items() if number > averaged and uid not in kept]
        if lost:
            return f"lost {len(lost)} updates"
        going_on = found.done if found.opened is None else found.opened.number
        if going_on < self.number:
            return f"went back from round {self.number} to {going_on}"
        if found.manifest is not None and (found.manifest.number, self.finished) == (self.number, False):
            return None if found.manifest.model.digest == self.model else "another model"
        return None


@dataclass
class Offers:
    """What a device has offered to its aggregator by now, and not forgotten."""

    offered: set[str] = field(default_factory=set)
    forgotten: set[str] = field(default_factory=set)

    def follow(self, operation: Any) -> None:
        if operation.kind == "send":
            self.offered.update(uid.decode() for uid in OFFERED.findall(operation.data))
        elif operation.kind == "unlink" and operation.path.endswith(".update"):
            self.forgotten.add(operation.path.rpartition("-")[2].partition(".")[0])

    def broken(self, folder: Path) -> str | None:
        """Start a device's state from what is left; return what is not as it was said."""
        SafeMode(folder / "crashes.json")
        lost = self.offered - self.forgotten - set(Spool(folder / "spool").waiting())
        return f"lost {len(lost)} updates" if lost else None


def faults(
    said: Promises | Offers,
    operations: Sequence[Any],
    disk: Any,
    left: Path,
    count: int,
    caplog: pytest.LogCaptureFixture,
) -> list[str]:
    """Cut the power so many times, and return all that was wrong afterwards: nothing is damaged, and nothing lost."""
    rng = random.Random(1)
    found, done = [], 0
    for cut in cuts(operations, count, rng):
        for operation in operations[done:cut]:
            said.follow(operation)
            disk.do(operation)
        done = cut
        disk.left(rng, left)
        caplog.clear()
        fault = said.broken(left)
        if (left / "quarantine").exists():
            fault = f"damaged {[path.name for path in (left / 'quarantine').iterdir()]}"
        fault = fault or next((each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING), None)
        if fault is not None:
            found.append(f"after {cut} of {len(operations)} operations: {fault}")
        for path in left.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return found


@pytest.fixture
def promises(recorded: Recorded) -> Promises:
    return Promises(recorded.network, (recorded.folder / "aggregator" / "table.json").read_bytes())


def test_after_a_power_cut_an_aggregator_is_where_it_said_it_was(
    recorded: Recorded,
    promises: Promises,
    beside: Callable[[str], Any],
    left: Path,
    caplog: pytest.LogCaptureFixture,
    times: Callable[[int, int], int],
    figure: Callable[[str, str, str], None],
) -> None:
    count = times(60, 1000)
    disk = beside("powercut").Disk(recorded.folder / "aggregator")
    wrong = faults(promises, recorded.federation, disk, left, count, caplog)
    assert not wrong, wrong[:5]
    assert len(promises.durable) >= 2
    figure(f"power cut at {count} write points of ledger, models and updates", "0 unreadable states", "0")


def test_after_a_power_cut_a_device_has_what_it_offered(
    recorded: Recorded,
    beside: Callable[[str], Any],
    left: Path,
    caplog: pytest.LogCaptureFixture,
    times: Callable[[int, int], int],
    figure: Callable[[str, str, str], None],
) -> None:
    count = times(60, 1000)
    for name in DEVICES:
        offers, disk = Offers(), beside("powercut").Disk(recorded.folder / name)
        wrong = faults(offers, recorded.devices[name], disk, left, count // len(DEVICES), caplog)
        assert not wrong, wrong[:5]
        assert len(offers.offered) >= 2
    figure(f"power cut at {count} write points of the spool", "0 unreadable states", "0")


FORGOTTEN = [
    ("aggregator", "sync", "/arriving/"),
    ("aggregator", "sync", "/models/"),
    ("aggregator", "sync", "/ledger.sqlite"),
    ("aggregator", "syncdir", "/models"),
    ("aggregator", "syncdir", "/updates"),
    ("pi-1", "sync", "/spool/"),
    ("pi-1", "syncdir", "/spool"),
]


@pytest.mark.parametrize(("who", "kind", "part_of_path"), FORGOTTEN)
def test_a_sync_that_was_forgotten_is_found_out(
    recorded: Recorded,
    promises: Promises,
    beside: Callable[[str], Any],
    left: Path,
    caplog: pytest.LogCaptureFixture,
    who: str,
    kind: str,
    part_of_path: str,
) -> None:
    power = beside("powercut")
    operations = recorded.federation if who == "aggregator" else recorded.devices[who]
    forgetful = power.without(operations, kind, part_of_path)
    assert len(forgetful) < len(operations)
    said = promises if who == "aggregator" else Offers()
    assert faults(said, forgetful, power.Disk(recorded.folder / who), left, 100, caplog)


def test_what_was_said_is_true_even_if_the_journal_of_a_cut_off_write_is_damaged(
    recorded: Recorded,
    promises: Promises,
    beside: Callable[[str], Any],
    left: Path,
    times: Callable[[int, int], int],
) -> None:
    rng, disk = random.Random(5), beside("powercut").Disk(recorded.folder / "aggregator")
    damaged = made_anew = 0
    for count, operation in enumerate(recorded.federation):
        promises.follow(operation)
        disk.do(operation)
        # Where the database is being written, and its journal says how to undo that.
        if not operation.path.endswith("/ledger.sqlite") or count % times(4, 1):
            continue
        disk.left(rng, left)
        journal = left / "ledger.sqlite-journal"
        if journal.exists() and (data := bytearray(journal.read_bytes())):
            for _ in range(rng.choice([1, 8, 64])):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            journal.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
            damaged += 1
            assert promises.broken(left) is None
            if (left / "quarantine").exists():
                made_anew += 1
                moved = {path.name.partition(".2")[0] for path in (left / "quarantine").iterdir()}
                assert moved <= {"ledger.sqlite", "ledger.sqlite-journal"}, moved
        for path in left.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert damaged > 5
    assert made_anew > 0

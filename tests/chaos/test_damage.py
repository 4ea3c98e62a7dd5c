"""Bits are flipped and files cut in every file of both state folders: the programs start, and say what was damaged."""

from __future__ import annotations

import hashlib
import logging
import random
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from distreal_edge.aggregator import Ledger, Store
from distreal_edge.aggregator.recovery import open_ledger
from distreal_edge.aggregator.restoring import restore
from distreal_edge.device import Spool
from distreal_edge.device.blobs import Blobs
from distreal_edge.device.residuals import Residuals
from distreal_edge.device.safe_mode import SafeMode
from distreal_edge.transport import (
    DeviceState,
    EmbeddedBroker,
    Manifest,
    Session,
    SessionNumbers,
    Topics,
    decode,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from distreal_edge.network import Network

pytestmark = [pytest.mark.chaos]

NAMED = re.compile(r"quarantine/(\S+?);")


@dataclass(frozen=True)
class Found:
    """Where a program goes on."""

    done: int = 0
    model: bytes = b""
    number: int = 0
    answered: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()


@dataclass
class Template:
    """The state folders of a federation that was killed in mid-round: nothing is cleaned up."""

    folder: Path
    network: Network
    table: bytes
    manifest: Manifest

    def start(self, folder: Path, name: str) -> Found:
        """Start what an aggregator or a device begins with, from these folders."""
        state = folder / name
        SessionNumbers(state / "session")()
        if name == "aggregator":
            store = Store(state)
            with open_ledger(store, self.network) as ledger:
                found = restore(ledger, store, federation="farm", network=self.network, table=self.table)
            number = 0 if found.opened is None else found.opened.number
            return Found(found.done, found.model, number, found.answered)
        SafeMode(state / "crashes.json")
        spool = Spool(state / "spool")
        Residuals(state / "residuals", waiting=spool.waiting())
        blobs = Blobs(state / "blobs")
        blobs.expect(self.manifest)
        for blob in (self.manifest.model, self.manifest.table):
            # Damaged, it is not whole, and is fetched again.
            assert not blobs.complete or hashlib.sha256(blobs.data(blob)).hexdigest() == blob.digest
        return Found(waiting=spool.waiting())


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, beside: Callable[[str], Any]) -> Template:
    """Let a federation close two rounds, have two of three devices answer the third, and kill all of it."""
    folder = tmp_path_factory.mktemp("template")
    farms, topics = beside("farm"), Topics("farm")
    with EmbeddedBroker() as broker:
        farm = farms.Farm(folder, broker)
        with Session(host=broker.host, port=broker.port, client_id="ghost") as ghost:
            ghost.wait_connected(farms.WAIT_S)
            here = encode(DeviceState("idle", 1, 24, "test"))  # and never answers: rounds end at their deadline
            ghost.publish_retained(topics.device_state("ghost"), here).wait(farms.WAIT_S)
            try:
                farm.aggregator(
                    number=5, seconds=2, upload_seconds=0.5, least_devices=3, training={"encoding": '"int8"'}
                )
                for name in ("pi-1", "pi-2"):
                    farm.device(name)
                for name in ("pi-1", "pi-2"):
                    said = f"round 3: {name} answered"
                    farms.wait_for(lambda said=said: said in farm.log("aggregator"), said)
            finally:
                farm.end()
    spool = Spool(folder / "pi-1" / "spool")  # as it is before the answer
    for number in (1, 2):
        spool.add(f"u{number}", f"{number:010d}-{16 * 'a'}", bytes(range(256)) * 20)
    with Ledger(folder / "aggregator" / "ledger.sqlite") as ledger:
        opened = ledger.opened()
    assert opened is not None
    manifest = decode(Manifest, opened.manifest, where="round")
    return Template(folder, farms.tiny_network(), (folder / "aggregator" / "table.json").read_bytes(), manifest)


def damage(path: Path, rng: random.Random) -> str:
    """Flip some bits of a file, or cut it; return what was done."""
    data = bytearray(path.read_bytes())
    if not data or rng.random() < 0.3:
        kept = rng.randrange(len(data)) if data and rng.random() < 0.8 else 0
        path.write_bytes(data[:kept])
        return f"{path.name} cut to {kept} of {len(data)} bytes"
    bits = [rng.randrange(8 * len(data)) for _ in range(rng.choice([1, 1, 2, 8, 64]))]
    for bit in bits:
        data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return f"{path.name} with bits {sorted(bits)} flipped"


@pytest.fixture
def copy() -> Iterator[Path]:
    """Return a place for a copy, in memory where there is such a place: its own writes need not last."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    yield folder / "copy"
    shutil.rmtree(folder)


def test_whatever_file_is_damaged_the_programs_start_and_say_what_they_moved_away(
    template: Template,
    copy: Path,
    caplog: pytest.LogCaptureFixture,
    times: Callable[[int, int], int],
    figure: Callable[[str, str, str], None],
) -> None:
    count, rng = times(60, 1000), random.Random(2)
    names = ("aggregator", "pi-1")
    shutil.copytree(template.folder, copy, ignore=shutil.ignore_patterns("status.sock"))
    whole = {name: template.start(copy, name) for name in names}
    assert (whole["aggregator"].done, whole["aggregator"].answered) == (2, ("pi-1", "pi-2"))
    assert len(whole["pi-1"].waiting) >= 2
    models = {path.read_bytes() for path in (copy / "aggregator").rglob("*.safetensors")}
    shutil.rmtree(copy)
    files = [(name, path) for name in names for path in sorted((template.folder / name).rglob("*")) if path.is_file()]
    moved = 0
    for turn in range(count):
        shutil.copytree(template.folder, copy, ignore=shutil.ignore_patterns("status.sock"))
        name, path = files[turn % len(files)]
        done = damage(copy / path.relative_to(template.folder), rng)
        caplog.clear()
        found = template.start(copy, name)
        said = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
        folder = copy / name / "quarantine"
        inside = {each.name for each in folder.iterdir()} if folder.exists() else set()
        moved += bool(inside)
        assert {moved for line in said for moved in NAMED.findall(line)} == inside, (done, said)
        assert found == whole[name] or said, f"{done}: and nothing was said"
        assert found.model in models or name != "aggregator", f"{done}: a model that never was"
        assert found.done >= whole[name].done, f"{done}: rounds went back"
        # What was made good is good: another start has nothing to say.
        caplog.clear()
        assert template.start(copy, name) == found, done
        assert not [each for each in caplog.records if each.levelno >= logging.WARNING], done
        shutil.rmtree(copy)
    assert moved >= count // 3
    figure(
        f"bits flipped, files cut, {count} times in {len(files)} files of both state folders",
        f"{count} of {count} started; {moved} times a file was moved away, and named",
        "always starts, says what it quarantined",
    )


def test_a_device_whose_update_is_damaged_at_the_aggregator_trains_the_round_again(
    beside: Callable[[str], Any], tmp_path: Path
) -> None:
    farms, topics = beside("farm"), Topics("farm")
    answered = "round 1: pi-1 answered"
    with EmbeddedBroker() as broker, Session(host=broker.host, port=broker.port, client_id="ghost") as ghost:
        farm = farms.Farm(tmp_path, broker)
        ghost.wait_connected(farms.WAIT_S)
        here = encode(DeviceState("idle", 1, 24, "test"))  # and never answers: the round stays open
        ghost.publish_retained(topics.device_state("ghost"), here).wait(farms.WAIT_S)
        try:
            farm.device("pi-1")
            farm.aggregator(number=1, seconds=120, upload_seconds=1, least_devices=2)
            farms.wait_for(lambda: answered in farm.log("aggregator"), answered)
            farm.kill("aggregator")
            (update,) = (farm.state / "updates").glob("*.update")
            update.write_bytes(update.read_bytes()[:-1])
            farm.aggregator()
            farms.wait_for(lambda: farm.log("aggregator").count(answered) == 2, "another update")
        finally:
            farm.end()
    assert "has changed since it was written; moved to quarantine/" in farm.log("aggregator")
    with Ledger(farm.state / "ledger.sqlite") as ledger:
        (kept,) = ledger.updates(1)
        assert not update.exists()
        assert (farm.state / "updates" / f"pi-1.{kept.uid}.update").exists()
        assert [each.what for each in ledger.decisions(1)] == ["opened", "update lost"]

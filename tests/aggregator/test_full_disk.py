"""A disk that is really full, from the first page that is missing to the last: what is said to be safe is, and once."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from distreal_edge.aggregator import Aggregator, Ledger, RoundSettings
from distreal_edge.aggregator.reception import Reception
from distreal_edge.aggregator.rounds import AggregatorRounds
from distreal_edge.aggregator.store import Store, digest_of
from distreal_edge.device import encode_update
from distreal_edge.errors import FullDiskError
from distreal_edge.search import uniform_table
from distreal_edge.transport import FrameReader, Offer, UpdateTopic, split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from distreal_edge.aggregator import Lesson
    from distreal_edge.network import Network
    from distreal_edge.transport import EmbeddedBroker, Manifest

WAIT_S = 20.0
PAGE = 4096
MOST_PAGES = 24
"""More than an update, a closed round and the ledger's journal take together."""


@dataclass
class Disk:
    """A small one of its own."""

    folder: Path

    def fill(self, pages: int) -> None:
        """Leave so many pages."""
        self.free()
        status = os.statvfs(self.folder)
        with (self.folder / "ballast").open("wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, (status.f_bavail - pages) * PAGE)

    def free(self) -> None:
        (self.folder / "ballast").unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    monkeypatch.setattr("distreal_edge.aggregator.inbound.SPARE_BYTES", 0)
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "distreal-edge-test", folder]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("needs to mount a file system of its own")
    yield Disk(folder)
    subprocess.run(["umount", folder], check=True)


def test_an_update_for_which_there_is_no_room_is_answered_with_nothing(
    disk: Disk, network: Network, manifest_of: Callable[..., Manifest], maker: Any
) -> None:
    devices = tuple(f"pi-{number}" for number in range(MOST_PAGES))
    manifest, answered, unanswered = manifest_of(network, selected=devices), set[str](), 0
    with Ledger(disk.folder / "ledger.sqlite") as ledger:
        ledger.open_round(1, b"", 0.0, dict.fromkeys(devices, 100))
        reception = Reception(ledger, Store(disk.folder), network, full_macs=1000)
        reception.open(manifest, network, dict.fromkeys(devices, 100))
        for pages, device in enumerate(devices):
            data = encode_update(maker.update(maker.log("ordered", 2), uid="u1", device=device))
            reader = FrameReader(data)
            offer = Offer("u1", 1, manifest.model.digest, reader.digest, reader.total_bytes, reader.count)

            def send(frame: bytes = split(data)[0], offer: Offer = offer, device: str = device) -> bool:
                taken = reception.offered(device, offer, answered=answered)
                if taken is not None and taken.ack.kind == "resend":
                    taken = reception.take(UpdateTopic(device, "u1", 0), frame, answered=answered)
                assert taken is None
                settled = reception.settle()
                assert settled == [] or [(name, told.ack.kind) for name, told in settled] == [(device, "durable")]
                assert bool(reception.unsettled) == (device in reception._whole)
                return settled != []

            disk.fill(pages)
            if not send():
                unanswered += 1
                assert not ledger.has_update("u1", device)
                disk.free()
                assert send()
            answered.add(device)
    assert 2 < unanswered < MOST_PAGES
    with Ledger(disk.folder / "ledger.sqlite") as ledger:
        assert {update.device for update in ledger.updates(1)} == set(devices)
        assert all(
            digest_of(Store(disk.folder).load_update(update.device, "u1")) == update.digest
            for update in ledger.updates(1)
        )


def test_rounds_wait_for_room_and_lose_nothing(
    disk: Disk,
    broker: EmbeddedBroker,
    device_at: Any,
    network: Network,
    lesson: Lesson,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("distreal_edge.aggregator.rounds.SETTLE_S", 0.1)
    for module in ("server", "finishing"):
        monkeypatch.setattr(f"distreal_edge.aggregator.{module}.ROOM_S", 0.05)
    stored, full = AggregatorRounds.update_stored, [True]

    def stored_on_the_last_pages(self: AggregatorRounds, device: str) -> None:
        # An update is acknowledged, and the round closes next.
        stored(self, device)
        if full[0]:
            assert self.open is not None
            disk.fill(self.open.number)

    monkeypatch.setattr(AggregatorRounds, "update_stored", stored_on_the_last_pages)
    append, halves = Store.append_record, list[bytes]()

    def append_half_at_first(self: Store, record: bytes) -> None:
        # A round is closed, and its line is torn: a place that pages alone do not hit.
        if full[0] and len(halves) < 3:
            halves.append(record[: len(record) // 2])
            with self.records_path.open("ab") as file:
                file.write(halves[-1])
            raise FullDiskError("rounds.jsonl: cannot be written: No space left on device")
        append(self, record)

    monkeypatch.setattr(Store, "append_record", append_half_at_first)

    def run(federation: str) -> Path:
        """Run it to the end, and return its state folder."""
        told, stop = [""], threading.Event()

        def tell(line: str) -> None:
            told[0] = line
            if "waiting for room" in line:
                waits.append(line)
                disk.free()

        aggregator = Aggregator(
            federation=federation, network=network, table=uniform_table(network, rows=3), lesson=lesson,
            settings=RoundSettings(MOST_PAGES, 20.0, 1.0, 1, None, 0, closing_measurement=True),
            state=disk.folder / federation, broker={"host": broker.host, "port": broker.port}, tell=tell,
        )  # fmt: skip
        thread = threading.Thread(target=aggregator.run, args=(stop,))
        thread.start()
        try:
            device = device_at(broker, federation, federation)
            device.say("idle")
            for number in range(1, MOST_PAGES + 2):
                manifest = device.manifest(number)
                device.answer(manifest, steps=2 * (number <= MOST_PAGES), seed=number, statistics_images=32)
            device.manifest(MOST_PAGES + 1, finished=True)
        finally:
            stop.set()
            thread.join(WAIT_S)
        disk.free()
        return disk.folder / federation

    waits: list[str] = []
    cramped = run("cramped")
    assert len(waits) > MOST_PAGES / 4
    assert "waiting for room: " in caplog.text
    full[0] = False
    roomy = run("roomy")

    def lessons(state: Path) -> list[tuple[Any, ...]]:
        lines = [json.loads(line) for line in (state / "rounds.jsonl").read_text().splitlines()]
        return [(line["round"], line["answered"] != [], line["images"], line["model"]) for line in lines]

    # Every answer counted once, and the same models were made: the disk cost time, and nothing else.
    assert lessons(cramped) == lessons(roomy)
    with Ledger(cramped / "ledger.sqlite") as ledger:
        assert [json.loads(record) for record in ledger.records()] == [
            json.loads(line) for line in (cramped / "rounds.jsonl").read_text().splitlines()
        ]

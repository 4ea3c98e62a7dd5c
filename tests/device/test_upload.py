from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from distreal_edge.device.upload import Upload
from distreal_edge.errors import ProtocolError, StateError, TransportError
from distreal_edge.transport import CHUNK_BYTES, Delivery, Offer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TASK = msgspec.json.encode({"uid": "u1", "round": 3, "model": "a" * 64}).decode()
HEADER = msgspec.json.encode({"__metadata__": {"distreal_edge_update": TASK}})
DATA = len(HEADER).to_bytes(8, "little") + HEADER + np.random.default_rng(0).bytes(6 * CHUNK_BYTES + 7)
ALL = tuple(range(7))


class Broker:
    """Take chunks, and acknowledge them when told."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.frames: list[bytes] = []
        self.open: list[Delivery] = []
        self.now_s = 0.0

    def publish(self, index: int, frame: bytes) -> Delivery:
        self.got.append(index)
        self.frames.append(frame)
        delivery = Delivery(f"chunk {index}")
        self.open.append(delivery)
        return delivery

    def acknowledge(self, count: int, failure: TransportError | None = None) -> None:
        for _ in range(count):
            self.open.pop(0).settle(failure)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "update"
    path.write_bytes(DATA)
    return path


def upload(broker: Broker, file: Path, missing: tuple[int, ...] = ALL) -> Upload:
    made = Upload("u1", file, broker.publish, clock=lambda: broker.now_s)
    made.ask(missing)
    return made


def test_an_offer_says_what_the_update_is(file: Path) -> None:
    offer = Upload("u1", file, Broker().publish).offer()
    assert offer == Offer("u1", 3, "a" * 64, hashlib.sha256(DATA).hexdigest(), len(DATA), 7)


def test_an_offer_begins_anew(file: Path) -> None:
    broker = Broker()
    sending = upload(broker, file)
    sending.advance()
    assert sending.busy
    sending.offer()
    assert not sending.busy
    assert sending.advance()
    sending.ask((5, 6))
    sending.ask((6,))
    sending.advance()
    assert broker.got[4:] == [5, 6]


def test_all_chunks_go_out_a_few_at_a_time_and_make_the_file_again(
    file: Path, whole_of: Callable[..., bytes | None]
) -> None:
    broker = Broker()
    sending = upload(broker, file)
    assert broker.got == []
    assert not sending.advance()
    assert not sending.advance()
    assert broker.got == [0, 1, 2, 3]
    broker.acknowledge(2)
    assert not sending.advance()
    assert broker.got == [0, 1, 2, 3, 4, 5]
    broker.acknowledge(4)
    assert not sending.advance()
    broker.acknowledge(1)
    assert sending.advance()
    assert sending.advance()
    assert whole_of(broker.frames) == DATA


def test_only_the_chunks_that_are_asked_for_are_sent(file: Path) -> None:
    broker = Broker()
    sending = upload(broker, file, (1, 6))
    sending.advance()
    broker.acknowledge(2)
    assert sending.advance()
    assert broker.got == [1, 6]


def test_a_chunk_that_the_broker_refuses_ends_it(file: Path) -> None:
    broker = Broker()
    sending = upload(broker, file)
    sending.advance()
    broker.acknowledge(1, TransportError("connection lost"))
    with pytest.raises(TransportError, match="connection lost"):
        sending.advance()


def test_a_broker_that_takes_nothing_is_given_up_and_a_slow_one_is_not(file: Path) -> None:
    broker = Broker()
    sending = upload(broker, file)
    for _ in range(5):
        sending.advance()
        broker.acknowledge(1)
        broker.now_s += 119.0
    sending.advance()
    broker.now_s += 121.0
    with pytest.raises(TransportError, match="took no chunk"):
        sending.advance()


def test_a_chunk_that_the_file_does_not_have_ends_it(file: Path) -> None:
    with pytest.raises(ProtocolError, match="chunk 7"):
        upload(Broker(), file, (7,)).advance()


def test_a_file_that_is_gone_empty_or_cut_off_ends_it(file: Path, tmp_path: Path) -> None:
    sending = upload(Broker(), file)
    file.write_bytes(DATA[:100])
    with pytest.raises(StateError, match="shorter"):
        sending.advance()
    file.write_bytes(DATA)
    sending = upload(Broker(), file)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        sending.advance()
    with pytest.raises(FileNotFoundError):
        upload(Broker(), tmp_path / "none")
    (tmp_path / "empty").touch()
    with pytest.raises(ProtocolError):
        upload(Broker(), tmp_path / "empty")
    (tmp_path / "garbage").write_bytes(b"\x08" + bytes(7) + b"no update")
    with pytest.raises(ProtocolError, match="is damaged"):
        upload(Broker(), tmp_path / "garbage")

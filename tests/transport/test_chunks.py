from __future__ import annotations

import hashlib
import os
import random
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distreal_edge.errors import ProtocolError, StateError
from distreal_edge.transport.chunks import CHUNK_BYTES, FrameReader, chunk_count, parse_frame, split

if TYPE_CHECKING:
    from pathlib import Path


def blob(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def test_a_frame_is_laid_out_as_the_page_says() -> None:
    data = blob(CHUNK_BYTES + 5)
    frame = split(data)[1]
    assert frame[0:4] == b"DRCK"
    assert frame[4] == 1
    assert frame[5:8] == b"\0\0\0"
    assert int.from_bytes(frame[8:12], "big") == 1
    assert int.from_bytes(frame[12:16], "big") == 2
    assert int.from_bytes(frame[16:24], "big") == CHUNK_BYTES + 5
    assert int.from_bytes(frame[24:28], "big") == 5
    assert frame[28:60] == hashlib.sha256(data).digest()
    assert frame[60:] == data[-5:]


def header(good: bytes, place: slice, value: int) -> bytes:
    changed = bytearray(good)
    changed[place] = value.to_bytes(place.stop - place.start, "big")
    return bytes(changed)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (slice(0, 4), 0x44524348, "starts with"),
        (slice(4, 5), 2, "frame version 2"),
        (slice(5, 8), 1, "only version 1"),
        (slice(8, 12), 2, "out of range"),
        (slice(12, 16), 3, "says 3 chunks"),
        (slice(16, 24), 0, "0 bytes"),
        (slice(16, 24), (1 << 30) + 1, "from 1 to 1073741824"),
        (slice(16, 24), 2**64 - 1, "from 1 to"),
        (slice(24, 28), 6, "must have 5"),
    ],
)
def test_each_way_to_be_wrong_has_its_own_words(place: slice, value: int, words: str) -> None:
    frame = header(split(blob(CHUNK_BYTES + 5))[1], place, value)
    with pytest.raises(ProtocolError, match=f"some/topic: .*{words}"):
        parse_frame(frame, where="some/topic")


@given(frame=st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: b"DRCK\x01\0\0\0" + tail))
def test_any_bytes_are_a_frame_or_a_protocol_error(frame: bytes) -> None:
    try:
        parsed = parse_frame(frame)
    except ProtocolError:
        return
    assert len(parsed.chunk) == len(frame) - 60


@pytest.mark.parametrize("size", [0, (1 << 30) + 1])
def test_a_size_that_cannot_be_sent_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError, match="can be sent"):
        chunk_count(size)


def test_a_file_is_read_chunk_by_chunk_and_gives_the_frames_of_its_bytes(tmp_path: Path) -> None:
    data, path = blob(40 * CHUNK_BYTES + 3), tmp_path / "update"
    path.write_bytes(data)
    expected = split(data)
    tracemalloc.start()
    try:
        reader = FrameReader(path)
        assert (reader.count, reader.total_bytes, reader.digest) == (41, len(data), hashlib.sha256(data).hexdigest())
        assert all(frame == expected[index] for index, frame in reader.frames())
        assert tracemalloc.get_traced_memory()[1] < 4 * CHUNK_BYTES
    finally:
        tracemalloc.stop()
    assert [index for index, _ in reader.frames([40, 2])] == [40, 2]
    with pytest.raises(ProtocolError, match="there are 41"):
        reader.frame(41)


def test_a_file_that_shrinks_while_it_is_sent_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "update"
    path.write_bytes(blob(CHUNK_BYTES * 2))
    reader = FrameReader(path)
    os.truncate(path, CHUNK_BYTES)
    with pytest.raises(StateError, match="shorter"):
        reader.frame(1)

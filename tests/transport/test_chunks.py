from __future__ import annotations

import hashlib
import os
import random
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distreal_edge.errors import ProtocolError, StateError
from distreal_edge.transport.chunks import CHUNK_BYTES, Assembler, FrameReader, chunk_count, parse_frame, split

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
# Around the edges of a chunk, and some in between
sizes = st.sampled_from([1, 2, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 3 * CHUNK_BYTES + 5])


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


@settings(deadline=None, max_examples=30)
@given(size=sizes, order=st.randoms(use_true_random=False), repeats=st.integers(1, 3))
def test_any_order_and_any_repetition_gives_the_bytes_back(size: int, order: random.Random, repeats: int) -> None:
    data = blob(size)
    frames = split(data) * repeats
    order.shuffle(frames)
    assembler = Assembler(cap_bytes=MIB)
    for number, frame in enumerate(frames, start=1):
        progress = assembler.add(frame)
        assert progress.complete == assembler.complete
        assert progress.received + len(assembler.missing) == progress.count == -(-size // CHUNK_BYTES)
        assert number > 1 or not progress.duplicate
    assert assembler.complete
    assert assembler.data == data


@settings(deadline=None, max_examples=30)
@given(size=sizes, data=st.data())
def test_what_is_missing_is_exactly_what_was_dropped(size: int, data: st.DataObject) -> None:
    frames = split(blob(size))
    dropped = data.draw(st.sets(st.integers(0, len(frames) - 1), min_size=1, max_size=len(frames)))
    assembler = Assembler(cap_bytes=MIB, total_bytes=size)
    for index, frame in enumerate(frames):
        if index not in dropped:
            assembler.add(frame)
    assert not assembler.complete
    assert assembler.missing == tuple(sorted(dropped))
    with pytest.raises(ProtocolError, match="incomplete"):
        _ = assembler.data
    for index in dropped:
        assembler.add(frames[index])
    assert assembler.data == blob(size)


@settings(deadline=None, max_examples=40)
@given(size=sizes, data=st.data())
def test_one_wrong_bit_never_passes(size: int, data: st.DataObject) -> None:
    frames = [bytearray(frame) for frame in split(blob(size))]
    frame = frames[data.draw(st.integers(0, len(frames) - 1))]
    # half of the time in the header
    place = data.draw(st.integers(0, 59) | st.integers(0, len(frame) - 1))
    frame[place] ^= 1 << data.draw(st.integers(0, 7))
    assembler = Assembler(cap_bytes=MIB)
    with pytest.raises(ProtocolError):  # noqa: PT012 - any of the frames may be the one that shows it
        for each in frames:
            assembler.add(each)
        assert not assembler.complete
        _ = assembler.data


def test_after_a_wrong_digest_it_starts_over_and_can_still_finish() -> None:
    good = split(blob(CHUNK_BYTES * 2))
    bad = bytearray(good[1])
    bad[100] ^= 1
    assembler = Assembler(cap_bytes=MIB)
    assembler.add(good[0])
    with pytest.raises(ProtocolError, match="SHA-256"):
        assembler.add(bad)
    assert (assembler.received, assembler.complete, assembler.count) == (0, False, None)
    for frame in good:
        assembler.add(frame)
    assert assembler.data == blob(CHUNK_BYTES * 2)


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


def test_a_frame_of_another_blob_is_refused_and_changes_nothing() -> None:
    mine, other = split(blob(CHUNK_BYTES * 2, seed=1)), split(blob(CHUNK_BYTES * 2, seed=2))
    assembler = Assembler(cap_bytes=MIB)
    assembler.add(mine[0])
    with pytest.raises(ProtocolError, match="belongs to blob"):
        assembler.add(other[1])
    with pytest.raises(ProtocolError, match="were announced"):
        assembler.add(split(blob(CHUNK_BYTES * 3))[2])
    assert assembler.add(mine[1]).complete


def test_only_the_announced_blob_is_taken() -> None:
    data = blob(10)
    assembler = Assembler(cap_bytes=MIB, digest=hashlib.sha256(data).hexdigest(), total_bytes=10)
    assert assembler.missing == (0,)
    with pytest.raises(ProtocolError, match="belongs to blob"):
        assembler.add(split(blob(10, seed=5))[0])
    with pytest.raises(ProtocolError, match="announced"):
        assembler.add(split(blob(11))[0])
    assert assembler.add(split(data)[0]).complete


def test_a_frame_must_hold_the_chunk_that_its_topic_says() -> None:
    frames = split(blob(CHUNK_BYTES * 2))
    assembler = Assembler(cap_bytes=MIB)
    with pytest.raises(ProtocolError, match="holds chunk 1, its topic says 0"):
        assembler.add(frames[1], index=0)
    assert assembler.received == 0
    assert assembler.add(frames[0], index=0).received == 1


def test_a_blob_over_the_cap_is_refused_with_its_first_frame() -> None:
    frame = header(header(split(blob(CHUNK_BYTES))[0], slice(16, 24), 1 << 30), slice(12, 16), 4096)
    parse_frame(frame)
    with pytest.raises(ProtocolError, match="at most 1048576"):
        Assembler(cap_bytes=MIB).add(frame)
    with pytest.raises(ProtocolError, match="at most 1048576"):
        Assembler(cap_bytes=MIB, total_bytes=MIB + 1)


def test_memory_is_taken_only_as_chunks_come() -> None:
    frame = header(header(split(blob(CHUNK_BYTES))[0], slice(16, 24), 1 << 30), slice(12, 16), 4096)
    tracemalloc.start()
    try:
        Assembler(cap_bytes=1 << 30).add(frame)
        assert tracemalloc.get_traced_memory()[1] < 2 * CHUNK_BYTES
    finally:
        tracemalloc.stop()


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

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distreal_edge.errors import ProtocolError
from distreal_edge.transport import DiskError, FrameReader, PartialBlob, chunks, parts

CHUNK = 16
REAL_CHUNK = chunks.CHUNK_BYTES
DATA = random.Random(7).randbytes(5 * CHUNK + 3)
DIGEST = hashlib.sha256(DATA).hexdigest()
# Around the edges of a chunk, and some in between
sizes = st.sampled_from([1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 5])


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", CHUNK)


def frames(data: bytes = DATA) -> list[bytes]:
    return [frame for _, frame in FrameReader(data).frames()]


def opened(folder: Path, data: bytes = DATA) -> PartialBlob:
    return PartialBlob(folder / "blob.part", digest=hashlib.sha256(data).hexdigest(), total_bytes=len(data))


def completed(part: PartialBlob) -> None:
    """Add what is missing until it is whole; never more often than there are chunks."""
    for _ in range(2):
        for index in part.missing:
            part.add(frames()[index], index=index)
        if part.is_whole():
            break
    assert part.path.read_bytes() == DATA


@given(order=st.permutations(range(6)), kills=st.sets(st.integers(0, 5)))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_chunks_in_any_order_make_the_blob_whoever_is_killed_in_between(
    tmp_path: Path, order: list[int], kills: set[int]
) -> None:
    part = opened(tmp_path)
    for step, index in enumerate(order):
        assert not part.is_whole()
        assert part.add(frames()[index], index=index).received == step + 1
        assert part.add(frames()[index]).duplicate
        if step in kills:
            part = opened(tmp_path)
        assert part.missing == tuple(sorted(order[step + 1 :]))
    assert part.is_whole()
    part.move(tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    (tmp_path / "whole").unlink()


@settings(deadline=None, max_examples=30)
@given(size=sizes, order=st.randoms(use_true_random=False), repeats=st.integers(1, 3))
def test_any_order_and_any_repetition_gives_the_bytes_back(size: int, order: random.Random, repeats: int) -> None:
    shuffled = frames(DATA[:size]) * repeats
    order.shuffle(shuffled)
    with TemporaryDirectory() as folder:
        part = opened(Path(folder), DATA[:size])
        for number, frame in enumerate(shuffled, start=1):
            progress = part.add(frame)
            assert progress.received + len(part.missing) == progress.count == -(-size // CHUNK)
            assert part.is_whole() == (progress.received == progress.count)
            assert number > 1 or not progress.duplicate
        assert part.is_whole()
        assert part.path.read_bytes() == DATA[:size]


@settings(deadline=None, max_examples=30)
@given(size=sizes, data=st.data())
def test_what_is_missing_is_exactly_what_was_dropped(size: int, data: st.DataObject) -> None:
    sent = frames(DATA[:size])
    dropped = data.draw(st.sets(st.integers(0, len(sent) - 1), min_size=1, max_size=len(sent)))
    with TemporaryDirectory() as folder:
        part = opened(Path(folder), DATA[:size])
        for index, frame in enumerate(sent):
            if index not in dropped:
                part.add(frame)
        assert part.missing == tuple(sorted(dropped))
        assert not part.is_whole()
        for index in dropped:
            part.add(sent[index])
        assert part.is_whole()
        assert part.path.read_bytes() == DATA[:size]


@settings(deadline=None, max_examples=40)
@given(size=sizes, data=st.data())
def test_one_wrong_bit_never_passes(size: int, data: st.DataObject) -> None:
    sent = [bytearray(frame) for frame in frames(DATA[:size])]
    frame = sent[data.draw(st.integers(0, len(sent) - 1))]
    # half of the time in the header
    place = data.draw(st.integers(0, 59) | st.integers(0, len(frame) - 1))
    frame[place] ^= 1 << data.draw(st.integers(0, 7))
    with TemporaryDirectory() as folder:
        part = opened(Path(folder), DATA[:size])
        with pytest.raises(ProtocolError):  # noqa: PT012 - any of the frames may be the one that shows it
            for each in sent:
                part.add(each)
            part.is_whole()
        assert not part.is_whole()


def test_memory_is_taken_for_a_chunk_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", REAL_CHUNK)
    large = bytearray(frames(bytes(REAL_CHUNK))[0])
    large[12:24] = (4096).to_bytes(4) + (2**30).to_bytes(8)
    part = PartialBlob(tmp_path / "blob.part", digest=large[28:60].hex(), total_bytes=2**30)
    tracemalloc.start()
    try:
        assert part.add(large).count == 4096
        assert tracemalloc.get_traced_memory()[1] < 2 * REAL_CHUNK
    finally:
        tracemalloc.stop()


def test_a_larger_blob_than_was_announced_is_refused_with_its_first_frame(tmp_path: Path) -> None:
    large = bytearray(frames()[0])
    large[12:24] = (2**20).to_bytes(4) + (2**24).to_bytes(8)
    part = opened(tmp_path)
    with pytest.raises(ProtocolError, match=f"a blob of {2**24} bytes, {len(DATA)} were announced"):
        part.add(large)
    assert list(tmp_path.iterdir()) == []


def files(folder: Path) -> tuple[Path, Path]:
    return folder / "blob.part", folder / "blob.part.log"


def partly(folder: Path) -> PartialBlob:
    part = opened(folder)
    for index in (3, 0, 5, 1):
        part.add(frames()[index])
    return part


@pytest.mark.parametrize("which", [0, 1], ids=["blob", "log"])
def test_cut_off_anywhere_what_is_left_is_taken_up(tmp_path: Path, which: int) -> None:
    partly(tmp_path)
    whole = [path.read_bytes() for path in files(tmp_path)]
    for cut in range(len(whole[which])):
        for path, data in zip(files(tmp_path), whole, strict=True):
            path.write_bytes(data)
        files(tmp_path)[which].write_bytes(whole[which][:cut])
        part = opened(tmp_path)
        assert set(part.missing) >= {2, 4}
        completed(part)


@pytest.mark.parametrize("which", [0, 1], ids=["blob", "log"])
def test_any_bit_that_flips_costs_a_chunk_at_most_and_is_never_taken_for_good(tmp_path: Path, which: int) -> None:
    partly(tmp_path)
    whole = [path.read_bytes() for path in files(tmp_path)]
    header = len(whole[1]) - 4 * 12
    for byte in range(len(whole[which])):
        for path, data in zip(files(tmp_path), whole, strict=True):
            path.write_bytes(data)
        flipped = bytearray(whole[which])
        flipped[byte] ^= 1 << byte % 8
        files(tmp_path)[which].write_bytes(flipped)
        part = opened(tmp_path)
        if which == 0 or byte >= header:
            assert part.received >= 3
        completed(part)


@pytest.mark.parametrize("index", range(6))
def test_a_chunk_that_changes_on_the_disk_meanwhile_is_missing_again(tmp_path: Path, index: int) -> None:
    part = opened(tmp_path)
    for frame in frames():
        part.add(frame)
    changed = bytearray(DATA)
    changed[index * CHUNK] ^= 1
    part.path.write_bytes(changed)
    assert not part.is_whole()
    assert part.missing == (index,)
    completed(part)


def test_a_blob_that_never_was_what_was_announced_is_dropped(tmp_path: Path) -> None:
    part = opened(tmp_path)
    *others, last = frames()
    for frame in others:
        part.add(frame)
    part.add(last[:-1] + b"!")
    with pytest.raises(ProtocolError, match="damaged before it was sent"):
        part.is_whole()
    assert part.received == 0
    assert list(tmp_path.iterdir()) == []
    completed(part)


def test_what_is_left_of_another_blob_is_not_mixed_in(tmp_path: Path) -> None:
    partly(tmp_path)
    other = random.Random(8).randbytes(len(DATA))
    part = opened(tmp_path, other)
    assert part.received == 0
    for frame in frames(other):
        part.add(frame)
    assert part.is_whole()
    assert part.path.read_bytes() == other


def test_frames_that_do_not_belong_change_nothing(tmp_path: Path) -> None:
    part = opened(tmp_path)
    for frame, index, words in [
        (frames()[1], 2, "holds chunk 1, its topic says 2"),
        (frames(DATA + b"x")[0], None, "were announced"),
        (frames(DATA[::-1])[0], None, "belongs to blob"),
        (b"DRCK", None, "too few"),
    ]:
        with pytest.raises(ProtocolError, match=words):
            part.add(frame, index=index)
    assert part.received == 0


def full_disk_from(byte: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk take so many bytes more, and then nothing."""
    left = [byte]
    really = parts._write_at

    def write(file: Any, place: int, data: bytes) -> None:
        room = min(left[0], len(data))
        left[0] -= room
        really(file, place, bytes(data)[:room])
        if room < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(parts, "_write_at", write)


@pytest.mark.parametrize("room", range(0, 150, 3))
def test_a_disk_that_is_full_at_any_byte_loses_nothing(
    tmp_path: Path, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, arrived = opened(tmp_path), 0
    with monkeypatch.context() as patch:
        full_disk_from(room, patch)
        for frame in frames():
            with contextlib.suppress(DiskError):
                part.add(frame)
                arrived += 1
    assert part.received == arrived
    assert opened(tmp_path).received == arrived
    completed(part)
    completed(opened(tmp_path))

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from distreal_edge.device.blobs import Blobs
from distreal_edge.errors import ProtocolError, StateError
from distreal_edge.transport import CHUNK_BYTES, BlobReference, Want, split

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from distreal_edge.transport import Manifest

MODEL = np.random.default_rng(0).bytes(2 * CHUNK_BYTES + 5)
TABLE = b"table"


@pytest.fixture
def manifest(make_manifest: Callable[..., Manifest]) -> Manifest:
    return make_manifest(model=MODEL, table=TABLE)


def test_model_and_table_are_complete_when_every_chunk_has_come_in_any_order(
    manifest: Manifest, tmp_path: Path
) -> None:
    blobs = Blobs(tmp_path)
    assert not blobs.complete
    blobs.expect(manifest)
    frames = [(manifest.model.digest, frame) for frame in split(MODEL)] + [(manifest.table.digest, split(TABLE)[0])]
    for digest, frame in reversed(frames):
        assert not blobs.complete
        assert blobs.add(digest, frame, "test")
        assert not blobs.add(digest, frame, "test")
    assert blobs.complete
    assert blobs.wanted() == ()
    assert blobs.data(manifest.model) == MODEL
    assert blobs.data(manifest.table) == TABLE


def test_only_what_is_missing_is_wanted(manifest: Manifest, tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    blobs.expect(manifest)
    blobs.add(manifest.model.digest, split(MODEL)[1], "test")
    wanted = {want.digest: want.missing for want in blobs.wanted()}
    assert blobs.groups == {0}
    assert blobs.wanted() == ()
    assert {want.digest: want.missing for want in blobs.wanted(again=True)} == wanted
    assert wanted == {manifest.model.digest: (0, 2), manifest.table.digest: (0,)}


def test_a_table_is_kept_from_round_to_round_and_an_old_model_is_not(
    manifest: Manifest, make_manifest: Callable[..., Manifest], tmp_path: Path
) -> None:
    blobs = Blobs(tmp_path)
    blobs.expect(manifest)
    for digest, blob in ((manifest.model.digest, MODEL), (manifest.table.digest, TABLE)):
        for frame in split(blob):
            blobs.add(digest, frame, "test")
    following = make_manifest(2, model=b"next", table=TABLE)
    blobs.expect(following)
    assert [want.digest for want in blobs.wanted()] == [following.model.digest]
    assert not blobs.add(manifest.model.digest, split(MODEL)[0], "test")


def test_a_table_that_is_too_large_is_refused_and_what_was_expected_stays(manifest: Manifest, tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    blobs.expect(manifest)
    hostile = msgspec.structs.replace(manifest, table=BlobReference("f" * 64, 2**30, 4096))
    with pytest.raises(ProtocolError, match="at most"):
        blobs.expect(hostile)
    assert {want.digest for want in blobs.wanted()} == {manifest.model.digest, manifest.table.digest}


def test_chunks_that_do_not_make_what_was_announced_are_refused(manifest: Manifest, tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    blobs.expect(manifest)
    with pytest.raises(ProtocolError):
        blobs.add(manifest.table.digest, split(b"tabel")[0], "test")
    with pytest.raises(ProtocolError):
        blobs.add(manifest.table.digest, b"no frame", "test")
    assert not blobs.complete


def test_a_large_model_is_asked_for_a_group_at_a_time(make_manifest: Callable[..., Manifest], tmp_path: Path) -> None:
    model = np.random.default_rng(0).bytes(20 * CHUNK_BYTES)
    manifest, blobs = make_manifest(model=model, table=TABLE), Blobs(tmp_path)
    blobs.expect(manifest)
    blobs.add(manifest.table.digest, split(TABLE)[0], "test")
    frames, asked, most = split(model), [], 0
    while not blobs.complete:
        for want in blobs.wanted():
            asked += want.missing
        most = max(most, len(blobs._asked))
        assert blobs.add(manifest.model.digest, frames.pop(0), "test")
    assert asked == list(range(20))
    assert most == 12
    assert blobs.groups == frozenset()


def test_what_an_earlier_run_has_fetched_is_taken_up(manifest: Manifest, tmp_path: Path) -> None:
    first = Blobs(tmp_path)
    first.expect(manifest)
    first.add(manifest.table.digest, split(TABLE)[0], "test")
    first.add(manifest.model.digest, split(MODEL)[1], "test")
    second = Blobs(tmp_path)
    second.expect(manifest)
    assert second.wanted() == (Want(manifest.model.digest, (0, 2)),)
    for index in (0, 2):
        second.add(manifest.model.digest, split(MODEL)[index], "test")
    assert second.data(manifest.model) == MODEL
    third = Blobs(tmp_path)
    third.expect(manifest)
    assert third.complete


def test_a_blob_that_has_changed_on_the_disk_is_fetched_again(manifest: Manifest, tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    blobs.expect(manifest)
    for digest, blob in ((manifest.model.digest, MODEL), (manifest.table.digest, TABLE)):
        for frame in split(blob):
            blobs.add(digest, frame, "test")
    path = tmp_path / f"{manifest.model.digest}.blob"
    path.write_bytes(MODEL[:-1] + b"!")
    with pytest.raises(StateError, match="has changed since it was written"):
        blobs.data(manifest.model)
    blobs.expect(manifest)
    assert [want.missing for want in blobs.wanted()] == [(0, 1, 2)]
    path.write_bytes(MODEL[:-1] + b"!")
    again = Blobs(tmp_path)
    again.expect(manifest)
    assert not again.complete


def test_only_what_the_newest_round_needs_is_kept_on_the_disk(
    manifest: Manifest, make_manifest: Callable[..., Manifest], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").touch()
    blobs = Blobs(tmp_path)
    blobs.expect(manifest)
    blobs.add(manifest.model.digest, split(MODEL)[1], "test")
    blobs.add(manifest.table.digest, split(TABLE)[0], "test")
    blobs.expect(make_manifest(2, model=b"next", table=TABLE))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{manifest.table.digest}.blob", "notes.txt"]

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from distreal_edge.device.blobs import Blobs
from distreal_edge.errors import ProtocolError
from distreal_edge.transport import CHUNK_BYTES, BlobReference, split

if TYPE_CHECKING:
    from collections.abc import Callable

    from distreal_edge.transport import Manifest

MODEL = np.random.default_rng(0).bytes(2 * CHUNK_BYTES + 5)
TABLE = b"table"


@pytest.fixture
def manifest(make_manifest: Callable[..., Manifest]) -> Manifest:
    return make_manifest(model=MODEL, table=TABLE)


def test_model_and_table_are_complete_when_every_chunk_has_come_in_any_order(manifest: Manifest) -> None:
    blobs = Blobs()
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


def test_only_what_is_missing_is_wanted(manifest: Manifest) -> None:
    blobs = Blobs()
    blobs.expect(manifest)
    blobs.add(manifest.model.digest, split(MODEL)[1], "test")
    wanted = {want.digest: want.missing for want in blobs.wanted()}
    assert wanted == {manifest.model.digest: (0, 2), manifest.table.digest: (0,)}


def test_a_table_is_kept_from_round_to_round_and_an_old_model_is_not(
    manifest: Manifest, make_manifest: Callable[..., Manifest]
) -> None:
    blobs = Blobs()
    blobs.expect(manifest)
    for digest, blob in ((manifest.model.digest, MODEL), (manifest.table.digest, TABLE)):
        for frame in split(blob):
            blobs.add(digest, frame, "test")
    following = make_manifest(2, model=b"next", table=TABLE)
    blobs.expect(following)
    assert [want.digest for want in blobs.wanted()] == [following.model.digest]
    assert not blobs.add(manifest.model.digest, split(MODEL)[0], "test")


def test_a_table_that_is_too_large_is_refused_and_what_was_expected_stays(manifest: Manifest) -> None:
    blobs = Blobs()
    blobs.expect(manifest)
    hostile = msgspec.structs.replace(manifest, table=BlobReference("f" * 64, 2**30, 4096))
    with pytest.raises(ProtocolError, match="at most"):
        blobs.expect(hostile)
    assert {want.digest for want in blobs.wanted()} == {manifest.model.digest, manifest.table.digest}


def test_chunks_that_do_not_make_what_was_announced_are_refused(manifest: Manifest) -> None:
    blobs = Blobs()
    blobs.expect(manifest)
    with pytest.raises(ProtocolError):
        blobs.add(manifest.table.digest, split(b"tabel")[0], "test")
    with pytest.raises(ProtocolError):
        blobs.add(manifest.table.digest, b"no frame", "test")
    assert not blobs.complete

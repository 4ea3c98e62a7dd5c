"""The official Python version of CIFAR, and pickles that want more than to be read."""

from __future__ import annotations

import os
import pickle
import re
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distreal_edge.data import inert_pickle, load_dataset
from distreal_edge.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(2)
ROWS = RNG.integers(0, 256, (4, 3072), dtype=np.uint8)
IMAGES = ROWS.reshape(4, 3, 32, 32)
LABELS = [3, 0, 9, 9]
NAMES = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]


def python2(value: object) -> bytes:
    """Write opcodes as Python 2's cPickle did for CIFAR's archives: protocol 2, byte strings, numpy's old names."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: object) -> bytes:
    if isinstance(value, dict):
        items = b"".join(_opcodes(key) + _opcodes(item) for key, item in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(_opcodes(item) for item in value) + b"e"
    if isinstance(value, str):
        text = value.encode()
        return b"U" + bytes([len(text)]) + text
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    assert isinstance(value, np.ndarray)
    shape = b"(" + b"".join(_opcodes(length) for length in value.shape) + b"t"
    dtype = b"cnumpy\ndtype\n" + b"U\x02u1K\x00K\x01\x87R" + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    content = b"T" + struct.pack("<i", value.size) + value.tobytes()
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + content + b"tb"


def cifar10_batch(**changes: Any) -> dict[str, Any]:
    batch = {"batch_label": "a batch", "labels": LABELS, "data": ROWS, "filenames": ["a.png", "b", "c", "d"]}
    return {key: value for key, value in (batch | changes).items() if value is not None}


def write_test_batch(root: Path, content: bytes) -> Path:
    path = root / "test_batch"
    path.write_bytes(content)
    return path


def test_the_opcodes_of_this_test_are_what_pickle_calls_a_batch() -> None:
    batch = pickle.loads(python2(cifar10_batch()), encoding="latin1")
    assert batch["labels"] == LABELS
    assert np.array_equal(batch["data"], ROWS)


@pytest.mark.parametrize("subfolder", [".", "cifar-10-batches-py"])
def test_the_python_version_of_cifar10_is_read(tmp_path: Path, subfolder: str) -> None:
    folder = tmp_path / subfolder
    folder.mkdir(exist_ok=True)
    for shift, name in enumerate(NAMES):
        content = cifar10_batch(labels=[(label + shift) % 10 for label in LABELS])
        (folder / name).write_bytes(python2(content))
    train = load_dataset("cifar10", root=tmp_path, split="train")
    assert np.array_equal(train.images, np.tile(IMAGES, (5, 1, 1, 1)))
    assert train.labels.tolist() == [(label + shift) % 10 for shift in range(5) for label in LABELS]
    test = load_dataset("cifar10", root=tmp_path, split="test")
    assert test.labels.tolist() == [(label + 5) % 10 for label in LABELS]
    assert test.images.flags.writeable


@pytest.mark.parametrize("subfolder", [".", "cifar-100-python"])
def test_the_python_version_of_cifar100_gives_fine_labels(tmp_path: Path, subfolder: str) -> None:
    folder = tmp_path / subfolder
    folder.mkdir(exist_ok=True)
    fine = [99, 1, 50, 7]
    for name in ("train", "test"):
        batch = {"filenames": ["a"] * 4, "fine_labels": fine, "coarse_labels": [0, 1, 2, 19], "data": ROWS}
        (folder / name).write_bytes(python2(batch))
    dataset = load_dataset("cifar100", root=tmp_path, split="train")
    assert dataset.labels.tolist() == fine
    assert np.array_equal(dataset.images, IMAGES)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("protocol", [3, 4])
def test_a_batch_pickled_again_by_a_newer_python_is_read(tmp_path: Path, protocol: int, order: Any) -> None:
    rows = np.array(ROWS, order=order)
    write_test_batch(tmp_path, pickle.dumps({b"labels": LABELS, b"data": rows}, protocol=protocol))
    assert np.array_equal(load_dataset("cifar10", root=tmp_path, split="test").images, IMAGES)


class Hostile:
    """Pickles as a call of any function."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"data": ROWS, "labels": LABELS, "more": [evil]}])
def test_a_hostile_pickle_is_refused_and_nothing_runs(tmp_path: Path, protocol: int, wrap: Any) -> None:
    canary = tmp_path / "canary"
    path = write_test_batch(tmp_path, pickle.dumps(wrap(Hostile(os.mkdir, str(canary))), protocol=protocol))
    with pytest.raises(DataError, match=re.escape(f"{path}: refused, the pickle wants to call ") + r"\w+\.\w+"):
        load_dataset("cifar10", root=tmp_path, split="test")
    assert not canary.exists()
    pickle.loads(path.read_bytes())
    assert canary.exists(), "this pickle would not have done harm, so the test shows nothing"


@pytest.mark.parametrize(
    "name",
    [
        "builtins eval", "builtins getattr", "builtins exec", "os system", "posix system", "subprocess Popen",
        "numpy load", "numpy fromfile", "numpy memmap", "numpy.core.multiarray fromfile", "numpy ndarray.tofile",
        "numpy.core multiarray._reconstruct", "codecs encode", "_codecs encode", "copyreg _reconstructor",
        "functools partial", "numpy._core.multiarray scalar", "distreal_edge.errors DataError",
    ],
)  # fmt: skip
def test_no_name_but_numpys_three_is_ever_looked_up(tmp_path: Path, name: str) -> None:
    module, attribute = name.split()
    texts = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, attribute))
    for lookup in (f"c{module}\n{attribute}\n".encode(), texts + b"\x93"):  # GLOBAL, STACK_GLOBAL
        write_test_batch(tmp_path, b"\x80\x04" + lookup + b".")
        with pytest.raises(DataError, match=f"refused, the pickle wants to call {re.escape(module)}"):
            load_dataset("cifar10", root=tmp_path, split="test")


GLOBAL = b"cnumpy.core.multiarray\n_reconstruct\n"


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02" + GLOBAL + b"}U\x01aK\x01sb.",  # set state on the allowed function itself
        b"\x80\x02" + GLOBAL + b"N}U\x0c__defaults__)s\x86b.",
        b"\x80\x02cnumpy\nndarray\n)\x81.",  # NEWOBJ
        b"\x80\x02" + GLOBAL + b")R)R.",  # call what the call gave
        b"\x80\x02U\x03abcQ.",  # a persistent id
        b"\x80\x02\x82\x01.",  # an extension code
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # a memo of 2**31 entries
        b"\x80\x02Np2147483647\n.",
        b"\x80\x02" + b"}" * 1_000_000 + b".",
        b"\x80\x02\x8a\xff.",
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x63.",
        b"",
        b".",
        b"not a pickle",
        python2(cifar10_batch())[:-2000],
    ],
)
def test_a_broken_or_tricky_pickle_is_called_damaged(tmp_path: Path, content: bytes) -> None:
    path = write_test_batch(tmp_path, content)
    with pytest.raises(DataError, match=re.escape(str(path)) + ": damaged pickle"):
        load_dataset("cifar10", root=tmp_path, split="test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (python2([1, 2]), "holds a pickled list, not the dictionary of a CIFAR batch"),
        (python2(cifar10_batch(labels=None)), "no 'labels' in it, only batch_label, data, filenames"),
        (python2(cifar10_batch(data=None)), "no 'data' in it"),
        (python2(cifar10_batch(labels=[1, 2, 3])), "4 images but 3 labels"),
        (python2(cifar10_batch(labels=[1, 2, 3, 10])), r"the label of image 3 is outside 0\.\.9"),
        (python2(cifar10_batch(labels=[1, 2, -3, 1])), "the label of image 2 is outside"),
        (python2(cifar10_batch(labels=["cat"] * 4)), "'labels' is not a list of integers"),
        (python2(cifar10_batch(data=ROWS[:, :-1].copy())), r"'data' is not an array \[N, 3072\]"),
        (python2(cifar10_batch(data=ROWS.ravel())), r"'data' is not an array \[N, 3072\]"),
        (python2(cifar10_batch(data=[1])), r"'data' is not an array \[N, 3072\]"),
        (pickle.dumps(cifar10_batch(data=ROWS.astype(float)), 4), "an array that is not of unsigned bytes"),
        (pickle.dumps(cifar10_batch(data=np.array([{}])), 4), "an array that is not of unsigned bytes"),
        (python2(cifar10_batch()).replace(b"J\x04\0\0\0J\0\x0c", b"J\x05\0\0\0J\0\x0c"), "with 12288 bytes"),
        (python2(cifar10_batch()).replace(b"J\x04\0\0\0J\0\x0c", b"J\xff\xff\xff\xffJ\0\x0c"), "shape makes no sense"),
        (python2(cifar10_batch()).replace(b"T" + struct.pack("<i", ROWS.size) + ROWS.tobytes(), b"N"), "are not bytes"),
        (b"\x80\x02}U\x04data" + GLOBAL + b")RsU\x06labels](es.", "an array without contents"),
    ],
)
def test_a_batch_with_the_wrong_contents_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = write_test_batch(tmp_path, content)
    with pytest.raises(DataError, match=re.escape(str(path)) + ".*" + message):
        load_dataset("cifar10", root=tmp_path, split="test")


def test_a_pickle_that_is_too_large_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_test_batch(tmp_path, b"x" * 1001)
    monkeypatch.setattr(inert_pickle, "LARGEST_BYTES", 1000)
    with pytest.raises(DataError, match="test_batch: 1001 bytes, the largest pickle accepted is 1000"):
        load_dataset("cifar10", root=tmp_path, split="test")


def test_a_damaged_text_with_an_unknown_escape_is_refused_without_a_warning(tmp_path: Path) -> None:
    write_test_batch(tmp_path, b"(dp0\nS'lab\\uels'\np1\n.")
    with pytest.raises(DataError):
        load_dataset("cifar10", root=tmp_path, split="test")


# function_scoped_fixture: each example overwrites the one file.
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_gives_anything_but_a_clear_error(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(python2({"labels": [1], "data": np.zeros((1, 4), np.uint8)}))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    write_test_batch(tmp_path, bytes(content))
    with pytest.raises(DataError):  # the undamaged one is refused too: four pixels are no image
        load_dataset("cifar10", root=tmp_path, split="test")

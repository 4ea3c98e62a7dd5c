"""The compiled module's view of the processor, against the kernel's own."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from distreal_edge import _native

VARIABLE = "DISTREAL_EDGE_INSTRUCTION_SET"
EVERY_SET = ("avx512", "avx512vl", "avx2", "neon", "plain")

# Our names, and what /proc/cpuinfo calls the same things.
FLAGS = {
    "x86_64": {
        "sse4.2": {"sse4_2"},
        "avx": {"avx"},
        "avx2": {"avx2"},
        "fma": {"fma"},
        "avx512f": {"avx512f"},
        "avx512bw": {"avx512bw"},
        "avx512dq": {"avx512dq"},
        "avx512vl": {"avx512vl"},
    },
    "aarch64": {
        "neon": {"asimd"},
        "lse": {"atomics"},
        "fp16": {"fphp", "asimdhp"},
        "dotprod": {"asimddp"},
        "sve": {"sve"},
        "i8mm": {"i8mm"},
    },
}


def choose_in_a_new_process(wanted: str) -> subprocess.CompletedProcess[str]:
    program = "from distreal_edge import _native; print(_native.instruction_set())"
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, VARIABLE: wanted},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_compiled_version_is_the_installed_one() -> None:
    assert _native.version() == importlib.metadata.version("distreal-edge")


@pytest.mark.skipif(platform.machine() not in FLAGS, reason="no features are named for this architecture")
def test_features_agree_with_proc_cpuinfo() -> None:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = set(next(line for line in lines if line.lower().startswith(("flags", "features"))).split())

    expected = {name: needed <= flags for name, needed in FLAGS[platform.machine()].items()}

    assert _native.cpu_features() == expected


def test_the_best_set_that_runs_here_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    features = _native.cpu_features()
    if all(features.get(name) for name in ("avx512f", "avx512vl", "avx512dq", "avx2", "fma")):
        expected = "avx512"
    elif all(features.get(name) for name in ("avx2", "fma")):
        expected = "avx2"
    else:
        expected = "neon" if features.get("neon") else "plain"

    assert _native.instruction_set() == expected
    assert _native.instruction_sets()[0] == expected


def test_plain_is_always_possible_and_always_last() -> None:
    assert _native.instruction_sets()[-1] == "plain"
    assert set(_native.instruction_sets()) <= set(EVERY_SET)


@pytest.mark.parametrize("wanted", _native.instruction_sets())
def test_the_environment_overrules_the_choice(wanted: str) -> None:
    result = choose_in_a_new_process(wanted)

    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == wanted


def test_an_empty_override_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")

    assert _native.instruction_set() == _native.instruction_sets()[0]


@pytest.mark.parametrize("wanted", ["avx1024", "AVX2", " plain"])
def test_an_unknown_override_names_the_possible_ones(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, wanted)

    with pytest.raises(ValueError, match="is not an instruction set") as raised:
        _native.instruction_set()

    assert f"{VARIABLE}={wanted}" in str(raised.value)
    assert str(raised.value).endswith("use one of: " + ", ".join(_native.instruction_sets()))


def test_a_set_that_does_not_run_here_is_refused_not_used() -> None:
    absent = next(name for name in EVERY_SET if name not in _native.instruction_sets())

    result = choose_in_a_new_process(absent)

    assert result.returncode != 0
    assert f"ValueError: {VARIABLE}={absent} does not run on this processor" in result.stderr

"""Which instruction set an engine computes with, and who is told."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from distreal_edge import Engine, _native, zoo
from distreal_edge.errors import ConfigError

VARIABLE = "DISTREAL_EDGE_INSTRUCTION_SET"
PROGRAM = """
import logging
logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
from distreal_edge import Engine, zoo
engines = [Engine(zoo.resnet8(image_size=8), "native") for _ in range(2)]
print(engines[1].instruction_set)
"""


@pytest.mark.parametrize("name", _native.instruction_sets())
def test_the_environment_chooses_and_it_is_logged_once(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, VARIABLE: name},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == f"{name}\n"
    assert done.stderr == (f"distreal_edge.engine.native: the native engine computes with the instruction set {name}\n")


def test_an_instruction_set_that_there_is_not_is_a_mistake_in_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, "avx1024")
    with pytest.raises(ConfigError, match=f"{VARIABLE}=avx1024 is not an instruction set; unset it or use one of"):
        Engine(zoo.resnet8(image_size=8), "native")

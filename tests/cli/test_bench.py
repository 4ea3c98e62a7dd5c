from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

QUICK = ("--seconds", "0.001", "--cool-down", "0")


def refused(result: Any, said: str) -> None:
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("distreal-edge: ")
    assert said in line


def test_a_document_has_every_figure(cli: Callable[..., Any]) -> None:
    problems = ("n2 c8>8 9x9 keep.5", "resnet8 n2 3x8x8 keep.5")
    shown = cli("bench", *problems, *QUICK, "--threads", "1,2", "--instruction-set", "plain", "--json")
    assert shown.returncode == 0, shown.stderr
    document = json.loads(shown.stdout)
    assert set(document) == {"machine", "warnings", "results"}
    assert document["machine"]["processor"]
    assert [(result["problem"].split()[0], result["threads"]) for result in document["results"]] == [
        ("n2", 1), ("n2", 2), ("resnet8", 1), ("resnet8", 2)
    ]  # fmt: skip
    for result in document["results"]:
        assert result["instruction_set"] == "plain"
        assert result["peak_flops"] > 1e7
    assert set(document["results"][0]["directions"]) == {"forward", "backward_data", "backward_weights"}
    assert document["results"][2]["images_per_s"] > 0


def test_a_table_says_what_was_measured_with_what(cli: Callable[..., Any]) -> None:
    shown = cli("bench", "n2 c8>8 9x9", "resnet8 n2 3x8x8", *QUICK, "--instruction-set", "plain", "--threads", "2")
    assert shown.returncode == 0, shown.stderr
    for said in (
        "plain: one core's measured peak is", "n2 c8>8 k3 s1 9x9 keep1, plain, 2 threads", "  forward ",
        "  backward-data ", "  backward-weights ", "resnet8 n2 3x8x8 keep1, plain, 2 threads", "img/s",
    ):  # fmt: skip
        assert said in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["n2 c8>8 9y9"], "problem 'n2 c8>8 9y9': '9y9' is none of"),
        (["resnet8", "--threads", "1,two"], "--threads '1,two'"),
        (["resnet8", "--threads", "0"], "--threads '0'"),
        (["resnet8", "--instruction-set", "quantum"], "'quantum' does not run on this processor"),
        (["c8>8 9x9", "--backend", "reference"], "the reference backend times whole steps only"),
        (["resnet8", "--backend", "tpu"], "tpu"),
        (["resnet8", "--seconds", "0"], "--seconds"),
    ],
)
def test_what_cannot_be_measured_is_one_line(cli: Callable[..., Any], arguments: list[str], said: str) -> None:
    refused(cli("bench", *arguments), said)


def test_the_reference_backend_is_asked_for_by_name(cli: Callable[..., Any]) -> None:
    shown = cli("bench", "resnet8 n2 3x8x8 keep.5", *QUICK, "--backend", "reference")
    assert shown.returncode == 0
    assert "resnet8 n2 3x8x8 keep.5, reference" in shown.stdout


def test_a_machine_that_is_busy_is_warned_of(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (1.7, 0.0, 0.0))
    shown = cli("bench", "n2 c8>8 9x9", *QUICK, "--json")
    assert "others are computing here (load average 1.7 on" in shown.stderr
    assert len(json.loads(shown.stdout)["warnings"]) == 1

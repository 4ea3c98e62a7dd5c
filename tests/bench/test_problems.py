from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distreal_edge.bench import Convolution, Step, parse_problem, prepare_step
from distreal_edge.errors import ConfigError
from distreal_edge.network import Network, PlanBuilder
from distreal_edge.zoo import NETWORKS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "bench.md").read_text(encoding="utf-8")


def test_a_convolution_is_read_token_by_token() -> None:
    assert parse_problem("n8 c16>32 k3x5 s2 p0x1 d1x2 g4 30x20 keep.5") == Convolution(
        images=8,
        in_channels=16,
        out_channels=32,
        kernel=(3, 5),
        stride=(2, 2),
        padding=(0, 1),
        dilation=(1, 2),
        groups=4,
        sides=(30, 20),
        keep=0.5,
    )


def test_what_is_left_out_is_usual_and_the_order_does_not_matter() -> None:
    usual = parse_problem("32x32 c16>16")
    assert usual == parse_problem("keep1 n32 c16>16 k3 s1 p1 d1 g1 32x32")
    assert str(usual) == "n32 c16>16 k3 s1 32x32 keep1"
    assert isinstance(usual, Convolution)
    assert usual.out_sides == (32, 32)


def test_a_step_is_a_network_of_the_zoo() -> None:
    assert parse_problem("resnet20 n8 keep.25") == Step("resnet20", 8, 0.25, None)
    assert parse_problem("vgg_small 1x28x28") == Step("vgg_small", 32, 1.0, (1, 28, 28))


def test_same_padding_grows_with_dilation() -> None:
    for text in ("c2>2 k5 d2 9x9", "c2>2 k1x3 d2 9x9", "c2>2 k3 9x9"):
        problem = parse_problem(text)
        assert isinstance(problem, Convolution)
        assert problem.out_sides == (9, 9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a problem is empty"),
        ("resnet21 n32", "'resnet21' is neither a network (densenet40"),
        ("n32 c16>16 q3 32x32", "'q3' is none of n32, c16>32, k3 or k3x5, s2"),
        ("resnet20 k3", "'k3' is none of n32, 3x32x32, keep.5"),
        ("c16>16 c8>8 32x32", "'c8>8' says the channels a second time"),
        ("n32 32x32", "the channels are missing; add c16>32"),
        ("c16>16", "the sides are missing; add 32x32"),
        ("n0 c16>16 32x32", "images: 0 is not within 1..4096"),
        ("c16>16 k0 32x32", "kernel: 0 is not within 1..256"),
        ("c16>16 s300 32x32", "stride: 300 is not within 1..256"),
        ("c16>5000 32x32", "channels: 5000 is not within 1..4096"),
        ("c16>16 k5 p0 4x9", "the window is larger than the padded maps"),
        ("c4>6 g4 9x9", "4 groups do not divide 4 inputs and 6 outputs"),
        ("c4>6 gD 9x9", "4 groups do not divide 4 inputs and 6 outputs"),
        ("c4>6 g0 9x9", "groups: 0 is not within"),
        ("c4>6 9x9 keep0", "'keep0' is no share"),
        ("c4>6 9x9 keep.", "'keep.' is no share"),
        ("c4>6 9x9 keep", "'keep' is no share"),
        ("c4>6 9x9 keep1.01", "'keep1.01' is no share"),
        ("resnet20 3x32x30", "square images, not 32x30"),
        ("n4096 c4096>4096 4096x4096", "have more than"),
        ("c4>6 9x9 k٣", "'k٣' is none of"),
    ],
)
def test_a_fault_is_told_with_the_problem_and_the_token(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as raised:
        parse_problem(text)
    assert not text or repr(text) in str(raised.value)


@st.composite
def convolutions(draw: st.DrawFn) -> Convolution:
    groups = draw(st.integers(1, 3))
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    made = Convolution(
        images=draw(st.integers(1, 3)),
        in_channels=groups * draw(st.integers(1, 4)),
        out_channels=groups * draw(st.integers(1, 4)),
        kernel=draw(pairs),
        stride=draw(pairs),
        padding=draw(st.tuples(st.integers(0, 3), st.integers(0, 3))),
        dilation=draw(pairs),
        groups=groups,
        sides=draw(st.tuples(st.integers(7, 9), st.integers(7, 9))),
        keep=draw(st.sampled_from([1.0, 0.75, 0.5, 0.35, 1e-5])),
    )
    assert min(made.out_sides) > 0
    return made


@given(convolutions())
def test_what_a_problem_says_is_what_was_read(problem: Convolution) -> None:
    assert parse_problem(str(problem)) == problem


@given(convolutions())
def test_macs_are_those_of_a_network_that_keeps_the_same_channels(problem: Convolution) -> None:
    # A first convolution makes the inputs; it is counted twice (no backward-data), ours three times. A depthwise
    # convolution has no filters of its own.
    builder = PlanBuilder((1, *problem.sides))
    value = builder.conv2d("before", builder.input, problem.in_channels, kernel=1)
    made = builder.conv2d(
        "conv",
        value,
        problem.out_channels,
        kernel=problem.kernel,
        stride=problem.stride,
        padding=problem.padding,
        dilation=problem.dilation,
        groups=problem.groups,
    )
    classifier = builder.linear("fc", builder.flatten(builder.global_avg_pool(made)), 2)
    network = Network.initialise(builder.finish(classifier))
    height, width = problem.sides
    keep_all = 2 * problem.kept_in * height * width + 3 * 2 * problem.kept_out
    vector = [1.0 - problem.keep] * len(network.groups)
    assert network.cost(vector).macs == keep_all + 3 * problem.macs // problem.images


@given(convolutions())
def test_macs_inside_count_no_padding(problem: Convolution) -> None:
    # Every output of ones convolved with ones is the number of its inputs inside.
    whole = problem if problem.keep == 1.0 else parse_problem(str(problem).rpartition(" ")[0])
    assert isinstance(whole, Convolution)
    counted = torch.nn.functional.conv2d(
        torch.ones(whole.images, whole.in_channels, *whole.sides),
        torch.ones(whole.out_channels, whole.in_channels // whole.groups, *whole.kernel),
        stride=whole.stride,
        padding=whole.padding,
        dilation=whole.dilation,
        groups=whole.groups,
    )
    assert tuple(counted.shape[2:]) == whole.out_sides
    assert int(counted.sum()) == whole.macs_inside
    assert whole.macs >= whole.macs_inside


def test_a_step_keeps_the_same_share_of_every_group() -> None:
    problem = parse_problem("resnet8 n4 1x16x16 keep.35")
    assert isinstance(problem, Step)
    network, subset = prepare_step(problem)
    assert network.plan.input_shape == (1, 16, 16)
    assert subset.counts == tuple({16: 6, 32: 11, 64: 22}[size] for size in network.plan.sizes)


def test_the_pages_problems_are_problems() -> None:
    quoted = re.findall(r'"([^"\n]+)"', PAGE.partition("## Problems")[0])
    assert len(quoted) == 3
    for problem in quoted:
        parse_problem(problem)


def test_the_pages_tokens_are_tokens() -> None:
    table = PAGE.partition("| token |")[2].partition("A depthwise convolution keeps")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    tokens = [token for row in rows for token in re.findall(r"`([^`]+)`", row)]
    assert len(rows) == 9
    for token in tokens:
        needed = [other for other in ("c16>32", "32x32") if other not in tokens or other != token]
        parse_problem(" ".join([token, *needed]))
    steps = PAGE.partition("begins with the name")[2].partition("## What is timed")[0]
    assert all(f"`{network}`" in steps for network in NETWORKS)
    parse_problem("resnet20 n32 keep.5 3x32x32")

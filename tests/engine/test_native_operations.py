"""Each operation on its own in the native engine, at sizes around those that vectors and tiles have."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from distreal_edge import PlanBuilder

if TYPE_CHECKING:
    from collections.abc import Callable

    from distreal_edge import Plan

Make = "Callable[[PlanBuilder, str], str]"


def conv(outputs: int, **settings: Any) -> Callable[[PlanBuilder, str], str]:
    return lambda b, x: b.conv2d("conv", x, outputs, **settings)


# By a few words: channels that the operation reads, sides of its maps, and the operation.
CASES: dict[str, tuple[int, tuple[int, int], Callable[[PlanBuilder, str], str]]] = {
    "conv 3x3": (8, (6, 6), conv(16, kernel=3, padding=1)),
    "conv 3x3, odd counts": (13, (5, 7), conv(7, kernel=3, padding=1, bias=False)),
    "conv 3x3, many channels": (37, (4, 4), conv(29, kernel=3, padding=1)),
    "conv 1x1": (17, (5, 5), conv(9, kernel=1)),
    "conv 1x1, one channel": (1, (5, 5), conv(1, kernel=1)),
    "conv 1x1, stride 2": (6, (7, 6), conv(11, kernel=1, stride=2)),
    "conv 5x5, padding 2, images smaller than the window": (4, (3, 3), conv(5, kernel=5, padding=2)),
    "conv 3x3, stride 2": (9, (8, 8), conv(10, kernel=3, stride=2, padding=1)),
    "conv 3x3, stride 2, odd sides": (9, (7, 9), conv(10, kernel=3, stride=2, padding=1)),
    "conv 3x3, stride 3, rows that no window reads": (3, (8, 8), conv(4, kernel=2, stride=3)),
    "conv 1x7 and 7x1": (4, (7, 7), lambda b, x: b.conv2d("b", conv(5, kernel=(1, 7))(b, x), 3, kernel=(7, 1))),
    "conv 3x3, dilation 2": (6, (9, 8), conv(5, kernel=3, padding=2, dilation=2)),
    "conv 3x2, dilation 3x1, stride 1x2": (
        5,
        (8, 7),
        conv(6, kernel=(3, 2), dilation=(3, 1), stride=(1, 2), padding=(1, 1)),
    ),
    "conv 2x2, padding wider than the window": (3, (3, 2), conv(4, kernel=2, padding=3)),
    "conv over a single pixel": (20, (1, 1), conv(12, kernel=3, padding=1)),
    "grouped conv": (12, (5, 5), conv(18, kernel=3, padding=1, groups=3)),
    "grouped conv, a filter in each": (6, (5, 5), conv(3, kernel=3, groups=3, bias=False)),
    "depthwise": (19, (6, 5), conv(19, kernel=3, padding=1, groups=19)),
    "depthwise, stride 2": (10, (7, 8), conv(10, kernel=3, padding=1, stride=2, groups=10, bias=False)),
    "depthwise, three filters each": (5, (6, 6), conv(15, kernel=5, padding=2, groups=5)),
    "batch norm": (11, (5, 4), lambda b, x: b.batch_norm("norm", x)),
    "relu": (6, (5, 5), lambda b, x: b.relu(x)),
    "relu6": (6, (5, 5), lambda b, x: b.relu6(x)),
    "hardswish": (6, (5, 5), lambda b, x: b.hardswish(x)),
    "sigmoid": (6, (5, 5), lambda b, x: b.sigmoid(x)),
    "batch norm and relu": (6, (5, 5), lambda b, x: b.relu(b.batch_norm("norm", x))),
    "batch norm and sigmoid": (6, (5, 5), lambda b, x: b.sigmoid(b.batch_norm("norm", x))),
    "two batch norms": (6, (5, 5), lambda b, x: b.batch_norm("norm2", b.batch_norm("norm1", x))),
    "max-pool": (7, (6, 6), lambda b, x: b.max_pool(x, kernel=2)),
    "max-pool, overlapping": (7, (7, 5), lambda b, x: b.max_pool(x, kernel=3, stride=2, padding=1)),
    "max-pool, pixels left out": (7, (7, 7), lambda b, x: b.max_pool(x, kernel=2, stride=3)),
    "avg-pool": (7, (6, 6), lambda b, x: b.avg_pool(x, kernel=2)),
    "avg-pool, padding counted": (7, (5, 6), lambda b, x: b.avg_pool(x, kernel=3, stride=2, padding=1)),
    "avg-pool, padding left out": (
        7,
        (5, 6),
        lambda b, x: b.avg_pool(x, kernel=3, stride=1, padding=1, count_include_pad=False),
    ),
    "global average": (21, (5, 3), lambda b, x: b.global_avg_pool(x)),
    "residual": (
        9,
        (5, 5),
        lambda b, x: b.relu(b.add(x, b.batch_norm("norm", b.conv2d("c", b.relu(x), 9, kernel=3, padding=1)))),
    ),
    "addition to itself": (4, (5, 5), lambda b, x: b.add(x, x)),
    "product with itself": (4, (5, 5), lambda b, x: b.multiply(x, x)),
    "squeeze and excite": (
        10,
        (4, 5),
        lambda b, x: b.multiply(x, b.sigmoid(b.conv2d("excite", b.global_avg_pool(x), 10, kernel=1))),
    ),
    "squeeze and excite, the other way round": (
        10,
        (4, 5),
        lambda b, x: b.multiply(b.hardswish(b.conv2d("excite", b.global_avg_pool(x), 10, kernel=1)), x),
    ),
    "concatenation": (5, (5, 5), lambda b, x: b.concat(x, b.conv2d("c", x, 6, kernel=1), b.relu(x))),
    "concatenation of a value with itself": (5, (5, 5), lambda b, x: b.concat(x, x)),
    "concatenation of concatenations": (
        3,
        (4, 4),
        lambda b, x: b.concat(b.concat(x, b.conv2d("c", x, 4, kernel=1)), b.concat(b.relu(x), x)),
    ),
    "concatenation with the input": (3, (4, 4), lambda b, x: b.concat(b.input, x)),
    "dense blocks": (
        4,
        (4, 4),
        lambda b, x: b.batch_norm(
            "n2", b.concat(x, b.conv2d("c", b.relu(b.batch_norm("n1", x)), 5, kernel=3, padding=1))
        ),
    ),
    "a value with many readers": (
        6,
        (4, 4),
        lambda b, x: b.add(b.add(b.relu(x), b.conv2d("c", x, 6, kernel=1)), b.add(b.sigmoid(x), x)),
    ),
    "a value that nobody reads": (6, (4, 4), lambda b, x: (b.batch_norm("dead", b.conv2d("d", x, 3, kernel=1)), x)[1]),
    "element-wise dropout": (6, (4, 4), lambda b, x: b.dropout(b.relu(x), 0.4)),
}


def operation_plan(case: str, *, rescale: bool) -> Plan:
    channels, sides, make = CASES[case]
    b = PlanBuilder((3, *sides))
    x = b.conv2d("stem", b.input, channels, kernel=1)
    return b.finish(b.linear("fc", b.flatten(make(b, x)), 5), rescale=rescale)


@pytest.mark.parametrize("case", CASES)
def test_an_operation_is_pytorchs(case: str, random_networks: Any, comparing: Any) -> None:
    chance = Random(case)
    compared = 0
    for number, count in enumerate((4, 1, 16, 17, 33, 2, 40, 5, 7)):
        plan = operation_plan(case, rescale=number % 2 == 0)
        images, labels = random_networks.random_batch(plan, count, number, as_bytes=number % 3 == 0)
        subset = random_networks.random_subset(plan, chance)
        network = random_networks.random_weights(plan, number)
        problem = comparing.make_problem(network, images, labels, subset, number)
        exact = comparing.reference_step(problem)
        comparing.check_same(problem, comparing.plain64_step(problem), exact, tolerance=1e-9)
        if not comparing.is_touchy(problem):
            outcome = comparing.engine_step(problem)
            comparing.check_as_close_as_float32(problem, outcome)
            comparing.check_untouched(problem, outcome)
            compared += 1
    assert compared >= 4


def test_a_grouped_convolution_may_lose_everything_that_one_group_reads(random_networks: Any, comparing: Any) -> None:
    import numpy as np  # noqa: PLC0415

    from distreal_edge import Subset  # noqa: PLC0415

    plan = operation_plan("grouped conv", rescale=True)
    for survivors in (([0, 1, 2], [0, 7, 13]), ([5, 11], [0, 1, 2]), ([4, 5, 6, 7], range(18)), ([0], [17])):
        subset = Subset(tuple(np.array(list(kept), dtype=np.int64) for kept in survivors))
        images, labels = random_networks.random_batch(plan, 6, 0, as_bytes=False)
        problem = comparing.make_problem(random_networks.random_weights(plan, 1), images, labels, subset, 2)
        exact = comparing.reference_step(problem)
        comparing.check_same(problem, comparing.plain64_step(problem), exact, tolerance=1e-9)
        comparing.check_as_close_as_float32(problem, comparing.engine_step(problem))


def test_a_grouped_convolution_may_lose_nearly_all_that_one_group_makes(random_networks: Any, comparing: Any) -> None:
    # What is enough work for two threads in one group is cut into parts in the other.
    import numpy as np  # noqa: PLC0415

    from distreal_edge import Subset  # noqa: PLC0415

    b = PlanBuilder((4, 8, 8))
    x = b.relu(b.conv2d("stem", b.input, 32, kernel=3, padding=1))
    x = b.relu(b.conv2d("grouped", x, 800, kernel=3, padding=1, groups=2))
    plan = b.finish(b.linear("fc", b.flatten(b.global_avg_pool(x)), 5))
    subset = Subset((np.arange(32), np.arange(401)))
    images, labels = random_networks.random_batch(plan, 3, 0, as_bytes=False)
    problem = comparing.make_problem(random_networks.random_weights(plan, 1), images, labels, subset, 2)
    exact = comparing.reference_step(problem)
    for threads in (1, 2, 3):
        comparing.check_same(problem, comparing.plain64_step(problem, threads=threads), exact, tolerance=1e-9)
        comparing.check_as_close_as_float32(problem, comparing.engine_step(problem, threads=threads))

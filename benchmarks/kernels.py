"""Print how much of this core's measured peak the convolution kernels reach, beside the floors.

    .venv/bin/python benchmarks/kernels.py --json kernels.json
    .venv/bin/python benchmarks/kernels.py --more                      # other shapes too, which have no floors
    .venv/bin/python benchmarks/kernels.py --problems "n32 c16>16 32x32 keep.5" --instruction-set avx2

The peak is that of independent multiply-adds in the vectors of the same instruction set, measured between all others;
the highest of a problem counts. Times include packing the weights, and for backward-weights the optimiser's step. Of
each round the fastest of three runs counts, and of the rounds the median. Multiplications by padding are not computed
and not counted; in brackets stands what it would be if they were, as other libraries count. All times are the
thread's own processor time.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from distreal_edge import _native
from distreal_edge.bench import (
    DIRECTIONS,
    Convolution,
    check_instruction_set,
    describe_machine,
    parse_problem,
    read_state,
    time_direction,
)

CHANNELS = (32, 37, 64, 96, 101, 128)
SIDES = (32, 16)
FLOORS = {"forward": 0.80, "backward_data": 0.75, "backward_weights": 0.75}
MORE = (
    "n32 c16>16 32x32",
    "n32 c8>8 32x32",
    "n32 c4>4 32x32",
    "n32 c3>16 32x32",
    "n32 c256>256 8x8",
    "n32 c16>32 s2 32x32",
    "n32 c32>64 s2 16x16",
    "n32 c42>12 k1 32x32",
    "n32 c144>24 k1 32x32",
    "n32 c64>128 k5 14x14",
    "n32 c144>144 gD 32x32",
    "n32 c384>384 gD 8x8",
)
PEAK_S = 0.002
RUNS = 3


def measure(problem: Convolution, instruction_set: str, rounds: int) -> dict[str, Any]:
    """Return the share of the peak that each direction reaches, and the seconds it takes."""
    seconds: dict[str, list[float]] = {direction: [] for direction in DIRECTIONS}
    peak = _native.measure_peak(instruction_set, PEAK_S)
    for _ in range(rounds):
        for direction in DIRECTIONS:
            seconds[direction].append(min(time_direction(problem, direction, 1, instruction_set, RUNS)))
            peak = max(peak, _native.measure_peak(instruction_set, PEAK_S))
    medians = {direction: statistics.median(found) for direction, found in seconds.items()}
    return {
        "problem": str(problem),
        "peak_flops": peak,
        "share": {direction: 2 * problem.macs_inside / median / peak for direction, median in medians.items()},
        "share_with_padding": {direction: 2 * problem.macs / median / peak for direction, median in medians.items()},
        "median_s": medians,
        "minimum_s": {direction: min(found) for direction, found in seconds.items()},
    }


def print_result(result: dict[str, Any], *, with_floors: bool) -> None:
    """Print one line."""
    cells = []
    for direction in DIRECTIONS:
        share, padded = result["share"][direction], result["share_with_padding"][direction]
        mark = ("  " if share >= FLOORS[direction] else " !") if with_floors else "  "
        cells.append(f"{result['median_s'][direction] * 1e3:>9.2f} ms {share:>4.0%} ({padded:.0%}){mark:<3}")
    print(f"{result['problem']:<34}" + "".join(cells), flush=True)


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instruction-set", default="", help="the one that engines use when left out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--problems", nargs="+", default=[], help="instead of the list")
    parser.add_argument("--more", action="store_true", help="other shapes as well")
    parser.add_argument("--json", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    instruction_set = check_instruction_set(arguments.instruction_set)
    machine, state = describe_machine(), read_state()
    held = [] if arguments.problems else [f"n32 c{c}>{c} {side}x{side}" for side in SIDES for c in CHANNELS]
    others = arguments.problems or (MORE if arguments.more else ())
    print(f"{machine.processor}, {machine.cores} cores, load {state.load:.2f}; {instruction_set}, one thread")
    floors = ", ".join(f"{direction.replace('_', '-')} {floor:.0%}" for direction, floor in FLOORS.items())
    print(f"time and share of this core's peak; floors: {floors}; ! is below")
    print(f"{'problem':<34}" + "".join(f"{direction.replace('_', '-'):>24}  " for direction in DIRECTIONS))
    results = []
    for text in (*held, *others):
        problem = parse_problem(text)
        if not isinstance(problem, Convolution):
            parser.error(f"{text!r} is no convolution")
        result = measure(problem, instruction_set, arguments.rounds)
        print_result(result, with_floors=text in held)
        results.append(result | {"floors": FLOORS if text in held else None})
    if held:
        for direction, floor in FLOORS.items():
            shares = [result["share"][direction] for result in results if result["floors"] is not None]
            print(
                f"{direction.replace('_', '-'):<17}lowest {min(shares):.0%}, median {statistics.median(shares):.0%}, "
                f"floor {floor:.0%}: {sum(share >= floor for share in shares)} of {len(shares)} reach it"
            )
    if arguments.json is not None:
        figures = {
            "processor": machine.processor,
            "load": state.load,
            "instruction_set": instruction_set,
            "results": results,
        }
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

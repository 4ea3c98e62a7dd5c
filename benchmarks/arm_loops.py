"""Print what the inner loops of the NEON kernels cost on a Raspberry Pi, as far as that can be said without one.

    .venv/bin/python benchmarks/arm_loops.py
    .venv/bin/python benchmarks/arm_loops.py --all --json loops.json

The kernels are cross-compiled with the flags of CMakeLists.txt; the innermost loops are taken from the assembly and
given to llvm-mca, which simulates a core's ports. Exit code 1: a loop of a tile that does most of a network's work
spills, or is more than 5 % above the port limit of a Cortex-A72. docs/arm.md says what this does not show.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "csrc/kernels/kernels_neon.cpp"
ITERATIONS = 100
MOST_ABOVE_LIMIT = 1.05
# Newest first: their models of cores improve.
SIMULATORS = [f"llvm-mca-{version}" for version in range(30, 13, -1)] + ["llvm-mca"]

LABEL = re.compile(r"^(\.L\d+):")
FUNCTION = re.compile(r"^(_Z\w+):")
BRANCH = re.compile(r"^\s+(?:b|b\.?[a-z]{2}|cbn?z|tbn?z)\s.*?(\.L\d+)$")
TILE = re.compile(r"^(gather_tile|weight_gradient_tile)<(\d+), (\d+)>$")
DEPTHWISE_TILE = re.compile(r"^make_tile<(-?\d+), (\d+), (\d+)>$")
SHOWN = re.compile(r"make_tile<-?\d, [24], 4>|weigh_tiles|depthwise|run_peak")
# Smaller tiles than this are used only where one or two channels survive.
FEWEST_HELD = 16


@dataclass(frozen=True, slots=True)
class Core:
    """A core, the name of the best model of it that LLVM has, and what that model must be able to do."""

    name: str
    model: str
    fmla_per_cycle: int  # 128-bit fused multiply-adds
    decoded_per_cycle: int


# LLVM has no model of the Cortex-A76 of its own. The Neoverse N1 is the same core made for servers; from LLVM 19 on
# (or somewhat before) it has a model, in older ones it is described as a Cortex-A57.
CORES = [Core("cortex-a72", "cortex-a72", 1, 3), Core("cortex-a76", "neoverse-n1", 2, 4)]


@dataclass(frozen=True, slots=True)
class Cycles:
    """What llvm-mca says about one iteration of a loop, in cycles."""

    cycles: float
    limit: float  # the busiest port's, or decoding's

    @property
    def above_limit(self) -> float:
        """How many times the limit the loop takes."""
        return self.cycles / self.limit


@dataclass(slots=True)
class Loop:
    """The innermost loop of one function, with most multiplications."""

    name: str
    body: list[str]
    fmla: int
    loads: int
    stores: int
    other: int
    spills: int
    held: bool  # to the floor
    cores: dict[str, Cycles] = dataclasses.field(default_factory=dict)

    @property
    def instructions(self) -> int:
        """How many instructions one iteration has."""
        return self.fmla + self.loads + self.stores + self.other


def find_tool(names: list[str], package: str) -> str:
    """Return the first program there is, or end with a line that names the Debian package."""
    for name in names:
        found = shutil.which(name)
        if found is not None:
            return found
    sys.exit(f"{names[-1]} is missing: install Debian's {package}")


def kernel_flags() -> list[str]:
    """Return the flags with which CMakeLists.txt compiles kernels, and those of every Python module."""
    settings = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.search(r"^set\(kernel_flags ([^)]*)\)", settings, re.MULTILINE)
    if found is None:
        sys.exit("CMakeLists.txt no longer sets kernel_flags: mend benchmarks/arm_loops.py")
    return ["-std=c++20", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", *found.group(1).split(), f"-I{ROOT / 'csrc'}"]


def compile_kernels(compiler: str) -> list[str]:
    """Return the assembly of the NEON kernels, with names as C++ writes them."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "kernels.s"
        done = subprocess.run(
            [compiler, *kernel_flags(), "-S", str(SOURCE), "-o", str(target)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            sys.exit(f"the kernels do not compile for aarch64:\n{done.stderr}")
        return target.read_text(encoding="utf-8").splitlines()


def readable(symbols: list[str], demangler: str) -> list[str]:
    """Return `gather_tile<8, 3>` for the symbol of that function, and so on."""
    done = subprocess.run([demangler], input="\n".join(symbols), capture_output=True, text=True, check=True)
    names = []
    for line in done.stdout.splitlines():
        name = line.replace("distreal::neon::", "").replace("distreal::", "").removeprefix("void ")
        name = re.sub(r"\((Activation|Known)\)", r"\1 ", name)
        names.append(name.split("(")[0])
    return names


def functions(lines: list[str]) -> dict[str, list[str]]:
    """Return the lines of every function, without what is no instruction and no label."""
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in lines:
        begun = FUNCTION.match(line)
        if begun is not None:
            current = found.setdefault(begun.group(1), [])
        elif line.startswith("\t.size"):
            current = None
        elif current is not None and (LABEL.match(line) or re.match(r"^\t[a-z]", line)):
            current.append(line.split("//")[0].rstrip())
    return found


def innermost_loops(lines: list[str]) -> list[list[str]]:
    """Return the instructions of every loop that holds no other, without labels."""
    where = {label.group(1): number for number, line in enumerate(lines) if (label := LABEL.match(line))}
    spans = []
    for number, line in enumerate(lines):
        branch = BRANCH.match(line)
        if branch is not None and where.get(branch.group(1), number) < number:
            spans.append((where[branch.group(1)], number))
    inner = [
        (begin, end)
        for begin, end in spans
        if not any((b, e) != (begin, end) and b >= begin and e <= end for b, e in spans)
    ]
    return [[line.strip() for line in lines[b : e + 1] if not LABEL.match(line)] for b, e in inner]


def is_vector_fmla(instruction: str) -> bool:
    """Tell whether the instruction multiplies and adds whole vectors."""
    return re.match(r"fml[as]\s+v\d+\.4s", instruction) is not None


def describe(name: str, body: list[str], held: bool) -> Loop:
    """Count the instructions of one loop."""
    fmla = sum(map(is_vector_fmla, body))
    loads = sum(re.match(r"ld", line) is not None for line in body)
    stores = sum(re.match(r"st", line) is not None for line in body)
    # Whatever an inner loop reads or writes relative to the stack pointer had no register to live in.
    spills = sum(re.match(r"(ld|st).*\[(sp|x29)\b", line) is not None for line in body)
    return Loop(name, body, fmla, loads, stores, len(body) - fmla - loads - stores, spills, held)


def multiplications(name: str) -> int | None:
    """Return how many vector multiplications the inner loop of this function has, where its name says so."""
    tile = TILE.match(name)
    if tile is not None:
        return int(tile.group(2)) * int(tile.group(3))
    tile = DEPTHWISE_TILE.match(name)
    if tile is not None:
        # With step -2 every result gets only a quarter of the nine taps, on average.
        return int(tile.group(2)) * int(tile.group(3)) * 9 // (4 if tile.group(1) == "-2" else 1)
    return None


def inner_loop(name: str, lines: list[str]) -> list[str]:
    """Return the loop in which a function spends its time, or nothing where none multiplies."""
    loops = [loop for loop in innermost_loops(lines) if any(map(is_vector_fmla, loop))]
    expected = multiplications(name)
    # The ends of tiles are loops with multiplications, too, and may have more of them.
    exact = [loop for loop in loops if sum(map(is_vector_fmla, loop)) == expected]
    return max(exact or loops, key=lambda loop: sum(map(is_vector_fmla, loop)), default=[])


def widest_tiles(names: list[str]) -> set[str]:
    """Return the tiles with most positions for their number of outputs: the others only finish what is left."""
    widest: dict[tuple[str, int], int] = {}
    for name in names:
        tile = TILE.match(name)
        if tile is not None:
            key = (tile.group(1), int(tile.group(2)))
            widest[key] = max(widest.get(key, 0), int(tile.group(3)))
    return {f"{kind}<{outputs}, {width}>" for (kind, outputs), width in widest.items()}


def find_loops(compiler: str, everything: bool) -> list[Loop]:
    """Return the loops worth showing, or all that multiply."""
    demangler = find_tool([compiler.removesuffix("g++") + "c++filt"], "g++-aarch64-linux-gnu")
    found = functions(compile_kernels(compiler))
    named = dict(zip(readable(list(found), demangler), found.values(), strict=True))
    bodies = {name: body for name, lines in named.items() if (body := inner_loop(name, lines))}
    widest = widest_tiles(list(bodies))
    loops = []
    for name, body in bodies.items():
        loop = describe(name, body, name in widest)
        loop.held = loop.held and loop.fmla >= FEWEST_HELD
        if everything or name in widest or SHOWN.match(name):
            loops.append(loop)
    order = {"gather_tile": 0, "weight_gradient_tile": 1, "make_tile": 2}
    return sorted(loops, key=lambda loop: (order.get(loop.name.split("<")[0], 3), -loop.fmla, loop.name))


def simulate(simulator: str, core: Core, body: list[str]) -> Cycles:
    """Return what llvm-mca says of one iteration of a loop, all loads answered by the first cache."""
    # A branch to a label needs the label: it is put where the loop begins, as in the kernel.
    labels = sorted({found for line in body for found in re.findall(r"\.L\d+", line)})
    text = "\n".join([*(f"{label}:" for label in labels), *body]) + "\n"
    arguments = ["-mtriple=aarch64-linux-gnu", f"-mcpu={core.model}", f"-iterations={ITERATIONS}", "-json"]
    done = subprocess.run([simulator, *arguments], input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{simulator} refused a loop:\n{done.stderr}")
    summary = json.loads(done.stdout)["CodeRegions"][0]["SummaryView"]
    decoding = len(body) / core.decoded_per_cycle
    limit = max(float(summary["BlockRThroughput"]), decoding)
    return Cycles(max(float(summary["TotalCycles"]) / ITERATIONS, decoding), limit)


def models_core(simulator: str, core: Core) -> bool:
    """Tell whether this version's model multiplies as often in a cycle as the core does."""
    body = [f"fmla v{register}.4s, v24.4s, v25.s[0]" for register in range(24)]
    return abs(len(body) / simulate(simulator, core, body).cycles - core.fmla_per_cycle) < 0.1


def table(loops: list[Loop], cores: list[Core]) -> str:
    """Return the figures as a table, a line for each loop."""
    width = max(len(loop.name) for loop in loops)
    head = f"{'loop':{width}}  fmla loads stores other spills"
    for core in cores:
        head += f" | {core.name}: cycles  limit  ratio  of peak"
    rows = [head]
    for loop in loops:
        row = f"{loop.name:{width}}  {loop.fmla:4} {loop.loads:5} {loop.stores:6} {loop.other:5} {loop.spills:6}"
        for core in cores:
            found = loop.cores[core.name]
            peak = loop.fmla / core.fmla_per_cycle / found.cycles
            row += f" | {found.cycles:18.2f} {found.limit:6.2f} {found.above_limit:6.3f} {peak:8.0%}"
        rows.append(row)
    return "\n".join(rows)


def faults(loops: list[Loop]) -> list[str]:
    """Say of each loop that is held to the floor how it misses it."""
    found = []
    for loop in loops:
        if not loop.held:
            continue
        if loop.spills > 0:
            found.append(f"{loop.name} spills {loop.spills} times in its inner loop")
        cycles = loop.cores.get("cortex-a72")
        if cycles is not None and cycles.above_limit > MOST_ABOVE_LIMIT:
            found.append(f"{loop.name} takes {cycles.above_limit:.3f} times the port limit of a Cortex-A72")
    return found


def main() -> None:
    """Compile, find the loops, simulate them, print the table and what misses the floor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="show narrow tiles and passes, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON; - prints them instead")
    parser.add_argument("--no-simulation", action="store_true", help="only count instructions; needs no llvm-mca")
    parser.add_argument(
        "--assembly", metavar="LOOP", help="print the instructions of one loop, such as 'gather_tile<8, 3>'"
    )
    arguments = parser.parse_args()
    compiler = find_tool(["aarch64-linux-gnu-g++"], "g++-aarch64-linux-gnu")
    simulator = None if arguments.no_simulation else find_tool(SIMULATORS, "llvm (or llvm-19, for the Cortex-A76, too)")
    loops = find_loops(compiler, arguments.all or arguments.assembly is not None)
    if arguments.assembly is not None:
        loops = [loop for loop in loops if loop.name == arguments.assembly]
        sys.exit("\n".join(loops[0].body) if loops else f"there is no loop {arguments.assembly}")
    cores = [] if simulator is None else [core for core in CORES if models_core(simulator, core)]
    for loop in loops:
        for core in cores:
            assert simulator is not None
            loop.cores[core.name] = simulate(simulator, core, loop.body)
    missed = faults(loops)
    if arguments.json is not None:
        text = json.dumps({"loops": [dataclasses.asdict(loop) for loop in loops], "faults": missed}, indent=1) + "\n"
        if str(arguments.json) == "-":
            sys.stdout.write(text)
        else:
            arguments.json.write_text(text, encoding="utf-8")
    if str(arguments.json) != "-":
        print(table(loops, cores))
        for core in CORES if simulator is not None else []:
            if core not in cores:
                print(f"{simulator} has no model of a {core.name}: install a newer one (llvm-19 has)")
        print("\n".join(missed) or "No tile spills, and each is within 5 % of its limit on a Cortex-A72.")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()

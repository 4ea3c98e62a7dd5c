"""Print how quickly and how well the monitor sees what others take, what limits allow, and what it costs itself.

    sudo .venv/bin/python benchmarks/monitor.py --json monitor.json
    sudo .venv/bin/python benchmarks/monitor.py --alone             # on a machine that is never idle

Needs stress-ng (`apt-get install stress-ng`), and root for the control groups of version 1, which it makes by hand and
removes again. The machine should be idle: what others do changes what is free at any moment. Before each trial it waits
for a quiet second, and says how many trials had to do without one. The error is what the monitor shows, less the truth:
what is left by what every thread of every other process really ran over the last 0.7 s of the second, in nanoseconds,
from /proc/*/task/*/schedstat. (The monitor itself reads the CPUs' counters in /proc/stat, in hundredths of a second.)

Where a machine always works for others, all CPUs are always taken, and a core less or more cannot be seen. With --alone
the monitor is shown a /proc/stat in which only stress-ng and itself have run: a group of theirs counts their time on
each CPU, from which the file is written anew a hundred times a second, in hundredths of a second as Linux does.
Everything else is real, but waiting for a CPU (/proc/pressure) is left out.

- load: stress-ng takes a core, and gives it back; for several windows at once, of which 0.5 s is the monitor's.
- quota, cpuset: the process is given half of a core, or one CPU, and then everything again.
- cost: the processor time of a process that does nothing but sample four times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distreal_edge.bench import describe_machine
from distreal_edge.device import Monitor, OwnerLimits
from distreal_edge.machine import Roots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WINDOWS_S = (0.25, 0.5, 0.75, 1.0)
OURS_S = 0.5
SECOND_S = 1.0
STARTING_S = 0.3
"""What stress-ng may take to begin or end; the truth is measured from here on."""
QUIET_CORES = 0.15
MOST_ERROR_CORES = 0.15
MOST_COST_PERCENT = 0.5
CRUMBS = 0.05
GROUPS = Path("/sys/fs/cgroup")


def watch(proc: Path) -> None:
    """Sample with every window four times a second, and tell the cores to whoever asks by a line."""
    stop, roots = threading.Event(), Roots(proc=proc)
    monitors = {
        window: Monitor(OwnerLimits(train_on_battery=True), roots=roots, window_s=window) for window in WINDOWS_S
    }
    for monitor in monitors.values():
        threading.Thread(target=monitor.follow, args=(stop,), daemon=True).start()
    for _ in sys.stdin:
        print(json.dumps({str(window): monitor.sample().cores for window, monitor in monitors.items()}), flush=True)


def idle(seconds: float) -> None:
    """Sample four times a second beside six idle threads, as an engine has; print the share of a core that it took."""
    stop = threading.Event()
    for _ in range(6):
        threading.Thread(target=stop.wait, daemon=True).start()
    threading.Thread(target=Monitor(OwnerLimits(train_on_battery=True)).follow, args=(stop,), daemon=True).start()
    time.sleep(1.0)
    began, before = time.monotonic(), time.process_time()
    time.sleep(seconds)
    print((time.process_time() - before) / (time.monotonic() - began))


class Watcher:
    """A process of its own that samples, so that it can be put into groups."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._process = subprocess.Popen(
            [*stage.enter, sys.executable, __file__, "--watch", stage.proc],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self.cores()

    def cores(self) -> dict[float, float]:
        """Return what each window shows now."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return {float(window): cores for window, cores in json.loads(self._process.stdout.readline()).items()}

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


class Stage:
    """The machine as the monitor is shown it: this very one."""

    enter: tuple[str, ...] = ()
    """How a command is started on it."""
    proc = "/proc"

    def processes(self) -> list[str]:
        """Return the processes on it."""
        return [name for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - paths take too long


class OwnStage(Stage):
    """The machine as if only those ran on it that were started on it: their group's CPU time is its /proc/stat."""

    def __init__(self, folder: Path) -> None:
        """Make the group of version 1, and begin to write the file."""
        os.setpriority(os.PRIO_PROCESS, 0, -10)  # the file must be there in time, and stress-ng get a whole core
        self._group = GROUPS / "cpuacct" / f"distreal-benchmark-{os.getpid()}"
        self._group.mkdir()
        self._folder, self.proc = folder, str(folder)
        self.enter = ("sh", "-c", f'echo $$ > {self._group}/cgroup.procs; exec "$@"', "sh")
        (folder / "self").symlink_to("/proc/self")  # whoever reads it
        (folder / "meminfo").symlink_to("/proc/meminfo")
        self._write()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_writing)
        self._thread.start()

    def processes(self) -> list[str]:
        """Return the processes on it."""
        return (self._group / "cgroup.procs").read_text().split()

    def close(self) -> None:
        """End it, when nobody is on it any more."""
        self._stop.set()
        self._thread.join()
        while self.processes():
            time.sleep(0.1)
        self._group.rmdir()

    def _keep_writing(self) -> None:
        while not self._stop.wait(0.01):
            self._write()

    def _write(self) -> None:
        used_ns = (self._group / "cpuacct.usage_percpu").read_text().split()
        lines = [f"cpu{cpu} {int(used) // 10_000_000} 0 0 0 0 0 0 0 0 0\n" for cpu, used in enumerate(used_ns)]
        new = self._folder / "stat.new"
        new.write_text("".join(lines))
        new.replace(self._folder / "stat")


def ran_ns(processes: list[str], without: set[int]) -> dict[str, int]:
    """Return what every thread of the processes has run, but for some of them."""
    ran = {}
    for process in map(Path("/proc").joinpath, processes):
        if int(process.name) in without:
            continue
        with suppress(OSError):
            for task in os.listdir(process / "task"):  # noqa: PTH208 - thousands of paths take too long
                with suppress(OSError, ValueError, IndexError):
                    ran[task] = int((process / "task" / task / "schedstat").read_text().split()[0])
    return ran


class Truth:
    """What others really ran since this was made."""

    def __init__(self, watcher: Watcher) -> None:
        self._stage, self._without = watcher.stage, {watcher.pid, os.getpid()}
        self._began_s, self._before = time.monotonic(), self._ran_ns()

    def cores(self) -> float:
        """Return the cores that they used on average."""
        elapsed_s, after = time.monotonic() - self._began_s, self._ran_ns()
        return sum(ran - self._before.get(task, 0) for task, ran in after.items()) / 1e9 / elapsed_s

    def _ran_ns(self) -> dict[str, int]:
        return ran_ns(self._stage.processes(), self._without)


@contextmanager
def stress(stage: Stage) -> Iterator[None]:
    """Keep one CPU busy."""
    command = ["stress-ng", "--quiet", "--cpu", "1", "--cpu-method", "int64", "--timeout", "60"]
    with subprocess.Popen([*stage.enter, *command]) as process:
        try:
            yield
        finally:
            process.terminate()


def wait_for_quiet(watcher: Watcher, patience_s: float) -> bool:
    """Wait until others use next to nothing for a second; return whether they ever did."""
    give_up_s = time.monotonic() + patience_s
    while True:
        truth = Truth(watcher)
        time.sleep(SECOND_S)
        if truth.cores() <= QUIET_CORES:
            return True
        if time.monotonic() >= give_up_s:
            return False


def after_a_second(watcher: Watcher, began_s: float) -> tuple[dict[float, float], float]:
    """Return what is shown a second after the change, and what others really used meanwhile."""
    time.sleep(max(0.0, began_s + STARTING_S - time.monotonic()))
    truth = Truth(watcher)
    time.sleep(max(0.0, began_s + SECOND_S - time.monotonic()))
    shown = watcher.cores()
    return shown, truth.cores()


def load(watcher: Watcher, trials: int, patience_s: float) -> list[dict[str, Any]]:
    """Take a core and give it back, and note what is shown a second later, and how it wavers after that."""
    cpus = len(os.sched_getaffinity(0))
    found = []
    for trial in range(trials):
        quiet = wait_for_quiet(watcher, patience_s)
        time.sleep(0.1 * (trial % 5) / 2)  # changes come at any moment between two samples
        began_s = time.monotonic()
        with stress(watcher.stage):
            shown, others = after_a_second(watcher, began_s)
            found.append({"change": "taken", "quiet": quiet, "free": cpus - others, "shown": shown, "steady": []})
            for _ in range(8):
                time.sleep(0.25)
                found[-1]["steady"].append(watcher.cores())
            began_s = time.monotonic()
        shown, others = after_a_second(watcher, began_s)
        found.append({"change": "back", "quiet": quiet, "free": cpus - others, "shown": shown})
    return found


@contextmanager
def group(controller: str, settings: dict[str, str]) -> Iterator[Path]:
    """Make a group of version 1 by hand, and remove it in the end."""
    folder = GROUPS / controller / f"distreal-benchmark-{os.getpid()}"
    folder.mkdir()
    try:
        for name, value in settings.items():
            (folder / name).write_text(value)
        yield folder
    finally:
        folder.rmdir()


def limit(
    stage: Stage,
    controller: str,
    initial: dict[str, str],
    name: str,
    values: list[tuple[str, float]],
    trials: int,
    patience_s: float,
) -> list[dict[str, Any]]:
    """Change a limit around the watcher to and fro, and note what is shown a second later."""
    found = []
    with group(controller, initial) as folder:
        watcher = Watcher(stage)
        try:
            (folder / "cgroup.procs").write_text(str(watcher.pid))
            for _ in range(trials):
                quiet = wait_for_quiet(watcher, patience_s)
                for value, allowed in values:
                    began_s = time.monotonic()
                    (folder / name).write_text(value)
                    shown, others = after_a_second(watcher, began_s)
                    cpus = len(os.sched_getaffinity(watcher.pid))
                    # The others are everywhere; on fewer CPUs than all they are taken to be spread evenly.
                    others *= cpus / len(os.sched_getaffinity(0))
                    free = min(allowed, cpus - others)
                    found.append({"change": value, "quiet": quiet, "free": free, "shown": shown})
        finally:
            watcher.close()
    return found


def tell(title: str, trials: list[dict[str, Any]], change: str, window_s: float = OURS_S) -> None:
    """Print the errors of one kind of change."""
    some = [trial for trial in trials if trial["change"] == change]
    errors = [trial["shown"][window_s] - max(CRUMBS, trial["free"]) for trial in some]
    worst = max(abs(error) for error in errors)
    line = f"{title:<44}median {statistics.median(map(abs, errors)):.3f}, worst {worst:.3f} cores"
    steady = [cores[window_s] for trial in some for cores in trial.get("steady", [])]
    if steady:
        wavers = [statistics.pstdev(cores[window_s] for cores in trial["steady"]) for trial in some]
        line += f", then wavers by {statistics.median(wavers):.3f}"
    quiet = sum(trial["quiet"] for trial in some)
    print(f"{line}; {quiet} of {len(some)} quiet; {'reached' if worst <= MOST_ERROR_CORES else 'MISSED'}", flush=True)


def guarded(what: str, measure: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Measure what needs root and version 1's groups, or say that it was left out."""
    try:
        return measure()
    except OSError as error:
        print(f"{what}: left out: {error.strerror}: {error.filename}")
        return []


def main() -> None:
    """Read the arguments, and set the stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for quiet before each trial")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each of three measurements of the cost")
    parser.add_argument("--json", type=Path, help="write the figures as JSON")
    parser.add_argument("--alone", action="store_true", help="count only stress-ng and the monitor, see above")
    parser.add_argument("--watch", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--idle", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.watch is not None:
        return watch(arguments.watch)
    if arguments.idle is not None:
        return idle(arguments.idle)
    if not arguments.alone:
        return measure(Stage(), arguments)
    with tempfile.TemporaryDirectory() as folder:
        stage = OwnStage(Path(folder))
        try:
            return measure(stage, arguments)
        finally:
            stage.close()


def measure(stage: Stage, arguments: argparse.Namespace) -> None:
    """Measure, print, and write JSON."""
    cpus = len(os.sched_getaffinity(0))
    print(f"{describe_machine().processor}, {cpus} CPUs; the error one second after a change, in cores")
    watcher = Watcher(stage)
    try:
        loads = load(watcher, arguments.trials, arguments.patience)
    finally:
        watcher.close()
    for window_s in WINDOWS_S:
        tell(f"a core is taken, window {window_s:g} s", loads, "taken", window_s)
        tell(f"a core comes back, window {window_s:g} s", loads, "back", window_s)
    trials, patience_s = arguments.trials, arguments.patience
    quotas = guarded(
        "quota",
        lambda: limit(stage, "cpu", {}, "cpu.cfs_quota_us", [("50000", 0.5), ("-1", float(cpus))], trials, patience_s),
    )
    allowed = sorted(os.sched_getaffinity(0))
    one, every = str(allowed[-1]), ",".join(map(str, allowed))
    cpusets = guarded(
        "cpuset",
        lambda: limit(
            stage,
            "cpuset",
            {"cpuset.mems": "0", "cpuset.cpus": every},
            "cpuset.cpus",
            [(one, 1.0), (every, float(cpus))],
            trials,
            patience_s,
        ),
    )
    for title, found, change in (
        ("a quota of 50 %", quotas, "50000"),
        ("no quota any more", quotas, "-1"),
        ("a cpuset of one CPU", cpusets, one),
        ("a cpuset of every CPU", cpusets, every),
    ):
        if found:
            tell(title, found, change)
    costs = [
        float(subprocess.check_output([sys.executable, __file__, "--idle", str(arguments.seconds)])) for _ in range(3)
    ]
    percent = 100.0 * statistics.median(costs)
    verdict = "reached" if percent < MOST_COST_PERCENT else "MISSED"
    print(f"sampling four times a second takes {percent:.2f} % of a core; {verdict}")
    if arguments.json is not None:
        figures = {"load": loads, "quota": quotas, "cpuset": cpusets, "cost_percent": percent}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""A Debian with a real systemd, booted in a container of this machine: for tests, and for `benchmarks/watchdog.py`.

`installed_machine` gives one with both services installed as systemd/README.md says.

The root is made by mmdebstrap once and kept in the user's cache; a boot writes to a layer in memory above it. Only root
can do either. The network is this machine's own, so that a broker outside is at 127.0.0.1 inside.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from distreal_edge.transport import EmbeddedBroker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = Path(__file__).resolve().parents[2]
PREFIX = Path("/opt/distreal-edge")
# The Debian whose own Python loads the compiled modules of ours.
SUITES = {(3, 11): "bookworm", (3, 13): "trixie"}
PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3", "procps", "libstdc++6")
PROGRAMS = {"systemd-nspawn": "systemd-container", "mmdebstrap": "mmdebstrap", "nsenter": "util-linux"}
BOOT_S = 90.0
WAIT_S = 90.0
DEVICE = "distreal-edge-device.service"
AGGREGATOR = "distreal-edge-aggregator.service"
README = (REPOSITORY / "systemd" / "README.md").read_text(encoding="utf-8")

FEDERATION_TOML = """
federation = "garden"
state = "/var/lib/distreal-edge/aggregator"
broker.port = {port}
table.rows = 1
rounds = {{ number = 1000, seconds = 600 }}
[network]
zoo = "resnet8"
[training]
batch = 256
lr = 1e-4
epochs = 10000
most_epochs = 10000
"""
DEVICE_TOML = """
federation = "garden"
device = "pi-1"
state = "/var/lib/distreal-edge"
log_steps = true
broker.port = {port}
[data]
name = "npz"
root = "/srv/images.npz"
"""


def why_not() -> str | None:
    """Return why no container can be booted here, or None."""
    if os.geteuid() != 0:
        return "needs root, as systemd-nspawn does"
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if missing:
        return f"needs Debian's {', '.join(missing)}"
    if sys.version_info[:2] not in SUITES:
        return f"no Debian has Python {sys.version_info[0]}.{sys.version_info[1]} as its own"
    return None


def make_root() -> Path:
    """Return the folder of a small Debian, made at the first call; raise `RuntimeError` when it cannot be had."""
    suite = SUITES[sys.version_info[:2]]
    digest = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:8]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "distreal-edge"
    root = cache / f"{suite}-{digest}"
    if not root.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = cache / f"{root.name}.{os.getpid()}"
        command = [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            f"--include={','.join(PACKAGES)}",
            suite,
            str(unfinished),
        ]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise RuntimeError(f"mmdebstrap could not make a Debian: {made.stderr.strip().splitlines()[-1:]}")
        unfinished.rename(root)
    return root


def install_program(prefix: Path) -> None:
    """Make what `python3 -m venv` and `pip install .` would make: the package and all that a device needs, no more.

    It is copied from the environment that runs this, as a container has no compiler and may have no network.
    """
    packages = prefix / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    packages.mkdir(parents=True)
    for distribution in _needed("distreal-edge"):
        for file in metadata.files(distribution) or []:
            if ".." not in file.parts and file.suffix != ".pyc" and "editable" not in file.name:
                source, target = Path(str(file.locate())), packages / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
    shutil.copytree(
        REPOSITORY / "distreal_edge",
        packages / "distreal_edge",
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (prefix / "bin").mkdir()
    (prefix / "bin" / "python").symlink_to("/usr/bin/python3")
    (prefix / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    program = prefix / "bin" / "distreal-edge"
    program.write_text(f"#!{PREFIX}/bin/python\nfrom distreal_edge.cli import main\nmain()\n")
    program.chmod(0o755)


def _needed(name: str) -> set[str]:
    found: set[str] = set()
    waiting = [name]
    while waiting:
        each = waiting.pop().lower().replace("_", "-")
        if each not in found:
            found.add(each)
            required = (line.partition(";") for line in metadata.requires(each) or [])
            waiting += [
                line[: next((i for i, c in enumerate(line) if c in " <>=!~[("), len(line))]
                for line, _, condition in required
                if not condition
                or ("extra" not in condition and "win32" not in condition and "Windows" not in condition)
            ]
    return found


class Container:
    """A booted systemd; a context manager."""

    def __init__(self, root: Path, prefix: Path, binds: dict[Path, str] | None = None) -> None:
        """Prepare to boot `root` with the program from `prefix`, and with `binds`, folders of this machine, to read."""
        # A container moves itself and its payload into groups below the one that it is started in: two must not be
        # started in the same.
        name = f"distreal-edge-{secrets.token_hex(4)}"
        self._groups = [each / name for each in _group_roots()]
        enter = 'until [ "$1" = -- ]; do mkdir "$1"; echo $$ >"$1/cgroup.procs"; shift; done; shift; exec "$@"'
        self._command = [
            *("bash", "-c", enter, "bash", *map(str, self._groups), "--"),
            *("setpriv", "--pdeathsig", "TERM", "systemd-nspawn"),
            *("--quiet", "--register=no", "--boot", "--console=pipe"),
            # Where the machine has a systemd itself, that gives a scope to the container.
            *([] if Path("/run/systemd/system").exists() else ["--keep-unit"]),
            *("--volatile=overlay", "--resolv-conf=off", "--timezone=off", f"--directory={root}"),
            f"--bind-ro={prefix}:{PREFIX}",
            *(f"--bind-ro={source}:{target}" for source, target in (binds or {}).items()),
        ]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._wait_booted()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for group in self._groups:
            for folder in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
                folder.rmdir()
            if group.exists():
                group.rmdir()

    def _wait_booted(self) -> None:
        give_up_s = time.monotonic() + BOOT_S
        said = ""
        while time.monotonic() < give_up_s and self._process.poll() is None:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            if children:
                self._leader = int(children[0])
                ran = self.run("systemctl", "is-system-running", check=False)
                said = ran.stdout + ran.stderr
                if said.strip() in {"running", "degraded"}:
                    return
            time.sleep(0.2)
        raise RuntimeError(f"no systemd within {BOOT_S:g} s: {said.strip() or self._process.poll()}")

    def run(self, *command: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command as root inside."""
        ran = subprocess.run(
            ["nsenter", f"--target={self._leader}", "--all", "--", *command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        if check and ran.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {ran.returncode}: {ran.stdout}{ran.stderr}")
        return ran

    def path(self, inside: str) -> Path:
        """Return where a file of the container is found from outside."""
        return Path(f"/proc/{self._leader}/root{inside}")

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def journal(self, unit: str, *options: str) -> str:
        """Return what a unit has logged, messages only."""
        return self.run("journalctl", "--no-pager", "--quiet", "--output=cat", f"--unit={unit}", *options).stdout

    def until(self, happened: Callable[[], object], within_s: float, what: str) -> None:
        """Wait until something has happened; raise `RuntimeError` when it does not."""
        give_up_s = time.monotonic() + within_s
        while not happened():
            if time.monotonic() > give_up_s:
                raise RuntimeError(f"not within {within_s:g} s: {what}")
            time.sleep(0.1)


def _group_roots() -> list[Path]:
    """Return where a group of one's own can be made, on a machine without a systemd that would object.

    A group of its own for the processors makes the container a machine of its own there: a device in it steps back
    behind what else is in it, and not behind whatever this machine does besides.
    """
    if Path("/run/systemd/system").exists():
        return []
    candidates = [Path("/sys/fs/cgroup") / name for name in ("systemd", "unified", "cpu", "")]
    return [each for each in candidates if (each / "cgroup.procs").exists() and os.access(each, os.W_OK)]


def typed_commands(step: int) -> list[str]:
    """Return what README.md says is typed in a step of the installation."""
    text = README.partition("## Install")[2].partition("\n## ")[0]
    (part,) = re.findall(rf"^{step}\. (.*?)(?=^\d\. |\Z)", text, re.DOTALL | re.MULTILINE)
    return re.findall(r"^ {7}(\S.*)$", part, re.MULTILINE)


class Installed:
    """A machine with both services, the aggregator's running."""

    def __init__(self, container: Container, port: int) -> None:
        self.container = container
        self.port = port

    def type(self, step: int) -> str:
        """Type what README.md says in a step, in a checkout; an owner who is root has a sudo that does nothing."""
        script = "\n".join(["set -e", 'sudo() { "$@"; }', "cd /checkout", *typed_commands(step)])
        return self.container.run("bash", "-c", script).stdout

    def write(self, path: str, text: str) -> None:
        file = self.container.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def change(self, unit: str, lines: str) -> None:
        """Do what `systemctl edit` does, until the next boot; without lines it is undone."""
        folder = f"/run/systemd/system/{unit}.d"
        shutil.rmtree(self.container.path(folder), ignore_errors=True)
        if lines:
            self.write(f"{folder}/test.conf", f"[Service]\n{lines}\n")
        self.container.run("systemctl", "daemon-reload")

    def status(self, unit: str = DEVICE) -> str:
        return self.container.show(unit, "StatusText")

    def restarts(self) -> int:
        return int(self.container.show(DEVICE, "NRestarts"))

    def main_pid(self) -> str:
        return self.container.show(DEVICE, "MainPID")

    def steps(self) -> list[str]:
        """Return the mini-batches so far, as lines."""
        path = self.container.path("/var/lib/distreal-edge/steps.csv")
        return path.read_text().splitlines()[1:] if path.exists() else []

    def until_trained(self, more: int = 1) -> None:
        enough = len(self.steps()) + more
        self.container.until(lambda: len(self.steps()) >= enough, WAIT_S, f"mini-batches; {self.journal()}")

    def journal(self) -> str:
        return self.container.journal(DEVICE)


@contextmanager
def installed_machine(folder: Path) -> Iterator[Installed]:
    """Boot a machine whose aggregator runs, with a broker outside; `folder` is for the program's copy.

    Raises `RuntimeError` when the Debian cannot be had.
    """
    root = make_root()
    install_program(folder / "opt")
    binds = {REPOSITORY / "systemd": "/checkout/systemd"}
    with EmbeddedBroker() as broker, Container(root, folder / "opt", binds) as container:
        machine = Installed(container, broker.port)
        machine.write("/etc/hosts", "127.0.0.1 localhost\n")
        machine.type(2)
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (512, 3, 32, 32)).astype(np.uint8)
        np.savez(container.path("/srv/images.npz"), images=images, labels=np.arange(512) % 10)
        machine.write("/etc/distreal-edge/federation.toml", FEDERATION_TOML.format(port=broker.port))
        machine.write("/checkout/device.toml", DEVICE_TOML.format(port=broker.port))
        machine.type(3)
        container.run("systemctl", "start", AGGREGATOR)
        yield machine

"""Install a wheel for boards into an emulated Debian and train a step there and here: what scripts/try-aarch64 runs.

    .venv/bin/python cross/try_board.py wheelhouse/distreal_edge-0.1.0-cp311-cp311-linux_aarch64.whl

Needs Debian's apt-get and qemu-user-static, and the network, but neither root nor a change to this system: apt works in
a folder of its own.
"""
# ruff: noqa: INP001, T201

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[1]
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
PROCESSORS = ["cortex-a72", "cortex-a76"]  # Raspberry Pi 4 and 5
# pip takes the first of these that a package offers a wheel for.
PLATFORMS = ["linux_aarch64", "manylinux_2_34_aarch64", "manylinux_2_28_aarch64", "manylinux_2_17_aarch64"]
# Between 4 lanes and those of this machine sums are taken in another order, and so far apart may be a weight or score.
BOUND = 5e-6


def run(command: list[str | Path]) -> None:
    """Run a command; end with what it says where it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\n{' '.join(map(str, command))} failed")


def apt(folder: Path, *arguments: str) -> None:
    """Run apt-get for arm64 in a folder of its own: with this system's sources and keys, but none of its state."""
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "state/status",
        "Dir::Cache": folder / "cache",
        "Debug::NoLocking": "1",
    }
    run(["apt-get", *(part for name, value in options.items() for part in ("-o", f"{name}={value}")), *arguments])


def make_root(root: Path) -> None:
    """Unpack Debian's Python for arm64, and all that it depends on, into a new folder."""
    print(f"Unpacking Debian's {PYTHON} for arm64 (16 MB) into {root}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for needed in ("state/lists/partial", "cache/archives/partial"):
            (folder / needed).mkdir(parents=True)
        (folder / "state/status").touch()
        apt(folder, "update")
        apt(folder, "install", "--yes", "--no-install-recommends", "--download-only", PYTHON, "libstdc++6")
        unpacked = Path(tempfile.mkdtemp(dir=root.parent))
        for package in sorted((folder / "cache/archives").glob("*.deb")):
            run(["dpkg-deb", "--extract", package, unpacked])
    unpacked.rename(root)


def install(wheel: Path, site: Path) -> None:
    """Install a wheel and what it depends on, as wheels for aarch64, into a new folder."""
    print(f"Installing {wheel.name} and what it needs into {site}", flush=True)
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    run([*command, "--only-binary", ":all:", *platforms, "--target", site, wheel])


def emulated(root: Path, site: Path, processor: str, arguments: list[str | Path]) -> None:
    """Run Python with these arguments as a board with that processor would."""
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if emulator is None:
        sys.exit("qemu-aarch64-static is missing: install Debian's qemu-user-static")
    environment = {**os.environ, "QEMU_CPU": processor, "PYTHONPATH": str(site)}
    # -P: not the sources beside the script, which have no compiled module.
    command = [emulator, "-L", root, root / "usr/bin" / PYTHON, "-P", *arguments]
    if subprocess.run(command, env=environment, check=False).returncode != 0:
        sys.exit(f"that failed on an emulated {processor}")


def largest_difference(one: Path, other: Path) -> float:
    """Return how far apart two results are at most, or infinity where they do not hold the same."""
    of_one, of_other = load_file(one), load_file(other)
    if set(of_one) != set(of_other):
        return float("inf")
    return max(float(np.max(np.abs(of_one[name] - of_other[name]))) for name in of_one)


def main() -> None:
    """Prepare the emulated system, step there and here, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--root", type=Path, default=ROOT / "build/aarch64-root", help="where to keep Debian's Python")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    if not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        make_root(root)
    failed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        install(arguments.wheel.resolve(), folder / "site")
        step = ROOT / "cross/one_step.py"
        print("here: ", end="", flush=True)
        subprocess.run([sys.executable, "-P", str(step), str(folder / "here.safetensors")], check=True)
        for processor in PROCESSORS:
            print(f"{processor}: ", end="", flush=True)
            emulated(root, folder / "site", processor, [step, folder / f"{processor}.safetensors"])
            difference = largest_difference(folder / f"{processor}.safetensors", folder / "here.safetensors")
            print(f"    differs from here by {difference:.2g}, of {BOUND:.2g} allowed")
            failed = failed or not difference <= BOUND
    sys.exit("The emulated boards train otherwise than this machine." if failed else None)


if __name__ == "__main__":
    main()

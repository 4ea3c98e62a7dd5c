from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import distreal_edge

PACKAGE = Path(distreal_edge.__file__).parent
# docs/architecture.md: a room imports from the rooms above it, never from those below.
ROOMS = [
    "errors",
    "words",
    "durable",
    "identity",
    "pulse",
    "status",
    "machine",
    "dropout",
    "network",
    "zoo",
    "engine",
    "bench",
    "data",
    "search",
    "transport",
    "device",
    "aggregator",
    "observe",
    "config",
    "simulate",
    "doctor",
    "demo",
    "cli",
]


def imported_rooms(path: Path) -> set[str]:
    rooms: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module]
            if node.module == "distreal_edge":
                names = [f"distreal_edge.{alias.name}" for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("distreal_edge.")}
    return rooms - {"_native", "__version__"}


def files() -> list[tuple[str, Path]]:
    found = [(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path) for path in PACKAGE.rglob("*.py")]
    return [(room, path) for room, path in found if room not in {"__init__", "__main__"}]


def test_every_file_is_in_a_room_that_the_architecture_names() -> None:
    assert {room for room, _ in files()} == set(ROOMS)


def test_a_room_imports_only_from_rooms_above_it() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for room, path in files()
        for other in imported_rooms(path)
        if ROOMS.index(other) > ROOMS.index(room)
    ]
    assert not wrong


def test_only_the_reference_executor_and_tracing_name_torch() -> None:
    naming = set()
    for _, path in files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if any(name.split(".")[0] == "torch" for name in names):
                naming.add(path.relative_to(PACKAGE).as_posix())
    assert all(name.startswith(("network/reference", "network/tracing")) for name in naming)


def test_every_room_is_imported_without_torch() -> None:
    program = (
        "import sys, importlib; sys.modules['torch'] = None\n"
        "import distreal_edge\n"
        f"for room in {[room for room in ROOMS if room not in {'observe', 'demo'}]}:\n"
        "    importlib.import_module('distreal_edge.' + room)\n"
        "from distreal_edge.cli import run, aggregate, version, check_config"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_nothing_is_unpickled_or_evaluated() -> None:
    forbidden = {"eval", "exec", "compile", "__import__"}
    called = {
        (path.name, node.func.id)
        for _, path in files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not {(name, function) for name, function in called if function in forbidden}


def test_only_the_reader_of_pickled_cifar_files_knows_pickle() -> None:
    knowing = {
        room
        for room, path in files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import) and any(alias.name in {"pickle", "marshal", "shelve"} for alias in node.names)
    }
    assert knowing <= {"data"}

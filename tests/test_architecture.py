from __future__ import annotations

import ast
from pathlib import Path

import distreal_edge

PACKAGE = Path(distreal_edge.__file__).parent
# docs/architecture.md: a room imports from the rooms above it, never from those below.
ROOMS = [
    "errors",
    "durable",
    "dropout",
    "network",
    "zoo",
    "engine",
    "data",
    "search",
    "transport",
    "device",
    "aggregator",
    "observe",
    "config",
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


def test_torch_is_imported_inside_functions_only() -> None:
    wrong = []
    for _, path in files():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                wrong += [str(path) for name in names if name.split(".")[0] == "torch"]
    assert not wrong


def test_nothing_is_unpickled_or_evaluated() -> None:
    forbidden = {"eval", "exec", "compile", "__import__"}
    wrong = []
    for room, path in files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in forbidden:
                wrong.append(f"{path.name}:{node.lineno}")
        # The one reader of pickled files, of CIFAR's official Python form, builds inert stand-ins; see data/.
        if room != "data" and "pickle" in {name.name for n in ast.walk(tree) if isinstance(n, ast.Import) for name in n.names}:
            wrong.append(f"{path.name} imports pickle")
    assert not wrong

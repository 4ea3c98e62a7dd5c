"""Nothing that arrives over the wire is ever executed, imported or unpickled: held by a walk over the code.

The walk begins where such bytes come in, and follows every import, those inside of functions included, so that nothing
is missed that a message could reach. What could execute data must not stand in any file on the way.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import distreal_edge

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(distreal_edge.__file__).parent
WHERE_BYTES_COME_IN = ("distreal_edge.transport", "distreal_edge.device", "distreal_edge.aggregator")

FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {
    *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "copyreg", "jsonpickle"),
    *(
        "importlib",
        "runpy",
        "pkgutil",
        "imp",
        "code",
        "codeop",
        "pty",
        "subprocess",
        "multiprocessing",
        "ctypes",
        "cffi",
    ),
    *("yaml", "xmlrpc"),
}
FORBIDDEN_CALLS = {
    *("os.system", "os.popen", "os.execv", "os.execve", "os.execvp", "os.spawnv", "os.posix_spawn", "sys.modules"),
    *(
        "torch.load",
        "torch.hub",
        "torch.package",
        "torch.jit.load",
        "numpy.load",
        "np.load",
        "types.FunctionType",
        "types.CodeType",
    ),
}

# What stands there all the same, with the reason why no byte from the network gets to it.
ALLOWED = {
    ("data/inert_pickle.py", "pickle"): "the owner's CIFAR files; its Unpickler makes nothing but inert records",
    ("data/npz.py", "np.load"): "the owner's images, with allow_pickle=False",
    ("transport/embedded_broker.py", "subprocess"): "starts the broker of a demo, by a list of arguments of its own",
    ("transport/embedded_broker.py", "importlib"): "asks whether the broker's package is there",
}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def file_of(module: str) -> Path | None:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return next((found for found in (path.with_suffix(".py"), path / "__init__.py") if found.is_file()), None)


def for_types_only(tree: ast.Module) -> set[ast.AST]:
    return {
        below
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for part in node.body
        for below in ast.walk(part)
    }


def imports(path: Path) -> Iterator[str]:
    """Yield every module that a file imports when it runs, anywhere in it."""
    tree = tree_of(path)
    never_run = for_types_only(tree)
    for node in ast.walk(tree):
        if node in never_run:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import, which this walk does not follow"
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def reached() -> set[Path]:
    waiting = list(WHERE_BYTES_COME_IN)
    found: set[Path] = set()
    while waiting:
        path = file_of(waiting.pop())
        if path is not None and path not in found:
            found.add(path)
            waiting += [name for name in imports(path) if name.partition(".")[0] == "distreal_edge"]
    return found


def forbidden(path: Path) -> Iterator[str]:
    tree = tree_of(path)
    for name in imports(path):
        if name.partition(".")[0] in FORBIDDEN_MODULES:
            yield name.partition(".")[0]
        if name in FORBIDDEN_CALLS:
            yield name
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES:
            yield node.id
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in FORBIDDEN_CALLS:
            yield ast.unparse(node)
        elif isinstance(node, ast.Attribute) and node.attr == "__reduce__":
            yield node.attr
        elif isinstance(node, ast.keyword) and node.arg in {"shell", "allow_pickle"}:
            yield from [] if ast.unparse(node.value) == "False" else [node.arg]


def test_the_walk_reaches_what_reads_messages_networks_tables_and_updates() -> None:
    names = {path.relative_to(PACKAGE).as_posix() for path in reached()}
    assert {
        *("transport/messages.py", "transport/chunks.py", "transport/connection.py", "network/file.py"),
        *("dropout/table.py", "device/update.py", "device/daemon.py", "aggregator/server.py", "engine.py"),
    } <= names | {"engine.py"}
    assert len(names) > 60


def test_nothing_on_the_way_of_a_message_can_execute_import_or_unpickle_data() -> None:
    found = {(path.relative_to(PACKAGE).as_posix(), what) for path in reached() for what in forbidden(path)}
    assert found - set(ALLOWED) == set()


def test_every_exception_is_still_needed() -> None:
    found = {(path.relative_to(PACKAGE).as_posix(), what) for path in reached() for what in forbidden(path)}
    assert set(ALLOWED) - found == set()


@pytest.mark.parametrize(
    "line",
    [
        *(
            "import pickle",
            "from pickle import loads",
            "def f():\n    from torch import load",
            "import torch\ntorch.jit.load(x)",
            "eval('1')",
        ),
        *("from importlib import import_module", "import numpy as np\nnp.load('x')", "import os\nos.system('ls')"),
        *("f(shell=True)", "np.load(x, allow_pickle=kind)", "__import__('os')"),
    ],
)
def test_the_walk_sees_what_it_is_for(line: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(line)
    assert list(forbidden(path))

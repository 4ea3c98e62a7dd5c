"""Where tasks are done: here, in processes of this machine, or on others."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import closing, contextmanager
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from distreal_edge.errors import ConfigError, StateError, TransportError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Backend", "Pool", "open_pool"]

Backend = Literal["loky", "dask", "ray"]
_ORPHANED_S: Final = 1.0

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


class Pool:
    """Processes that do tasks; with one of them, this one does."""

    def __init__(self, processes: int, backend: Backend | None = None) -> None:
        """Use so many processes of a joblib backend that is set up; without one, this process."""
        self.processes = processes
        self._backend = backend

    def map(self, function: Callable[[_Task], _Result], tasks: Sequence[_Task]) -> list[_Result]:
        """Return what the function makes of each task, in order."""
        if self._backend is None or len(tasks) == 1:
            return [function(task) for task in tasks]
        found: list[_Result] = self._run(function, tasks, "list")
        return found

    def as_they_come(
        self, function: Callable[[_Task], _Result], tasks: Sequence[_Task]
    ) -> Iterator[tuple[int, _Result]]:
        """Yield the number of each task with what the function makes of it, as soon as it is there."""
        if self._backend is None:
            yield from ((number, function(task)) for number, task in enumerate(tasks))
            return
        # Ray's backend gives results back only all at once.
        how = "list" if self._backend == "ray" else "generator_unordered"
        numbered = [(number, function, task) for number, task in enumerate(tasks)]
        results = self._run(_with_number, numbered, how)
        if isinstance(results, list):
            yield from results
            return
        with closing(results), _worker_failures():
            yield from results

    def _run(self, function: Callable[[Any], Any], tasks: Sequence[Any], how: str) -> Any:
        joblib = _imported("joblib", "joblib", "or give --processes 1")
        watched = os.getpid() if self._backend == "loky" else None
        with _worker_failures():
            # One task a message: each takes seconds.
            parallel = joblib.Parallel(n_jobs=self.processes, batch_size=1, pre_dispatch="all", return_as=how)
            return parallel(joblib.delayed(_do)(watched, function, task) for task in tasks)


@contextmanager
def open_pool(processes: int | None, backend: Backend, address: str | None) -> Iterator[Pool]:
    """Give so many processes: of this machine (`loky`), or of a dask or ray cluster at an address.

    None means all cores of this machine, or all that the cluster has. Raises `ConfigError` when a package is missing,
    and `TransportError` when the cluster cannot be reached.
    """
    if backend == "loky":
        processes = processes or len(os.sched_getaffinity(0))
        if processes == 1:
            yield Pool(1)
            return
        joblib = _imported("joblib", "joblib", "or give --processes 1")
        with joblib.parallel_config("loky", n_jobs=processes, inner_max_num_threads=1):
            yield Pool(processes, "loky")
        return
    joblib = _imported("joblib", "joblib", "beside the cluster's own packages")
    with (_dask if backend == "dask" else _ray)(address) as found, joblib.parallel_config(backend):
        yield Pool(processes or found, backend)


@contextmanager
def _dask(address: str | None) -> Iterator[int]:
    distributed = _imported("distributed", "distributed", "on every machine")
    try:
        client = distributed.Client(address, set_as_default=True)
    except OSError as error:
        raise TransportError(f"--address {address}: no dask scheduler answers there: {error}; start one") from None
    with client:
        yield max(1, sum(client.nthreads().values()))


@contextmanager
def _ray(address: str | None) -> Iterator[int]:
    ray = _imported("ray", "ray", "on every machine")
    registering = _imported("ray.util.joblib", "ray", "on every machine")
    try:
        ray.init(address=address)
    except (ConnectionError, OSError) as error:
        raise TransportError(f"--address {address}: no ray cluster answers there: {error}; start one") from None
    registering.register_ray()
    try:
        yield max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        ray.shutdown()


def _imported(module: str, package: str, where: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        wanted = "'distreal-edge[simulate]'" if package == "joblib" else package
        raise ConfigError(
            f"{package} is missing, which several processes need: pip install {wanted}, {where}"
        ) from None


@contextmanager
def _worker_failures() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # joblib's own copy of loky has the class; only there do we know that it is there.
        if type(error).__name__ in {"TerminatedWorkerError", "BrokenProcessPool", "KilledWorker"}:
            raise StateError(
                "a process of the simulation was killed, perhaps for want of memory; the same command goes on, with "
                "fewer --processes if need be"
            ) from None
        raise


def _with_number(task: tuple[int, Callable[[Any], Any], Any]) -> tuple[int, Any]:
    number, function, inner = task
    return number, function(inner)


def _do(watched: int | None, function: Callable[[Any], Any], task: Any) -> Any:
    if watched is not None and watched != os.getpid():
        _belong_to(watched)
    return function(task)


@cache
def _belong_to(parent: int) -> None:
    """End with the process that this one works for, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_ORPHANED_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="orphaned").start()

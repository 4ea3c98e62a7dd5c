"""What a search has found so far, in Optuna's storage: it outlives every process, and machines can share it.

A search has two Optuna studies. The first is NSGA-II's: one trial for each vector that was screened. The second is a
queue of confirmations: one trial for each vector, snapshot and seed. Settings and snapshots are attributes of the
first, so that whoever joins trains from the very same weights.
"""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import time
import warnings
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from math import log2
from typing import TYPE_CHECKING, Any, Final

import msgspec
import psutil

from distreal_edge.errors import ConfigError, StateError
from distreal_edge.network import Network

try:
    import optuna
    import sqlalchemy
    from optuna.trial import TrialState
except ImportError:  # an extra; the command line names it
    raise ConfigError("the search needs Optuna: pip install 'distreal-edge[search]'") from None

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from optuna.trial import FrozenTrial, Trial

    from distreal_edge.search.settings import SearchSettings

__all__ = ["Confirmation", "Evaluation", "SearchStudy", "Task"]

optuna.logging.set_verbosity(optuna.logging.WARNING)

_CHUNK: Final = 48_000
"""Characters of one attribute: MySQL's texts hold 65,535 bytes."""
_LOCK_TIMEOUT_S: Final = 120.0
"""How long a process waits for another that writes into the same SQLite file."""
_SILENT_S: Final = 900.0
"""A process on another machine that said nothing for so long is taken for dead."""
_POLL_S: Final = 1.0
_COUNTS: Final = "counts"
_WORKER: Final = "worker"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A vector that was screened: what each group keeps, what that costs, and the full network's losses.

    `losses` has one number for each snapshot and seed, snapshots outermost; `origin` says who proposed the vector.
    """

    number: int
    counts: tuple[int, ...]
    cost: float
    peak_bytes: int
    losses: tuple[float, ...]
    origin: str
    seconds: float
    worker: str

    @property
    def loss(self) -> float:
        """The mean over snapshots and seeds."""
        return sum(self.losses) / len(self.losses)


@dataclass(frozen=True, slots=True)
class Task:
    """One training of a confirmation; no counts stand for training nothing."""

    counts: tuple[int, ...]
    snapshot: int
    seed: int


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What came of one task: the full network's loss after it, and the mean training loss of its mini-batches."""

    task: Task
    loss: float
    own_loss: float
    seconds: float
    worker: str


class SearchStudy:
    """The shared state of one search; every process opens its own.

    Raises `ConfigError` for a storage that cannot be opened, and for a study that was begun with other settings.
    """

    def __init__(self, storage: str, name: str, settings: SearchSettings, sizes: Sequence[int]) -> None:
        """Begin the search of this name, or join it."""
        self.settings = settings
        self._sizes = tuple(sizes)
        with _storage_errors(storage):
            self._storage = _open_storage(storage)
            self._screening = self._open(name, objectives=len(settings.objectives))
            self._confirming = self._open(f"{name}, confirmation", objectives=1)
        self._claim_settings(name)

    def _open(self, name: str, objectives: int) -> optuna.Study:
        return optuna.create_study(
            storage=self._storage,
            study_name=name,
            directions=["minimize"] * objectives,
            load_if_exists=True,
            sampler=_sampler(self.settings.population, len(self._sizes)) if objectives > 1 else None,
        )

    def _claim_settings(self, name: str) -> None:
        known = self._screening.user_attrs.get("settings")
        if known is None:
            self._screening.set_user_attr("settings", msgspec.json.encode(self.settings).decode())
            return
        before = msgspec.json.decode(known)
        now = msgspec.json.decode(msgspec.json.encode(self.settings))
        different = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        if different:
            shown = "; ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in different)
            raise ConfigError(
                f"the search {name!r} in this storage was begun with other settings ({shown[:400]}); "
                "repeat those, or give this search another --study or --storage"
            )

    # Snapshots

    def make_snapshots(self, network: Network, make: Callable[[Callable[[], None]], Sequence[Network]]) -> None:
        """See to it that there are snapshots: `make` them, unless somebody has, or is at it, which is waited for.

        `make` is handed a function to call now and then, which says that its caller is alive.
        """
        while self._load_snapshots(network) is None:
            maker = self._screening.user_attrs.get("maker")
            if maker is None or not _alive(maker):
                self._make_snapshots(make)
            else:
                time.sleep(_POLL_S)

    def snapshots(self, network: Network) -> list[Network]:
        """Return the snapshots; raise `StateError` when they are damaged, or not made yet."""
        found = self._load_snapshots(network)
        if found is None:
            raise StateError("the search has no snapshots yet; begin it with `distreal-edge search`")
        return found

    def _make_snapshots(self, make: Callable[[Callable[[], None]], Sequence[Network]]) -> None:
        def report() -> None:
            self._screening.set_user_attr("maker", _this_process())

        report()
        snapshots = make(report)
        digests: list[str] = []
        for network in snapshots:
            data = network.to_bytes()
            digests.append(hashlib.sha256(data).hexdigest())
            text = base64.b85encode(zlib.compress(data)).decode()
            for start in range(0, len(text), _CHUNK):
                self._screening.set_user_attr(
                    f"snapshot/{digests[-1][:16]}/{start // _CHUNK:06d}", text[start : start + _CHUNK]
                )
        self._screening.set_user_attr("snapshots", digests)

    def _load_snapshots(self, network: Network) -> list[Network] | None:
        attributes = self._screening.user_attrs
        digests = attributes.get("snapshots")
        if digests is None:
            return None
        snapshots: list[Network] = []
        for digest in digests:
            chunks = [value for key, value in sorted(attributes.items()) if key.startswith(f"snapshot/{digest[:16]}/")]
            try:
                data = zlib.decompress(base64.b85decode("".join(chunks)))
            except (ValueError, zlib.error):
                data = b""
            if hashlib.sha256(data).hexdigest() != digest:
                raise StateError("a snapshot in the search's storage is damaged; begin the search anew, in another one")
            snapshot = Network.from_bytes(data, "a snapshot")
            assert snapshot.plan == network.plan  # the settings hold its digest
            snapshots.append(snapshot)
        return snapshots

    # Figures that are taken once

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """Return what is kept under this key, made when nobody has yet; plain data only."""
        found = self._screening.user_attrs.get(key)
        if found is None:
            found = make()
            self._screening.set_user_attr(key, found)
        return found

    def spend(self, run: str, seconds: float) -> None:
        """Note how many seconds this machine has spent in the run of this name."""
        self._screening.set_user_attr(f"spent/{socket.gethostname()}/{run}", seconds)

    def spent_s(self) -> float:
        """Return the seconds that this machine has spent on this search, all runs together."""
        prefix = f"spent/{socket.gethostname()}/"
        return float(sum(value for key, value in self._screening.user_attrs.items() if key.startswith(prefix)))

    # Screening

    def queue(self, seeds: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        """Queue vectors, each with its origin, unless they are known; and those that dead processes left behind."""
        self._release_dead(self._screening)
        known = {
            tuple(trial.user_attrs["proposed"]) if "proposed" in trial.user_attrs else tuple(trial.user_attrs[_COUNTS])
            for trial in self._screening.get_trials(deepcopy=False)
            if trial.state in {TrialState.COMPLETE, TrialState.WAITING, TrialState.RUNNING}
            and (_COUNTS in trial.user_attrs or "proposed" in trial.user_attrs)
        }
        for origin, counts in seeds:
            if counts in known:
                continue
            known.add(counts)
            pairs = enumerate(zip(counts, self._sizes, strict=True))
            rates = {_gene(group): _rate(keep, size) for group, (keep, size) in pairs}
            self._screening.enqueue_trial(rates, user_attrs={"origin": origin, "proposed": list(counts)})

    def ask(self) -> tuple[Trial, tuple[int, ...]]:
        """Return a new trial of NSGA-II and the counts that its rates leave."""
        trial = self._screening.ask()
        trial.set_user_attr(_WORKER, _this_process())
        rates = [trial.suggest_float(_gene(group), 0.0, _rate(1, size)) for group, size in enumerate(self._sizes)]
        counts = tuple(max(1, round((1.0 - rate) * size)) for rate, size in zip(rates, self._sizes, strict=True))
        return trial, counts

    def tell(self, trial: Trial, evaluation: Evaluation) -> None:
        """Store an evaluation; from here on it is never lost."""
        trial.set_user_attr(_COUNTS, list(evaluation.counts))
        trial.set_user_attr("cost", evaluation.cost)
        trial.set_user_attr("peak_bytes", evaluation.peak_bytes)
        trial.set_user_attr("losses", list(evaluation.losses))
        trial.set_user_attr("seconds", evaluation.seconds)
        values = [log2(evaluation.cost), evaluation.loss, float(evaluation.peak_bytes)]
        self._screening.tell(trial, values[: len(self.settings.objectives)])

    def refuse(self, trial: Trial) -> None:
        """Drop a proposal without an evaluation: it is known, or out of range."""
        self._screening.tell(trial, state=TrialState.PRUNED)

    def evaluations(self) -> list[Evaluation]:
        """Return every screened vector, in the order of their numbers."""
        return [_evaluation(trial) for trial in self._finished(self._screening)]

    # Confirmation

    def request(self, tasks: Sequence[Task]) -> None:
        """Queue the tasks that are neither done nor queued."""
        self._release_dead(self._confirming)
        known = {
            _task(trial)
            for trial in self._confirming.get_trials(deepcopy=False)
            if "task" in trial.user_attrs and trial.state is not TrialState.FAIL
        }
        for task in tasks:
            if task not in known:
                known.add(task)
                self._confirming.enqueue_trial({}, user_attrs={"task": [list(task.counts), task.snapshot, task.seed]})

    def next_task(self) -> tuple[Trial, Task] | None:
        """Take a queued task; None when there is none."""
        while self._confirming.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            trial = self._confirming.ask()
            trial.set_user_attr(_WORKER, _this_process())
            if "task" in trial.user_attrs:
                return trial, _task(trial)
            self._confirming.tell(trial, state=TrialState.FAIL)  # another process took the last one
        return None

    def finish(self, trial: Trial, loss: float, own_loss: float, seconds: float) -> None:
        """Store what came of a task; from here on it is never lost."""
        trial.set_user_attr("own_loss", own_loss)
        trial.set_user_attr("seconds", seconds)
        self._confirming.tell(trial, loss)

    def confirmations(self) -> list[Confirmation]:
        """Return what came of all tasks, each task once."""
        found: dict[Task, Confirmation] = {}
        for trial in self._finished(self._confirming):
            task = _task(trial)
            own = trial.user_attrs
            loss = float(trial.values[0])
            found.setdefault(task, Confirmation(task, loss, own["own_loss"], own["seconds"], _worker_name(trial)))
        return list(found.values())

    def unfinished_tasks(self) -> int:
        """Return how many tasks wait or are being worked on by processes that live."""
        return len(self._confirming.get_trials(deepcopy=False, states=(TrialState.WAITING,))) + sum(
            _alive(trial.user_attrs.get(_WORKER))
            for trial in self._confirming.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        )

    @staticmethod
    def _finished(study: optuna.Study) -> list[FrozenTrial]:
        return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def _release_dead(self, study: optuna.Study) -> None:
        # What a process was at when it was killed goes back into the queue.
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            worker = trial.user_attrs.get(_WORKER)
            if worker is None or _alive(worker):
                continue
            study.tell(trial.number, state=TrialState.FAIL)
            own = trial.user_attrs
            kept: dict[str, Any] = {key: own[key] for key in ("origin", "proposed", "task") if key in own}
            study.enqueue_trial(trial.params, user_attrs=kept)


def _open_storage(url: str) -> optuna.storages.RDBStorage:
    arguments: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("sqlite"):
        arguments["connect_args"] = {"timeout": _LOCK_TIMEOUT_S}
    return optuna.storages.RDBStorage(url, engine_kwargs=arguments)


def _sampler(population: int, genes: int) -> optuna.samplers.NSGAIISampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.NSGAIISampler(
            population_size=population,
            crossover=optuna.samplers.nsgaii.SBXCrossover(eta=5.0),
            mutation=optuna.samplers.nsgaii.PolynomialMutation(eta=5.0),
            mutation_prob=min(0.5, 2.0 / genes),
        )


@contextmanager
def _storage_errors(url: str) -> Iterator[None]:
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, OSError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise ConfigError(f"the search's storage {_without_password(url)} cannot be opened: {reason}") from None


def _without_password(url: str) -> str:
    try:
        return sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return repr(url)


def _gene(group: int) -> str:
    return f"rate{group:04d}"


def _rate(keep: int, size: int) -> float:
    return 1.0 - keep / size


def _evaluation(trial: FrozenTrial) -> Evaluation:
    own = trial.user_attrs
    return Evaluation(
        number=trial.number,
        counts=tuple(own[_COUNTS]),
        cost=own["cost"],
        peak_bytes=own["peak_bytes"],
        losses=tuple(own["losses"]),
        origin=own.get("origin", "NSGA-II"),
        seconds=own["seconds"],
        worker=_worker_name(trial),
    )


def _task(trial: FrozenTrial | Trial) -> Task:
    counts, snapshot, seed = trial.user_attrs["task"]
    return Task(tuple(counts), snapshot, seed)


def _this_process() -> dict[str, Any]:
    began = psutil.Process().create_time()
    return {"host": socket.gethostname(), "pid": os.getpid(), "began": began, "at": time.time()}


def _alive(worker: dict[str, Any] | None) -> bool:
    # Of processes elsewhere only their silence is known; a pid counts only with the time at which its process began.
    if worker is None:
        return False
    if worker["host"] != socket.gethostname():
        return bool(time.time() - worker["at"] < _SILENT_S)
    try:
        return bool(abs(psutil.Process(worker["pid"]).create_time() - worker["began"]) < 1.0)
    except psutil.NoSuchProcess:
        return False


def _worker_name(trial: FrozenTrial) -> str:
    worker = trial.user_attrs.get(_WORKER, {})
    return f"{worker.get('host', '?')}:{worker.get('pid', '?')}"

"""What a search has found so far, in Optuna's storage: it outlives every process, and machines can share it.

A search has two Optuna studies. The first is NSGA-II's: one trial for each vector that was screened. The second is a
queue of confirmations: one trial for each vector, snapshot and seed. Settings and snapshots are attributes of the
first, so that whoever joins trains from the very same weights.
"""

from __future__ import annotations

import base64
import hashlib
import time
import zlib
from contextlib import contextmanager, suppress
from math import log2
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from distreal_edge.errors import ConfigError, StateError
from distreal_edge.network import Network

try:
    import optuna
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState
except ImportError:  # an extra; the command line names it
    raise ConfigError("the search needs Optuna: pip install 'distreal-edge[search]'") from None

from distreal_edge.search.breeding import make_sampler
from distreal_edge.search.processes import is_alive, this_machine, this_process
from distreal_edge.search.records import (
    COUNTS,
    PROPOSED,
    WORKER,
    Confirmation,
    Evaluation,
    Task,
    counts_of,
    evaluation_of,
    task_of,
    worker_name,
)
from distreal_edge.search.storage import STORAGE_FAILURES, open_storage, opening_errors, reason_of, without_password

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from optuna.trial import FrozenTrial, Trial

    from distreal_edge.search.settings import SearchSettings

__all__ = ["SearchStudy"]

optuna.logging.set_verbosity(optuna.logging.WARNING)

_CHUNK: Final = 48_000
"""Characters of one attribute: MySQL's texts hold 65,535 bytes."""
_NAMELESS_S: Final = 10.0
"""Who takes a trial writes its name on it at once: after so long without one it was killed in between."""
_POLL_S: Final = 1.0


class SearchStudy:
    """The shared state of one search; every process opens its own.

    Raises `ConfigError` for a storage that cannot be opened, and for a study that was begun with other settings.
    """

    def __init__(self, storage: str, name: str, settings: SearchSettings, sizes: Sequence[int]) -> None:
        """Begin the search of this name, or join it."""
        self.settings = settings
        self._sizes = tuple(sizes)
        self._url = storage
        self._nameless: dict[tuple[str, int], float] = {}
        with opening_errors(storage):
            self._storage = open_storage(storage)
            self._screening = self._open(name, objectives=len(settings.objectives))
            self._check_ours(name)
            self._confirming = self._open(f"{name}, confirmation", objectives=1)
            self._claim_settings(name)

    def __enter__(self) -> Self:
        """Return the study, which is closed at the end."""
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """Let go of the storage; raise `StateError` when it was what failed."""
        self.close()
        if isinstance(error, STORAGE_FAILURES):
            raise StateError(
                f"the search's storage {without_password(self._url)} failed: {reason_of(error)}; what it holds stays, "
                "and the same command goes on from there"
            ) from None

    def close(self) -> None:
        """Let go of the storage; nothing can be asked of this study any more."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _open(self, name: str, objectives: int) -> optuna.Study:
        return optuna.create_study(
            storage=self._storage,
            study_name=name,
            directions=["minimize"] * objectives,
            load_if_exists=True,
            sampler=make_sampler(self.settings.population) if objectives > 1 else None,
        )

    def _check_ours(self, name: str) -> None:
        # Before anything else, a search has settings.
        study = self._screening
        as_made = len(study.directions) == len(self.settings.objectives) and not _trials(study)
        if "settings" not in study.user_attrs and not as_made:
            raise ConfigError(f"{name!r} in this storage is no search of vectors; give this search another --study")

    def _claim_settings(self, name: str) -> None:
        mine = msgspec.json.encode(self.settings).decode()
        self._claimed = self._agree("settings", mine)
        before, now = _flattened(msgspec.json.decode(self._claimed)), _flattened(msgspec.json.decode(mine))
        different = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        if different:
            shown = "; ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in different)
            raise ConfigError(
                f"the search {name!r} in this storage was begun with other settings ({shown[:400]}); "
                "repeat those, or give this search another --study or --storage"
            )

    def _agree(self, key: str, value: Any) -> Any:
        # Return the value that all processes have for this key: that of the first one, this one's if there is none.
        # Attributes are overwritten; but trials are numbered by the database, so one of those that bring a value is the
        # first for everybody, also when machines start at once.
        if key not in self._screening.user_attrs:
            self._confirming.add_trial(optuna.trial.create_trial(state=TrialState.FAIL, user_attrs={key: value}))
            brought = (trial.user_attrs for trial in _trials(self._confirming))
            self._screening.set_user_attr(key, next(attributes[key] for attributes in brought if key in attributes))
        return self._screening.user_attrs[key]

    # Snapshots

    def make_snapshots(self, network: Network, make: Callable[[Callable[[], None]], Sequence[Network]]) -> None:
        """See to it that there are snapshots: `make` them, unless somebody has, or is at it, which is waited for.

        `make` is handed a function to call now and then, which says that its caller is alive. With settings that it
        refuses, by a `ConfigError`, the search is taken out of the storage, so that they do not stand in the way of
        better ones.
        """
        while self._load_snapshots(network) is None:
            maker = self._screening.user_attrs.get("maker")
            if maker is not None and is_alive(maker):
                time.sleep(_POLL_S)
                continue
            try:
                self._make_snapshots(make)
            except ConfigError:
                self._give_up()
                raise

    def snapshots(self, network: Network) -> list[Network]:
        """Return the snapshots; raise `StateError` when they are damaged, or not made yet."""
        found = self._load_snapshots(network)
        if found is None:
            raise StateError("the search has no snapshots yet; begin it with `distreal-edge search`")
        return found

    def _make_snapshots(self, make: Callable[[Callable[[], None]], Sequence[Network]]) -> None:
        def report() -> None:
            self._screening.set_user_attr("maker", this_process())

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
        self._agree("snapshots", digests)

    def _give_up(self) -> None:
        if "snapshots" not in self._screening.user_attrs:
            for study in (self._screening, self._confirming):
                optuna.delete_study(study_name=study.study_name, storage=self._storage)

    def _load_snapshots(self, network: Network) -> list[Network] | None:
        try:
            attributes = self._screening.user_attrs
        except KeyError:
            attributes = {}
        # A database may give the number of a search that was taken out to the next one.
        if attributes.get("settings") != self._claimed:
            raise StateError("the search was given up by whoever trained its snapshots, and says why there")
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

    # What is decided once

    def choice(self, key: str, make: Callable[[], Sequence[tuple[int, ...]]]) -> list[tuple[int, ...]]:
        """Return the vectors that were chosen under this key, made by the first who asks."""
        known = self._screening.user_attrs.get(key)
        chosen = self._agree(key, [list(counts) for counts in make()]) if known is None else known
        return [tuple(counts) for counts in chosen]

    # The budget

    def spend(self, run: str, began_s: float, ended_s: float) -> None:
        """Note from when to when, in Unix seconds, this machine has worked in the run of this name."""
        # Not beside the snapshots: attributes are read all together, and this is done all the time.
        self._confirming.set_user_attr(f"spent/{this_machine()}/{run}", [began_s, ended_s])

    def spent_s(self) -> float:
        """Return the seconds that this machine has spent on this search: those of runs at the same time count once."""
        prefix = f"spent/{this_machine()}/"
        spans = [span for key, span in self._confirming.user_attrs.items() if key.startswith(prefix)]
        spent, reached_s = 0.0, float("-inf")
        for began_s, ended_s in sorted(spans):
            spent += max(0.0, ended_s - max(began_s, reached_s))
            reached_s = max(reached_s, ended_s)
        return spent

    # Screening

    def queue(self, seeds: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        """Queue vectors, each with its origin, unless they are known; and those that dead processes left behind."""
        self.release_dead()
        known = {
            counts_of(trial)
            for trial in _trials(self._screening)
            if trial.state in {TrialState.COMPLETE, TrialState.WAITING, TrialState.RUNNING}
        }
        for origin, counts in seeds:
            if counts in known:
                continue
            known.add(counts)
            pairs = enumerate(zip(counts, self._sizes, strict=True))
            rates = {_gene(group): _rate(keep, size) for group, (keep, size) in pairs}
            self._screening.enqueue_trial(rates, user_attrs={"origin": origin, PROPOSED: list(counts)})

    def release_dead(self) -> None:
        """Put back into the queue what dead processes were screening."""
        self._release_dead(self._screening)

    def ask(self) -> tuple[Trial, tuple[int, ...]]:
        """Return a new trial of NSGA-II and the counts that its rates leave."""
        while True:
            trial = self._screening.ask()
            with suppress(UpdateFinishedTrialError):  # this process was away for so long that it was taken for dead
                trial.set_user_attr(WORKER, this_process())
                # What is queued would stay outside of NSGA-II's generations, and never be a parent, unless it is asked
                # for the rates that it does not need.
                _ = trial.relative_params
                pairs = enumerate(self._sizes)
                rates = [trial.suggest_float(_gene(group), 0.0, _rate(1, size)) for group, size in pairs]
                kept = zip(rates, self._sizes, strict=True)
                counts = tuple(max(1, round((1.0 - rate) * size)) for rate, size in kept)
                trial.set_user_attr(PROPOSED, list(counts))
                return trial, counts

    def is_taken(self, trial: Trial, counts: tuple[int, ...]) -> bool:
        """Return whether another trial has these counts: one that was screened, or an earlier one that is at it.

        All trials say what they propose before they ask, so that of two at once one goes on.
        """
        return _another_has(self._screening, trial, lambda other: counts_of(other) == counts)

    def tell(self, trial: Trial, evaluation: Evaluation) -> None:
        """Store an evaluation; from here on it is never lost."""
        values = [log2(evaluation.cost), evaluation.loss, float(evaluation.peak_bytes)]
        with suppress(UpdateFinishedTrialError):  # taken for dead, and queued again
            trial.set_user_attr(COUNTS, list(evaluation.counts))
            trial.set_user_attr("cost", evaluation.cost)
            trial.set_user_attr("peak_bytes", evaluation.peak_bytes)
            trial.set_user_attr("losses", list(evaluation.losses))
            trial.set_user_attr("seconds", evaluation.seconds)
            self._screening.tell(trial, values[: len(self.settings.objectives)], skip_if_finished=True)

    def refuse(self, trial: Trial) -> None:
        """Drop a proposal without an evaluation: it is known, or out of range."""
        with suppress(UpdateFinishedTrialError):
            self._screening.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)

    def evaluations(self) -> list[Evaluation]:
        """Return every screened vector, in the order of their numbers."""
        with _reading():
            return [evaluation_of(trial) for trial in _trials(self._screening, TrialState.COMPLETE)]

    def has_a_population(self) -> bool:
        """Return whether as many vectors were screened as NSGA-II breeds from: the least that a table can rest on."""
        return len(_trials(self._screening, TrialState.COMPLETE)) >= self.settings.population

    # Confirmation

    def request(self, tasks: Sequence[Task]) -> None:
        """Queue the tasks that are neither done nor queued."""
        self._release_dead(self._confirming)
        known = {
            task_of(trial)
            for trial in _trials(self._confirming)
            if "task" in trial.user_attrs and trial.state is not TrialState.FAIL
        }
        for task in tasks:
            if task not in known:
                known.add(task)
                self._confirming.enqueue_trial({}, user_attrs={"task": [list(task.counts), task.snapshot, task.seed]})

    def next_task(self) -> tuple[Trial, Task] | None:
        """Take a queued task; None when there is none."""
        while self.waiting_tasks():
            trial = self._confirming.ask()
            with suppress(UpdateFinishedTrialError):  # this process was away for so long that it was taken for dead
                trial.set_user_attr(WORKER, this_process())
                # Another process may have taken the last one, or two may have queued the same at once.
                if "task" in trial.user_attrs and not self._is_done_elsewhere(trial):
                    return trial, task_of(trial)
                self._confirming.tell(trial, state=TrialState.FAIL)
        return None

    def _is_done_elsewhere(self, trial: Trial) -> bool:
        task = trial.user_attrs["task"]
        return _another_has(self._confirming, trial, lambda other: other.user_attrs.get("task") == task)

    def finish(self, trial: Trial, loss: float, own_loss: float, seconds: float) -> None:
        """Store what came of a task; from here on it is never lost."""
        with suppress(UpdateFinishedTrialError):  # taken for dead, and queued again
            trial.set_user_attr("own_loss", own_loss)
            trial.set_user_attr("seconds", seconds)
            self._confirming.tell(trial, loss, skip_if_finished=True)

    def confirmations(self) -> list[Confirmation]:
        """Return what came of all tasks, each task once."""
        found: dict[Task, Confirmation] = {}
        with _reading():
            for trial in _trials(self._confirming, TrialState.COMPLETE):
                task = task_of(trial)
                own = trial.user_attrs
                loss = float(trial.values[0])
                found.setdefault(task, Confirmation(task, loss, own["own_loss"], own["seconds"], worker_name(trial)))
        return list(found.values())

    def waiting_tasks(self) -> int:
        """Return how many tasks are queued that nobody is at."""
        return len(_trials(self._confirming, TrialState.WAITING))

    def _release_dead(self, study: optuna.Study) -> None:
        # What a process was at when it was killed goes back into the queue.
        for trial in _trials(study, TrialState.RUNNING):
            own = trial.user_attrs
            if not self._is_left(study, trial):
                continue
            try:
                study.tell(trial.number, state=TrialState.FAIL)
            except (ValueError, UpdateFinishedTrialError):  # it was not dead after all, or another process was quicker
                continue
            kept: dict[str, Any] = {key: own[key] for key in ("origin", PROPOSED, "task") if key in own}
            # Not all that it was queued with need have been read when its process was killed.
            study.enqueue_trial({**trial.params, **trial.system_attrs.get("fixed_params", {})}, user_attrs=kept)

    def _is_left(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get(WORKER)
        if worker is not None:
            return not is_alive(worker)
        seen = self._nameless.setdefault((study.study_name, trial.number), time.monotonic())
        return time.monotonic() - seen >= _NAMELESS_S


def _trials(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    with _reading():
        return study.get_trials(deepcopy=False, states=states or None)


@contextmanager
def _reading() -> Iterator[None]:
    # Optuna, and whatever it reads with, raise these at what none of them has written.
    try:
        yield
    except (LookupError, TypeError, ValueError) as error:
        raise StateError(
            f"what the search's storage holds is damaged ({reason_of(error)}); begin the search anew, in another one"
        ) from None


def _another_has(study: optuna.Study, trial: Trial, same: Callable[[FrozenTrial], bool]) -> bool:
    # Whether a trial with the same work has finished, or is at it and came earlier: of two at once one goes on. Whoever
    # took the earlier one may not have said its name yet; if it dies before it does, its trial is queued again.
    others = _trials(study, TrialState.COMPLETE, TrialState.RUNNING)
    return any(
        other.state is TrialState.COMPLETE
        or (other.number < trial.number and (WORKER not in other.user_attrs or is_alive(other.user_attrs[WORKER])))
        for other in others
        if other.number != trial.number and same(other)
    )


def _flattened(settings: dict[str, Any]) -> dict[str, Any]:
    # A message names the one figure that differs, as "screening.steps".
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": one for inner, one in _flattened(value).items()}
        else:
            flat[key] = value
    return flat


def _gene(group: int) -> str:
    return f"rate{group:04d}"


def _rate(keep: int, size: int) -> float:
    return 1.0 - keep / size

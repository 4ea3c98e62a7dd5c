from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import optuna
import pytest

from distreal_edge.errors import ConfigError, StateError
from distreal_edge.network import Network
from distreal_edge.search import processes, study
from distreal_edge.search.processes import is_alive, this_process
from distreal_edge.search.records import Evaluation, Task
from distreal_edge.search.speed import Recipe
from distreal_edge.search.storage import file_url, without_password
from distreal_edge.search.study import SearchStudy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from distreal_edge.search.settings import SearchSettings

SIZES = (4, 6)
SOURCES = Path(__file__).resolve().parents[2]


@pytest.fixture
def opens(storage: str, settings_with: Callable[..., SearchSettings]) -> Iterator[Callable[..., SearchStudy]]:
    """Open one search again and again, as other processes do."""
    opened: list[SearchStudy] = []

    def begin(**changes: object) -> SearchStudy:
        opened.append(SearchStudy(storage, "one", settings_with(**changes), SIZES))
        return opened[-1]

    yield begin
    for one in opened:
        one.close()


def evaluation(number: int, counts: tuple[int, ...], loss: float = 1.0) -> Evaluation:
    return Evaluation(number, counts, 0.5, 1000, (loss, loss + 0.25), "", 0.125, "")


def screen(search: SearchStudy, loss: float = 1.0) -> tuple[int, ...]:
    trial, counts = search.ask()
    search.tell(trial, evaluation(trial.number, counts, loss))
    return counts


def states(storage: str, name: str = "one") -> list[str]:
    return [trial.state.name for trial in optuna.load_study(study_name=name, storage=storage).get_trials()]


# Settings


def test_a_search_is_joined_with_the_same_settings(opens: Any) -> None:
    first = opens()
    screen(first)
    assert [one.counts for one in opens().evaluations()] == [one.counts for one in first.evaluations()]


def test_other_settings_are_refused_and_named(opens: Any) -> None:
    opens()
    with pytest.raises(ConfigError, match=r"begun with other settings \(seed was 0, is 4\); repeat those, or give"):
        opens(seed=4)
    with pytest.raises(ConfigError) as refused:
        opens(recipe=Recipe(batch=16), cheapest=0.1)
    assert "(cheapest was 0.04, is 0.1; recipe.batch was 8, is 16)" in str(refused.value)
    assert "seed" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_other_searches_of_one_storage_are_their_own(storage: str, settings_with: Any) -> None:
    with SearchStudy(storage, "one", settings_with(), SIZES) as one:
        screen(one)
    with SearchStudy(storage, "two", settings_with(seed=1), SIZES) as two:
        assert two.evaluations() == []


def test_of_several_that_begin_at_once_all_have_the_settings_of_one(storage: str, settings_with: Any) -> None:
    together = threading.Barrier(6)

    def begin(seed: int) -> str:
        together.wait()
        try:
            with SearchStudy(storage, "one", settings_with(seed=seed), SIZES):
                return "begun"
        except ConfigError as error:
            return str(error)

    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(begin, range(6)))
    begun = found.index("begun")
    assert all(f"(seed was {begun}, is {seed})" in said for seed, said in enumerate(found) if seed != begun)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"snapshots_at": ()}, "rising numbers of mini-batches from 1 on, and 10000000 at most, not after []"),
        ({"snapshots_at": (0, 5)}, "from 1 on, and 10000000 at most, not after [0, 5]"),
        ({"snapshots_at": (5, 5)}, "not after [5, 5]"),
        ({"snapshots_at": (9, 5)}, "not after [9, 5]"),
        ({"snapshots_at": (5, 10_000_001)}, "not after [5, 10000001]"),
        ({"recipe": Recipe(draw="best")}, "unknown draw policy 'best'"),
    ],
)
def test_settings_that_no_search_can_have_are_refused(settings_with: Any, changes: Any, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        settings_with(**changes)
    assert said in str(refused.value)


def test_settings_survive_being_written(settings_with: Any) -> None:
    settings = settings_with(memory=True, cost="seconds", profile_digest="3" * 64)
    assert msgspec.json.decode(msgspec.json.encode(settings), type=type(settings)) == settings
    assert settings.objectives == ("seconds", "loss", "memory")


def test_what_is_agreed_on_is_what_the_first_one_brought(opens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, quick = opens(), opens()
    add_trial = slow._confirming.add_trial

    def overtaken(trial: Any) -> None:
        assert quick._agree("colour", "blue") == "blue"
        add_trial(trial)

    monkeypatch.setattr(slow._confirming, "add_trial", overtaken)
    assert slow._agree("colour", "red") == "blue"
    assert quick._agree("colour", "green") == "blue"


# Snapshots


def trained(network: Network, seed: int) -> Network:
    rng = np.random.default_rng(seed)
    weights = {name: rng.random(tensor.shape, dtype=np.float32) for name, tensor in network.weights.items()}
    return Network(network.plan, weights)


def test_snapshots_are_loaded_bit_by_bit(opens: Any, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "_CHUNK", 100)
    made = [trained(network, 1), trained(network, 2)]
    search = opens()
    with pytest.raises(StateError, match="no snapshots yet"):
        search.snapshots(network)
    search.make_snapshots(network, lambda _alive: made)
    found = opens().snapshots(network)
    assert [one.to_bytes() for one in found] == [one.to_bytes() for one in made]


def test_snapshots_are_made_once(opens: Any, network: Network) -> None:
    opens().make_snapshots(network, lambda _alive: [trained(network, 1)])

    def never(_alive: object) -> list[Network]:
        raise AssertionError

    opens().make_snapshots(network, never)


def test_of_two_that_make_snapshots_at_once_both_use_the_first(opens: Any, network: Network) -> None:
    slow, quick = opens(), opens()

    def make(_alive: object) -> list[Network]:
        quick._make_snapshots(lambda _report: [trained(network, 2)])
        return [trained(network, 1)]

    slow._make_snapshots(make)
    assert slow.snapshots(network)[0].to_bytes() == trained(network, 2).to_bytes()
    assert quick.snapshots(network)[0].to_bytes() == trained(network, 2).to_bytes()


def test_a_process_waits_for_another_that_makes_the_snapshots(opens: Any, network: Network) -> None:
    first, second = opens(), opens()
    with subprocess.Popen(["sleep", "60"]) as maker:
        began = processes._began(maker.pid)
        first._screening.set_user_attr("maker", {**this_process(), "pid": maker.pid, "began": began})
        waiting = threading.Thread(target=second.make_snapshots, args=(network, lambda _alive: [trained(network, 2)]))
        waiting.start()
        waiting.join(1.5)
        assert waiting.is_alive()
        maker.kill()
        maker.wait()
    waiting.join(30)
    assert second.snapshots(network)[0].to_bytes() == trained(network, 2).to_bytes()


def test_settings_that_cannot_be_trained_with_do_not_stand_in_the_way_of_others(opens: Any, network: Network) -> None:
    def refuse(alive: Callable[[], None]) -> list[Network]:
        raise ConfigError("a lower one")

    waiting = opens()
    with pytest.raises(ConfigError, match="a lower one"):
        opens().make_snapshots(network, refuse)
    better = opens(recipe=Recipe(batch=8, lr=0.01))
    better.make_snapshots(network, lambda _alive: [trained(network, 1)])
    assert len(better.snapshots(network)) == 1
    with pytest.raises(StateError, match="the search was given up by whoever trained its snapshots, and says why"):
        waiting.make_snapshots(network, refuse)


@pytest.mark.parametrize("damage", ["cut", "changed", "lost", "not base 85"])
def test_a_damaged_snapshot_is_refused(
    opens: Any, network: Network, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(study, "_CHUNK", 400)
    search = opens()
    search.make_snapshots(network, lambda _alive: [trained(network, 1)])
    chunks = sorted(key for key in search._screening.user_attrs if key.startswith("snapshot/"))
    assert len(chunks) > 2
    text = search._screening.user_attrs[chunks[1]]
    changed = {"cut": text[:-5], "changed": text[:10] + "0000" + text[14:], "lost": "", "not base 85": '"' + text[1:]}
    search._screening.set_user_attr(chunks[1], changed[damage])
    with pytest.raises(StateError, match="a snapshot in the search's storage is damaged"):
        opens().snapshots(network)


# Screening


def test_seeds_come_first_and_keep_their_origin_and_counts(opens: Any) -> None:
    search = opens()
    seeds = [("full", (4, 6)), ("inner", (4, 1)), ("uniform", (1, 1)), ("late", (3, 2))]
    search.queue(seeds)
    assert [screen(search) for _ in seeds] == [counts for _, counts in seeds]
    screen(search)
    found = opens().evaluations()
    assert [(one.origin, one.counts) for one in found[:4]] == seeds
    assert found[4].origin == "NSGA-II"
    assert [one.number for one in found] == [0, 1, 2, 3, 4]


def test_an_evaluation_is_stored_as_it_was(opens: Any) -> None:
    search = opens()
    trial, counts = search.ask()
    search.tell(trial, Evaluation(trial.number, counts, 0.1 + 0.2, 12345, (1 / 3, 0.1), "", 1.5, ""))
    (found,) = opens().evaluations()
    assert (found.counts, found.cost, found.peak_bytes) == (counts, 0.1 + 0.2, 12345)
    assert (found.losses, found.seconds, found.loss) == ((1 / 3, 0.1), 1.5, (1 / 3 + 0.1) / 2)
    assert found.worker.endswith(f":{os.getpid()}")


def test_memory_is_an_objective_when_it_is_asked_for(storage: str, settings_with: Any) -> None:
    with SearchStudy(storage, "one", settings_with(memory=True), SIZES) as search:
        screen(search)
    (trial,) = optuna.load_study(study_name="one", storage=storage).get_trials()
    assert trial.values == [-1.0, 1.125, 1000.0]


def test_what_is_known_is_queued_once(opens: Any, storage: str) -> None:
    search = opens()
    search.queue([("full", (4, 6)), ("twin", (4, 6)), ("inner", (4, 1))])
    opens().queue([("inner", (4, 1)), ("full", (4, 6))])
    assert states(storage) == ["WAITING", "WAITING"]
    screen(search)
    opens().queue([("full", (4, 6)), ("early", (2, 2))])
    assert states(storage) == ["COMPLETE", "WAITING", "WAITING"]


def test_what_was_queued_is_bred_from(opens: Any) -> None:
    # All that is queued keeps the first group whole, which at random one in four would, of the first generation's four.
    search = opens(population=4)
    search.queue([("inner", (4, keep)) for keep in (1, 2, 4, 6)])
    for loss in (4.0, 3.0, 2.0, 1.0):
        screen(search, loss)
    whole = 0
    for _ in range(12):
        trial, counts = search.ask()
        whole += counts[0] == 4
        search.refuse(trial)
    assert whole >= 8


def test_a_refused_proposal_is_no_evaluation(opens: Any, storage: str) -> None:
    search = opens()
    trial, _ = search.ask()
    search.refuse(trial)
    assert search.evaluations() == []
    assert states(storage) == ["PRUNED"]


def test_a_vector_is_taken_when_it_was_screened_or_an_earlier_trial_is_at_it(opens: Any) -> None:
    one, other = opens(), opens()
    # What two machines queue when they start at the very same moment.
    for search in (one, other):
        search._screening.enqueue_trial({"rate0000": 0.5, "rate0001": 0.5}, user_attrs={"origin": "uniform"})
    first, counts = one.ask()
    second, twin = other.ask()
    assert counts == twin == (2, 3)
    assert not one.is_taken(first, counts)
    assert other.is_taken(second, twin)
    other.refuse(second)
    one.tell(first, evaluation(first.number, counts))
    third, _ = other.ask()
    assert other.is_taken(third, (2, 3))
    assert not other.is_taken(third, (1, 1))


def _ask(storage: str, settings: SearchSettings, rounds: int, found: Any) -> None:
    with SearchStudy(storage, "one", settings, SIZES) as search:
        for _ in range(rounds):
            trial, counts = search.ask()
            if search.is_taken(trial, counts):
                search.refuse(trial)
            else:
                search.tell(trial, evaluation(trial.number, counts))
                found.put((trial.number, counts))


def test_processes_that_screen_at_once_share_the_work(storage: str, settings_with: Any) -> None:
    settings = settings_with()
    seeds = [("uniform", (keep, other)) for keep in range(1, 5) for other in range(1, 7)]
    with SearchStudy(storage, "one", settings, SIZES) as search:
        search.queue(seeds)
        context = multiprocessing.get_context("spawn")
        found: Any = context.Queue()
        workers = [context.Process(target=_ask, args=(storage, settings, 15, found)) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(100)
            assert worker.exitcode == 0
        evaluations = search.evaluations()
        assert sorted(one.counts for one in evaluations) == sorted(counts for _, counts in seeds)
        assert sorted((one.number, one.counts) for one in evaluations) == sorted(found.get(timeout=5) for _ in seeds)
        assert len({one.number for one in evaluations}) == len(seeds)


# Confirmation

TASKS = [Task(counts, snapshot, seed) for seed in (101, 102) for snapshot in (0, 1) for counts in ((), (4, 6), (1, 2))]


def test_every_task_is_done_once_in_its_order(opens: Any) -> None:
    search = opens()
    search.request(TASKS)
    opens().request(TASKS)
    assert search.waiting_tasks() == len(TASKS)
    done = []
    while (taken := search.next_task()) is not None:
        trial, task = taken
        done.append(task)
        search.request(TASKS)
        search.finish(trial, 0.25 + len(task.counts), 0.125, 2.0)
    assert done == TASKS
    search.request(TASKS)
    assert search.waiting_tasks() == 0
    found = opens().confirmations()
    assert [one.task for one in found] == TASKS
    assert (found[1].loss, found[1].own_loss, found[1].seconds) == (2.25, 0.125, 2.0)


def test_a_task_that_another_process_took_is_not_taken_again(opens: Any) -> None:
    one, other = opens(), opens()
    one.request(TASKS[:1])
    assert one.next_task() is not None
    assert other.next_task() is None


def test_a_task_that_two_machines_queued_at_once_is_done_once(opens: Any) -> None:
    one, other = opens(), opens()
    for search in (one, other):  # neither has seen the other's yet
        search._confirming.enqueue_trial({}, user_attrs={"task": [[1, 1], 0, 7]})
    taken = one.next_task()
    assert taken is not None
    assert taken[1] == Task((1, 1), 0, 7)
    assert other.next_task() is None
    one.finish(taken[0], 1.0, 1.0, 1.0)
    other._confirming.enqueue_trial({}, user_attrs={"task": [[1, 1], 0, 7]})
    assert other.next_task() is None
    assert len(other.confirmations()) == 1


def test_who_took_a_task_first_has_it_also_before_it_has_said_its_name(opens: Any) -> None:
    one, other = opens(), opens()
    for search in (one, other):
        search._confirming.enqueue_trial({}, user_attrs={"task": [[1, 1], 0, 7]})
    nameless = one._confirming.ask()
    assert nameless.user_attrs["task"] == [[1, 1], 0, 7]
    assert other.next_task() is None
    one.finish(nameless, 1.0, 1.0, 1.0)
    assert len(other.confirmations()) == 1


def _work(storage: str, settings: SearchSettings, done: Any) -> None:
    with SearchStudy(storage, "one", settings, SIZES) as search:
        while (taken := search.next_task()) is not None:
            search.finish(taken[0], 1.0, 1.0, 1.0)
            done.put(taken[1])


def test_processes_that_confirm_at_once_take_every_task_once(storage: str, settings_with: Any) -> None:
    settings = settings_with()
    tasks = [Task((1, 1), 0, seed) for seed in range(40)]
    with SearchStudy(storage, "one", settings, SIZES) as search:
        search.request(tasks)
        context = multiprocessing.get_context("spawn")
        done: Any = context.Queue()
        workers = [context.Process(target=_work, args=(storage, settings, done)) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(100)
            assert worker.exitcode == 0
        assert sorted(done.get(timeout=5).seed for _ in tasks) == list(range(40))
        assert done.empty()
        assert len(search.confirmations()) == 40


# Dead processes

_DIES = """
import signal, sys
import msgspec
from distreal_edge.search.processes import this_process
from distreal_edge.search.settings import SearchSettings
from distreal_edge.search.study import SearchStudy
storage, settings, where = sys.argv[1:]
search = SearchStudy(storage, "one", msgspec.json.decode(settings, type=SearchSettings), (4, 6))
if where == "halfway":
    trial = search._screening.ask()
    trial.set_user_attr("worker", this_process())
    trial.suggest_float("rate0000", 0.0, 0.75)
elif where == "nameless":
    search._screening.ask()
    search._confirming.ask()
else:
    search.ask()
    search.next_task()
print("ready", flush=True)
signal.pause()
"""


def killed(storage: str, settings: SearchSettings, where: str = "training") -> None:
    """Let a process take what is next, and kill it."""
    command = [sys.executable, "-c", _DIES, storage, msgspec.json.encode(settings).decode(), where]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)


def test_what_a_killed_process_was_at_goes_back_into_the_queue(opens: Any, storage: str, settings_with: Any) -> None:
    search = opens()
    search.queue([("inner", (4, 1))])
    search.request(TASKS[1:2])
    killed(storage, settings_with())
    assert states(storage) == ["RUNNING"]
    search = opens()
    search.queue([])
    search.request(TASKS[1:2])
    assert states(storage) == ["FAIL", "WAITING"]
    assert screen(search) == (4, 1)
    assert [(one.origin, one.counts) for one in search.evaluations()] == [("inner", (4, 1))]
    taken = search.next_task()
    assert taken is not None
    assert taken[1] == TASKS[1]
    assert search.waiting_tasks() == 0


def test_a_vector_that_was_half_read_when_its_process_died_comes_back_whole(
    opens: Any, storage: str, settings_with: Any
) -> None:
    search = opens()
    search.queue([("inner", (4, 1))])
    killed(storage, settings_with(), "halfway")
    search.queue([])
    assert states(storage) == ["FAIL", "WAITING"]
    queued = optuna.load_study(study_name="one", storage=storage).get_trials()[1]
    assert queued.system_attrs["fixed_params"].keys() == {"rate0000", "rate0001"}
    assert screen(search) == (4, 1)
    assert search.evaluations()[0].origin == "inner"


def test_what_a_process_took_and_died_before_it_wrote_its_name_comes_back_after_a_while(
    opens: Any, storage: str, settings_with: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = opens()
    search.queue([("late", (1, 5))])
    search.request(TASKS[1:2])
    killed(storage, settings_with(), "nameless")
    search.queue([("late", (1, 5))])
    search.request(TASKS[1:2])
    assert states(storage) == ["RUNNING"]
    assert search.waiting_tasks() == 0
    monkeypatch.setattr(study, "_NAMELESS_S", 0.0)
    search.release_dead()
    search.request(TASKS[1:2])
    assert screen(search) == (1, 5)
    assert search.waiting_tasks() == 1


def test_what_a_living_process_is_at_is_left_to_it(opens: Any, storage: str) -> None:
    one, other = opens(), opens()
    one.queue([("inner", (4, 1))])
    one.request(TASKS[:1])
    trial, counts = one.ask()
    task = one.next_task()
    other.queue([("inner", (4, 1))])
    other.request(TASKS[:1])
    assert states(storage) == ["RUNNING"]
    one.tell(trial, evaluation(trial.number, counts))
    assert task is not None
    one.finish(task[0], 1.0, 1.0, 1.0)
    assert len(other.evaluations()) == len(other.confirmations()) == 1


def test_whoever_was_taken_for_dead_goes_on_and_nothing_counts_twice(
    opens: Any, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, other = opens(), opens()
    away.queue([("inner", (4, 1))])
    away.request(TASKS[:1])
    trial, counts = away.ask()
    task = away.next_task()
    assert task is not None
    with monkeypatch.context() as patched:
        patched.setattr(study, "is_alive", lambda _worker: False)
        other.queue([])
        other.request(TASKS[:1])
        away.queue([])  # a second one finds nothing left to release
    assert states(storage) == ["FAIL", "WAITING"]
    away.tell(trial, evaluation(trial.number, counts))
    away.refuse(trial)
    away.finish(task[0], 9.0, 9.0, 9.0)
    assert away.evaluations() == []
    assert away.confirmations() == []
    assert screen(other, 2.0) == (4, 1)
    assert [one.loss for one in away.evaluations()] == [2.125]


def test_two_that_find_the_same_dead_process_queue_its_work_once(
    opens: Any, storage: str, settings_with: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, other = opens(), opens()
    search.queue([("inner", (4, 1))])
    killed(storage, settings_with())
    left = search._is_left

    def overtaken(optuna_study: Any, trial: Any) -> bool:
        found = left(optuna_study, trial)
        other.release_dead()
        return found

    monkeypatch.setattr(SearchStudy, "_is_left", lambda self, *what: (left if self is other else overtaken)(*what))
    search.release_dead()
    assert states(storage) == ["FAIL", "WAITING"]


def test_a_process_is_alive_until_it_ends_or_another_has_its_number() -> None:
    assert is_alive(this_process())
    assert not is_alive(None)
    assert not is_alive({**this_process(), "began": 1})
    assert not is_alive({**this_process(), "boot": "before the power was lost"})
    with subprocess.Popen(["true"]) as ended:
        name = {**this_process(), "pid": ended.pid, "began": processes._began(ended.pid)}
        deadline = time.monotonic() + 30
        while is_alive(name) and time.monotonic() < deadline:  # dead, and nobody has looked yet
            time.sleep(0.01)
        assert Path(f"/proc/{ended.pid}").exists()
        assert not is_alive(name)
    assert not is_alive(name)


def test_a_process_elsewhere_lives_as_long_as_it_is_not_silent() -> None:
    elsewhere = {**this_process(), "machine": "another board", "pid": 1, "boot": "its own"}
    assert is_alive(elsewhere)
    assert is_alive({**elsewhere, "at": time.time() - 800.0})
    assert not is_alive({**elsewhere, "at": time.time() - 1000.0})


def test_a_clock_that_was_set_back_keeps_no_dead_process_alive() -> None:
    elsewhere = {**this_process(), "machine": "another board", "pid": 1, "boot": "its own"}
    assert is_alive({**elsewhere, "at": time.time() + 800.0})
    assert not is_alive({**elsewhere, "at": time.time() + 86_400.0})


# The budget and what is chosen


def test_seconds_are_counted_for_each_machine_over_all_its_runs(opens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    search = opens()
    search.spend("first", 10.0, 11.0)
    search.spend("first", 10.0, 12.5)
    opens().spend("second", 20.0, 24.0)
    assert search.spent_s() == 6.5
    search.spend("beside the second", 23.0, 25.0)
    search.spend("within the second", 21.0, 22.0)
    assert search.spent_s() == 7.5
    monkeypatch.setattr(study, "this_machine", lambda: "another")
    assert search.spent_s() == 0.0


def test_what_was_chosen_stays(opens: Any) -> None:
    assert opens().choice("candidates/3", lambda: [(1, 2), (4, 6)]) == [(1, 2), (4, 6)]
    assert opens().choice("candidates/3", list) == [(1, 2), (4, 6)]
    assert opens().choice("candidates/4", lambda: [(2, 2)]) == [(2, 2)]


# Storages


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "",
        "sqlite:////nowhere/at/all/search.db",
        "postgresql+psycopg://someone:secret@127.0.0.1:1/none",
        "postgresql+psycopg://someone:secret@127.0.0.1:port/none",
        "postgresql+psycopg:/someone:secret@127.0.0.1/none",
        "postgresql+psycopg://127.0.0.1:1/none?user=someone&password=secret",
        "nosuchdatabase://someone:secret@127.0.0.1/none",
        "postgresql+nosuchdriver://someone:secret@127.0.0.1/none",
    ],
)
def test_a_storage_that_cannot_be_opened_is_one_line_without_its_password(url: str, settings_with: Any) -> None:
    with pytest.raises(ConfigError, match=r"the search's storage .* cannot be opened: ") as refused:
        SearchStudy(url, "one", settings_with(), SIZES)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_a_file_that_is_no_database_is_refused(tmp_path: Path, settings_with: Any) -> None:
    (tmp_path / "search.db").write_text("not a database, however long this text may be" * 100)
    with pytest.raises(ConfigError, match="cannot be opened: file is not a database"):
        SearchStudy(f"sqlite:///{tmp_path / 'search.db'}", "one", settings_with(), SIZES)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite+pysqlite://"])
def test_a_storage_that_no_other_process_can_see_is_refused(url: str, settings_with: Any) -> None:
    with pytest.raises(ConfigError, match="is in memory, where other processes cannot see it; name a file or a server"):
        SearchStudy(url, "one", settings_with(), SIZES)


@pytest.mark.parametrize("name", ["plain.db", "a b.db", "a?b#c.db", "a%41.db", "a{b}.db", "é.db"])
def test_a_file_is_found_whatever_it_is_called(tmp_path: Path, settings_with: Any, name: str) -> None:
    with SearchStudy(file_url(tmp_path / name), "one", settings_with(), SIZES):
        assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("directions", [["minimize"], ["minimize"] * 2])
def test_a_study_of_something_else_is_refused(storage: str, settings_with: Any, directions: list[str]) -> None:
    theirs = optuna.create_study(storage=storage, study_name="one", directions=directions)
    theirs.tell(theirs.ask(), [1.0] * len(directions))
    with pytest.raises(ConfigError, match="'one' in this storage is no search of vectors; give this search another"):
        SearchStudy(storage, "one", settings_with(), SIZES)
    assert theirs.user_attrs == {}


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE trials SET state = 'COMALETE' WHERE state = 'COMPLETE'",
        "DELETE FROM trial_user_attributes WHERE key = 'losses'",
        "UPDATE trial_user_attributes SET value_json = '[1' WHERE key = 'losses'",
        "UPDATE trial_user_attributes SET value_json = '1' WHERE key = 'losses'",
    ],
)
def test_a_storage_with_damage_in_what_it_holds_is_an_error_of_ours(opens: Any, storage: str, damage: str) -> None:
    screen(opens())
    with closing(sqlite3.connect(storage.removeprefix("sqlite:///"))) as base, base:
        assert base.execute(damage).rowcount == 1

    def read_it() -> None:
        opens().evaluations()

    with pytest.raises((ConfigError, StateError), match=r"damaged \(|cannot be opened: "):
        read_it()


def test_a_failure_is_told_without_the_statement_that_failed(opens: Any, storage: str) -> None:
    search = opens()
    with closing(sqlite3.connect(storage.removeprefix("sqlite:///"))) as base, base:
        base.execute("DROP TABLE trial_user_attributes")

    def write() -> None:
        with search:
            search.request(TASKS[:1])

    with pytest.raises(StateError, match=r"failed: no such table: trial_user_attributes; what it holds stays"):
        write()


def test_a_url_is_shown_without_what_is_secret() -> None:
    assert without_password("postgresql://me:secret@host/base") == "postgresql://me:***@host/base"
    assert without_password("postgresql://host/base?password=secret") == "postgresql://host/base"
    assert without_password("postgresql:me:secret@host/base?x") == "'host/base'"


def test_a_storage_that_fails_later_is_an_error_of_ours(opens: Any, storage: str) -> None:
    def lose_it() -> None:
        with opens() as search:
            Path(storage.removeprefix("sqlite:///")).write_text("overwritten" * 10_000)
            search.evaluations()

    with pytest.raises(StateError, match=r"the search's storage sqlite:.* failed: .*; what it holds stays"):
        lose_it()


def test_all_that_starts_at_once_on_an_empty_storage_can_open_it(storage: str, settings_with: Any) -> None:
    settings = msgspec.json.encode(settings_with()).decode()
    code = _DIES.replace("signal.pause()", "")
    command = [sys.executable, "-c", code, storage, settings, "training"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(4)
    ]
    for process in started:
        output, error = process.communicate(timeout=60)
        assert (process.returncode, output, error) == (0, "ready\n", "")

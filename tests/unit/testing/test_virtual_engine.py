"""troupe_engine: what a user's test sees of an engine in virtual time."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import trio
from fastapi import FastAPI

from engine import Config, Engine, RunContext, TaskGroup
from engine.errors import (
    ConfigError,
    DuplicateGroup,
    EngineStateError,
    InvalidInstant,
    NothingTriggered,
    NotSettled,
    RedisUnavailable,
    TaskDeclarationError,
    TaskTypeError,
    UnknownTask,
)
from engine.testing import TroupeEngine
from integrations.fastapi import TaskManager

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def shop() -> TaskGroup:
    """The group that the engine of a test runs."""
    return TaskGroup("shop")


@pytest.fixture
def troupe_groups(shop: TaskGroup) -> list[TaskGroup]:
    """As a user's conftest has it."""
    return [shop]


def quick() -> None:
    """A task that has nothing to do."""


# -- slots and the clock ----------------------------------------------------------------------------------------------


def test_a_night_passes_in_a_moment(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """Without a start, on the first of January 2026; the slot at the last instant is included."""
    shop.add_task("0 3 * * *")(quick)
    assert str(troupe_engine.now) == "2026-01-01 00:00:00+00:00"
    assert troupe_engine.advance(hours=2, minutes=59) == []
    [run] = troupe_engine.advance(minutes=1)
    assert (run.task, run.verdict, str(run.slot)) == ("shop/quick", "ran", "2026-01-01 03:00:00+00:00")
    troupe_engine.assert_ran("shop/quick", times=1, at="2026-01-01 03:00")
    troupe_engine.assert_scheduled("shop/quick", next="2026-01-02 03:00")


@pytest.mark.parametrize(
    ("start", "slots"),
    [
        ("2026-03-28 12:00", ["2026-03-29 03:00", "2026-03-30 02:30"]),
        ("2026-10-24 12:00", ["2026-10-25 02:30+02:00", "2026-10-26 02:30"]),
    ],
    ids=["skipped hour", "repeated hour"],
)
def test_a_day_on_which_the_clocks_change(
    shop: TaskGroup, troupe_engine: TroupeEngine, start: str, slots: list[str]
) -> None:
    """A time that the change skips runs at the first moment after it, one that occurs twice the first time only."""
    shop.add_task("30 2 * * *", timezone="Europe/Rome")(quick)
    troupe_engine.start(start=start, timezone="Europe/Rome")
    troupe_engine.advance(days=2)
    troupe_engine.assert_ran("shop/quick", times=2, at=slots)
    assert troupe_engine.verdicts("shop/quick") == ["ran", "ran"]


def test_the_clock_goes_on_to_an_instant(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """In the zone of the engine, if it does not say; never back."""
    shop.add_task("0 * * * *")(quick)
    troupe_engine.start(start="2026-07-01 10:30", timezone="Europe/Rome")
    troupe_engine.advance(to="2026-07-01 12:00")
    assert str(troupe_engine.now) == "2026-07-01 12:00:00+02:00"
    troupe_engine.advance(timedelta(minutes=30), seconds=1.5)
    assert str(troupe_engine.now) == "2026-07-01 12:30:01.500000+02:00"
    with pytest.raises(EngineStateError, match=r"time does not go back, and this is 0:30:01\.500000 ago"):
        troupe_engine.advance(to="2026-07-01 12:00")
    assert troupe_engine.verdicts("shop/quick") == ["ran", "ran"]


def test_a_year_in_which_little_happens_takes_no_time(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """Stretches in which nothing is due are skipped, and nobody loses a lease by that."""
    shop.add_task("0 12 1 * *")(quick)
    troupe_engine.start(workers=2)
    leader = troupe_engine.leader
    troupe_engine.advance(days=365)
    troupe_engine.assert_ran("shop/quick", times=12)
    assert troupe_engine.leader == leader
    assert len(troupe_engine.workers) == 2


def test_functions_take_virtual_time(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """``run_due`` waits for their end, ``advance`` for its own."""

    @shop.add_task("0 3 * * *")
    async def report() -> None:
        await trio.sleep(3_600)

    troupe_engine.advance(to="2026-01-01 03:00")
    [run] = troupe_engine.runs("shop/report")
    assert (run.verdict, run.state) == (None, "running")
    [run] = troupe_engine.run_due()
    assert run.verdict == "ran"
    assert run.attempts[0].duration_s == pytest.approx(3_600)
    assert str(troupe_engine.now) == "2026-01-01 04:00:00+00:00"
    assert troupe_engine.run_due() == []


# -- what becomes of a run --------------------------------------------------------------------------------------------


def test_a_retry_comes_after_its_backoff(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """Until then the run waits, and its report says for what."""
    failures = iter([ValueError("no paper"), ValueError("no ink")])

    @shop.add_task("0 3 * * *", retry_backoff=60, retry_backoff_max=3_600)
    def report() -> None:
        for failure in failures:
            raise failure

    troupe_engine.advance(to="2026-01-01 03:00:30")
    [run] = troupe_engine.runs("shop/report")
    assert (run.state, str(run.retry_at)) == ("waiting", "2026-01-01 03:01:00+00:00")
    assert "waiting, tried again Thu 2026-01-01 03:01 UTC: ValueError: no paper" in troupe_engine.report("shop/report")
    troupe_engine.advance(to="2026-01-01 03:02:59")
    assert [start.attempt for start in troupe_engine.starts("shop/report")] == [1, 2]
    troupe_engine.advance(seconds=1)
    troupe_engine.assert_ran("shop/report", times=1)
    [run] = troupe_engine.runs("shop/report")
    assert [attempt.outcome for attempt in run.attempts] == ["failed", "failed", "ran"]
    assert "no ink" in str(run.error)


def test_a_slot_that_would_overlap_is_skipped(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """With ``allow_parallel=False``."""

    @shop.add_task("*/10 * * * *", allow_parallel=False)
    async def sync() -> None:
        await trio.sleep(15 * 60)

    troupe_engine.advance(minutes=40)
    troupe_engine.assert_ran("shop/sync", times=2, verdict="skipped", reason="overlap")
    troupe_engine.assert_ran("shop/sync", at="2026-01-01 00:10")
    troupe_engine.assert_ran("shop/sync", at=["2026-01-01 00:20", "2026-01-01 00:40"], verdict="skipped")


def test_a_function_that_takes_too_long_has_timed_out(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """Whether it is ``async def`` or, with ``troupe_engine.sleep`` for ``time.sleep``, a ``def``."""

    @shop.add_task("0 3 * * *", timeout=60)
    async def awaits() -> None:
        await trio.sleep(61)

    @shop.add_task("0 3 * * *", timeout=60)
    def sleeps() -> None:
        troupe_engine.sleep(61)

    troupe_engine.advance(to="2026-01-01 03:10")
    for task in ("shop/awaits", "shop/sleeps"):
        troupe_engine.assert_ran(task, times=1, verdict="failed", reason="timed out")
        [run] = troupe_engine.runs(task)
        assert run.attempts[0].duration_s == pytest.approx(60)


def test_a_paused_task_does_not_run(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """Until it is resumed; a trigger needs force."""
    shop.add_task("0 * * * *")(quick)
    troupe_engine.pause("shop/quick")
    troupe_engine.advance(hours=1)
    troupe_engine.assert_ran("shop/quick", times=1, verdict="skipped", reason="paused")
    with pytest.raises(NothingTriggered):
        troupe_engine.trigger("shop/quick")
    assert troupe_engine.trigger("shop/quick", force=True).startswith("shop/quick@t-")
    troupe_engine.resume("shop/quick")
    troupe_engine.advance(hours=1)
    assert troupe_engine.verdicts("shop/quick") == ["skipped", "ran", "ran"]


def test_a_run_that_is_triggered_runs_at_once(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """Without time for it only as far as it gets without time."""
    seen: list[int | None] = []

    @shop.add_task("0 0 1 1 *")
    async def yearly() -> None:
        seen.append(RunContext.current().slot_ms)
        await trio.sleep(5)

    run_id = troupe_engine.trigger("shop/yearly")
    assert seen == [None]
    [run] = troupe_engine.run_due()
    assert (run.run_id, run.slot, run.verdict) == (run_id, None, "ran")
    assert "triggered  ran" in troupe_engine.report("shop/yearly")


# -- workers and Redis ------------------------------------------------------------------------------------------------


def test_another_worker_starts_the_run_of_one_that_was_killed(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """When its lease has ended. Of the dead no line is executed any more, not even a ``finally``."""
    told: list[str] = []

    @shop.add_task("0 3 * * *")
    async def report() -> None:
        worker = RunContext.current().worker_id
        try:
            await trio.sleep(60)
            told.append(f"{worker} ends")
        finally:
            told.append(f"{worker} cleans up")

    first = troupe_engine.start_worker()  # the first of all was started by this
    troupe_engine.advance(to="2026-01-01 03:00:10")
    [start] = troupe_engine.starts("shop/report")
    troupe_engine.kill_worker(start.worker)
    [other] = troupe_engine.workers
    assert other != start.worker
    assert {other, start.worker} >= {first}
    troupe_engine.advance(minutes=3)
    again = troupe_engine.starts("shop/report")
    assert [one.worker for one in again] == [start.worker, other]
    assert again[0].run_id == again[1].run_id
    assert again[0].fence < again[1].fence
    assert told == [f"{other} ends", f"{other} cleans up"]
    assert troupe_engine.verdicts("shop/report") == ["ran"]


def test_a_worker_that_is_stopped_hands_its_runs_back(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """After ``shutdown_grace``; the attempt does not count."""

    @shop.add_task("0 3 * * *")
    async def report() -> None:
        await trio.sleep(600)

    troupe_engine.start(workers=2, shutdown_grace=10)
    troupe_engine.advance(to="2026-01-01 03:00:10")
    troupe_engine.stop_worker(troupe_engine.starts("shop/report")[0].worker)
    troupe_engine.run_due()
    first, second = troupe_engine.starts("shop/report")
    assert (first.outcome, second.outcome) == ("cancelled", "returned")
    assert (first.attempt, second.attempt) == (1, 1)
    assert len(troupe_engine.workers) == 1


def test_which_worker_is_meant_must_be_clear(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """One that lives; with several it is named."""
    shop.add_task("0 3 * * *")(quick)
    troupe_engine.start(workers=2)
    with pytest.raises(EngineStateError, match=r"Engine\.kill_worker: name one of the workers that live: .*, .*"):
        troupe_engine.kill_worker()
    troupe_engine.kill_worker(troupe_engine.leader)
    troupe_engine.stop_worker()
    assert troupe_engine.workers == []
    troupe_engine.advance(days=2)
    assert troupe_engine.runs("shop/quick") == []
    troupe_engine.start_worker()
    troupe_engine.advance(minutes=1)
    troupe_engine.assert_ran("shop/quick", at="2026-01-02 03:00")
    troupe_engine.assert_ran("shop/quick", at="2026-01-01 03:00", verdict="missed")


def test_a_slot_that_comes_while_redis_is_away_runs_when_it_is_back(
    shop: TaskGroup, troupe_engine: TroupeEngine
) -> None:
    """And what a test asks of Redis meanwhile is refused, as it is to an operator."""
    shop.add_task("0 3 * * *")(quick)
    troupe_engine.advance(to="2026-01-01 02:59")
    troupe_engine.stop_redis()
    troupe_engine.advance(minutes=10)
    assert troupe_engine.runs("shop/quick") == []
    with pytest.raises(RedisUnavailable):
        troupe_engine.trigger("shop/quick")
    troupe_engine.start_redis()
    troupe_engine.advance(minutes=1)
    troupe_engine.assert_ran("shop/quick", times=1, at="2026-01-01 03:00")


def test_workers_can_have_settings_of_their_own(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """As hosts of different size have."""
    shop.add_task("0 3 * * *")(quick)
    troupe_engine.start(workers=1, concurrent_tasks=0)
    troupe_engine.advance(to="2026-01-01 03:05")
    assert [run.state for run in troupe_engine.runs("shop/quick")] == ["queued"]
    troupe_engine.start_worker(concurrent_tasks=1)
    assert troupe_engine.verdicts("shop/quick") == ["ran"]


# -- what takes real time ---------------------------------------------------------------------------------------------


def test_time_stands_still_while_a_thread_is_at_work(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """However long it takes, it takes no virtual time; so no timeout and no lease ends."""
    instants: list[str] = []

    @shop.add_task("0 3 * * *", timeout=1)
    def count() -> None:
        instants.append(str(troupe_engine.now))
        time.sleep(0.3)
        instants.append(str(troupe_engine.now))

    troupe_engine.advance(hours=4)
    assert instants == ["2026-01-01 03:00:00+00:00"] * 2
    troupe_engine.assert_ran("shop/count", times=1)


def test_a_thread_that_a_coroutine_has_started_is_waited_for(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """As a file, or a driver without ``await``, is used in an ``async def``."""

    @shop.add_task("0 3 * * *", timeout=1)
    async def read() -> None:
        await trio.to_thread.run_sync(time.sleep, 0.2)

    troupe_engine.advance(hours=4)
    assert [attempt.duration_s for run in troupe_engine.runs("shop/read") for attempt in run.attempts] == [0]


def test_a_socket_is_waited_for(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """A function that asks another program, which takes its time."""

    @shop.add_task("0 3 * * *", timeout=1)
    async def ask() -> None:
        await trio.run_process(["sleep", "0.2"])

    troupe_engine.advance(hours=4)
    troupe_engine.assert_ran("shop/ask", times=1)


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_what_never_ends_is_named_with_the_line_where_it_stands(
    shop: TaskGroup, troupe_engine: TroupeEngine, kind: str
) -> None:
    """After ``patience_s`` of real time in which nothing has moved."""
    gate = threading.Event()

    def waits() -> None:
        gate.wait()

    async def blocks() -> None:
        await trio.lowlevel.checkpoint()
        gate.wait()

    shop.add_task("0 3 * * *", name="stuck")(waits if kind == "def" else blocks)
    troupe_engine.start(patience_s=0.5)
    line = (waits if kind == "def" else blocks).__code__.co_firstlineno + (1 if kind == "def" else 2)
    try:
        with pytest.raises(NotSettled) as caught:
            troupe_engine.advance(hours=4)
    finally:
        gate.set()
    assert (
        f"run shop/stuck@1767236400000 stands in {__file__}:{line} ({'waits' if kind == 'def' else 'blocks'})"
        in str(caught.value)
    )
    assert "nothing has moved for 0.5 s of real time (patience_s)" in str(caught.value)


def test_a_run_that_does_not_end_is_given_up_after_a_day(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """By ``run_due``, which would otherwise wait for ever."""

    @shop.add_task("0 3 * * *")
    async def forever() -> None:
        await trio.sleep_forever()

    troupe_engine.trigger("shop/forever")
    with pytest.raises(NotSettled, match="did not end within a day of virtual time"):
        troupe_engine.run_due()
    troupe_engine.kill_worker()
    with pytest.raises(NotSettled, match=r"there is no worker; start one with start_worker\(\)"):
        troupe_engine.run_due()


def test_a_function_cannot_drive_the_time_in_which_it_runs(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """Nor does a test sleep."""

    @shop.add_task("0 3 * * *", max_retries=0)
    async def drives() -> None:
        await trio.lowlevel.checkpoint()
        troupe_engine.advance(hours=1)

    troupe_engine.trigger("shop/drives")
    [run] = troupe_engine.runs("shop/drives")
    assert "a task's function cannot drive the time in which it runs" in str(run.error)
    with pytest.raises(EngineStateError, match="a test calls advance"):
        troupe_engine.sleep(1)


@pytest.mark.parametrize("seed", range(8))
def test_every_seed_is_as_good_as_another(shop: TaskGroup, seed: int) -> None:
    """The order of tasks changes nothing of what a test is told."""

    @shop.add_task("*/10 * * * *")
    async def works() -> None:
        await trio.sleep(30)

    engine = TroupeEngine(shop)
    engine.start(workers=2, seed=seed, patience_s=10)
    engine.advance(minutes=15)
    engine.kill_worker(engine.leader)
    engine.advance(minutes=20)
    engine.assert_ran("shop/works", times=3)
    engine.close()


# -- from where it is made --------------------------------------------------------------------------------------------


def engine_of(group: TaskGroup) -> Engine:
    return Engine(Config(redis_url="redis://nowhere:1/0", concurrent_tasks=3, enabled=False), [group])


@pytest.mark.parametrize(
    "make",
    [
        engine_of,
        lambda group: TaskManager(FastAPI(), engine=engine_of(group)),
    ],
    ids=["Engine", "TaskManager"],
)
def test_an_application_gives_its_groups_and_settings(
    shop: TaskGroup, make: Callable[[TaskGroup], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not where its Redis is, nor whether it is enabled. The environment of whoever runs the tests is not asked."""
    monkeypatch.setenv("TROUPE_SHUTDOWN_GRACE", "1")
    shop.add_task("0 3 * * *")(quick)
    given = make(shop)
    monkeypatch.setenv("TROUPE_QUEUE_CAP", "1")
    engine = TroupeEngine(given)
    engine.start(ledger_length=7)
    try:
        config = engine.config
        assert (config.concurrent_tasks, config.ledger_length, config.queue_cap) == (3, 7, 1_000)
        assert (config.redis_host, config.redis_url, config.enabled) == ("in-process", None, True)
        assert engine.groups == (shop,)
        engine.advance(hours=3)
        engine.assert_ran("shop/quick")
    finally:
        engine.close()
    assert not given.engine.config.enabled if isinstance(given, TaskManager) else not given.config.enabled


def test_what_cannot_be_run_is_refused(shop: TaskGroup) -> None:
    """Before anything starts, and the engine can be started all the same."""
    shop.add_task("0 3 * * *")(quick)
    engine = TroupeEngine()
    refused: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (TaskTypeError, "give TaskGroups, an Engine or a TaskManager", {"groups": ["shop"]}),
        (TaskTypeError, "give TaskGroups, an Engine or a TaskManager", {"groups": 3}),
        (DuplicateGroup, "'shop'", {"groups": [shop, TaskGroup("shop")]}),
        (ConfigError, "concurrent_task", {"groups": shop, "concurrent_task": 1}),
        (InvalidInstant, "'soon' is no date and time", {"groups": shop, "start": "soon"}),
        (InvalidInstant, "'Europe/Roma' is no time zone; write 'Europe/Rome'", {"timezone": "Europe/Roma"}),
        (
            InvalidInstant,
            "'2026-03-29 02:30' does not exist in Europe/Rome",
            {"start": "2026-03-29 02:30", "timezone": "Europe/Rome"},
        ),
    ]
    for kind, text, given in refused:
        with pytest.raises(kind, match=text):
            engine.start(**given)
    hasty = TaskGroup("hasty")
    hasty.add_task("0 3 * * *", retry_backoff=600)(quick)
    with pytest.raises(TaskDeclarationError, match="task 'hasty/quick', retry_backoff: 600 s is above Config"):
        engine.start(hasty)
    engine.start(shop)
    with pytest.raises(EngineStateError, match="it runs already"):
        engine.start(shop)
    engine.close()
    engine.close()
    with pytest.raises(EngineStateError, match="it has ended"):
        engine.advance(hours=1)


def test_a_task_that_there_is_not_is_named_with_the_nearest(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """By everything that takes the name of a task."""
    shop.add_task("0 3 * * *")(quick)
    for ask in (troupe_engine.trigger, troupe_engine.runs, troupe_engine.assert_ran, troupe_engine.assert_scheduled):
        with pytest.raises(UnknownTask, match=r"'shop/quikc', name: no such task; did you mean 'shop/quick'\?"):
            ask("shop/quikc")


def test_tasks_that_are_made_at_run_time_run_too(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """By the group, as in the application: it is in use by the engine."""
    shop.register_function(quick)
    troupe_engine.start()
    shop.add_dynamic_task("quick", "0 3 * * *", name="later")
    troupe_engine.advance(hours=4)
    troupe_engine.assert_ran("shop/later", times=1)


def test_a_test_can_call_something_where_the_functions_run(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """To open and to ask what belongs to their loop."""
    opened: list[trio.lowlevel.TrioToken] = []

    async def open_pool(name: str) -> str:
        await trio.sleep(5)
        opened.append(trio.lowlevel.current_trio_token())
        return name

    @shop.add_task("0 3 * * *", max_retries=0)
    async def uses() -> None:
        await trio.lowlevel.checkpoint()
        assert opened == [trio.lowlevel.current_trio_token()]

    assert troupe_engine.run_async(open_pool, "pool") == "pool"
    troupe_engine.trigger("shop/uses")
    troupe_engine.assert_ran("shop/uses")
    assert str(troupe_engine.now) == "2026-01-01 00:00:05+00:00"


async def test_an_asynchronous_test_uses_it_in_the_same_way(shop: TaskGroup, troupe_engine: TroupeEngine) -> None:
    """Under pytest-trio: the functions run on a loop of their own, whose time is none of the test's."""
    before_s = trio.current_time()
    tokens: list[trio.lowlevel.TrioToken] = []

    @shop.add_task("0 3 * * *")
    async def report() -> None:
        tokens.append(trio.lowlevel.current_trio_token())
        await trio.sleep(3_600)

    troupe_engine.advance(hours=3)
    await trio.to_thread.run_sync(troupe_engine.run_due)
    troupe_engine.assert_ran("shop/report", times=1)
    assert trio.current_time() - before_s < 1_000
    assert tokens != [trio.lowlevel.current_trio_token()]

"""What operators do: which tasks are meant, what is done to them, and what is told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from engine.domain.group import TaskGroup
from engine.errors import NoSuchGroup, NoSuchTask, NothingTriggered, TaskDeclarationError
from engine.management import Affected, Match, SkippedTask, TaskName
from engine.store.script import script_of
from tests.unit.actors.stage import noting

if TYPE_CHECKING:
    from trio.testing import MockClock

    from engine.management import Management
    from engine.store.catalog import RecordedEvent
    from engine.views import TaskView
    from tests.unit.actors.stage import Stage, Worker

YEARLY = "0 0 1 1 *"


async def failing(group: TaskGroup, name: str, **settings: object) -> list[float]:
    """A task that always raises, and when it started."""
    starts: list[float] = []

    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        starts.append(trio.current_time())
        raise ValueError(name)

    group.add_task(YEARLY, name=name, **settings)(fail)  # type: ignore[arg-type]
    return starts


async def one(management: Management, name: str) -> TaskView:
    [view] = await management.tasks(Match(name=name))
    return view


async def running(stage: Stage, *groups: TaskGroup, **settings: float) -> Worker:
    worker = await stage.worker(*groups, **settings)
    await stage.until(trio.current_time() + 5)
    return worker


def two_groups() -> tuple[TaskGroup, TaskGroup]:
    """Tasks ``a`` and ``b`` with and without tags, and another ``a`` in a group of its own."""
    first, second = TaskGroup("first", tags=["all"]), TaskGroup("second")
    noting(first, YEARLY, name="a", tags=["x"])
    noting(first, YEARLY, name="b")
    noting(second, YEARLY, name="a")
    return first, second


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (Match(), ["first/a", "first/b", "second/a"]),
        (Match(group="first"), ["first/a", "first/b"]),
        (Match(name="a"), ["first/a", "second/a"]),
        (Match(tag="x"), ["first/a"]),
        (Match(tag="all"), ["first/a", "first/b"]),
        (Match(group="second", tag="all"), []),
        (Match(name="A"), []),
    ],
    ids=str,
)
async def test_filters_are_exact_and_all_of_them_hold(
    match: Match, expected: list[str], autojump_clock: MockClock, stage: Stage
) -> None:
    """A task without the tag, or without any, does not match; a change of nothing is refused."""
    worker = await running(stage, *two_groups())
    views = await worker.management.tasks(match)
    assert [f"{view.definition.group}/{view.definition.name}" for view in views] == expected
    if expected:
        done = await worker.management.pause(match, who="me")
        assert [f"{task.group}/{task.name}" for task in done.tasks] == expected
    else:
        with pytest.raises(NoSuchTask):
            await worker.management.pause(match, who="me")


async def test_a_pause_says_who_and_why_and_lasts_until_it_is_ended(autojump_clock: MockClock, stage: Stage) -> None:
    """Each change is an event with what and who."""
    group = TaskGroup("g")
    starts = noting(group, "* * * * *", name="t")
    worker = await running(stage, group)
    await worker.management.pause(Match(name="t"), who="ann", why="broken")
    pause = (await one(worker.management, "t")).pause
    assert pause is not None
    assert (pause.who, pause.why, pause.until_ms) == ("ann", "broken", None)
    await stage.until(1_200)
    assert starts == []
    assert await worker.management.resume(Match(name="t"), who="bob") == Affected((TaskName("g", "t"),))
    assert (await one(worker.management, "t")).pause is None
    await stage.until(1_265)
    assert len(starts) == 1
    told = [(event.name, event.fields.get("what"), event.fields.get("who")) for event in await events(stage)]
    assert ("paused", "g/t", "ann") in told
    assert ("resumed", "g/t", "bob") in told


async def test_a_trigger_takes_two_requests(autojump_clock: MockClock, stage: Stage) -> None:
    """Whether the tasks have changed, and the trigger itself: somebody waits for it. Else they are read again."""
    group = TaskGroup("g")
    starts = noting(group, YEARLY, name="t")
    worker = await running(stage, group)
    for number in range(2):
        await trio.sleep(0.1)
        before = len(worker.cable.sent)
        await worker.management.trigger(Match(group="g", name="t"), who="me")
        words = [script_of(command) or command[0] for _, command in worker.cable.sent[before:]]
        if number == 1:
            assert words[:2] == ["GET", "trigger"]
    await stage.until(10)
    assert len(starts) == 2
    await worker.management.pause(Match(name="t"), who="me")
    with pytest.raises(NothingTriggered, match="disabled"):
        await worker.management.trigger(Match(group="g", name="t"), who="me")


async def events(stage: Stage) -> list[RecordedEvent]:
    return await stage.store.catalog.recent_events(count=100)


async def test_a_trigger_runs_at_once_beside_the_schedule(autojump_clock: MockClock, stage: Stage) -> None:
    """It answers with run ids, whose verdicts are in the ledger."""
    group = TaskGroup("g")
    starts = noting(group, YEARLY, name="t")
    worker = await running(stage, group)
    before = (await one(worker.management, "t")).next_run_ms
    triggered = await worker.management.trigger(Match(), who="ann")
    [(task, run_id)] = triggered.runs
    assert task == TaskName("g", "t")
    await stage.until(trio.current_time() + 1)
    assert len(starts) == 1
    assert [entry.run_id for entry in await stage.ledger("g/t")] == [run_id]
    assert (await one(worker.management, "t")).next_run_ms == before


async def test_a_paused_task_is_triggered_by_force_only(autojump_clock: MockClock, stage: Stage) -> None:
    """Of several, the others run, and the answer says which did not; a task that is named must run."""
    group = TaskGroup("g")
    starts = {name: noting(group, YEARLY, name=name) for name in ("a", "b")}
    worker = await running(stage, group)
    await worker.management.pause(Match(name="a"), who="me")
    triggered = await worker.management.trigger(Match(), who="me")
    assert [task.name for task, _ in triggered.runs] == ["b"]
    assert triggered.skipped == (SkippedTask("g", "a", "disabled"),)
    with pytest.raises(NothingTriggered, match=r"g/a \(disabled\); enable it first") as refused:
        await worker.management.trigger(Match(name="a"), who="me")
    assert refused.value.refused == [("g", "a", "disabled")]
    await stage.until(trio.current_time() + 1)
    assert (len(starts["a"]), len(starts["b"])) == (0, 1)
    await worker.management.trigger(Match(name="a"), who="me", force=True)
    await stage.until(trio.current_time() + 1)
    assert (len(starts["a"]), len(starts["b"])) == (1, 1)


async def test_a_named_task_that_is_paused_keeps_its_namesakes_from_running(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """All or nothing: whoever names a task must not find out later that another ran."""
    worker = await running(stage, *two_groups())
    await worker.management.pause(Match(group="first"), who="me")
    with pytest.raises(NothingTriggered):
        await worker.management.trigger(Match(name="a"), who="me")
    await stage.until(trio.current_time() + 1)
    assert await stage.ledger("second/a") == []


async def test_a_retry_that_waits_is_shown_reset_and_taken_over_by_a_trigger(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """``retry_delay_s`` is what the backoff gave it."""
    group = TaskGroup("g")
    starts = await failing(group, "t", retry_backoff=100, retry_backoff_max=1_000, max_retries=5, allow_parallel=False)
    worker = await running(stage, group)
    await worker.management.trigger(Match(name="t"), who="me")
    await stage.until(trio.current_time() + 1)
    view = await one(worker.management, "t")
    assert (view.waiting, view.retry_delay_s) == (1, 100)
    assert view.retry_after_ms == pytest.approx(stage.now_ms() + 99_000, abs=1_500)

    assert await worker.management.reset_retry(Match(), who="me") == Affected((TaskName("g", "t"),))
    await stage.until(trio.current_time() + 1)
    assert len(starts) == 2
    view = await one(worker.management, "t")
    assert (view.waiting, view.retry_delay_s) == (1, 200)

    await worker.management.trigger(Match(name="t"), who="me")
    await stage.until(trio.current_time() + 1)
    assert len(starts) == 3
    view = await one(worker.management, "t")
    assert (view.waiting, view.retry_delay_s) == (1, 100)
    assert await stage.verdicts("g/t") == [("failed", "superseded")]


async def test_statistics_tell_of_attempts_as_soon_as_they_have_ended(autojump_clock: MockClock, stage: Stage) -> None:
    """Failed ones too, while their run still waits for its retry; cleared, they are hidden, and the ledger stays."""
    group = TaskGroup("g")
    await failing(group, "t", retry_backoff=60, max_retries=1)
    worker = await running(stage, group)
    manage = worker.management
    await manage.trigger(Match(name="t"), who="me")
    await stage.until(trio.current_time() + 1)
    [first] = await manage.statistics("g", "t")
    assert (first.outcome, first.attempt, first.worker) == ("failed", 1, worker.identity.worker_id)
    assert first.error is not None
    assert first.error.startswith("ValueError: t")
    await stage.until(trio.current_time() + 70)
    assert [attempt.attempt for attempt in await manage.statistics("g", "t")] == [2, 1]
    await manage.clear_statistics(Match(), who="me")
    assert await manage.statistics("g", "t") == []
    assert len(await stage.ledger("g/t")) == 1
    await manage.trigger(Match(name="t"), who="me")
    await stage.until(trio.current_time() + 1)
    assert [attempt.attempt for attempt in await manage.statistics("g", "t")] == [1]
    await stage.until(trio.current_time() + 1)
    await manage.clear_statistics(Match(), who="me")
    assert await manage.statistics("g", "t") == []
    await stage.until(trio.current_time() + 70)
    assert [attempt.attempt for attempt in await manage.statistics("g", "t")] == [2]  # with its verdict, not the first
    with pytest.raises(NoSuchTask):
        await manage.statistics("g", "nobody")


async def test_a_task_whose_function_no_live_worker_has_is_an_orphan(autojump_clock: MockClock, stage: Stage) -> None:
    """It can still be removed."""

    async def work() -> None:
        await trio.lowlevel.checkpoint()

    old, new = TaskGroup("g"), TaskGroup("g")
    old.register_function(work, name="old")
    new.register_function(work, name="new")
    first, second = await running(stage, old), await running(stage, new)
    await old.create_task("old", YEARLY, name="t")
    await stage.until(trio.current_time() + 1)
    assert not (await one(second.management, "t")).orphan
    assert new.tasks == []
    await first.stop()
    await stage.until(trio.current_time() + 60)
    assert (await one(second.management, "t")).orphan
    await second.management.remove("g", "t", who="me")
    assert await second.management.tasks(Match()) == []


async def test_workers_say_what_they_are(autojump_clock: MockClock, stage: Stage) -> None:
    """Who leads, what runs, and which functions each knows."""
    group = TaskGroup("g")
    noting(group, YEARLY, name="t")
    await running(stage, group)
    follower = await running(stage, TaskGroup("h"), concurrent_tasks=7)
    views = {view.pid: view for view in await follower.management.workers()}
    leaders = [view.leader for view in views.values()]
    assert sorted(leaders) == [False, True]
    assert views[1].functions == ["g/t"]
    assert views[2].functions == []
    assert (views[2].host, views[2].concurrent_tasks, views[2].running) == ("host2", 7, 0)
    assert views[2].version


async def test_a_task_that_contradicts_the_config_is_not_made(autojump_clock: MockClock, stage: Stage) -> None:
    """As code is refused that declares it."""
    group = TaskGroup("g")
    noting(group, YEARLY, name="t")
    worker = await running(stage, group)
    with pytest.raises(TaskDeclarationError, match=r"above Config\.retry_backoff_max"):
        await group.create_task("t", YEARLY, name="new", retry_backoff=300)
    with pytest.raises(NoSuchGroup, match="it has g"):
        worker.management.group("h")

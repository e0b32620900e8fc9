"""What operators do, as the roles see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.domain.names import trigger_run_id
from engine.domain.task import Definition
from engine.store.operations import Accepted, Defined, Trigger
from tests.store.scenario import forget_in_part
from tests.unit.actors.stage import group, noting

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.actors.stage import Stage, Worker

WHO = "an operator"
YEARLY = "0 0 1 1 *"


async def run_now(stage: Stage, task_id: str, *names: str) -> None:
    """Trigger runs of a task."""
    triggers = [Trigger(trigger_run_id(task_id, name), "low", "allow") for name in names]
    assert await stage.store.operations.trigger(triggers, who=WHO, queue_cap=100) == [Accepted()] * len(names)


def readings(stage: Stage, worker: Worker) -> int:
    """How often this worker has read the catalog."""
    return sum(command == ("HGETALL", stage.store.keys.dynamic) for _, command in worker.cable.sent)


async def test_a_triggered_run_starts_at_once_and_nobody_reads_the_catalog_for_it(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """It is in the events, which all processes hear, and changes no task."""
    tasks = group()
    started_s = noting(tasks, YEARLY)
    worker = await stage.worker(tasks)
    await stage.until(5)
    before = readings(stage, worker)
    await run_now(stage, "g/t", "one")
    await stage.until(6)
    assert started_s == [5.0]
    assert await stage.verdicts("g/t") == [("ran", "")]
    assert readings(stage, worker) == before > 0


async def test_a_task_that_is_defined_is_scheduled_and_one_that_is_forgotten_is_not(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """Every process hears of both at once."""
    tasks = group()
    started_s: list[float] = noting(tasks, YEARLY)
    await stage.worker(tasks)
    await stage.until(5.5)
    definition = Definition(group="g", name="new", function="t", expression="* * * * * *", dynamic=True)
    defined = await stage.store.operations.define("g/new", definition.to_json(), "define", who=WHO)
    assert isinstance(defined, Defined)
    await stage.until(8.5)
    assert len(await stage.ledger("g/new")) == 3
    assert await stage.store.operations.forget("g/new", "forget", who=WHO) == 0
    await stage.until(20)
    assert started_s == [6.0, 7.0, 8.0]
    assert await stage.ledger("g/new") == []
    assert "g/new" not in await stage.store.timetable.tasks()


async def test_a_removal_whose_caller_died_is_finished_by_whoever_leads(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """With its next sweep; then the name is free."""
    await stage.worker(group(), concurrent_tasks=0)
    await stage.until(1)
    definition = Definition(group="g", name="t", function="f", expression=YEARLY, dynamic=True)
    await stage.store.operations.define("g/t", definition.to_json(), "define", who=WHO)
    await run_now(stage, "g/t", "one", "two", "three")
    assert await forget_in_part(stage.store, "g/t", most=2) == 2
    assert await stage.store.runs.live("g/t") != {}

    async def name_is_free() -> bool:
        return await stage.store.operations.dynamic("g/t") is None

    assert await stage.becomes(name_is_free, within_s=100) > 1
    assert await stage.store.runs.live("g/t") == {}
    assert await stage.ledger("g/t") == []

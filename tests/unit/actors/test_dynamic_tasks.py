"""Tasks made and removed while engines run: known everywhere at the next event, kept in Redis, gone from all."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import trio

from engine.domain.group import TaskGroup
from engine.errors import EngineStateError, NameTaken, NoSuchTask, PayloadTooLarge, StaticTask, TaskTypeError

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.actors.stage import Stage

EVERY_MINUTE = "* * * * *"


class Process:
    """What one process has: its group, and where its runs started."""

    def __init__(self) -> None:
        self.group = TaskGroup("g")
        self.starts: list[tuple[float, str]] = []
        self.group.register_function(self.note, name="note")

    async def note(self, text: str = "") -> None:
        await trio.lowlevel.checkpoint()
        self.starts.append((trio.current_time(), text))

    def names(self) -> list[str]:
        return [task.name for task in self.group.tasks]


def all_starts(*processes: Process) -> list[tuple[float, str]]:
    return sorted(start for process in processes for start in process.starts)


async def test_a_task_made_through_one_worker_is_known_to_all_and_survives_them(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """Kept in Redis: processes that start later know it too, and it runs once for each slot."""
    one, two = Process(), Process()
    workers = [await stage.worker(one.group), await stage.worker(two.group)]
    await stage.until(5)
    task = await one.group.create_task("note", EVERY_MINUTE, {"text": "hello"}, name="fresh", tags=["x"])
    assert one.names() == ["fresh"]
    await stage.until(6)
    assert two.names() == ["fresh"]
    assert two.group.tasks[0].definition == task.definition
    await stage.until(185)
    assert [(round(at_s), text) for at_s, text in all_starts(one, two)] == [(at, "hello") for at in (60, 120, 180)]
    for worker in workers:
        await worker.stop()
    assert one.names() == []  # what Redis has is known while an engine runs
    later = Process()
    await stage.worker(later.group)
    await stage.until(245)
    assert later.names() == ["fresh"]
    assert len(later.starts) == 1


async def test_a_task_removed_through_one_worker_stops_everywhere(autojump_clock: MockClock, stage: Stage) -> None:
    """With all that is known of it."""
    processes = [Process() for _ in range(3)]
    for process in processes:
        await stage.worker(process.group)
    await stage.until(5)
    await processes[0].group.create_task("note", EVERY_MINUTE, name="fresh")
    await stage.until(65)
    assert len(all_starts(*processes)) == 1
    await processes[2].group.remove_task("fresh")
    await stage.until(66)
    assert [process.names() for process in processes] == [[], [], []]
    await stage.until(400)
    assert len(all_starts(*processes)) == 1
    assert await stage.verdicts("g/fresh") == []
    assert await stage.store.timetable.tasks() == {}
    with pytest.raises(NoSuchTask):
        await processes[0].group.remove_task("fresh")


async def test_a_task_is_made_without_waiting_as_soon_as_redis_is_there(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """In the meantime this process counts on it."""
    one, two = Process(), Process()
    cut, _ = await stage.worker(one.group), await stage.worker(two.group)
    await stage.until(5)
    cut.cable.cut()
    one.group.add_dynamic_task("note", EVERY_MINUTE, name="fresh")
    one.group.add_dynamic_task("note", EVERY_MINUTE, name="short-lived")
    one.group.remove_dynamic_task("short-lived")
    assert one.names() == ["fresh"]
    await stage.until(20)
    assert two.names() == []
    cut.cable.join()
    await stage.until(30)
    assert one.names() == two.names() == ["fresh"]
    assert one.group.add_dynamic_task("note", EVERY_MINUTE, name="fresh").definition == one.group.tasks[0].definition
    assert cut.outbox.left() == 0


async def test_a_conflict_that_is_found_later_is_an_error_in_the_log(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """One of two different tasks of one name is made; where the other was asked for it is gone."""
    one, two = Process(), Process()
    cut, _ = await stage.worker(one.group), await stage.worker(two.group)
    await stage.until(5)
    cut.cable.cut()
    one.group.add_dynamic_task("note", "0 * * * *", name="fresh")
    two.group.add_dynamic_task("note", EVERY_MINUTE, name="fresh")
    await stage.until(20)
    cut.cable.join()
    await stage.until(30)
    assert [task.expression for task in one.group.tasks] == [task.expression for task in two.group.tasks]
    assert one.group.tasks[0].expression == EVERY_MINUTE
    [error] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert error.name == "fastapi.task-manager.group"
    assert "'fresh' could not be created in group 'g': the name is taken" in error.getMessage()


async def test_a_task_that_is_only_declared_goes_with_the_last_worker_that_declares_it(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """It is kept nowhere; ``retire_after`` later it is scheduled no longer."""
    one, two = Process(), Process()
    first, _ = [await stage.worker(process.group, retire_after=60) for process in (one, two)]
    await stage.until(5)
    one.group.add_dynamic_task("note", EVERY_MINUTE, name="passing", persist=False)
    await stage.until(65)
    assert two.names() == ["passing"]
    assert len(all_starts(one, two)) == 1
    await first.stop()
    await stage.until(260)
    assert two.names() == []
    before = len(two.starts)
    await stage.until(400)
    assert len(two.starts) == before
    assert await stage.store.timetable.tasks() == {}


@pytest.mark.parametrize("how", ["without waiting", "waiting"])
async def test_a_declared_task_that_is_removed_is_gone_from_all_that_declare_it(
    how: str, autojump_clock: MockClock, stage: Stage
) -> None:
    """Also from a process that starts later and declares it; until somebody makes it again."""
    processes = [Process() for _ in range(3)]
    for process in processes:
        process.group.add_dynamic_task("note", EVERY_MINUTE, name="extra")
    for process in processes[:2]:
        await stage.worker(process.group)
    await stage.until(65)
    assert len(all_starts(*processes)) == 1
    if how == "without waiting":
        processes[0].group.remove_dynamic_task("extra")
    else:
        await processes[0].group.remove_task("extra")
    await stage.until(66)
    await stage.worker(processes[2].group)
    await stage.until(400)
    assert [process.names() for process in processes] == [[], [], []]
    assert len(all_starts(*processes)) == 1

    if how == "without waiting":
        processes[1].group.add_dynamic_task("note", EVERY_MINUTE, {"text": "again"}, name="extra", persist=False)
    else:
        await processes[1].group.create_task("note", EVERY_MINUTE, {"text": "again"}, name="extra")
    await stage.until(425)
    assert processes[1].names() == ["extra"]
    assert processes[1].group.tasks[0].kwargs == {"text": "again"}
    await stage.until(545)
    assert [text for _, text in all_starts(*processes)] == ["", "again", "again", "again"]


async def test_the_mark_of_a_removed_task_goes_with_the_last_that_declares_it(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """Then the name is free, and nothing is left of it."""
    one, two = Process(), Process()
    one.group.add_dynamic_task("note", EVERY_MINUTE, name="extra")
    first, _ = [await stage.worker(process.group, retire_after=60) for process in (one, two)]
    await stage.until(5)
    await two.group.remove_task("extra")
    await stage.until(10)
    assert (await stage.store.catalog.contents()).withdrawn == ("g/extra",)
    await first.stop()
    await stage.until(260)
    assert (await stage.store.catalog.contents()).withdrawn == ()


@pytest.mark.parametrize("slow_s", [0.0, 0.1])
async def test_processes_that_declare_different_tasks_of_one_name_hear_of_it_once(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture, slow_s: float
) -> None:
    """One of them runs; whose it is not has an ERROR in its log, and who has not declared yet has none."""
    one, two = Process(), Process()
    one.group.add_dynamic_task("note", "0 * * * *", name="extra")
    two.group.add_dynamic_task("note", EVERY_MINUTE, name="extra")
    await stage.worker(one.group)
    await stage.until(5)
    await stage.worker(two.group, slow_s=slow_s)
    await stage.until(200)
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    [error] = errors
    assert "'extra' of group 'g' is another one elsewhere" in error
    assert {task.expression for process in (one, two) for task in process.group.tasks} == {EVERY_MINUTE}
    assert len(all_starts(one, two)) == 3


async def test_what_cannot_be_made_is_refused_where_it_is_asked_for(autojump_clock: MockClock, stage: Stage) -> None:
    """And nothing is half-done."""
    process = Process()
    process.group.add_task(EVERY_MINUTE, name="code")(process.note)
    with pytest.raises(EngineStateError, match=r"before the start use add_dynamic_task"):
        await process.group.create_task("note", EVERY_MINUTE)
    await stage.worker(process.group, max_payload_bytes=1_000)
    await stage.until(5)
    with pytest.raises(NameTaken, match="'g/code' already"):
        await process.group.create_task("note", EVERY_MINUTE, name="code")
    await process.group.create_task("note", EVERY_MINUTE, name="fresh")
    with pytest.raises(NameTaken):
        await process.group.create_task("note", "0 * * * *", name="fresh")
    with pytest.raises(TaskTypeError, match="unexpected keyword argument 'color'"):
        await process.group.create_task("note", EVERY_MINUTE, {"color": 1})
    with pytest.raises(PayloadTooLarge, match=r"at most 1,000 \(max_payload_bytes\)"):
        await process.group.create_task("note", EVERY_MINUTE, {"text": "x" * 1_000})
    with pytest.raises(StaticTask):
        await process.group.remove_task("code")
    assert process.names() == ["code", "fresh"]


async def test_what_is_too_large_is_refused_at_once(autojump_clock: MockClock, stage: Stage) -> None:
    """Also where nobody waits for Redis."""
    process = Process()
    await stage.worker(process.group, max_payload_bytes=1_000)
    await stage.until(5)
    for persist in (True, False):
        with pytest.raises(PayloadTooLarge, match="g/large takes 1,"):
            process.group.add_dynamic_task("note", EVERY_MINUTE, {"text": "x" * 1_000}, name="large", persist=persist)
    assert process.names() == []


async def test_redis_that_is_full_of_tasks_says_so_at_the_start(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """How many were loaded, once."""
    caplog.set_level(logging.INFO)
    one = Process()
    worker = await stage.worker(one.group)
    await stage.until(5)
    for name in ("a", "b"):
        await one.group.create_task("note", EVERY_MINUTE, name=name)
    await stage.until(10)
    await worker.stop()
    assert "Loaded" not in caplog.text
    two = Process()
    await stage.worker(two.group)
    await stage.until(30)
    [loaded] = [record for record in caplog.records if record.getMessage().startswith("Loaded")]
    assert (loaded.name, loaded.levelno) == ("fastapi.task-manager", logging.INFO)
    assert loaded.getMessage() == "Loaded 2 dynamic task(s) from Redis"
    created = [record for record in caplog.records if " created in group " in record.getMessage()]
    assert [(one.name, one.getMessage()) for one in created] == [
        ("fastapi.task-manager.api", f"Dynamic task '{name}' created in group 'g'") for name in ("a", "b")
    ]

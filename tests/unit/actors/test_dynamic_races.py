"""Tasks made and removed at run time, where processes, threads and outages get in each other's way."""

from __future__ import annotations

import itertools
import logging
import threading
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from actors.reading import Reading
from engine.domain.catalog import merge
from engine.domain.group import TaskGroup
from engine.errors import DuplicateTask, TaskDeclarationError
from engine.management import Match
from tests.unit.actors.stage import noting
from tests.unit.actors.test_dynamic_tasks import EVERY_MINUTE, Process, all_starts
from tests.unit.actors.wires import DelaysReplies, Full, LosesReplies

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock

    from tests.unit.actors.stage import Stage

YEARLY = "0 0 1 1 *"


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def test_the_same_task_made_by_two_processes_at_once_is_no_error(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """As in every start-up code that runs in each of several processes."""
    processes = [Process() for _ in range(4)]
    workers = [await stage.worker(process.group) for process in processes]
    await stage.until(5)
    for worker in workers:
        worker.cable.slow_s = 0.01
    for process in processes:
        process.group.add_dynamic_task("note", EVERY_MINUTE, name="fresh")
    await stage.until(10)
    assert [process.names() for process in processes] == [["fresh"]] * 4
    assert errors(caplog) == []


async def test_a_late_removal_does_not_remove_what_another_process_made_in_the_meantime(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """Only the task that was meant: the name was never this process's."""
    one, two = Process(), Process()
    cut, _ = await stage.worker(one.group), await stage.worker(two.group)
    await stage.until(5)
    cut.cable.cut()
    one.group.add_dynamic_task("note", "0 * * * *", name="x")
    one.group.remove_dynamic_task("x")
    await two.group.create_task("note", EVERY_MINUTE, {"text": "theirs"}, name="x")
    await stage.until(20)
    cut.cable.join()
    await stage.until(65)
    assert two.names() == ["x"]
    assert [text for _, text in all_starts(one, two)] == ["theirs"]


async def test_what_code_declares_elsewhere_is_not_removed_by_who_declares_it_as_dynamic(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """Its pause and its ledger stay: it is a task of code, wherever it is removed."""
    old = Process()
    old.group.add_dynamic_task("note", EVERY_MINUTE, name="x")
    new = TaskGroup("g")
    noting(new, EVERY_MINUTE, name="x")
    await stage.worker(old.group)
    await stage.until(5)
    second = await stage.worker(new)
    await stage.until(125)
    ledger = await stage.verdicts("g/x")
    assert ledger
    await second.management.pause(Match(name="x"), who="ann")
    old.group.remove_dynamic_task("x")
    await stage.until(130)
    assert [view.pause is not None for view in await second.management.tasks(Match(name="x"))] == [True]
    assert (await stage.verdicts("g/x"))[: len(ledger)] == ledger
    assert any("could not be removed" in error for error in errors(caplog))


async def test_a_declared_task_whose_removal_is_not_finished_does_not_exist(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """With more runs than one call ends, and whoever removes it dead between two calls."""
    process = Process()
    process.group.add_dynamic_task("note", EVERY_MINUTE, name="x")
    await stage.worker(process.group, concurrent_tasks=0)
    await stage.until(5)
    await stage.redis.execute_command("HSET", "{troupe}:dynamic", "g/x", "7|>-")
    contents = await stage.store.catalog.contents()
    assert contents.forgotten == ("g/x",)
    assert "g/x" not in (await Reading().read(contents)).tasks


async def test_a_declaration_that_is_made_again_wins_over_the_one_that_it_replaces(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """Although Redis has seen the very same one before."""
    process = Process()
    await stage.worker(process.group)
    await stage.until(5)
    for text in ("a", "b", "a"):
        if process.names():
            process.group.remove_dynamic_task("x")
            await stage.until(trio.current_time() + 5)
        process.group.add_dynamic_task("note", EVERY_MINUTE, {"text": text}, name="x", persist=False)
        await stage.until(trio.current_time() + 5)
        assert [task.kwargs for task in process.group.tasks] == [{"text": text}]
    await stage.until(65)
    assert [text for _, text in process.starts] == ["a"]


async def test_two_engines_with_one_group_make_and_remove_a_task_once(autojump_clock: MockClock, stage: Stage) -> None:
    """A group may have several engines; on one Redis they are one cluster."""
    process = Process()
    await stage.worker(process.group)
    await stage.worker(process.group)
    await stage.until(5)
    await process.group.create_task("note", EVERY_MINUTE, name="x")
    await stage.until(6)
    assert process.names() == ["x"]
    await process.group.remove_task("x")
    await stage.until(10)
    assert process.names() == []


@pytest.mark.parametrize("offset_ms", range(0, 120, 10))
async def test_a_task_that_was_made_is_known_from_then_on(
    offset_ms: int, autojump_clock: MockClock, stage: Stage
) -> None:
    """Also when this process was reading the catalog just then, for another change."""
    one, two = Process(), Process()
    first, _ = await stage.worker(one.group), await stage.worker(two.group)
    await stage.until(5)
    first.cable.slow_s = 0.02
    await two.group.create_task("note", EVERY_MINUTE, name="other")
    await trio.sleep(offset_ms / 1000)
    await one.group.create_task("note", EVERY_MINUTE, name="x")
    for _ in range(100):
        assert "x" in one.names()
        await trio.sleep(0.005)


async def test_a_task_that_is_made_again_counts_while_redis_is_away(autojump_clock: MockClock, stage: Stage) -> None:
    """Its removal, which was asked for before, takes away the former one only."""
    process = Process()
    worker = await stage.worker(process.group)
    await stage.until(5)
    await process.group.create_task("note", EVERY_MINUTE, {"text": "old"}, name="x")
    await stage.until(6)
    lossy = LosesReplies(worker.cable, "define", worker.cable.cut)
    process.group.remove_dynamic_task("x")
    process.group.add_dynamic_task("note", EVERY_MINUTE, {"text": "new"}, name="x")
    assert process.group.tasks[0].kwargs == {"text": "new"}
    await stage.until(10)
    assert lossy.lost == 1
    assert process.names() == ["x"]


async def test_a_run_of_a_task_that_was_made_anew_is_not_executed_as_the_former_one(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """A worker that has not heard of it yet waits until it has."""
    one, two = Process(), Process()
    leader = await stage.worker(one.group, concurrent_tasks=0)
    await stage.until(5)
    executing = await stage.worker(two.group)
    await stage.until(10)
    await one.group.create_task("note", YEARLY, {"text": "old"}, name="x")
    await stage.until(20)
    executing.cable.slow_s = 0.02
    await one.group.remove_task("x")
    await one.group.create_task("note", YEARLY, {"text": "new"}, name="x")
    await leader.management.trigger(Match(name="x"), who="me")
    await stage.until(30)
    assert [text for _, text in two.starts] == ["new"]


async def test_a_task_removed_while_the_answer_to_a_claim_is_lost_crashes_nobody(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """The run was claimed and has not begun, so it never does."""
    one, two = Process(), Process()
    await stage.worker(one.group, concurrent_tasks=0)
    await stage.until(5)
    executing = await stage.worker(two.group)
    await stage.until(10)
    await one.group.create_task("note", EVERY_MINUTE, name="x")
    lossy = LosesReplies(executing.cable, "claim", lambda: None)
    await stage.until(60.05)
    assert lossy.lost == 1
    await one.group.remove_task("x")
    await stage.until(70)
    crashes, executing.crashes = [str(crash.error) for crash in executing.crashes], []
    assert crashes == []
    assert two.starts == []
    assert await stage.store.runs.live("g/x") == {}


async def test_a_task_removed_between_the_reading_and_the_claim_of_its_run_crashes_nobody(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """What was read with it is put aside first, which takes its time."""
    one, two = Process(), Process()

    @one.group.add_task(EVERY_MINUTE, name="elsewhere")
    async def elsewhere() -> None:
        """Known to one process only."""

    await stage.worker(one.group, concurrent_tasks=0)
    await stage.until(5)
    executing = await stage.worker(two.group, concurrent_tasks=10)
    await stage.until(10)
    await one.group.create_task("note", EVERY_MINUTE, name="x")
    await stage.until(20)
    executing.cable.cut()
    await stage.until(61)
    DelaysReplies(executing.cable, "defer", 5)
    executing.cable.join()
    await stage.until(63)
    await one.group.remove_task("x")
    await stage.until(75)
    crashes, executing.crashes = [str(crash.error) for crash in executing.crashes], []
    assert crashes == []
    assert two.starts == []
    assert await stage.store.runs.live("g/x") == {}


async def test_statistics_that_were_cleared_do_not_come_back_with_the_verdict(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """An attempt that had ended before stays hidden when its run ends."""
    group = TaskGroup("g")

    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError

    group.add_task(YEARLY, name="t", retry_backoff=60, max_retries=1)(fail)
    worker = await stage.worker(group)
    await stage.until(5)
    await worker.management.trigger(Match(), who="me")
    await stage.until(10)
    assert len(await worker.management.statistics("g", "t")) == 1
    await worker.management.clear_statistics(Match(), who="me")
    assert await worker.management.statistics("g", "t") == []
    await stage.until(80)
    assert [attempt.attempt for attempt in await worker.management.statistics("g", "t")] == [2]


@pytest.mark.parametrize("setting", ["description", "tags"])
async def test_text_that_is_no_unicode_crashes_nobody(setting: str, autojump_clock: MockClock, stage: Stage) -> None:
    """Half a surrogate pair cannot be written to Redis: it is refused where it is given."""
    process = Process()
    worker = await stage.worker(process.group)
    await stage.until(5)
    value: Any = "\ud800" if setting == "description" else ["\ud800"]
    refused = False
    try:
        process.group.add_dynamic_task("note", EVERY_MINUTE, name="x", **{setting: value})
    except TaskDeclarationError:
        refused = True
    await stage.until(5.05)
    crashes, worker.crashes = [crash.child for crash in worker.crashes], []
    assert (refused, crashes) == (True, [])


async def test_a_definition_that_is_not_ours_crashes_nobody_who_makes_the_task(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be made is an ERROR, and what was asked for behind it is done."""
    process = Process()
    worker = await stage.worker(process.group)
    await stage.until(5)
    await stage.redis.execute_command("HSET", "{troupe}:dynamic", "g/x", "garbage")
    process.group.add_dynamic_task("note", EVERY_MINUTE, name="x")
    process.group.add_dynamic_task("note", EVERY_MINUTE, name="y")
    await stage.until(20)
    crashes, worker.crashes = [crash.child for crash in worker.crashes], []
    assert crashes == []
    assert process.names() == ["y"]


class Watched(str):
    """A name that has something done whenever its hash is asked for, which is all over where it is used as a key."""

    __slots__ = ("between",)
    between: Callable[[], None]

    def __hash__(self) -> int:
        if threading.current_thread() is threading.main_thread():
            self.between()
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other)


def in_another_thread(work: Callable[[], object]) -> threading.Thread:
    """Give it the time that it needs, unless it waits for this thread."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(0.2)
    return thread


def test_tasks_that_several_threads_declare_at_once_are_all_there() -> None:
    """Whatever thread runs a plain task may declare others, at any moment."""
    process, others = Process(), list[threading.Thread]()

    def add_another() -> None:
        number = len(others)
        others.append(
            in_another_thread(
                lambda: process.group.add_dynamic_task("note", EVERY_MINUTE, name=f"{number}", persist=False)
            )
        )

    with process.group.in_use(_Silent()):
        name = Watched("x")
        name.between = add_another
        process.group.add_dynamic_task("note", EVERY_MINUTE, name=name, persist=False)
        name.between = lambda: None
        for thread in others:
            thread.join()
        assert others
        assert sorted(process.names()) == sorted(["x", *(str(number) for number in range(len(others)))])


@pytest.mark.parametrize("persist", [True, False])
@pytest.mark.parametrize("moment", range(4))
def test_of_different_tasks_of_one_name_several_threads_make_one(
    moment: int,
    persist: bool,  # noqa: FBT001
) -> None:
    """Whichever comes first; the other hears that the name is taken."""
    process, made, others = Process(), list[str](), list[threading.Thread]()
    moments = itertools.count()

    def add(name: str, text: str) -> None:
        with suppress(DuplicateTask):
            process.group.add_dynamic_task("note", EVERY_MINUTE, {"text": text}, name=name, persist=persist)
            made.append(text)

    def add_the_other() -> None:
        if next(moments) == moment:
            others.append(in_another_thread(lambda: add("x", "other")))

    with process.group.in_use(_Silent()):
        name = Watched("x")
        name.between = add_the_other
        add(name, "first")
        name.between = lambda: None
        for thread in others:
            thread.join()
        assert [task.kwargs["text"] for task in process.group.tasks] == made


class _Silent:
    """A running engine that is asked for much."""

    def check(self, task: object) -> None:
        pass

    def post(self, change: object) -> None:
        pass

    async def create(self, task: object) -> None:
        raise AssertionError(task)

    async def remove(self, group: str, name: str) -> Any:
        raise AssertionError(f"{group}/{name}")


async def test_a_task_that_contradicts_the_config_is_not_declared_either(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """As code is refused that declares it, and as one that would be kept in Redis."""
    process = Process()
    await stage.worker(process.group, retry_backoff_max=60)
    await stage.until(5)
    with pytest.raises(TaskDeclarationError, match="above Config"):
        process.group.add_dynamic_task("note", EVERY_MINUTE, name="x", retry_backoff=300, persist=False)
    assert process.names() == []


async def test_the_repeat_of_a_declaration_does_not_undo_a_removal_that_came_after_it(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """However late it is repeated, since its reply was lost."""
    one, two = Process(), Process()
    first, _ = await stage.worker(one.group), await stage.worker(two.group)
    await stage.until(5)
    lossy = LosesReplies(first.cable, "declare", first.cable.cut)
    one.group.add_dynamic_task("note", EVERY_MINUTE, name="x", persist=False)
    await stage.until(6)
    assert lossy.lost == 1
    assert two.names() == ["x"]
    await two.group.remove_task("x")
    await stage.until(7)
    first.cable.join()
    await stage.until(200)
    assert (one.names(), two.names()) == ([], [])


async def test_a_pause_that_comes_too_late_is_not_inherited_by_a_task_that_is_made_anew(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """A task that was removed while it was being paused leaves no pause behind."""
    one, two = Process(), Process()
    first, second = await stage.worker(one.group), await stage.worker(two.group)
    await stage.until(5)
    await one.group.create_task("note", EVERY_MINUTE, name="x")
    await stage.until(6)
    first.cable.slow_s = 0.1
    async with trio.open_nursery() as nursery:

        async def pause() -> None:
            await first.management.pause(Match(name="x"), who="ann")

        nursery.start_soon(pause)
        await trio.sleep(0.65)
        await two.group.remove_task("x")
    await two.group.create_task("note", EVERY_MINUTE, name="x")
    assert [view.pause for view in await second.management.tasks(Match(name="x"))] == [None]


@pytest.mark.parametrize("slow_s", [0.01, 0.1, 0.3])
async def test_what_was_asked_for_before_the_stop_is_done_before_the_end(
    slow_s: float, autojump_clock: MockClock, stage: Stage
) -> None:
    """By the last words of a run, say: Redis is there, and the engine has time."""
    process = Process()
    worker = await stage.worker(process.group)
    await stage.until(5)
    worker.cable.slow_s = slow_s
    process.group.add_dynamic_task("note", EVERY_MINUTE, name="x")
    await worker.stop()
    assert worker.outbox.left() == 0
    assert list((await stage.store.catalog.contents()).dynamic) == ["g/x"]


@pytest.mark.parametrize("offset_ms", range(0, 240, 20))
async def test_a_task_that_was_removed_is_gone_from_then_on(
    offset_ms: int, autojump_clock: MockClock, stage: Stage
) -> None:
    """Also when this process was reading the catalog just then, for another change."""
    one, two = Process(), Process()
    first, _ = await stage.worker(one.group), await stage.worker(two.group)
    await stage.until(5)
    await two.group.create_task("note", EVERY_MINUTE, name="x")
    await stage.until(6)
    first.cable.slow_s = 0.02

    async def make_another() -> None:
        await trio.sleep(offset_ms / 1000)
        await two.group.create_task("note", EVERY_MINUTE, name="other")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(make_another)
        await one.group.remove_task("x")
        for _ in range(100):
            assert "x" not in one.names()
            await trio.sleep(0.005)


def test_code_wins_over_a_dynamic_declaration_that_was_first_seen_later() -> None:
    """And cannot be hidden by its removal."""
    group = TaskGroup("g")
    noting(group, YEARLY, name="x")
    [code] = [task.definition for task in group.tasks]
    dynamic = replace(code, dynamic=True, expression=EVERY_MINUTE)
    sets = {"a": (1, {code.id: code}), "b": (2, {code.id: dynamic})}
    assert merge(sets, {}) == {code.id: code}
    assert merge(sets, {}, {code.id}) == {code.id: code}


async def test_declarations_that_a_process_replaced_do_not_pile_up(autojump_clock: MockClock, stage: Stage) -> None:
    """Each holds all its tasks: a hundred of them, made one by one, would be kept five thousand times."""
    process = Process()
    await stage.worker(process.group)
    await stage.until(5)
    for number in range(100):
        process.group.add_dynamic_task("note", YEARLY, name=f"t{number}", persist=False)
        await trio.sleep(1)
    await stage.until(120)
    contents = await stage.store.catalog.contents()
    assert len(contents.sets) <= 20


async def test_a_removal_gets_through_while_nothing_can_be_made(autojump_clock: MockClock, stage: Stage) -> None:
    """When memory is full, what frees it does not wait behind what needs more."""
    process = Process()
    worker = await stage.worker(process.group)
    await stage.until(5)
    await process.group.create_task("note", EVERY_MINUTE, name="old")
    Full(worker.cable, "define")
    process.group.add_dynamic_task("note", EVERY_MINUTE, name="new")
    process.group.remove_dynamic_task("old")
    await stage.until(30)
    assert dict((await stage.store.catalog.contents()).dynamic) == {}


async def test_removals_of_what_is_kept_nowhere_get_through_while_nothing_can_be_declared(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """The set without them waits for memory; what other processes do is heard all the same."""
    one, two = Process(), Process()
    for name in ("x", "y", "z"):
        one.group.add_dynamic_task("note", EVERY_MINUTE, name=name, persist=False)
    worker = await stage.worker(one.group)
    await stage.worker(two.group)
    await stage.until(5)
    redis = Full(worker.cable, "declare")
    one.group.remove_dynamic_task("x")
    one.group.remove_dynamic_task("y")
    await stage.until(10)
    await two.group.create_task("note", EVERY_MINUTE, name="new")
    await stage.until(20)
    assert sorted(one.names()) == sorted(two.names()) == ["new", "z"]
    redis.is_full_no_longer()
    await stage.until(200)
    assert sorted(one.names()) == sorted(two.names()) == ["new", "z"]
    assert (await stage.store.catalog.contents()).withdrawn == ()


async def test_what_is_declared_anew_is_not_taken_for_removed_while_redis_does_not_take_it(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """The catalog is read in between, which has it as it was removed."""
    one, two = Process(), Process()
    for name in ("x", "y"):
        one.group.add_dynamic_task("note", EVERY_MINUTE, name=name, persist=False)
    worker = await stage.worker(one.group)
    await stage.worker(two.group)
    await stage.until(5)
    await two.group.remove_task("x")
    await stage.until(10)
    redis = Full(worker.cable, "declare")
    one.group.add_dynamic_task("note", EVERY_MINUTE, {"text": "anew"}, name="x", persist=False)
    await stage.until(11)
    await two.group.create_task("note", YEARLY, name="other")
    await stage.until(20)
    redis.is_full_no_longer()
    await stage.until(65)
    assert sorted(two.names()) == ["other", "x", "y"]
    assert sorted(text for _, text in all_starts(one, two)) == ["", "anew"]


async def test_a_task_that_was_removed_stays_so_when_one_comes_back_that_was_cut_off(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """However long it was away."""
    one, two = Process(), Process()
    two.group.add_dynamic_task("note", EVERY_MINUTE, name="x")
    await stage.worker(one.group, retire_after=60)
    cut = await stage.worker(two.group, retire_after=60)
    await stage.until(10)
    await one.group.remove_task("x")
    await stage.until(20)
    assert two.names() == []
    cut.cable.cut()
    await stage.until(400)
    cut.cable.join()
    await stage.until(500)
    assert (one.names(), two.names()) == ([], [])

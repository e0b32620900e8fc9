"""Runs from the streams to their ends: who runs what, how many at once, and what Redis is told."""

from __future__ import annotations

import functools
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import trio

from actors.messages import StopRuns
from engine.domain.run import RunContext
from engine.store.runs import Claimed, Hold
from engine.store.timetable import Slot
from tests.unit.actors.stage import Gate, Publisher, at_ms, group, noting
from tests.unit.actors.wires import DelaysReplies, Full

if TYPE_CHECKING:
    from trio.testing import MockClock

    from engine.domain.group import TaskGroup
    from engine.store.runs import Entry
    from tests.unit.actors.stage import Stage, Worker

YEARLY = "0 0 1 1 *"


@pytest.fixture
async def publisher(stage: Stage) -> Publisher:
    return await Publisher.elected(stage)


async def executor(stage: Stage, tasks: TaskGroup, **settings: Any) -> Worker:
    """A worker that does not lead, and has declared its tasks."""
    worker = await stage.worker(tasks, can_lead=False, **settings)
    await stage.settle()
    return worker


async def outcome(stage: Stage, task_id: str = "g/t") -> tuple[str, str, list[dict[str, Any]]]:
    """Verdict, reason and story of the only run in a ledger."""
    [entry] = await stage.ledger(task_id)
    return entry.verdict, entry.reason, [json.loads(line) for line in entry.story]


async def queued(stage: Stage) -> int:
    """Entries in both streams, those included that were read."""
    redis, keys = stage.redis, stage.store.keys
    return int(await redis.xlen(keys.stream_high)) + int(await redis.xlen(keys.stream_low))


# -- capacity and priority ------------------------------------------------------------------------------------------


async def test_capacity_is_never_exceeded(autojump_clock: MockClock, stage: Stage, publisher: Publisher) -> None:
    """However many are queued; the others wait, and all of them run."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t")(gate.walk)
    tasks.add_task(YEARLY, name="u")(gate.walk)
    await executor(stage, tasks, concurrent_tasks=3)
    await publisher.queue("g/t", 10, priority="high")
    await publisher.queue("g/u", 10)
    await stage.until(20)
    assert gate.inside == 3
    gate.open.set()
    await stage.until(21)
    assert gate.passed == 20
    assert gate.most_inside == 3


async def test_what_waits_for_room_is_left_to_other_workers(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """A full worker keeps no entry that it cannot start."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t")(gate.walk)
    await executor(stage, tasks, concurrent_tasks=1)
    await publisher.queue("g/t", 5, priority="high")
    await publisher.queue("g/t", 5, priority="low")
    await stage.until(1)
    await executor(stage, tasks, concurrent_tasks=9)
    await stage.until(2)
    assert gate.inside == 10


async def test_what_a_wait_brings_beyond_the_room_goes_back_at_once(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """COUNT is for each stream, so the only free slot can get two: another worker need not wait for the second."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t")(gate.walk)
    tasks.add_task(YEARLY, name="u")(gate.walk)
    await executor(stage, tasks, concurrent_tasks=1)
    slots = [Slot("g/t", at_ms(-1), None, "high", "allow"), Slot("g/u", at_ms(-1), None, "low", "allow")]
    await stage.redis.zadd(stage.store.keys.due, {f"t/{slot.task_id}": slot.due_ms for slot in slots})
    await stage.store.timetable.publish(publisher.value, slots, queue_cap=10)
    await stage.settle()
    assert gate.inside == 1
    [taken] = (await stage.store.leases.pending(min_idle_ms=0)).entries
    assert taken.entry.run_id == f"g/t@{at_ms(-1)}"
    assert await queued(stage) == 2
    gate.open.set()


async def test_a_worker_without_slots_executes_nothing(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """It may lead, and stop at once."""
    tasks = group()
    started_s = noting(tasks, YEARLY)
    worker = await executor(stage, tasks, concurrent_tasks=0)
    await publisher.queue("g/t")
    await stage.until(60)
    await worker.stop()
    assert started_s == []
    assert trio.current_time() == 60


@pytest.mark.parametrize("capacity", [1, 2, 8])
async def test_high_priority_goes_first_and_low_does_not_starve(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, capacity: int
) -> None:
    """Every eighth slot is offered to the low stream first, also where slots are freed by twos or eights."""
    tasks, order = group(), list[str]()

    async def urgent() -> None:
        order.append("high")
        await trio.sleep(1)

    async def patient() -> None:
        order.append("low")
        await trio.sleep(1)

    tasks.add_task(YEARLY, high_priority=True)(urgent)
    tasks.add_task(YEARLY)(patient)
    await publisher.queue("g/urgent", 64, priority="high")
    await publisher.queue("g/patient", 8)
    await executor(stage, tasks, concurrent_tasks=capacity)
    await stage.until(100)
    assert order.count("low") == 8
    for eighth in range(8):
        assert order[eighth * 8 : eighth * 8 + 8].count("low") == 1


async def test_low_priority_is_served_when_nothing_else_is_there(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """All slots are for it then."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t")(gate.walk)
    await executor(stage, tasks, concurrent_tasks=10)
    await publisher.queue("g/t", 10)
    await stage.settle()
    assert gate.inside == 10


# -- functions ------------------------------------------------------------------------------------------------------


async def test_any_callable_is_a_task(autojump_clock: MockClock, stage: Stage, publisher: Publisher) -> None:
    """Functions of both kinds, partials of both, and objects that can be called or awaited."""
    tasks, calls = group(), list[str]()

    async def coroutine(who: str = "async def") -> None:
        await trio.lowlevel.checkpoint()
        calls.append(who)

    def function(who: str = "def") -> None:
        calls.append(who)

    class Callable:
        def __call__(self) -> None:
            calls.append("object")

    class AsyncCallable:
        async def __call__(self) -> None:
            await coroutine("async object")

    bodies: dict[str, Any] = {
        "a": coroutine,
        "b": functools.partial(coroutine, who="partial of async def"),
        "c": AsyncCallable(),
        "d": function,
        "e": functools.partial(function, who="partial of def"),
        "f": Callable(),
    }
    for name, body in bodies.items():
        tasks.add_task(YEARLY, name=name)(body)
    await executor(stage, tasks)
    with stage.time_stands_still():
        for name in bodies:
            await publisher.queue(f"g/{name}")
            await stage.becomes(functools.partial(stage.ledger, f"g/{name}"))
    assert calls == ["async def", "partial of async def", "async object", "def", "partial of def", "object"]


async def test_arguments_are_given_by_name(autojump_clock: MockClock, stage: Stage, publisher: Publisher) -> None:
    """Decoded anew for each run: a task that changes them changes its own."""
    tasks, got = group(), list[Any]()

    @tasks.add_task(YEARLY, kwargs={"numbers": [1, 2], "text": "ü"}, name="t")
    async def take(numbers: list[int], text: str) -> None:
        await trio.lowlevel.checkpoint()
        got.append((list(numbers), text))
        numbers.clear()

    await executor(stage, tasks)
    await publisher.queue("g/t", 2)
    await stage.settle()
    assert got == [([1, 2], "ü")] * 2


async def test_a_task_knows_its_run(autojump_clock: MockClock, stage: Stage, publisher: Publisher) -> None:
    """In coroutines and in threads; the fence grows from run to run."""
    tasks, seen = group(), list[RunContext]()

    async def coroutine() -> None:
        await trio.lowlevel.checkpoint()
        seen.append(RunContext.current())

    def function() -> None:
        seen.append(RunContext.current())

    tasks.add_task(YEARLY, name="a")(coroutine)
    tasks.add_task(YEARLY, name="b")(function)
    worker = await executor(stage, tasks)
    with stage.time_stands_still():
        [first] = await publisher.queue("g/a")
        await stage.becomes(functools.partial(stage.ledger, "g/a"))
        [second] = await publisher.queue("g/b")
        await stage.becomes(functools.partial(stage.ledger, "g/b"))
    assert [run.run_id for run in seen] == [first, second]
    assert [(run.group, run.name, run.attempt) for run in seen] == [("g", "a", 1), ("g", "b", 1)]
    assert [f"{run.task_id}@{run.slot_ms}" for run in seen] == [first, second]
    assert {run.worker_id for run in seen} == {worker.identity.worker_id}


# -- failures -------------------------------------------------------------------------------------------------------


class Failing:
    """A task that fails a number of times and notes when it was started."""

    def __init__(self, times: int, error: BaseException | None = None) -> None:
        self.left, self.error = times, error or ValueError("no")
        self.started_s: list[float] = []

    async def __call__(self) -> None:
        await trio.lowlevel.checkpoint()
        self.started_s.append(trio.current_time())
        if self.left > 0:
            self.left -= 1
            raise self.error


async def test_a_failed_run_is_tried_again_after_a_growing_delay(autojump_clock: MockClock, stage: Stage) -> None:
    """Until it succeeds; its story has every attempt."""
    tasks, task = group(), Failing(3)
    settings: dict[str, Any] = {"retry_backoff": 2.0, "run_on_first_start": True}
    tasks.add_task(YEARLY, name="t", **settings)(task)
    await stage.worker(tasks, retry_backoff_multiplier=3)
    await stage.until(60)
    first = task.started_s[0]
    assert [at - first for at in task.started_s] == [0, 2, 8, 26]
    verdict, _, story = await outcome(stage)
    assert verdict == "ran"
    assert [line["outcome"] for line in story] == ["failed", "failed", "failed", "ran"]
    assert [line["attempt"] for line in story] == [1, 2, 3, 4]
    assert story[0]["error"].startswith("ValueError: no (")


async def test_a_run_whose_retries_are_spent_is_dead(autojump_clock: MockClock, stage: Stage) -> None:
    """And kept whole."""
    tasks, task = group(), Failing(100)
    tasks.add_task(YEARLY, name="t", run_on_first_start=True, retry_backoff=1, max_retries=2)(task)
    await stage.worker(tasks)
    await stage.until(60)
    assert len(task.started_s) == 3
    assert (await outcome(stage))[:2] == ("dead", "max_retries")
    assert await stage.redis.xlen(stage.store.keys.dead) == 1


async def test_no_retries_means_one_attempt(autojump_clock: MockClock, stage: Stage) -> None:
    """``max_retries=0``: failed, not dead."""
    tasks, task = group(), Failing(100)
    tasks.add_task(YEARLY, name="t", run_on_first_start=True, max_retries=0)(task)
    await stage.worker(tasks)
    await stage.until(60)
    assert len(task.started_s) == 1
    assert (await outcome(stage))[:2] == ("failed", "raised")
    assert await stage.redis.xlen(stage.store.keys.dead) == 0


@pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), ExceptionGroup("two", [ValueError("a"), OSError("b")])],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_a_task_raises_ends_at_the_run(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, error: BaseException
) -> None:
    """The worker goes on."""
    tasks = group()
    tasks.add_task(YEARLY, name="t", max_retries=0)(Failing(1, error))
    await executor(stage, tasks)
    await publisher.queue("g/t", 2)
    await stage.settle()
    assert sorted(await stage.verdicts("g/t")) == [("failed", "raised"), ("ran", "")]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), ValueError("x")], ids=lambda e: type(e).__name__)
async def test_whatever_a_thread_raises_ends_at_the_run(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, error: BaseException
) -> None:
    """SystemExit ends no process, and KeyboardInterrupt is not that of the user."""
    tasks = group()

    @tasks.add_task(YEARLY, name="t", max_retries=0)
    def raise_it() -> None:
        raise error

    await executor(stage, tasks)
    with stage.time_stands_still():
        await publisher.queue("g/t")
        await stage.becomes(functools.partial(stage.ledger, "g/t"))
    verdict, reason, [line] = await outcome(stage)
    assert (verdict, reason) == ("failed", "raised")
    assert line["error"].startswith(type(error).__name__)


async def test_a_plain_function_that_only_makes_a_coroutine_fails(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """It has done nothing, and must not count as done."""
    tasks = group()
    tasks.add_task(YEARLY, name="t", max_retries=0)(lambda: Gate().walk())
    await executor(stage, tasks)
    with stage.time_stands_still():
        await publisher.queue("g/t")
        await stage.becomes(functools.partial(stage.ledger, "g/t"))
    assert await stage.verdicts("g/t") == [("failed", "raised")]


# -- timeouts -------------------------------------------------------------------------------------------------------


async def test_an_async_run_past_its_timeout_is_cancelled(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """Its verdict is failed (timed out), and its slot is free."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t", timeout=5)(gate.walk)
    await executor(stage, tasks)
    await publisher.queue("g/t")
    await stage.until(4.9)
    assert gate.inside == 1
    await stage.until(5)
    assert gate.inside == 0
    assert (await outcome(stage))[:2] == ("failed", "timed out")


async def test_a_body_that_raises_while_its_timeout_cancels_it_has_timed_out(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """What its cleaning up raised does not make it a failure that is tried again."""
    tasks = group()

    @tasks.add_task(YEARLY, name="t", timeout=5, retry_backoff=1)
    async def clumsy() -> None:
        try:
            await trio.sleep(100)
        finally:
            raise ConnectionError("the pool is closed")

    await executor(stage, tasks)
    await publisher.queue("g/t")
    await stage.until(50)
    verdict, reason, story = await outcome(stage)
    assert (verdict, reason) == ("failed", "timed out")
    assert len(story) == 1


async def test_a_thread_past_its_timeout_has_its_verdict_at_once_and_its_slot_until_it_returns(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    """Threads cannot be cancelled. There is no second verdict, and the run is not started again meanwhile."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t", timeout=5)(gate.walk_in_thread)
    started_s = noting(tasks, YEARLY, name="next")
    worker = await executor(stage, tasks, concurrent_tasks=1)
    with stage.time_stands_still():
        await publisher.queue("g/t")
        await gate.entered.wait()
    await stage.until(6)
    assert (await outcome(stage))[:2] == ("failed", "timed out")
    await publisher.queue("g/next")
    await stage.until(100)
    assert worker.doing("heartbeat") == "keeping 1 leases"
    assert worker.doing("consumer") == "1/1 runs, 1 of them timed out in threads that go on: g/t"
    assert "holds its slot until its thread returns" in caplog.text
    assert started_s == []
    with stage.time_stands_still():
        gate.open.set()
        await stage.becomes(functools.partial(stage.ledger, "g/next"))
    assert len(started_s) == 1
    assert (await outcome(stage))[:2] == ("failed", "timed out")
    assert await stage.store.leases.expiring(10**15) == []


# -- told to stop ---------------------------------------------------------------------------------------------------


async def test_a_run_that_was_lost_writes_nothing(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """Another worker may have it by now."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t")(gate.walk)
    worker = await executor(stage, tasks)
    [run_id] = await publisher.queue("g/t")
    await stage.settle()
    [lease] = await stage.store.leases.expiring(10**15)
    worker.troupe.consumer.tell(StopRuns(lost=frozenset({(run_id, lease.fence)})))
    before = len(worker.cable.sent)
    await stage.settle()
    assert gate.inside == 0
    assert len(worker.cable.sent) == before
    assert await stage.ledger("g/t") == []


async def test_a_reclaimed_run_is_stopped_at_the_next_beat(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """And started again, here since there is no other worker; the former start is not heard of again."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t")(gate.walk)
    await executor(stage, tasks, concurrent_tasks=1)
    [run_id] = await publisher.queue("g/t")
    await stage.until(1)
    await publisher.lose(run_id)
    await stage.until(10)
    assert (gate.inside, gate.most_inside) == (1, 1)
    gate.open.set()
    await stage.until(11)
    assert await stage.verdicts("g/t") == [("ran", "")]


async def test_a_stop_of_a_former_start_does_not_stop_this_one(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """The fence tells them apart."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t")(gate.walk)
    worker = await executor(stage, tasks)
    [run_id] = await publisher.queue("g/t")
    await stage.settle()
    worker.troupe.consumer.tell(StopRuns(lost=frozenset({(run_id, 1)})))
    await stage.settle()
    assert gate.inside == 1


async def test_a_cancelled_run_is_recorded_as_cancelled(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """Somebody put it into the set of runs that should stop; the next beat brings the word."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t")(gate.walk)
    await executor(stage, tasks)
    await publisher.queue("g/t")
    await stage.until(1)
    [lease] = await stage.store.leases.expiring(10**15)
    await stage.redis.sadd(stage.store.keys.cancel, lease.member)
    await stage.until(4)
    assert gate.inside == 0
    assert (await outcome(stage))[:2] == ("failed", "cancelled")


# -- functions that this worker does not know -----------------------------------------------------------------------


async def test_an_unknown_task_waits_for_a_worker_that_knows_it(autojump_clock: MockClock, stage: Stage) -> None:
    """It is put aside and never acknowledged and dropped; and nothing spins."""
    old, new = group(), group()
    noting(old, YEARLY, name="old")
    noting(new, YEARLY, name="old")
    started_s = noting(new, "* * * * *", name="new")
    leader = await stage.worker(new, concurrent_tasks=0)
    lost = await stage.worker(old, can_lead=False)
    await stage.until(60.5)
    assert started_s == []
    sent = len(lost.cable.sent)
    await stage.until(100)
    assert len(lost.cable.sent) - sent < 200
    await stage.worker(new, can_lead=False)
    # Whoever asks first every five seconds gets it, so the one that knows it gets it by chance.
    await stage.becomes(lambda: stage.verdicts("g/new"), within_s=600)
    assert started_s[0] > 100
    assert set(await stage.verdicts("g/new")) == {("ran", "")}
    assert leader.leads


async def test_a_task_that_no_worker_knows_and_that_has_too_many_runs_raises_an_alarm(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    """What is skipped for want of a worker is no routine."""
    tasks = group()
    noting(tasks, YEARLY)
    await executor(stage, tasks, queue_cap=1)
    await publisher.queue("g/unknown", 2)
    await stage.until(1)
    alarms = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [alarm.getMessage().split(": ")[1] for alarm in alarms] == ["skipped (no worker)"]


# -- one bad run ----------------------------------------------------------------------------------------------------


async def test_an_error_whose_text_raises_ends_at_the_run(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """And its neighbours go on."""
    tasks, gate = group(), Gate()

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    tasks.add_task(YEARLY, name="t", max_retries=0)(Failing(1, Mute()))
    tasks.add_task(YEARLY, name="neighbour")(gate.walk)
    await executor(stage, tasks)
    await publisher.queue("g/neighbour")
    await publisher.queue("g/t")
    await stage.until(1)
    assert await stage.verdicts("g/t") == [("failed", "raised")]
    assert gate.inside == 1


@pytest.mark.parametrize("kwargs", ["[1]", "null", "{", '{"unwanted": 1}'])
@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_arguments_that_do_not_fit_end_at_the_run(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, kwargs: str, kind: str
) -> None:
    """In coroutines and in threads; its neighbours go on."""
    tasks, gate = group(), Gate()
    body: Any = Failing(0) if kind == "async def" else lambda: None
    tasks.add_task(YEARLY, name="t", max_retries=0)(body)
    tasks.add_task(YEARLY, name="neighbour")(gate.walk)
    await publisher.queue("g/neighbour")
    [run_id] = await publisher.queue("g/t")
    await stage.redis.hset(stage.store.keys.run(run_id), "kwargs", kwargs)
    with stage.time_stands_still():
        await executor(stage, tasks)
        await stage.becomes(functools.partial(stage.ledger, "g/t"))
    assert await stage.verdicts("g/t") == [("failed", "raised")]
    assert gate.inside == 1


# -- a run that comes back to where it still goes on ---------------------------------------------------------------


async def test_a_run_is_not_started_beside_its_own_former_body(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """It is put aside, without spinning, for another worker or until that body has ended; its lease is kept then."""
    tasks, started_s = group(), list[float]()

    @tasks.add_task(YEARLY, name="t")
    async def slow_to_stop() -> None:
        started_s.append(trio.current_time())
        try:
            await trio.sleep(1_000)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(15)

    worker = await executor(stage, tasks)
    [run_id] = await publisher.queue("g/t")
    await stage.until(1)
    await publisher.lose(run_id)
    for second in range(2, 60):
        await stage.until(second)
        await publisher.requeue()
        if second == 10:
            assert started_s == [0]
            assert await stage.store.runs.live("g/t") == {run_id: "parked"}
    assert len(started_s) == 2
    assert started_s[1] > 18
    assert worker.doing("heartbeat") == "keeping 1 leases"
    assert len(worker.cable.sent) < 200


async def test_a_run_whose_former_body_goes_on_here_is_started_elsewhere(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """The late end of the former body is refused, and takes nothing from the other."""
    tasks, former, other = group(), Gate(), group()
    tasks.add_task(YEARLY, name="t")(former.walk_in_thread)
    started_s = noting(other, YEARLY)
    worker = await executor(stage, tasks)
    with stage.time_stands_still():
        [run_id] = await publisher.queue("g/t")
        await former.entered.wait()
    await publisher.lose(run_id)
    await stage.until(1)
    await executor(stage, other)
    for second in range(2, 20):
        await stage.until(second)
        await publisher.requeue()
    assert len(started_s) == 1
    assert worker.doing("consumer").endswith("runs: g/t")
    with stage.time_stands_still():
        former.open.set()
        while worker.doing("consumer").endswith("g/t"):
            await trio.lowlevel.checkpoint()
    assert await stage.verdicts("g/t") == [("ran", "")]


async def test_a_lost_thread_is_spoken_of_once(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    """Every beat brings the word again, and it cannot be stopped."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t")(gate.walk_in_thread)
    await executor(stage, tasks)
    with stage.time_stands_still():
        [run_id] = await publisher.queue("g/t")
        await gate.entered.wait()
    await publisher.lose(run_id)
    await stage.until(30)
    assert caplog.text.count("its thread cannot be cancelled") == 1
    assert "is stopped" not in caplog.text
    with stage.time_stands_still():
        gate.open.set()


# -- crashes --------------------------------------------------------------------------------------------------------


async def test_a_crash_hands_async_runs_back(autojump_clock: MockClock, stage: Stage, publisher: Publisher) -> None:
    """They start again at once, uncounted, though their leases would have held for seconds."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t")(gate.walk)
    worker = await executor(stage, tasks)
    await publisher.queue("g/t", 2)
    await stage.until(1)
    worker.crash("consumer")
    await stage.until(1.2)
    assert gate.inside == 2
    assert worker.restarts("consumer") == 1
    gate.open.set()
    await stage.until(2)
    assert await stage.verdicts("g/t") == [("ran", "")] * 2
    assert [entry.attempt for entry in await stage.ledger("g/t")] == [1, 1]
    worker.crashes.clear()


async def test_a_crash_keeps_its_threads(autojump_clock: MockClock, stage: Stage, publisher: Publisher) -> None:
    """Their leases are renewed, and the successor reports their ends."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t")(gate.walk_in_thread)
    worker = await executor(stage, tasks)
    with stage.time_stands_still():
        await publisher.queue("g/t")
        await gate.entered.wait()
    worker.crash("consumer")
    await stage.until(60)
    assert worker.doing("heartbeat") == "keeping 1 leases"
    assert gate.most_inside == 1
    with stage.time_stands_still():
        gate.open.set()
        await stage.becomes(functools.partial(stage.ledger, "g/t"))
    assert await stage.verdicts("g/t") == [("ran", "")]
    worker.crashes.clear()


async def test_what_a_former_life_read_and_never_claimed_is_released(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """At the start, from the worker's own pending list."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t")(gate.walk)
    gate.open.set()
    await stage.store.runs.make_groups()
    await publisher.queue("g/t", 3)
    key = "host1-1-0000000000000001"
    assert len(await stage.store.runs.read(key, priorities=("low",), count=10, block_ms=None)) == 3
    worker = await executor(stage, tasks)
    assert worker.identity.key == key
    await stage.until(1)
    assert gate.passed == 3


async def test_a_body_that_ends_well_while_its_consumer_crashes_has_run(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """However long it shields itself: ends are told until the last body has ended."""
    tasks = group()
    started_s = shielded(tasks)
    worker = await executor(stage, tasks)
    await publisher.queue("g/t")
    await stage.until(1)
    worker.crash("consumer")
    await stage.until(60)
    assert started_s == [0]
    assert await stage.verdicts("g/t") == [("ran", "")]
    worker.crashes.clear()


def shielded(tasks: TaskGroup) -> list[float]:
    """A task of eight seconds that cannot be cancelled, and when it was started."""
    started_s = list[float]()

    @tasks.add_task(YEARLY, name="t")
    async def work() -> None:
        started_s.append(trio.current_time())
        with trio.CancelScope(shield=True):
            await trio.sleep(8)

    return started_s


# -- draining -------------------------------------------------------------------------------------------------------


async def test_runs_in_progress_get_their_time(autojump_clock: MockClock, stage: Stage, publisher: Publisher) -> None:
    """The stop waits for them and no longer; nothing new is started."""
    tasks = group()

    @tasks.add_task(YEARLY, name="t")
    async def work() -> None:
        await trio.sleep(20)

    worker = await executor(stage, tasks, shutdown_grace=25)
    await publisher.queue("g/t")
    await stage.until(1)
    stage.nursery.start_soon(worker.stop)
    await stage.until(2)
    await publisher.queue("g/t")
    await stage.until(19.9)
    assert await stage.ledger("g/t") == []
    await worker.supervision.wait_stopped()
    assert trio.current_time() == pytest.approx(20, abs=0.1)
    assert await stage.verdicts("g/t") == [("ran", "")]
    assert await queued(stage) == 1


async def test_what_is_still_going_after_grace_is_handed_back_uncounted(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """Another worker starts it at once, as the same attempt and the same delivery."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t")(gate.walk)
    worker = await executor(stage, tasks, shutdown_grace=5)
    await publisher.queue("g/t")
    await stage.until(1)
    await worker.stop()
    assert trio.current_time() == pytest.approx(6, abs=0.1)
    assert gate.inside == 0
    await executor(stage, tasks)
    await stage.until(7)
    assert gate.inside == 1
    gate.open.set()
    await stage.until(8)
    [entry] = await stage.ledger("g/t")
    assert (entry.verdict, entry.attempt) == ("ran", 1)


async def test_a_body_that_ends_well_after_grace_has_run(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """It shielded itself, and the stop waits for it."""
    tasks = group()
    started_s = shielded(tasks)
    worker = await executor(stage, tasks, shutdown_grace=1)
    await publisher.queue("g/t")
    await stage.until(1)
    await worker.stop()
    await executor(stage, tasks)
    await stage.until(60)
    assert started_s == [0]
    assert await stage.verdicts("g/t") == [("ran", "")]


async def test_leases_are_kept_until_the_last_body_has_ended(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """However long a body shields itself from the stop: the heartbeat ends after it, and the link last."""
    tasks = group()

    @tasks.add_task(YEARLY, name="t")
    async def stubborn() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(40)

    worker = await executor(stage, tasks, shutdown_grace=1)
    await publisher.queue("g/t")
    await stage.until(1)
    stage.nursery.start_soon(worker.stop)
    for second in range(2, 40):
        await stage.until(second)
        [lease] = await stage.store.leases.expiring(2**52)
        assert lease.expiry_ms > stage.now_ms()
    await stage.until(41)
    assert await stage.verdicts("g/t") == [("ran", "")]


async def test_an_idle_worker_stops_at_once_while_redis_refuses_everything(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """There is nothing to wait for, though the link is up."""
    tasks = group()
    noting(tasks, YEARLY)
    worker = await executor(stage, tasks, shutdown_grace=25)
    worker.cable.refusing = True
    await stage.until(5)
    await worker.stop()
    assert trio.current_time() < 7


async def test_a_claim_that_redis_refuses_is_not_insisted_on_in_a_drain(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """Redis is told what it forgot, and would grant it when the worker is gone: what was read goes back instead."""
    tasks, gate, keys = group(), Gate(), stage.store.keys
    tasks.add_task(YEARLY, name="t")(gate.walk)
    await publisher.queue("g/t")
    await stage.redis.set(keys.leader, ":0:history")
    worker = await executor(stage, tasks, shutdown_grace=25)
    await stage.until(3)
    assert len((await stage.store.leases.pending(min_idle_ms=0)).entries) == 1
    await worker.stop()
    assert trio.current_time() < 4
    assert (await stage.store.leases.pending(min_idle_ms=0)).entries == ()
    assert await stage.store.leases.workers() == []
    await stage.redis.set(keys.leader, publisher.value)
    await executor(stage, tasks)
    assert gate.inside == 1
    gate.open.set()


async def test_a_claim_that_is_granted_unheard_in_a_drain_goes_back(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """Its answer is lost with the connection: the run is handed back, uncounted, when Redis can be reached again."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t")(gate.walk)
    worker = await executor(stage, tasks, shutdown_grace=25)
    worker.cable.late_s = 1.0
    await publisher.queue("g/t")
    stage.nursery.start_soon(worker.stop)
    await stage.until(0.5)
    assert set((await stage.store.runs.live("g/t")).values()) == {"running"}
    worker.cable.cut()
    await stage.until(0.7)
    worker.cable.late_s = 0.0
    worker.cable.join()
    await worker.supervision.wait_stopped()
    assert trio.current_time() < 2
    assert await stage.store.leases.expiring(10**15) == []
    await executor(stage, tasks)
    assert gate.inside == 1
    gate.open.set()
    await stage.settle()
    [entry] = await stage.ledger("g/t")
    assert (entry.verdict, entry.attempt) == ("ran", 1)


async def test_a_consumer_that_crashes_in_a_drain_does_not_keep_the_worker(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """Its runs were handed back, and whoever waits for the drain learns that nothing is left."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t")(gate.walk)
    worker = await executor(stage, tasks, shutdown_grace=25)
    await publisher.queue("g/t")
    await stage.until(1)
    stage.nursery.start_soon(worker.stop)
    await stage.until(2.5)
    worker.crash("consumer")
    await worker.supervision.wait_stopped()
    assert trio.current_time() < 5
    worker.crashes.clear()


async def test_a_thread_that_outlives_grace_keeps_its_lease(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """It cannot be cancelled, so nobody else may start the run: no hand-back before the process ends."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t")(gate.walk_in_thread)
    worker = await executor(stage, tasks, shutdown_grace=5)
    with stage.time_stands_still():
        await publisher.queue("g/t")
        await gate.entered.wait()
    stage.nursery.start_soon(worker.stop)
    await worker.supervision.wait_stopped()
    assert len(await stage.store.leases.expiring(10**15)) == 1
    with stage.time_stands_still():
        gate.open.set()


async def test_a_stopped_worker_leaves_nothing_behind(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """No lease, no presence, no pending entry, no place in the groups."""
    tasks = group()
    noting(tasks, YEARLY)
    worker = await executor(stage, tasks)
    await publisher.queue("g/t", 5)
    await stage.until(1)
    await worker.stop()
    redis, keys = stage.redis, stage.store.keys
    assert await stage.store.leases.workers() == []
    assert await stage.store.leases.expiring(10**15) == []
    for stream in (keys.stream_high, keys.stream_low):
        assert await redis.xinfo_consumers(stream, "workers") == []
        assert await redis.xlen(stream) == 0


# -- the last delivery ----------------------------------------------------------------------------------------------


async def read(stage: Stage, worker: str) -> list[Entry]:
    return await stage.store.runs.read(worker, priorities=("low",), count=1, block_ms=None)


async def test_a_run_on_its_last_delivery_runs_alone(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """It may be what kills workers: it waits for the others, and nothing is read meanwhile."""
    tasks, gate, suspect = group(), Gate(), Gate()
    tasks.add_task(YEARLY, name="other")(gate.walk)
    tasks.add_task(YEARLY, name="suspect")(suspect.walk)
    await stage.store.runs.make_groups()
    [run_id] = await publisher.queue("g/suspect")
    for victim in ("a", "b"):
        [claimed] = await stage.store.runs.claim(victim, victim, await read(stage, victim), lease_ms=1_000)
        assert isinstance(claimed, Claimed)
        await stage.store.runs.begin(victim, Hold(run_id, claimed.fence, victim))
        await publisher.lose(run_id)
    entries = await read(stage, "c")
    await executor(stage, tasks, concurrent_tasks=5)
    await publisher.queue("g/other", 2)
    await stage.until(1)
    await stage.store.runs.release(entries)
    await stage.until(2)
    await publisher.queue("g/other", 2)
    await stage.until(3)
    assert (gate.inside, suspect.inside) == (2, 0)
    gate.open.set()
    await stage.until(4)
    assert (gate.passed, suspect.inside) == (2, 1)
    suspect.open.set()
    await stage.until(5)
    assert gate.passed == 4
    assert await stage.verdicts("g/suspect") == [("ran", "")]


async def test_a_run_on_its_last_delivery_does_not_wait_for_ever(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """Beside an endless body it is given back, uncounted; the worker reads again, and leaves it to others."""
    tasks, endless, suspect = group(), Gate(), Gate()
    tasks.add_task(YEARLY, name="endless")(endless.walk)
    tasks.add_task(YEARLY, name="suspect")(suspect.walk)
    started_s = noting(tasks, YEARLY, name="quick")
    await publisher.queue("g/endless")
    worker = await executor(stage, tasks, concurrent_tasks=5)
    worker.cable.cut()
    [run_id] = await publisher.queue("g/suspect")
    await stage.redis.hset(stage.store.keys.run(run_id), "deliveries", 2)
    worker.cable.join()
    await stage.until(1)
    await publisher.queue("g/quick")
    await stage.until(80)
    assert started_s == []
    await stage.until(100)
    assert len(started_s) == 1
    for second in range(101, 130):
        await stage.until(second)
        await publisher.requeue()
    assert suspect.inside == 0
    assert await stage.redis.hget(stage.store.keys.run(run_id), "deliveries") == "2"
    assert worker.doing("consumer") == "1/5 runs: g/endless"
    await publisher.queue("g/quick")
    await stage.until(131)
    assert len(started_s) == 2
    endless.open.set()
    for second in range(132, 140):
        await stage.until(second)
        await publisher.requeue()
    assert suspect.inside == 1


# -- outages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("down_s", [2.0, 5.0])
async def test_an_outage_at_the_end_of_a_body_never_makes_a_failure(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, down_s: float
) -> None:
    """The completion is repeated until Redis answers."""
    tasks = group()
    started_s = noting(tasks, YEARLY)
    task = tasks.tasks[0].function

    @tasks.add_task(YEARLY, name="slow")
    async def slow() -> None:
        await trio.sleep(2)
        await task()

    worker = await executor(stage, tasks)
    await publisher.queue("g/slow")
    await stage.until(1)
    stage.server.stop()
    await stage.until(1 + down_s)
    stage.server.start()
    await stage.until(10)
    assert len(started_s) == 1
    assert await stage.verdicts("g/slow") == [("ran", "")]
    assert worker.restarts("consumer") == 0


async def test_a_claim_that_is_answered_after_most_of_a_lease_starts_nothing(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """The process was stopped meanwhile, or its reply was long on its way: by now the run may be another worker's."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t")(gate.walk)
    late = await executor(stage, tasks, concurrent_tasks=1)
    [run_id] = await publisher.queue("g/t")
    late.cable.late_s = 20
    await stage.until(9)
    await publisher.lose(run_id)
    await executor(stage, tasks)
    await stage.until(19)
    assert gate.inside == 1
    late.cable.late_s = 0
    await stage.until(25)
    assert gate.most_inside == 1
    gate.open.set()
    await stage.until(30)
    assert await stage.verdicts("g/t") == [("ran", "")]


async def test_a_run_whose_claim_is_not_answered_yet_is_not_claimed_a_second_time(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """Its lease has ended meanwhile, and the other reader of this worker got it: one body, under a lease."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t")(gate.walk)
    worker = await executor(stage, tasks, concurrent_tasks=4)
    DelaysReplies(worker.cable, "claim", 20)
    [run_id] = await publisher.queue("g/t")
    await stage.until(18)
    await publisher.lose(run_id)
    await stage.until(19)
    await publisher.requeue()
    await stage.until(30)
    await publisher.requeue()
    await stage.until(40)
    assert (gate.inside, gate.most_inside) == (1, 1)
    assert len(await stage.store.leases.expiring(10**15)) == 1
    gate.open.set()
    await stage.until(50)
    assert await stage.verdicts("g/t") == [("ran", "")]
    assert worker.restarts("consumer") == 0


async def test_a_run_on_its_last_delivery_begins_when_nothing_more_is_read(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """What the other reader waits for would be lost with it, if it kills its worker: another worker gets it."""
    tasks, gate, other = group(), Gate(), Gate()
    tasks.add_task(YEARLY, name="t")(gate.walk)
    tasks.add_task(YEARLY, name="u")(other.walk)
    first = await executor(stage, tasks, concurrent_tasks=4)
    [run_id] = await publisher.queue("g/t")
    await stage.until(1)
    first.kill()
    await publisher.lose(run_id)
    settings = {"concurrent_tasks": 4, "max_deliveries": 2, "stream_block_ms": 30_000}
    lone = await executor(stage, tasks, **settings)
    await stage.until(2)
    assert gate.inside == 1
    await publisher.queue("g/u")
    await stage.until(3)
    assert (await stage.store.leases.pending(min_idle_ms=0)).entries[1:] == ()
    lone.kill()
    await executor(stage, tasks, **settings)
    await stage.until(4)
    assert other.inside == 1


async def test_what_was_read_goes_back_at_once_when_redis_refuses_a_part_of_it(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """However long the other reader would wait."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t")(gate.walk)
    await publisher.queue("g/unknown")
    await publisher.queue("g/t")
    worker = await stage.worker(tasks, can_lead=False, concurrent_tasks=4, stream_block_ms=30_000)
    redis = Full(worker.cable, "defer")
    await stage.until(1)
    redis.is_full_no_longer()
    await stage.until(3)
    assert gate.inside == 1


async def test_a_claim_that_is_answered_late_is_given_back_when_the_run_is_still_this_workers(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """Nobody took it: it is queued again, uncounted, and runs."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t")(gate.walk)
    worker = await executor(stage, tasks)
    await publisher.queue("g/t")
    worker.cable.late_s = 20
    await stage.until(19)
    worker.cable.late_s = 0
    gate.open.set()
    await stage.until(60)
    assert (gate.passed, gate.most_inside) == (1, 1)
    assert await stage.verdicts("g/t") == [("ran", "")]


async def test_a_claim_whose_first_answer_was_lost_begins_with_the_second(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """Under the fence that it got first: asking again has renewed its lease, so that nobody else can have the run."""
    tasks, gate, fences = group(), Gate(), list[int]()

    @tasks.add_task(YEARLY, name="t")
    async def task() -> None:
        fences.append(RunContext.current().fence)
        await gate.walk()

    worker = await executor(stage, tasks)
    worker.cable.late_s = 5
    [run_id] = await publisher.queue("g/t")
    await stage.until(1)
    first = await stage.redis.hget(stage.store.keys.run(run_id), "fence")
    worker.cable.cut()
    await stage.until(10)
    worker.cable.late_s = 0
    worker.cable.join()
    gate.open.set()
    await stage.until(60)
    assert await stage.verdicts("g/t") == [("ran", "")]
    assert fences == [int(first)]


async def test_reading_goes_on_after_an_outage(autojump_clock: MockClock, stage: Stage, publisher: Publisher) -> None:
    """By itself, and without a crash."""
    tasks = group()
    started_s = noting(tasks, YEARLY)
    worker = await executor(stage, tasks)
    await stage.until(1)
    stage.server.stop()
    await stage.until(600)
    stage.server.start()
    await stage.until(601)
    await publisher.lead_again()
    await publisher.queue("g/t", 3)
    await stage.until(602)
    assert len(started_s) == 3
    assert [worker.restarts(name) for name in ("consumer", "heartbeat", "catalog")] == [0, 0, 0]


# -- bodies that resist ---------------------------------------------------------------------------------------------


def fails_when_cancelled(gate: Gate) -> Any:
    """A body whose cleaning up fails, in a nursery of its own."""

    async def body() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gate.walk)
            try:
                await gate.open.wait()
            finally:
                raise OSError("cannot clean up")

    return body


async def test_an_error_while_cleaning_up_in_a_crash_is_no_crash_of_its_own(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """The run is handed back all the same."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t")(fails_when_cancelled(gate))
    worker = await executor(stage, tasks)
    await publisher.queue("g/t")
    await stage.until(1)
    worker.crash("consumer")
    await stage.until(1.2)
    assert gate.inside == 1
    assert [type(crash.error) for crash in worker.crashes] == [AssertionError]
    worker.crashes.clear()


async def test_an_error_while_cleaning_up_at_a_stop_is_no_failure(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """The engine ended the body, so the attempt does not count: it is handed back."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t", max_retries=0)(fails_when_cancelled(gate))
    worker = await executor(stage, tasks, shutdown_grace=5)
    await publisher.queue("g/t")
    await stage.until(1)
    await worker.stop()
    assert await stage.ledger("g/t") == []
    assert await queued(stage) == 1

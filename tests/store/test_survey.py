"""Looking at many tasks at once, and at runs that have no verdict yet."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio

from engine.errors import RedisUnavailable
from engine.store.inprocess import InProcess, InProcessServer
from engine.store.link import Link, LinkSettings
from engine.store.runs import Failure
from engine.store.session import Broken
from engine.store.store import Store
from engine.store.survey import LiveStory, Survey, WaitingRetry
from tests.store.proxy import Proxy
from tests.store.scenario import LEASE_MS, OTHER, TASK, Stage, completion, expect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.store.servers import RedisServer


# -- survey -----------------------------------------------------------------------------------------------------------


async def test_a_survey_tells_how_each_task_fares_in_the_order_of_the_question(stage: Stage) -> None:
    """Runs that have not ended, retries with their instants, the newest verdict; of a task that has none, nothing."""
    parked = await stage.parked(OTHER, first_ms=600_000)
    await stage.store.runs.complete("A", [completion(await stage.running(ago_ms=9), "failed", "raised", '{"n":1}')])
    retry = await stage.waiting(ago_ms=5, delay_ms=600_000)
    running = await stage.running(ago_ms=4)
    queued = await stage.queued(ago_ms=3)
    of_task, nothing, of_other = await stage.store.runs.survey([TASK, "group/none", OTHER])
    [entry] = await stage.store.ledger.newest(TASK, count=1)
    assert (entry.verdict, entry.reason, entry.story) == ("failed", "raised", ('{"n":1}',))
    assert of_task == Survey(
        live={retry.id: "waiting", running.run_id: "running", queued: "queued"},
        waiting=(WaitingRetry(retry.id, int(retry.at_ms), attempt=2),),
        last=entry,
    )
    assert nothing == Survey(live={}, waiting=(), last=None)
    assert of_other == Survey(live={parked.id: "parked"}, waiting=(), last=None)


async def test_several_retries_of_a_task_are_told_in_the_order_in_which_they_are_due(stage: Stage) -> None:
    """Runs that may overlap each have theirs."""
    late = await stage.waiting(ago_ms=5, delay_ms=600_000)
    soon = await stage.waiting(ago_ms=4, delay_ms=300_000)
    [found] = await stage.store.runs.survey([TASK])
    assert [retry.run_id for retry in expect(Survey, found).waiting] == [soon.id, late.id]


@pytest.mark.parametrize("lost", ["record", "due"])
async def test_a_retry_of_which_something_is_lost_is_live_and_not_waiting_for_anything(stage: Stage, lost: str) -> None:
    """Nobody knows when, or what for."""
    retry = await stage.waiting(delay_ms=600_000)
    if lost == "record":
        await stage.redis.delete(stage.store.keys.run(retry.id))
    else:
        await stage.redis.zrem(stage.store.keys.due, f"r/{retry.id}")
    assert await stage.store.runs.survey([TASK]) == [Survey(live={retry.id: "waiting"}, waiting=(), last=None)]


@pytest.mark.parametrize("key", ["live", "ledger", "record"])
async def test_a_task_with_a_broken_key_is_told_as_such_and_stops_no_other(stage: Stage, key: str) -> None:
    """Another type, where Troupe wrote none."""
    retry, keys = await stage.waiting(delay_ms=600_000), stage.store.keys
    name = {"live": keys.live(TASK), "ledger": keys.ledger(TASK), "record": keys.run(retry.id)}[key]
    await stage.redis.delete(name)
    await stage.redis.set(name, "not ours")
    broken, healthy = await stage.store.runs.survey([TASK, OTHER])
    assert "WRONGTYPE" in expect(Broken, broken).why
    assert healthy == Survey(live={}, waiting=(), last=None)


async def test_a_task_with_a_verdict_that_is_not_ours_is_broken_and_stops_no_other(stage: Stage) -> None:
    """Somebody added to its ledger what is no verdict."""
    await stage.redis.xadd(stage.store.keys.ledger(TASK), {"not": "ours"})
    broken, healthy = await stage.store.runs.survey([TASK, OTHER])
    assert "verdict" in expect(Broken, broken).why
    assert healthy == Survey(live={}, waiting=(), last=None)


async def test_a_survey_of_a_thousand_tasks_takes_two_calls(stage: Stage) -> None:
    """At most 500 in one; the answers stand where the tasks stood."""
    tasks = [f"group/{number}" for number in range(1_000)]
    runs = {task: await stage.queued(task) for task in (tasks[0], tasks[499], tasks[500], tasks[999])}
    await stage.store.runs.survey(tasks[:1])  # the script is known to Redis
    before = stage.store.transport.statistics().commands_sent
    found = await stage.store.runs.survey(tasks)
    assert stage.store.transport.statistics().commands_sent - before == 2
    assert len(found) == 1_000
    assert {
        task: list(one.live) for task, one in zip(tasks, found, strict=True) if isinstance(one, Survey) and one.live
    } == {task: [run_id] for task, run_id in runs.items()}
    assert await stage.store.runs.survey([]) == []


async def test_all_calls_of_a_survey_leave_together(
    shared_redis: Callable[[str], RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are: what it takes is the way to Redis and back, once. The first write has the first call."""
    writes: list[int] = []
    write = os.write

    def counted(file: int, data: bytes | memoryview) -> int:
        if found := bytes(data).count(b"EVALSHA"):
            writes.append(found)
        return write(file, data)

    link = Link(shared_redis("7.0").address)
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        await link.wait_up()
        store = Store.over(link, prefix="surveyed")
        await store.runs.survey([TASK])
        monkeypatch.setattr(os, "write", counted)
        assert len(await store.runs.survey([f"group/{number}" for number in range(2_500)])) == 2_500
        assert writes in ([1, 4], [5])
        nursery.cancel_scope.cancel()


async def test_a_survey_that_gets_no_answer_says_so_by_the_error_itself() -> None:
    """Redis is stopped: no group of errors, of which each caller would have to look for the one."""
    server = InProcessServer()
    store = Store.over(InProcess(server), prefix="test")
    server.stop()
    with pytest.raises(RedisUnavailable):
        await store.runs.survey([f"group/{number}" for number in range(1_500)])


async def test_a_survey_that_is_cut_off_between_its_calls_says_so_by_the_error_itself(
    shared_redis: Callable[[str], RedisServer],
) -> None:
    """The calls were sent, and the line is dead."""
    proxy = Proxy(shared_redis("6.2").tcp)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        link = Link(proxy.address, settings=LinkSettings(command_timeout_s=0.5))
        await nursery.start(link.run)
        await link.wait_up()
        proxy.black_hole = True
        with trio.fail_after(60), pytest.raises(RedisUnavailable):
            await Store.over(link, prefix="cut-off").runs.survey([f"group/{number}" for number in range(1_500)])
        nursery.cancel_scope.cancel()


# -- stories ----------------------------------------------------------------------------------------------------------


async def fail(stage: Stage, *, ago_ms: int, line: str, delay_ms: int = 600_000) -> str:
    """A run whose first attempt failed with this line of its story."""
    held = await stage.running(ago_ms=ago_ms)
    await stage.store.runs.fail("A", [Failure(held, delay_ms, line)])
    return held.run_id


async def test_runs_without_a_verdict_tell_their_attempts_that_ended(stage: Stage) -> None:
    """Whatever they wait for, and while the next attempt is in progress; the oldest attempt first."""
    again = await fail(stage, ago_ms=9, line='{"n":1}', delay_ms=0)
    [item] = [item for item in await stage.store.timetable.window(stage.now_ms + 60_000) if item.is_run]
    await stage.store.timetable.requeue(stage.leader, [item])
    held = await stage.taken("A", token="second")
    await stage.store.runs.fail("A", [Failure(type(held)(held.run_id, held.fence, "its end"), 0, '{"n":2}')])
    [item] = [item for item in await stage.store.timetable.window(stage.now_ms + 60_000) if item.is_run]
    await stage.store.timetable.requeue(stage.leader, [item])
    waiting = await fail_beside(stage, again)
    found = {one.run_id: one for one in await stage.store.runs.stories(TASK)}
    assert found == {
        again: LiveStory(again, "queued", 3, ('{"n":1}', '{"n":2}')),
        waiting: LiveStory(waiting, "waiting", 2, ('{"other":[]}',)),
    }
    assert (await stage.taken("A", token="third")).run_id == again
    running = await stage.store.runs.stories(TASK)
    assert LiveStory(again, "running", 3, ('{"n":1}', '{"n":2}')) in running


async def fail_beside(stage: Stage, other: str) -> str:
    """As fail, while another run of the task is queued, which stays so."""
    entries = await stage.read()
    assert [entry.run_id for entry in entries] == [other]
    failed = await fail(stage, ago_ms=4, line='{"other":[]}')
    assert await stage.store.runs.release(entries) == ["requeued"]
    return failed


async def test_a_parked_run_and_one_that_has_not_begun_have_no_attempts_yet(stage: Stage) -> None:
    """They are told all the same."""
    parked = await stage.parked(first_ms=600_000)
    queued = await stage.queued(ago_ms=5)
    found = {one.run_id: one for one in await stage.store.runs.stories(TASK)}
    assert found == {
        parked.id: LiveStory(parked.id, "parked", 1, ()),
        queued: LiveStory(queued, "queued", 1, ()),
    }


async def test_an_attempt_whose_worker_was_lost_is_in_the_story(stage: Stage) -> None:
    """The run is queued again; the attempt is over."""
    held = await stage.running()
    await stage.store.leases.reclaim(stage.leader, [await stage.lease(held)], max_deliveries=3, story='{"lost":1}')
    assert await stage.store.runs.stories(TASK) == [LiveStory(held.run_id, "queued", 1, ('{"lost":1}',))]


async def ends(stage: Stage) -> None:
    await stage.store.runs.complete("A", [completion(await stage.running())])


async def is_abandoned(stage: Stage) -> None:
    await stage.store.runs.abandon("A", await stage.running(), reason="timed out", story='{"n":1}')


async def loses_its_task(stage: Stage) -> None:
    await fail(stage, ago_ms=3, line='{"n":1}', delay_ms=0)
    [item] = await stage.store.timetable.window(stage.now_ms + 60_000)
    await stage.store.timetable.requeue(stage.leader, [item])
    held = await stage.taken("A", token="second")
    assert await stage.store.operations.forget(TASK, "forget", who="me", declared=True) == 0
    beat = await stage.store.leases.beat(
        "A", [(held.run_id, held.fence)], lease_ms=LEASE_MS, details="{}", draining=False
    )
    assert beat.lost == frozenset()


async def loses_its_record(stage: Stage) -> None:
    retry = await stage.waiting(delay_ms=600_000)
    await stage.redis.delete(stage.store.keys.run(retry.id))


async def has_a_record_that_is_not_ours(stage: Stage) -> None:
    retry = await stage.waiting(delay_ms=600_000)
    await stage.redis.delete(stage.store.keys.run(retry.id))
    await stage.redis.set(stage.store.keys.run(retry.id), "not ours")


@pytest.mark.parametrize("what", [ends, is_abandoned, loses_its_task, loses_its_record, has_a_record_that_is_not_ours])
async def test_a_run_that_has_its_verdict_or_will_have_none_is_no_story(
    stage: Stage, what: Callable[[Stage], Awaitable[None]]
) -> None:
    """Its attempts are in the ledger, or nowhere; the others are told."""
    await what(stage)
    queued = await stage.queued(ago_ms=8)
    assert await stage.store.runs.stories(TASK) == [LiveStory(queued, "queued", 1, ())]


async def test_many_stories_take_one_turn(stage: Stage) -> None:
    """One read of which runs there are, and one for each, all sent together."""
    runs = [await stage.queued(ago_ms=ago_ms) for ago_ms in range(300)]
    before = stage.store.transport.statistics().commands_sent
    found = await stage.store.runs.stories(TASK)
    assert stage.store.transport.statistics().commands_sent - before == 301
    assert sorted(one.run_id for one in found) == sorted(runs)

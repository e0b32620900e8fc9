"""claim, complete, fail, hand_back, abandon, defer, release: a run belongs to one worker, under one fence."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from engine.store.runs import Claimed, Completion, Entry, Failure, Fenced, Gone, Hold, Parked, Stale, Waiting
from engine.store.session import Done
from engine.store.timetable import Due, Ended, Queued
from tests.store.scenario import LEASE_MS, OTHER, TASK, Stage, completion, expect, hold

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.store.store import Store

DAY_MS = 86_400_000


async def gone_for_good(stage: Stage, run_id: str, task: str = TASK) -> None:
    """Nothing of a run is left but its verdict."""
    keys, redis = stage.store.keys, stage.redis
    assert await stage.record(run_id) == {}
    assert run_id not in await stage.live(task)
    assert await stage.due_ms(f"r/{run_id}") is None
    assert run_id not in await stage.in_stream() + await stage.in_stream("high")
    assert (await stage.store.leases.pending(min_idle_ms=0)).entries == ()
    assert await redis.execute_command("EXISTS", keys.leases, keys.cancel) == 0


# -- reading ----------------------------------------------------------------------------------------------------------


async def test_reading_makes_the_groups_that_redis_has_forgotten(store: Store) -> None:
    """And from the first entry on, so that nothing published before is passed over."""
    assert await store.runs.read("A", priorities=["high", "low"], count=1, block_ms=None) == []
    stage = await Stage.set(store)
    run_id = await stage.queued()
    await stage.redis.xgroup_destroy(store.keys.stream_low, "workers")
    assert await stage.read() == []
    assert [entry.run_id for entry in await stage.read()] == [run_id]


async def test_what_a_worker_read_and_did_not_acknowledge_is_read_again_in_pages(stage: Stage) -> None:
    """Both streams, in order; claimed or not; and nobody else's."""
    low = [await stage.queued(f"group/{number}") for number in range(5)]
    high = [await stage.queued("group/high", priority="high")]
    await stage.read()
    await stage.read(priority="high")
    await stage.queued("group/late")
    await stage.read("B")
    for page in (1, 2, 5, 100):
        entries = await stage.store.runs.unclaimed("A", page=page)
        assert [entry.run_id for entry in entries] == high + low
    assert [entry.task_id for entry in entries][:2] == ["group/high", "group/0"]


# -- claim ------------------------------------------------------------------------------------------------------------


async def test_a_claim_makes_a_run_its_workers_under_a_fence_of_redis_time(stage: Stage) -> None:
    """Record, index and lease; nothing else."""
    run_id = await stage.queued()
    entries = await stage.read()
    await stage.redis.hset(stage.store.keys.run(run_id), "kwargs", '{"n":[]}')
    before = set(await stage.snapshot())
    [claimed] = await stage.claim(entries)
    assert claimed == Claimed(run_id, claimed.fence, TASK, stage.now_ms - 1, 1, 0, '{"n":[]}')
    assert abs(claimed.fence - stage.now_ms) < 60_000
    record = await stage.record(run_id)
    assert record["state"] == "running"
    assert (record["worker"], record["token"], record["fence"]) == ("A", "claim", str(claimed.fence))
    assert await stage.live() == {run_id: "running"}
    lease = await stage.lease(hold(claimed))
    assert 0 < lease.expiry_ms - stage.now_ms - LEASE_MS < 60_000
    assert set(await stage.snapshot()) - before == {stage.store.keys.leases}


@pytest.mark.parametrize("step", ["claim", "hand_back", "reclaim"])
async def test_fences_grow_when_the_clock_of_redis_is_behind(stage: Stage, step: str) -> None:
    """It was stepped back: one more than the last, whatever TIME says, and never a float."""
    held = await stage.running()
    ahead = stage.now_ms + DAY_MS
    await stage.redis.hset(stage.store.keys.run(held.run_id), "fence", ahead)
    held = Hold(held.run_id, ahead, "end")
    await stage.redis.zadd(stage.store.keys.leases, {f"{held.run_id}#{ahead}": stage.now_ms})
    if step == "reclaim":
        lease = await stage.lease(held)
        await stage.store.leases.reclaim(stage.leader, [lease], max_deliveries=3, story="{}")
    else:
        await stage.store.runs.hand_back("A", [held])
    assert (await stage.record(held.run_id))["fence"] == str(ahead + 1)
    if step == "claim":
        assert (await stage.taken("B")).fence == ahead + 2
        assert (await stage.record(held.run_id))["fence"] == str(ahead + 2)


async def test_an_entry_that_is_not_the_runs_current_one_is_stale_and_goes(stage: Stage) -> None:
    """Another entry took its place, or the run has ended: the stream is cleaned of it."""
    run_id = await stage.queued()
    [old] = await stage.read()
    await stage.store.runs.release([old])
    keys, redis = stage.store.keys, stage.redis
    spurious = await redis.xadd(keys.stream_low, {"run": run_id})
    left_over = await redis.xadd(keys.stream_low, {"run": f"{TASK}@1"})
    entries = [entry for entry in await stage.read() if entry.entry_id in (spurious, left_over)]
    assert len(entries) == 2
    assert await stage.store.runs.claim("A", "t", entries, lease_ms=LEASE_MS) == [Stale(), Stale()]
    assert await stage.in_stream() == [run_id]
    assert [one.entry.run_id for one in (await stage.store.leases.pending(min_idle_ms=0)).entries] == [run_id]
    assert (await stage.record(run_id))["state"] == "queued"


async def test_only_the_worker_that_read_an_entry_claims_its_run(stage: Stage) -> None:
    """Whatever another worker believes to have read: nothing is written."""
    await stage.queued()
    entries = await stage.read("A")
    before = await stage.snapshot()
    assert await stage.store.runs.claim("B", "t", entries, lease_ms=LEASE_MS) == [Stale()]
    assert await stage.snapshot() == before


async def test_a_run_of_a_task_that_was_paused_since_is_skipped_at_claim(stage: Stage) -> None:
    """It never started: its slot has a verdict, and nothing of the run stays."""
    run_id = await stage.queued()
    entries = await stage.read()
    await stage.store.catalog.pause([TASK], "pause", until_ms=None, details="{}", who="me")
    replies = await stage.store.runs.claim("A", "t", entries, lease_ms=LEASE_MS)
    assert replies == [Ended("skipped", "paused")]
    assert await stage.verdicts() == [("skipped", "paused")]
    await gone_for_good(stage, run_id)


@pytest.mark.parametrize("why", ["forced", "started before", "pause is over"])
async def test_a_pause_does_not_stop_every_run_at_claim(stage: Stage, why: str) -> None:
    """Not one that was asked for by name, nor one that was started before, nor once the pause has ended."""
    run_id = await stage.queued()
    if why == "forced":
        await stage.redis.hset(stage.store.keys.run(run_id), "force", "1")
    elif why == "started before":
        await stage.store.runs.hand_back("A", [await stage.taken()])
    until_ms = stage.now_ms - 1 if why == "pause is over" else None
    await stage.store.catalog.pause([TASK], "pause", until_ms=until_ms, details="{}", who="me")
    assert (await stage.taken("B")).run_id == run_id


async def two_runs_of_one_task(stage: Stage) -> tuple[str, str]:
    """As the two triggers of a task make them, that no slot would."""
    first = await stage.queued(overlap="allow", ago_ms=2)
    second = await stage.queued(overlap="allow", ago_ms=1)
    for run_id in (first, second):
        await stage.redis.hset(stage.store.keys.run(run_id), "overlap", "skip")
    return first, second


async def test_of_two_runs_in_one_claim_a_task_that_does_not_overlap_gets_one(stage: Stage) -> None:
    """The decision about the second knows of the first, although nothing is written in between."""
    first, second = await two_runs_of_one_task(stage)
    other = await stage.queued(OTHER, overlap="skip")
    replies = await stage.store.runs.claim("A", "t", await stage.read(), lease_ms=LEASE_MS)
    assert expect(Claimed, replies[0]).run_id == first
    assert replies[1] == Ended("skipped", "overlap")
    assert expect(Claimed, replies[2]).run_id == other
    assert await stage.live() == {first: "running"}
    [entry] = await stage.store.ledger.all(TASK)
    assert (entry.run_id, entry.verdict, entry.reason) == (second, "skipped", "overlap")


async def test_the_repeat_of_a_claim_holds_a_whole_lease_and_revives_none(stage: Stage) -> None:
    """The body begins with the answer to the repeat. One that comes when the run was lost by then changes nothing."""
    await stage.queued()
    entries = await stage.read()
    [claimed] = await stage.claim(entries)
    member, leases = f"{claimed.run_id}#{claimed.fence}", stage.store.keys.leases
    await stage.redis.zadd(leases, {member: 1})
    assert await stage.claim(entries) == [claimed]
    assert await stage.redis.zscore(leases, member) >= stage.now_ms + LEASE_MS
    await stage.redis.zrem(leases, member)
    assert await stage.claim(entries) == [claimed]
    assert await stage.redis.zscore(leases, member) is None


async def test_an_entry_that_stands_twice_in_one_claim_gets_one_fence(stage: Stage) -> None:
    """The run does not overlap itself."""
    await stage.queued(overlap="skip")
    [entry] = await stage.read()
    first, second = await stage.store.runs.claim("A", "t", [entry, entry], lease_ms=LEASE_MS)
    assert first == second
    assert (await stage.record(entry.run_id))["fence"] == str(expect(Claimed, first).fence)
    assert await stage.verdicts() == []


async def test_a_repeated_claim_does_not_grant_a_run_by_an_entry_that_is_not_its_current_one(stage: Stage) -> None:
    """Or one run would be granted twice in one answer, and its body started twice."""
    run_id = await stage.queued()
    await stage.redis.xadd(stage.store.keys.stream_low, {"run": run_id})
    entries = await stage.read()
    for _ in range(2):
        granted, stale = await stage.store.runs.claim("A", "t", entries, lease_ms=LEASE_MS)
        assert expect(Claimed, granted).run_id == run_id
        assert stale == Stale()


@pytest.mark.parametrize(
    ("started", "ended"), [(False, Ended("skipped", "overlap")), (True, Ended("failed", "superseded"))]
)
async def test_a_claim_beside_a_running_one_is_refused_with_a_verdict(
    stage: Stage, *, started: bool, ended: Ended
) -> None:
    """A fresh run is skipped; one that was started before failed, and keeps the story of its attempts."""
    first, second = await two_runs_of_one_task(stage)
    one, other = await stage.read()
    if started:
        await stage.redis.hset(stage.store.keys.run(second), mapping={"fence": "7", "story": "told"})
    await stage.claim([one])
    assert await stage.store.runs.claim("A", "t2", [other], lease_ms=LEASE_MS) == [ended]
    assert await stage.live() == {first: "running"}
    assert await stage.verdicts() == [(ended.verdict, ended.reason)]
    [(_, fields)] = await stage.redis.xrange(stage.store.keys.ledger(TASK))
    assert fields["story"] == ("told" if started else "")


@pytest.mark.parametrize("mark", ["abandoned", "removed"])
async def test_a_claim_that_is_refused_leaves_no_verdict_where_there_is_one_or_none_is_wanted(
    stage: Stage, mark: str
) -> None:
    """The run of a removed task, and one that has its verdict already."""
    first, second = await two_runs_of_one_task(stage)
    one, other = await stage.read()
    await stage.redis.hset(stage.store.keys.run(second), mark, "1")
    await stage.claim([one])
    assert await stage.store.runs.claim("A", "t2", [other], lease_ms=LEASE_MS) == [Ended("skipped", "overlap")]
    assert await stage.live() == {first: "running"}
    assert await stage.verdicts() == []


# -- who may ----------------------------------------------------------------------------------------------------------


def ends(stage: Stage, worker: str, held: Hold) -> list[Callable[[], Awaitable[object]]]:
    """Each way to end an attempt."""
    runs = stage.store.runs

    async def abandon() -> list[object]:
        return [await runs.abandon(worker, held, reason="timed out", story="{}")]

    return [
        lambda: runs.complete(worker, [completion(held)]),
        lambda: runs.fail(worker, [Failure(held, 0, "{}")]),
        lambda: runs.hand_back(worker, [held]),
        abandon,
    ]


@pytest.mark.parametrize("whose", ["another worker", "another fence", "a run that was lost"])
async def test_a_worker_that_lost_its_run_writes_nothing(stage: Stage, whose: str) -> None:
    """Worker and fence must both be those of the record, and the run in progress."""
    held = await stage.running()
    worker = "A"
    if whose == "another worker":
        worker = "B"
    elif whose == "another fence":
        held = Hold(held.run_id, held.fence - 1, "end")
    else:
        lease = await stage.lease(held)
        await stage.store.leases.reclaim(stage.leader, [lease], max_deliveries=3, story="{}")
    before = await stage.snapshot()
    for end in ends(stage, worker, held):
        assert await end() == [Fenced()]
    assert await stage.snapshot() == before


async def test_the_end_of_a_run_that_is_no_more_is_gone(stage: Stage) -> None:
    """On a repeat that means: done before."""
    before = await stage.snapshot()
    for end in ends(stage, "A", Hold(f"{TASK}@1", 1, "end")):
        assert await end() == [Gone()]
    assert await stage.snapshot() == before


# -- complete ---------------------------------------------------------------------------------------------------------


async def test_completing_a_run_leaves_its_verdict_and_nothing_else(stage: Stage) -> None:
    """Record, lease, index and stream entry go with it, and what asked it to stop."""
    held = await stage.running()
    await stage.redis.sadd(stage.store.keys.cancel, f"{held.run_id}#{held.fence}")
    assert await stage.store.runs.complete("A", [completion(held, story='{"worker":"A"}')]) == [Done()]
    [entry] = await stage.store.ledger.all(TASK)
    assert (entry.verdict, entry.reason, entry.run_id, entry.attempt) == ("ran", "", held.run_id, 1)
    assert (entry.from_ms, entry.to_ms, entry.count) == (stage.now_ms - 1, stage.now_ms - 1, 1)
    assert entry.story == ('{"worker":"A"}',)
    await gone_for_good(stage, held.run_id)
    assert await stage.redis.execute_command("XLEN", stage.store.keys.dead) == 0


async def test_a_dead_run_is_kept_whole_with_its_whole_story(stage: Stage) -> None:
    """For whoever decides to run it again: also the attempt that ended it."""
    run_id = await stage.queued()
    await stage.redis.hset(stage.store.keys.run(run_id), "kwargs", '{"n":[]}')
    await stage.store.runs.fail("A", [Failure(await stage.taken(), 0, '"first"')])
    [item] = [due for due in await stage.store.timetable.window(stage.now_ms + 60_000) if due.is_run]
    await stage.store.timetable.requeue(stage.leader, [item])
    held = await stage.taken(token="second")
    record = await stage.record(run_id)
    await stage.store.runs.complete("A", [completion(held, "dead", "max_retries", '"second"')])
    [(_, fields)] = await stage.redis.execute_command("XRANGE", stage.store.keys.dead, "-", "+")
    assert abs(int(fields.pop("at")) - stage.now_ms) < 60_000
    assert fields.pop("story") == '"first"\n"second"'
    del record["story"]
    assert fields == {"run": run_id, "reason": "max_retries", **record}
    assert await stage.verdicts() == [("dead", "max_retries")]
    await gone_for_good(stage, run_id)


async def test_no_field_of_a_dead_run_stands_twice(stage: Stage) -> None:
    """Readers make a mapping of an entry: the last of two would win."""
    held = await stage.running()
    await stage.redis.hset(stage.store.keys.run(held.run_id), "story", '"old"')
    await stage.store.runs.complete("A", [completion(held, "dead", "max_retries", '"new"')])
    script = "return redis.call('XRANGE', KEYS[1], '-', '+')[1][2]"
    flat = await stage.redis.execute_command("EVAL", script, 1, stage.store.keys.dead)
    assert sorted(flat[::2]) == sorted(set(flat[::2]))


@pytest.mark.parametrize("verdict", ["ran", "failed", "dead"])
async def test_the_end_of_a_removed_tasks_run_leaves_nothing(stage: Stage, verdict: str) -> None:
    """Neither ledger nor dead: the task was forgotten while it ran."""
    held = await stage.running()
    await stage.redis.hset(stage.store.keys.run(held.run_id), "removed", "1")
    assert await stage.store.runs.complete("A", [completion(held, verdict)]) == [Done()]
    await gone_for_good(stage, held.run_id)
    assert await stage.verdicts() == []
    assert await stage.entries(stage.store.keys.dead) == []


# -- fail -------------------------------------------------------------------------------------------------------------


async def test_a_failed_attempt_waits_for_its_retry(stage: Stage) -> None:
    """Lease and stream entry go; the attempt is counted, the story goes on, and due says when."""
    held = await stage.running()
    await stage.redis.sadd(stage.store.keys.cancel, f"{held.run_id}#{held.fence}")
    [reply] = await stage.store.runs.fail("A", [Failure(held, 30_000, '{"error":"Boom"}')])
    due_ms = expect(Waiting, reply).due_ms
    assert 0 <= due_ms - stage.now_ms - 30_000 < 60_000
    assert await stage.due_ms(f"r/{held.run_id}") == due_ms
    record = await stage.record(held.run_id)
    assert (record["state"], record["attempt"], record["deliveries"], record["entry"]) == ("waiting", "2", "0", "")
    assert record["story"] == '{"error":"Boom"}'
    assert await stage.live() == {held.run_id: "waiting"}
    assert await stage.in_stream() == []
    assert await stage.redis.execute_command("EXISTS", stage.store.keys.leases, stage.store.keys.cancel) == 0
    assert await stage.verdicts() == []


async def test_a_retry_within_the_next_ten_seconds_wakes_the_coordinator(stage: Stage) -> None:
    """It keeps so much of due in memory, and reads what comes later by itself."""
    item = await stage.waiting(delay_ms=5_000)
    wake = {"due": f"r/{item.id}", "at": str(item.at_ms)}
    assert await stage.entries(stage.store.keys.wake) == [wake]
    await stage.waiting(OTHER, delay_ms=40_000)
    assert await stage.entries(stage.store.keys.wake) == [wake]


async def test_a_run_that_was_asked_to_stop_is_not_tried_again(stage: Stage) -> None:
    """It failed by itself before it heard of it: its verdict says what was asked for."""
    held = await stage.running()
    await stage.redis.hset(stage.store.keys.run(held.run_id), "cancel", "1")
    assert await stage.store.runs.fail("A", [Failure(held, 0, "{}")]) == [Gone()]
    await gone_for_good(stage, held.run_id)
    assert await stage.verdicts() == [("failed", "cancelled")]


@pytest.mark.parametrize("mark", ["removed", "abandoned"])
async def test_a_run_that_was_removed_or_judged_already_is_not_tried_again(stage: Stage, mark: str) -> None:
    """It ends, and no second verdict is written."""
    held = await stage.running()
    await stage.redis.hset(stage.store.keys.run(held.run_id), mark, "1")
    assert await stage.store.runs.fail("A", [Failure(held, 0, "{}")]) == [Gone()]
    await gone_for_good(stage, held.run_id)
    assert await stage.verdicts() == []


async def test_the_story_keeps_the_last_twenty_attempts(stage: Stage) -> None:
    """A run that fails for ever does not grow for ever."""
    await stage.queued()
    for number in range(25):
        held = await stage.taken(token=f"claim {number}")
        held = Hold(held.run_id, held.fence, f"end {number}")
        [reply] = await stage.store.runs.fail("A", [Failure(held, 0, json.dumps({"attempt": number}))])
        item = Due(held.run_id, expect(Waiting, reply).due_ms, is_run=True)
        assert await stage.store.timetable.requeue(stage.leader, [item]) == [Queued()]
    held = await stage.taken(token="last")
    await stage.store.runs.complete("A", [completion(held, story=json.dumps({"attempt": 25}))])
    [entry] = await stage.store.ledger.all(TASK)
    assert [json.loads(line)["attempt"] for line in entry.story] == list(range(6, 26))
    assert entry.attempt == 26


# -- hand_back --------------------------------------------------------------------------------------------------------


async def test_a_run_that_is_handed_back_is_queued_uncounted_under_a_new_fence(stage: Stage) -> None:
    """Its lease goes, and what asked it to stop; a new entry takes the place of the old one."""
    held = await stage.running()
    await stage.redis.sadd(stage.store.keys.cancel, f"{held.run_id}#{held.fence}")
    old = (await stage.record(held.run_id))["entry"]
    assert await stage.store.runs.hand_back("A", [held]) == [Done()]
    record = await stage.record(held.run_id)
    assert (record["state"], record["attempt"], record["deliveries"]) == ("queued", "1", "0")
    assert int(record["fence"]) > held.fence
    [(entry, _)] = await stage.redis.xrange(stage.store.keys.stream_low)
    assert record["entry"] == entry != old
    assert await stage.live() == {held.run_id: "queued"}
    assert await stage.redis.execute_command("EXISTS", stage.store.keys.leases, stage.store.keys.cancel) == 0
    assert (await stage.taken("B")).run_id == held.run_id


@pytest.mark.parametrize("mark", ["removed", "abandoned"])
async def test_a_run_that_was_removed_or_judged_already_is_not_handed_on(stage: Stage, mark: str) -> None:
    """It ends with the worker that had it."""
    held = await stage.running()
    await stage.redis.hset(stage.store.keys.run(held.run_id), mark, "1")
    assert await stage.store.runs.hand_back("A", [held]) == [Done()]
    await gone_for_good(stage, held.run_id)


async def test_a_run_that_was_asked_to_stop_is_not_handed_on(stage: Stage) -> None:
    """It ends here, cancelled, and no other worker starts it again."""
    held = await stage.running()
    await stage.redis.hset(stage.store.keys.run(held.run_id), "cancel", "1")
    assert await stage.store.runs.hand_back("A", [held]) == [Done()]
    await gone_for_good(stage, held.run_id)
    assert await stage.verdicts() == [("failed", "cancelled")]


# -- abandon ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", ["ran", "dead"])
async def test_an_abandoned_run_has_its_verdict_at_once_and_stays_until_its_thread_returns(
    stage: Stage, verdict: str
) -> None:
    """Nothing overlaps it meanwhile; and its end, whatever it is, writes no second verdict."""
    held = await stage.running(overlap="skip")
    assert await stage.store.runs.abandon("A", held, reason="timed out", story='"late"') == Done()
    [entry] = await stage.store.ledger.all(TASK)
    assert (entry.verdict, entry.reason, entry.run_id, entry.story) == (
        *("failed", "timed out"),
        *(held.run_id, ('"late"',)),
    )
    assert await stage.live() == {held.run_id: "running"}
    assert (await stage.lease(held)).fence == held.fence
    assert await stage.store.runs.complete("A", [completion(held, verdict)]) == [Done()]
    await gone_for_good(stage, held.run_id)
    assert await stage.verdicts() == [("failed", "timed out")]
    assert await stage.entries(stage.store.keys.dead) == []


async def test_an_abandoned_run_of_a_removed_task_leaves_no_verdict(stage: Stage) -> None:
    """The task was forgotten while the thread went on."""
    held = await stage.running()
    await stage.redis.hset(stage.store.keys.run(held.run_id), "removed", "1")
    assert await stage.store.runs.abandon("A", held, reason="timed out", story="{}") == Done()
    assert (await stage.record(held.run_id))["abandoned"] == "1"
    assert await stage.verdicts() == []


# -- defer ------------------------------------------------------------------------------------------------------------


async def test_a_run_of_an_unknown_function_is_parked_and_the_delay_doubles_up_to_its_cap(stage: Stage) -> None:
    """Uncounted: neither an attempt nor a delivery. It never spins, and is looked at every five seconds at least."""
    run_id = await stage.queued()
    delays = []
    for _ in range(8):
        earliest_ms = await stage.store.leases.redis_ms()
        [reply] = await stage.store.runs.defer("A", await stage.read(), most=100)
        latest_ms = await stage.store.leases.redis_ms()
        at_ms = expect(Parked, reply).due_ms
        delays.append((at_ms - latest_ms, at_ms - earliest_ms))
        assert await stage.due_ms(f"r/{run_id}") == at_ms
        assert await stage.in_stream() == []
        assert await stage.live() == {run_id: "parked"}
        record = await stage.record(run_id)
        assert (record["state"], record["why"], record["entry"]) == ("parked", "unknown function", "")
        assert (record["attempt"], record["deliveries"], record["fence"]) == ("1", "0", "0")
        await stage.redis.zadd(stage.store.keys.due, {f"r/{run_id}": 1})
        await stage.store.timetable.requeue(stage.leader, [Due(run_id, 1, is_run=True)])
    for (least, most), wanted in zip(delays, (100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000), strict=True):
        assert least <= wanted <= most


async def test_a_parked_run_whose_next_look_is_near_wakes_the_coordinator(stage: Stage) -> None:
    """As a retry does."""
    item = await stage.parked(first_ms=5_000)
    assert await stage.entries(stage.store.keys.wake) == [{"due": f"r/{item.id}", "at": str(item.at_ms)}]


async def test_a_run_is_parked_with_the_reason_and_not_for_its_number_skipped(stage: Stage) -> None:
    """A worker that is busy says nothing about how many runs there may be."""
    run_id = await stage.queued()
    [reply] = await stage.store.runs.defer("A", await stage.read(), why="busy worker", most=None)
    assert isinstance(reply, Parked)
    assert (await stage.record(run_id))["why"] == "busy worker"


async def test_of_too_many_runs_that_no_worker_knows_the_last_are_skipped(stage: Stage) -> None:
    """A task that nobody can run must not fill Redis: its slots say why."""
    runs = [await stage.queued(ago_ms=10 - number) for number in range(3)]
    first, second, third = await stage.read()
    assert isinstance((await stage.store.runs.defer("A", [first], most=1))[0], Parked)
    replies = await stage.store.runs.defer("A", [second, third], most=1)
    assert replies == [Ended("skipped", "no worker")] * 2
    assert await stage.live() == {runs[0]: "parked"}
    assert await stage.verdicts() == [("skipped", "no worker")] * 2
    await gone_for_good(stage, runs[1])


async def test_runs_that_are_not_put_aside_do_not_count_against_those_that_are(stage: Stage) -> None:
    """However many are queued, in progress or tried again: others know the function, so this one waits for them."""
    await stage.waiting(ago_ms=9, delay_ms=600_000)
    await stage.running("group/task", "B", ago_ms=8)
    for ago_ms in (7, 6, 5):
        await stage.queued(ago_ms=ago_ms)
    entries = await stage.read()
    assert [type(reply) for reply in await stage.store.runs.defer("A", entries[:1], most=1)] == [Parked]
    assert await stage.store.runs.defer("A", entries[1:2], most=1) == [Ended("skipped", "no worker")]


async def test_runs_that_are_put_aside_in_one_call_count(stage: Stage) -> None:
    """The decision about the second knows of the first, although nothing is written in between."""
    for ago_ms in (3, 2, 1):
        await stage.queued(ago_ms=ago_ms)
    replies = await stage.store.runs.defer("A", await stage.read(), most=2)
    assert [type(reply) for reply in replies] == [Parked, Parked, Ended]


@pytest.mark.parametrize("whose", ["another worker's", "another entry", "an older entry", "a run in progress"])
async def test_only_the_current_entry_of_a_queued_run_is_deferred_by_its_reader(stage: Stage, whose: str) -> None:
    """Everything else is stale, and nothing is written."""
    await stage.queued()
    [entry] = await stage.read()
    worker = "A"
    if whose == "another worker's":
        worker = "B"
    elif whose == "another entry":
        entry = Entry(entry.run_id, "1-1", entry.priority)
    elif whose == "an older entry":
        await stage.redis.hset(stage.store.keys.run(entry.run_id), "entry", "1-1")
    else:
        await stage.claim([entry])
    before = await stage.snapshot()
    assert await stage.store.runs.defer(worker, [entry], most=100) == [Stale()]
    assert await stage.snapshot() == before


# -- release ----------------------------------------------------------------------------------------------------------


async def test_releasing_the_current_entry_of_a_queued_run_puts_a_new_one_in_its_place(stage: Stage) -> None:
    """For the next reader; nothing else about the run changes."""
    run_id = await stage.queued(priority="high")
    [entry] = await stage.read(priority="high")
    record = await stage.record(run_id)
    assert await stage.store.runs.release([entry]) == ["requeued"]
    [(new, fields)] = await stage.redis.xrange(stage.store.keys.stream_high)
    assert fields == {"run": run_id}
    assert new != entry.entry_id
    assert await stage.record(run_id) == {**record, "entry": new}
    assert await stage.store.runs.unclaimed("A") == []
    assert [other.entry_id for other in await stage.read("B", priority="high")] == [new]


async def test_releasing_an_entry_that_is_nobodys_drops_it(stage: Stage) -> None:
    """Of a run that is no more, or that has another entry."""
    run_id = await stage.queued()
    for name in (run_id, f"{TASK}@1"):
        await stage.redis.xadd(stage.store.keys.stream_low, {"run": name})
    current, *others = await stage.read()
    before = await stage.record(run_id)
    assert await stage.store.runs.release(others) == ["dropped", "dropped"]
    assert await stage.record(run_id) == before
    assert [one.entry for one in (await stage.store.leases.pending(min_idle_ms=0)).entries] == [current]


async def test_releasing_the_entry_of_a_run_in_progress_keeps_it(stage: Stage) -> None:
    """It belongs to the lease."""
    await stage.running()
    [entry] = await stage.store.runs.unclaimed("A")
    before = await stage.snapshot()
    assert await stage.store.runs.release([entry]) == ["kept"]
    assert await stage.snapshot() == before


# -- many at once -----------------------------------------------------------------------------------------------------


async def test_twelve_hundred_runs_are_taken_through_every_script_and_answered_in_order(stage: Stage) -> None:
    """At most 500 in one call of a script: Redis is not held for long, and the replies stand where the items stood."""
    tasks = [f"group/{number}" for number in range(1_200)]
    runs, counted = stage.store.runs, stage.store.transport.statistics
    await stage.redis.zadd(stage.store.keys.due, dict.fromkeys((f"t/{task}" for task in tasks), stage.now_ms - 1_000))
    await stage.redis.delete(stage.store.keys.ledger(tasks[700]))
    await stage.redis.set(stage.store.keys.ledger(tasks[700]), "not ours")
    await stage.store.catalog.pause([tasks[600]], "pause", until_ms=None, details="{}", who="me")
    slots = [stage.slot(task) for task in tasks]
    await stage.store.timetable.publish(stage.leader, slots[:1], queue_cap=10_000)  # the script is known to Redis
    before = counted().commands_sent
    replies = await stage.store.timetable.publish(stage.leader, slots, queue_cap=10_000)
    assert counted().commands_sent - before == 3
    names = [type(reply).__name__ for reply in replies]
    assert [(place, name) for place, name in enumerate(names) if name != "Published"] == [
        *((0, "Moved"), (600, "Skipped"), (700, "Broken")),
    ]
    entries = await stage.read()
    assert len(entries) == 1_198
    claimed = await stage.claim(entries)
    assert [one.run_id for one in claimed] == [entry.run_id for entry in entries]
    strange = Completion(Hold("group/none@1", 1, "end"), "ran", "", "{}")
    done = [completion(hold(one)) for one in claimed]
    done[900] = strange
    beat = await stage.store.leases.beat(
        "A", [(one.run_id, one.fence) for one in claimed], lease_ms=LEASE_MS, details="{}", draining=False
    )
    assert (beat.lost, beat.stop) == (frozenset(), frozenset())
    ended = await runs.complete("A", done)
    assert [place for place, reply in enumerate(ended) if reply != Done()] == [900]
    assert ended[900] == Gone()


async def test_what_was_read_before_all_was_deleted_is_nobodys(stage: Stage) -> None:
    """FLUSHALL takes the consumer groups too: nothing is pending, and what was read is stale, not broken."""
    await stage.queued()
    entries = await stage.read()
    await stage.redis.flushall()
    runs = stage.store.runs
    assert await runs.claim("A", "token", entries, lease_ms=LEASE_MS) == [Stale()]
    assert await runs.defer("A", entries, most=5) == [Stale()]
    assert await runs.release(entries) == ["dropped"]
    assert await runs.unclaimed("A") == []
    await runs.make_groups()
    assert await runs.claim("A", "token", entries, lease_ms=LEASE_MS) == [Stale()]

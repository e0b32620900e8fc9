"""beat, reclaim, bury, and what a reconciler reads: a run stays its worker's for as long as its lease is renewed."""

from __future__ import annotations

import pytest

from engine.store.leases import Lease, Pending, Reclaimed
from engine.store.runs import Claimed, Hold
from engine.store.session import Broken, Done
from tests.store.scenario import LEASE_MS, OTHER, TASK, Stage, completion, hold


async def beat(stage: Stage, worker: str = "A", *, draining: bool = False) -> int:
    """A beat of a worker without runs; Redis time as it was then."""
    answer = await stage.store.leases.beat(worker, [], lease_ms=1, details='{"digest":"d"}', draining=draining)
    return answer.redis_ms


async def reclaim(stage: Stage, lease: Lease, *, most: int = 3) -> Reclaimed | Broken | None:
    """As the leader."""
    [reply] = await stage.store.leases.reclaim(stage.leader, [lease], max_deliveries=most, story='{"outcome":"lost"}')
    return reply


# -- beat -------------------------------------------------------------------------------------------------------------


async def test_a_beat_renews_each_lease_and_the_presence_of_its_worker(stage: Stage) -> None:
    """One command for all; and it tells Redis's time and the version of the catalog."""
    one, other = await stage.running(), await stage.running(OTHER, "B")
    await stage.redis.zadd(
        stage.store.keys.leases, {f"{one.run_id}#{one.fence}": 1, f"{other.run_id}#{other.fence}": 2}
    )
    await stage.store.catalog.pause([TASK], "pause", until_ms=None, details="{}", who="me")
    held = [(one.run_id, one.fence)]
    answer = await stage.store.leases.beat("A", held, lease_ms=LEASE_MS, details='{"n":1}', draining=False)
    assert (answer.version, answer.lost, answer.stop) == (1, frozenset(), frozenset())
    assert (await stage.lease(one)).expiry_ms == answer.redis_ms + LEASE_MS
    assert (await stage.lease(other)).expiry_ms == 2
    [presence] = await stage.store.leases.workers()
    assert (presence.worker, presence.draining, presence.details) == ("A", False, '{"n":1}')
    assert presence.seen_ms == answer.redis_ms


@pytest.mark.parametrize(("text", "said_ms"), [(None, 0), ("1764000000000", 1_764_000_000_000), ("soon", 0)])
async def test_a_beat_says_which_slots_are_passed(stage: Stage, text: str | None, said_ms: int) -> None:
    """By Redis, whose clock may stand before them; what is no instant costs nobody his lease."""
    if text is not None:
        await stage.redis.set(stage.store.keys.passed, text)
    answer = await stage.store.leases.beat("A", [], lease_ms=LEASE_MS, details="{}", draining=False)
    assert answer.passed_ms == said_ms


@pytest.mark.parametrize("how", ["ended", "handed back", "reclaimed", "never there"])
async def test_a_beat_revives_nothing_and_says_what_was_lost(stage: Stage, how: str) -> None:
    """Or a worker that was cut off would go on with a run that another has."""
    held = await stage.running()
    kept = await stage.running(OTHER)
    if how == "ended":
        await stage.store.runs.complete("A", [completion(held)])
    elif how == "handed back":
        await stage.store.runs.hand_back("A", [held])
    elif how == "reclaimed":
        await reclaim(stage, await stage.lease(held))
    else:
        held = Hold("group/none@1", 7, "end")
    runs = [(held.run_id, held.fence), (kept.run_id, kept.fence)]
    answer = await stage.store.leases.beat("A", runs, lease_ms=1, details="{}", draining=False)
    assert answer.lost == {(held.run_id, held.fence)}
    score = await stage.redis.zscore(stage.store.keys.leases, f"{held.run_id}#{held.fence}")
    assert score is None


async def test_a_beat_within_the_same_millisecond_loses_nothing(stage: Stage) -> None:
    """ZADD counts a lease that did not change as it counts one that is not there: the script asks."""
    held = await stage.running()
    for _ in range(20):
        answer = await stage.store.leases.beat(
            "A", [(held.run_id, held.fence)], lease_ms=LEASE_MS, details="{}", draining=False
        )
        assert answer.lost == frozenset()


async def test_a_beat_is_told_which_runs_should_stop(stage: Stage) -> None:
    """Those of its own only."""
    one, other = await stage.running(), await stage.running(OTHER, "B")
    await stage.redis.sadd(
        stage.store.keys.cancel, f"{one.run_id}#{one.fence}", f"{other.run_id}#{other.fence}", f"{TASK}@1#1"
    )
    held = [(one.run_id, one.fence)]
    answer = await stage.store.leases.beat("A", held, lease_ms=LEASE_MS, details="{}", draining=False)
    assert answer.stop == {(one.run_id, one.fence)}


async def test_a_run_id_with_any_name_is_told_apart_from_its_fence(stage: Stage) -> None:
    """What stands before the last # is the run."""
    task = "group%23/a%40b"
    held = await stage.running(task)
    answer = await stage.store.leases.beat(
        "A", [(held.run_id, held.fence + 1)], lease_ms=1, details="{}", draining=False
    )
    assert answer.lost == {(held.run_id, held.fence + 1)}
    [lease] = await stage.store.leases.expiring(2**52)
    assert (lease.run_id, lease.fence, lease.member) == (held.run_id, held.fence, f"{held.run_id}#{held.fence}")


# -- reclaim ----------------------------------------------------------------------------------------------------------


async def test_a_lost_run_is_queued_again_under_a_new_fence_and_counted_as_delivered(stage: Stage) -> None:
    """Its story says so; the attempt is not counted, for nobody knows how far it came."""
    held = await stage.running()
    await stage.redis.sadd(stage.store.keys.cancel, f"{held.run_id}#{held.fence}")
    old = (await stage.record(held.run_id))["entry"]
    assert await reclaim(stage, await stage.lease(held)) == Reclaimed("queued", "A")
    record = await stage.record(held.run_id)
    assert (record["state"], record["attempt"], record["deliveries"]) == ("queued", "1", "1")
    assert int(record["fence"]) > held.fence
    assert record["story"] == '{"outcome":"lost"}'
    assert await stage.live() == {held.run_id: "queued"}
    [(entry, _)] = await stage.redis.xrange(stage.store.keys.stream_low)
    assert record["entry"] == entry != old
    assert await stage.redis.execute_command("EXISTS", stage.store.keys.leases, stage.store.keys.cancel) == 0
    assert await stage.store.runs.unclaimed("A") == []
    assert await stage.verdicts() == []


async def test_a_run_that_loses_its_workers_too_often_is_dead(stage: Stage) -> None:
    """Its third delivery was the last: kept whole, with its story; and its neighbours go on."""
    run_id = await stage.queued()
    neighbour = await stage.queued(OTHER)
    for deliveries, outcome in ((0, "queued"), (1, "queued"), (2, "dead")):
        claimed = {one.run_id: one for one in await stage.claim(await stage.read(), token=f"claim {deliveries}")}
        assert claimed[run_id].deliveries == deliveries
        await stage.store.runs.begin("A", hold(claimed[run_id]))
        for lost in claimed.values():
            wanted = outcome if lost.run_id == run_id else "queued"
            most = 3 if lost.run_id == run_id else 100
            assert await reclaim(stage, await stage.lease(hold(lost)), most=most) == Reclaimed(wanted, "A")  # type: ignore[arg-type] # of the table
    assert await stage.verdicts() == [("dead", "max_deliveries")]
    assert await stage.record(run_id) == {}
    assert await stage.live() == {}
    assert await stage.in_stream() == [neighbour]
    assert await stage.redis.execute_command("EXISTS", stage.store.keys.leases) == 0
    [fields] = await stage.entries(stage.store.keys.dead)
    assert (fields["run"], fields["reason"], fields["task"]) == (run_id, "max_deliveries", TASK)
    assert fields["story"].split("\n") == ['{"outcome":"lost"}'] * 3


@pytest.mark.parametrize(("draining", "deliveries"), [(True, "0"), (False, "1")])
async def test_a_worker_that_was_draining_condemns_no_run(stage: Stage, *, draining: bool, deliveries: str) -> None:
    """It was being stopped: its end says nothing about the run."""
    held = await stage.running()
    await beat(stage, draining=draining)
    assert await reclaim(stage, await stage.lease(held)) == Reclaimed("queued", "A")
    assert (await stage.record(held.run_id))["deliveries"] == deliveries


async def test_a_run_that_waits_for_others_to_end_is_not_condemned_by_them(stage: Stage) -> None:
    """Claimed after a loss, its body begins later: until then the loss of its worker says nothing about it."""
    await stage.redis.hset(stage.store.keys.run(await stage.queued()), "deliveries", 2)
    held = await stage.taken()
    assert await reclaim(stage, await stage.lease(held)) == Reclaimed("queued", "A")
    assert (await stage.record(held.run_id))["deliveries"] == "2"
    held = await stage.taken(token="again")
    assert await stage.store.runs.begin("A", held) == Done()
    assert await reclaim(stage, await stage.lease(held)) == Reclaimed("dead", "A")


async def test_a_run_that_never_begins_is_not_spared_for_ever(stage: Stage) -> None:
    """It may be what ends its workers before its body begins, by whatever it is."""
    await stage.redis.hset(stage.store.keys.run(await stage.queued()), "deliveries", 2)
    for number in range(3):
        held = await stage.taken(token=f"claim {number}")
        assert await reclaim(stage, await stage.lease(held)) == Reclaimed("queued", "A")
    held = await stage.taken(token="the last")
    assert await reclaim(stage, await stage.lease(held)) == Reclaimed("dead", "A")


async def test_a_lease_that_was_renewed_or_has_ended_is_not_taken(stage: Stage) -> None:
    """By equality with what the reconciler has seen: nothing is written."""
    held = await stage.running()
    seen = await stage.lease(held)
    before = await stage.snapshot()
    assert await reclaim(stage, Lease(seen.run_id, seen.fence, seen.expiry_ms - 1)) is None
    assert await reclaim(stage, Lease(seen.run_id, seen.fence - 1, seen.expiry_ms)) is None
    assert await stage.snapshot() == before
    await stage.store.runs.complete("A", [completion(held)])
    before = await stage.snapshot()
    assert await reclaim(stage, seen) is None
    assert await stage.snapshot() == before


async def test_a_lease_of_no_run_is_removed(stage: Stage) -> None:
    """Its record is gone: with it goes what asked the run to stop, or both would stay for ever."""
    held = await stage.running()
    seen = await stage.lease(held)
    await stage.redis.sadd(stage.store.keys.cancel, seen.member)
    await stage.redis.delete(stage.store.keys.run(held.run_id))
    assert await reclaim(stage, seen) is None
    assert await stage.redis.execute_command("EXISTS", stage.store.keys.leases, stage.store.keys.cancel) == 0


async def test_a_lease_under_a_fence_that_has_passed_takes_nothing_from_the_run(stage: Stage) -> None:
    """It is removed; the run in progress under the next fence goes on."""
    held = await stage.running()
    old = Lease(held.run_id, held.fence - 1, 1)
    await stage.redis.zadd(stage.store.keys.leases, {old.member: old.expiry_ms})
    before = await stage.record(held.run_id)
    assert await reclaim(stage, old) is None
    assert await stage.record(held.run_id) == before
    assert await stage.redis.zrange(stage.store.keys.leases, 0, -1) == [f"{held.run_id}#{held.fence}"]


@pytest.mark.parametrize(
    ("mark", "verdicts"), [("removed", []), ("abandoned", []), ("cancel", [("failed", "cancelled")])]
)
async def test_a_lost_run_that_nobody_waits_for_is_not_queued_again(
    stage: Stage, mark: str, verdicts: list[tuple[str, str]]
) -> None:
    """Of a removed task, judged already, or asked to stop: it ends."""
    held = await stage.running()
    await stage.redis.hset(stage.store.keys.run(held.run_id), mark, "1")
    assert await reclaim(stage, await stage.lease(held)) == Reclaimed("ended", "")
    assert await stage.record(held.run_id) == {}
    assert await stage.live() == {}
    assert await stage.in_stream() == []
    assert await stage.verdicts() == verdicts


async def test_the_worker_that_lost_its_run_can_be_late_and_the_next_one_owns_it(stage: Stage) -> None:
    """Expiry alone fences nothing: the one with the current fence ends the run."""
    held = await stage.running()
    await stage.redis.zadd(stage.store.keys.leases, {f"{held.run_id}#{held.fence}": 1})
    assert await stage.store.runs.complete("A", [completion(held)]) == [Done()]
    assert await stage.verdicts() == [("ran", "")]


# -- bury -------------------------------------------------------------------------------------------------------------


async def test_burying_a_worker_forgets_its_presence_and_its_places_in_the_groups(stage: Stage) -> None:
    """And nobody else's."""
    for worker in ("A", "B"):
        await stage.read(worker)
        await stage.read(worker, priority="high")
    seen_ms = await beat(stage)
    await beat(stage, "B")
    assert await stage.store.leases.bury("A", seen_ms=seen_ms) == "buried"
    assert [presence.worker for presence in await stage.store.leases.workers()] == ["B"]
    assert await stage.redis.zscore(stage.store.keys.workers_seen, "A") is None
    assert await stage.redis.hget(stage.store.keys.workers, "A") is None
    for stream in (stage.store.keys.stream_high, stage.store.keys.stream_low):
        raw = await stage.redis.execute_command("XINFO", "CONSUMERS", stream, "workers")
        assert "A" not in str(raw)


async def test_a_worker_that_beat_again_is_alive(stage: Stage) -> None:
    """The reconciler decided by what it had read before."""
    seen_ms = await beat(stage)
    before = await stage.snapshot()
    assert await stage.store.leases.bury("A", seen_ms=seen_ms - 1) == "alive"
    assert await stage.snapshot() == before


@pytest.mark.parametrize("priority", ["high", "low"])
async def test_a_worker_with_entries_that_nobody_released_is_not_buried(stage: Stage, priority: str) -> None:
    """Deleting its place in the group would lose them."""
    await stage.queued(priority=priority)
    await stage.read(priority=priority)
    seen_ms = await beat(stage)
    before = await stage.snapshot()
    assert await stage.store.leases.bury("A", seen_ms=seen_ms) == "pending"
    assert await stage.snapshot() == before


async def test_a_worker_with_a_lease_is_not_buried(stage: Stage) -> None:
    """Its run is not reclaimed yet, although its entry was lost."""
    await stage.running()
    [entry] = await stage.store.runs.unclaimed("A")
    await stage.redis.xack(stage.store.keys.stream_low, "workers", entry.entry_id)
    seen_ms = await beat(stage)
    before = await stage.snapshot()
    assert await stage.store.leases.bury("A", seen_ms=seen_ms) == "leased"
    assert await stage.snapshot() == before
    assert await stage.store.leases.bury("B", seen_ms=0) == "buried"


async def test_a_worker_is_buried_where_redis_has_forgotten_the_streams(stage: Stage) -> None:
    """After FLUSHALL, say: there is no place in a group to delete."""
    seen_ms = await beat(stage)
    await stage.redis.delete(stage.store.keys.stream_high, stage.store.keys.stream_low)
    assert await stage.store.leases.bury("A", seen_ms=seen_ms) == "buried"
    assert await stage.store.leases.workers() == []


# -- reading ----------------------------------------------------------------------------------------------------------


async def test_what_is_no_lease_is_passed_over_and_set_aside_with_one_warning(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody else wrote there: the leases beside it are watched as ever."""
    keys, odd = stage.store.keys, ["garbage", "run#x", "run#\u00b2", f"{TASK}#5", "#7", f"{TASK}@1#-1"]
    for member in (*odd, f"{TASK}@1#7"):
        await stage.redis.zadd(keys.leases, {member: 90})
    assert [lease.member for lease in await stage.store.leases.expiring(95)] == [f"{TASK}@1#7"]
    assert await stage.store.leases.tidy() == frozenset(odd)
    assert await stage.store.leases.tidy() == frozenset()
    assert await stage.redis.zrange(keys.leases, 0, -1) == [f"{TASK}@1#7"]
    aside = await stage.entries(keys.aside)
    assert sorted((one["key"], one["name"], one["value"]) for one in aside) == sorted(
        (keys.leases, m, "90") for m in odd
    )
    told = [record.getMessage() for record in caplog.records]
    for member in odd:
        assert sum(repr(f"{member} 90") in text for text in told) == 1


@pytest.mark.parametrize("end", ["-inf", "inf", "1.5", "-7", "9e15", "1e300"])
async def test_a_lease_whose_end_is_no_instant_ends_now(stage: Stage, end: str) -> None:
    """Its worker renews it, or the run is taken from it, as every other: it does not run for ever, unwatched."""
    held = await stage.running()
    member = f"{held.run_id}#{held.fence}"
    await stage.redis.execute_command("ZADD", stage.store.keys.leases, end, member)
    await stage.store.leases.expiring(2**53)
    assert await stage.store.leases.tidy() == frozenset([member])
    [lease] = await stage.store.leases.expiring(await stage.store.leases.redis_ms() + 1)
    assert lease.member == member
    assert await reclaim(stage, lease) == Reclaimed("queued", "A")


async def test_leases_are_read_in_the_order_in_which_they_end(stage: Stage) -> None:
    """Up to an instant."""
    await stage.redis.zadd(stage.store.keys.leases, {f"{TASK}@{n}#9": 100 - n for n in range(10)})
    found = await stage.store.leases.expiring(95)
    assert [(lease.run_id, lease.expiry_ms) for lease in found] == [(f"{TASK}@{n}", 100 - n) for n in (9, 8, 7, 6, 5)]


@pytest.mark.parametrize("page", [1, 2, 3, 4, 100])
@pytest.mark.parametrize("ends", [[5, 5, 5, 5, 5, 5, 5], [1, 1, 2, 2, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7]])
async def test_leases_are_read_page_by_page(stage: Stage, ends: list[int], page: int) -> None:
    """However many end at the same instant, as all of a worker's do: none is left out."""
    await stage.redis.zadd(stage.store.keys.leases, {f"{TASK}@{n}#9": end for n, end in enumerate(ends)})
    found = await stage.store.leases.expiring(95, page=page)
    assert [(lease.run_id, lease.expiry_ms) for lease in found] == [(f"{TASK}@{n}", end) for n, end in enumerate(ends)]


async def test_not_more_leases_are_read_than_there_is_time_for(stage: Stage) -> None:
    """Those that ended first; the others are found later."""
    await stage.redis.zadd(stage.store.keys.leases, {f"{TASK}@{n}#9": n for n in range(10)})
    found = await stage.store.leases.expiring(95, page=2, most=4)
    assert [lease.expiry_ms for lease in found] == [0, 1, 2, 3]


@pytest.mark.parametrize("page", [1, 2, 100])
async def test_pending_entries_of_all_workers_are_read_by_cursor(stage: Stage, page: int) -> None:
    """With the run that each names, whoever read it, and for how long nobody has acknowledged it."""
    low = [await stage.queued(f"group/{number}") for number in range(3)]
    await stage.read("A")
    high = await stage.queued("group/high", priority="high")
    await stage.read("B", priority="high")
    await stage.queued("group/unread")
    found = await stage.store.leases.pending(min_idle_ms=0, page=page)
    assert [(one.entry.run_id, one.worker, one.entry.priority) for one in found.entries] == [
        (high, "B", "high"),
        *((run_id, "A", "low") for run_id in low),
    ]
    assert found.deleted == ()
    assert await stage.store.leases.pending(min_idle_ms=LEASE_MS, page=page) == Pending((), ())


async def test_a_pending_entry_that_was_deleted_can_be_acknowledged(stage: Stage) -> None:
    """It names no run any longer, and would be pending for ever; its neighbours stay."""
    for number in range(3):
        await stage.queued(f"group/{number}")
    before, entry, after = await stage.read()
    await stage.redis.xdel(stage.store.keys.stream_low, entry.entry_id)
    found = await stage.store.leases.pending(min_idle_ms=0)
    assert [one.entry for one in found.entries] == [before, after]
    assert found.deleted == (("low", entry.entry_id),)
    await stage.store.leases.acknowledge_deleted(found.deleted)
    left = await stage.store.leases.pending(min_idle_ms=0)
    assert ([one.entry for one in left.entries], left.deleted) == ([before, after], ())


async def test_a_claim_that_was_handed_to_the_next_worker_is_one_of_the_next_fence(stage: Stage) -> None:
    """From the loss of the first to the end by the second, fences only grow."""
    fences = []
    await stage.queued()
    for worker in ("A", "B", "C"):
        held = await stage.taken(worker, token=worker)
        fences.append(held.fence)
        await reclaim(stage, await stage.lease(held), most=10)
        fences.append(int((await stage.record(held.run_id))["fence"]))
    assert fences == sorted(set(fences))
    assert isinstance((await stage.claim(await stage.read("D"), "D"))[0], Claimed)

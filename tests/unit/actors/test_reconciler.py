"""What is left over when workers vanish, and what must not be taken from those that live."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import trio

from tests.unit.actors.stage import Gate, group, noting

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.actors.stage import Stage

YEARLY = "0 0 1 1 *"
LEASE_S = 9.0


async def test_a_run_of_a_vanished_worker_starts_again_elsewhere(autojump_clock: MockClock, stage: Stage) -> None:
    """After its lease, and not before; counted as a delivery, not as an attempt."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t", run_on_first_start=True)(gate.walk)
    await stage.worker(tasks, concurrent_tasks=0)
    victim = await stage.worker(tasks, can_lead=False)
    await stage.until(10)
    assert gate.inside == 1
    victim.kill()
    other = await stage.worker(tasks, can_lead=False)
    await stage.until(10 + LEASE_S - 2)
    assert gate.inside == 0
    await stage.until(10 + 1.5 * LEASE_S)
    assert gate.inside == 1
    assert "1/2 runs" in other.doing("consumer")
    gate.open.set()
    await stage.until(30)
    [entry] = await stage.ledger("g/t")
    assert (entry.verdict, entry.attempt, len(entry.story)) == ("ran", 1, 2)
    assert '"outcome": "lost"' in entry.story[0]


async def test_a_run_that_kills_its_workers_is_set_aside(autojump_clock: MockClock, stage: Stage) -> None:
    """After ``max_deliveries``; it condemns no neighbour."""
    tasks, killer, neighbour = group(), Gate(), Gate()
    tasks.add_task(YEARLY, name="killer", run_on_first_start=True)(killer.walk)
    await stage.worker(tasks, concurrent_tasks=0)
    tasks.add_task(YEARLY, name="neighbour", run_on_first_start=True)(neighbour.walk)
    killed = 0
    while killed < 3:
        killer.entered = trio.Event()
        victim = await stage.worker(tasks, can_lead=False)
        await killer.entered.wait()
        await stage.settle()
        victim.kill()
        killed += 1
    await stage.until(trio.current_time() + 20)
    assert await stage.verdicts("g/killer") == [("dead", "max_deliveries")]
    [dead] = await stage.redis.xrange(stage.store.keys.dead)
    assert dead[1]["reason"] == "max_deliveries"


async def test_a_draining_worker_that_is_lost_counts_no_delivery(autojump_clock: MockClock, stage: Stage) -> None:
    """Its thread was cut off by the end of the process, which is no fault of the run."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t", run_on_first_start=True)(gate.walk_in_thread)
    await stage.worker(tasks, concurrent_tasks=0, max_deliveries=1)
    worker = await stage.worker(tasks, can_lead=False, max_deliveries=1, shutdown_grace=1)
    with stage.time_stands_still():
        await gate.entered.wait()
    await worker.stop()
    worker.kill()
    await stage.until(30)
    assert await stage.ledger("g/t") == []
    with stage.time_stands_still():
        gate.open.set()


async def test_entries_that_a_vanished_worker_read_are_released(autojump_clock: MockClock, stage: Stage) -> None:
    """It had claimed none of them; the next scan finds them idle."""
    tasks = group()
    started_s = noting(tasks, "0 0 1 1 *", run_on_first_start=True)
    await stage.worker(tasks, concurrent_tasks=0)
    await stage.until(1)
    await stage.store.runs.make_groups()
    assert len(await stage.store.runs.read("ghost", priorities=("low",), count=5, block_ms=None)) == 1
    await stage.worker(tasks, can_lead=False)
    await stage.until(30)
    assert started_s == []
    await stage.until(40)
    assert len(started_s) == 1


async def test_a_vanished_worker_is_buried(autojump_clock: MockClock, stage: Stage) -> None:
    """Its presence, and its places in the consumer groups."""
    tasks = group()
    noting(tasks, YEARLY)
    leader = await stage.worker(tasks)
    victim = await stage.worker(tasks, can_lead=False)
    await stage.until(1)
    victim.kill()
    await stage.until(60.5)
    assert [w.worker for w in await stage.store.leases.workers()] == [leader.identity.key]
    consumers = await stage.redis.xinfo_consumers(stage.store.keys.stream_low, "workers")
    assert [consumer["name"] for consumer in consumers] == [leader.identity.key]


async def test_tasks_that_nobody_declares_leave_the_timetable(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """After ``retire_after``; what other sets have goes on, and ledger and pause stay."""
    old, new = group(), group()
    for tasks in (old, new):
        noting(tasks, "* * * * *", name="kept")
    noting(old, "* * * * *", name="gone")
    settings = {"retire_after": 300.0}
    await stage.worker(new, concurrent_tasks=0, **settings)
    former = await stage.worker(old, can_lead=False, **settings)
    await stage.until(61)
    await former.stop()
    await stage.store.catalog.pause("g/gone", "op", until_ms=None, details="{}")
    await stage.until(61 + 290)
    assert set(await stage.store.timetable.tasks()) == {"g/kept", "g/gone"}
    await stage.until(61 + 390)
    assert set(await stage.store.timetable.tasks()) == {"g/kept"}
    assert (await stage.verdicts("g/gone"))[0] == ("ran", "")
    assert "g/gone" in (await stage.store.catalog.contents()).paused
    assert len((await stage.store.catalog.contents()).sets) == 1


async def test_a_live_declaration_is_not_retired(autojump_clock: MockClock, stage: Stage) -> None:
    """However long it has been there."""
    tasks = group()
    noting(tasks, YEARLY)
    await stage.worker(tasks, retire_after=60.0)
    await stage.until(300)
    assert set(await stage.store.timetable.tasks()) == {"g/t"}


async def test_a_worker_that_comes_back_declares_again(autojump_clock: MockClock, stage: Stage) -> None:
    """It was cut off for longer than ``retire_after``, and its tasks had left the timetable."""
    mine, others = group("mine"), group("others")
    started_s = noting(mine, "* * * * *")
    noting(others, YEARLY)
    noting(mine, YEARLY, name="common")
    await stage.worker(others, concurrent_tasks=0, retire_after=60.0)
    worker = await stage.worker(mine, can_lead=False, retire_after=60.0)
    await stage.until(61)
    worker.cable.cut()
    await stage.until(400)
    assert set(await stage.store.timetable.tasks()) == {"others/t"}
    worker.cable.join()
    await stage.until(481)
    assert started_s[0] == 60
    assert started_s[-2:] == [420, 480]


@pytest.mark.parametrize("down_s", [LEASE_S + 1, 10 * LEASE_S])
async def test_an_outage_longer_than_the_lease_is_no_loss(
    autojump_clock: MockClock, stage: Stage, down_s: float
) -> None:
    """All leases have expired when Redis is back, and their holders live: a thread is not started twice."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t", run_on_first_start=True)(gate.walk_in_thread)
    workers = [await stage.worker(tasks), await stage.worker(tasks)]
    with stage.time_stands_still():
        await gate.entered.wait()
    await stage.until(20)
    stage.server.stop()
    await stage.until(20 + down_s)
    stage.server.start()
    await stage.until(20 + down_s + 5 * LEASE_S)
    assert gate.most_inside == 1
    with stage.time_stands_still():
        gate.open.set()
        await stage.becomes(lambda: stage.ledger("g/t"))
    [entry] = await stage.ledger("g/t")
    assert (entry.verdict, len(entry.story)) == ("ran", 1)
    assert sum(worker.restarts(name) for worker in workers for name in ("reconciler", "heartbeat", "consumer")) == 0


async def test_a_step_of_redis_clock_is_no_loss(
    autojump_clock: MockClock, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """It expires every lease at one stroke; the observation starts again, and the beats come first."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t", run_on_first_start=True)(gate.walk)
    await stage.worker(tasks)
    await stage.until(20.1)
    with caplog.at_level(logging.WARNING):
        stage.redis_ahead_s = 2 * LEASE_S
        await stage.until(60)
    assert gate.most_inside == 1
    assert (gate.inside, await stage.ledger("g/t")) == (1, [])


async def test_a_new_leader_watches_anew(autojump_clock: MockClock, stage: Stage) -> None:
    """Which delays a reclaim and never hastens it."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t", run_on_first_start=True)(gate.walk)
    first = await stage.worker(tasks, concurrent_tasks=0)
    await stage.worker(tasks, concurrent_tasks=0)
    victim = await stage.worker(tasks, can_lead=False)
    await stage.until(10)
    victim.kill()
    await stage.until(17)
    await first.stop()
    await stage.worker(tasks, can_lead=False)
    await stage.until(17 + LEASE_S / 2 - 0.1)
    assert gate.inside == 0
    await stage.until(17 + 1.5 * LEASE_S)
    assert gate.inside == 1


async def test_what_was_seen_before_an_outage_proves_nothing_after_it(autojump_clock: MockClock, stage: Stage) -> None:
    """A lease that expired meanwhile is watched for half a lease from the first look on, like any other."""
    tasks, gate = group(), Gate()
    tasks.add_task(YEARLY, name="t", run_on_first_start=True)(gate.walk)
    await stage.worker(tasks, concurrent_tasks=0)
    victim = await stage.worker(tasks, can_lead=False)
    await stage.until(10)
    victim.kill()
    await stage.worker(tasks, can_lead=False)
    await stage.until(16)  # the lease ends at 18, and was seen at 13.5
    stage.server.stop()
    await stage.until(18.5)
    stage.server.start()
    await stage.until(18.5 + LEASE_S / 2 + 2)
    assert gate.inside == 0
    await stage.until(18.5 + 1.5 * LEASE_S)
    assert gate.inside == 1

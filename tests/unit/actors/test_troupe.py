"""Whole workers over one Redis: every slot has exactly one verdict, whoever leads, and whoever dies."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.unit.actors.stage import Gate, Stage, Worker, at_ms, group, noting

if TYPE_CHECKING:
    from trio.testing import MockClock

    from engine.domain.group import TaskGroup

UNHURRIED: dict[str, Any] = {
    "stream_block_ms": 60_000,
    "running_heartbeat_interval": 20.0,
    "leader_heartbeat_interval": 10.0,
    "leader_retry_interval": 20.0,
}
"""Settings that make an hour cheap to simulate."""


async def verdicts_by_slot(stage: Stage, task_id: str, period_s: int) -> Counter[float]:
    """How many verdicts each slot has, by its second; slots passed over together are counted one by one."""
    found: Counter[float] = Counter()
    for entry in await stage.ledger(task_id):
        assert entry.from_ms is not None
        assert entry.to_ms is not None
        slots = range(entry.from_ms - at_ms(0), entry.to_ms - at_ms(0) + 1, period_s * 1000)
        assert len(slots) == entry.count
        found.update(slot / 1000 for slot in slots)
    return found


def leaders(workers: list[Worker]) -> list[Worker]:
    return [worker for worker in workers if worker.leads]


async def crew(stage: Stage, count: int, tasks: TaskGroup, **settings: Any) -> list[Worker]:
    return [await stage.worker(tasks, **settings) for _ in range(count)]


@pytest.mark.parametrize("count", [2, 3])
async def test_every_slot_of_an_hour_has_one_verdict(autojump_clock: MockClock, stage: Stage, count: int) -> None:
    """Two or three workers, a slot every twenty seconds: as many runs, each at its instant."""
    tasks = group()
    started_s = noting(tasks, "*/20 * * * * *")
    workers = await crew(stage, count, tasks, **UNHURRIED)
    await stage.until(3_601)
    slots = [20.0 * n for n in range(1, 181)]
    assert started_s == slots
    assert await verdicts_by_slot(stage, "g/t", 20) == Counter(slots)
    assert len(leaders(workers)) == 1


async def test_all_workers_take_part(autojump_clock: MockClock, stage: Stage) -> None:
    """The work is shared by whoever has a free slot."""
    tasks, counts = group(), Counter[str]()

    @tasks.add_task("* * * * * *", name="t")
    async def work() -> None:
        from engine.domain.run import RunContext

        counts[RunContext.current().worker_id] += 1
        await trio.sleep(2.5)

    await crew(stage, 3, tasks, concurrent_tasks=1)
    await stage.until(60)
    assert len(counts) == 3
    assert min(counts.values()) > 10


@pytest.mark.parametrize("actor", ["coordinator", "leader", "reconciler", "consumer", "catalog", "heartbeat", "stats"])
async def test_a_crash_of_any_actor_loses_no_slot(autojump_clock: MockClock, stage: Stage, actor: str) -> None:
    """It is restarted, learns what it needs from the others, and the work goes on."""
    tasks = group()
    started_s = noting(tasks, "* * * * * *")
    worker = await stage.worker(tasks)
    await stage.until(10.5)
    worker.crash(actor)
    await stage.until(20.5)
    assert [crash.child.rpartition(".")[2] for crash in worker.crashes] == [actor]
    worker.crashes.clear()
    seconds = [float(second) for second in range(1, 21)]
    assert started_s == pytest.approx(seconds, abs=0.01)
    assert await verdicts_by_slot(stage, "g/t", 1) == Counter(seconds)


async def test_a_retry_is_not_late_after_a_crash_of_the_catalog(autojump_clock: MockClock, stage: Stage) -> None:
    """Its successor listens to wake-ups too, since this worker leads."""
    tasks, tried_s = group(), list[float]()

    @tasks.add_task("* * * * *", name="t", retry_backoff=1.5)
    async def fail_once() -> None:
        await trio.lowlevel.checkpoint()
        tried_s.append(trio.current_time())
        if len(tried_s) == 1:
            raise ValueError("first")

    worker = await stage.worker(tasks)
    await stage.until(30)
    worker.crash("catalog")
    await stage.until(70)
    assert tried_s == pytest.approx([60, 61.5], abs=0.01)
    worker.crashes.clear()


@pytest.mark.parametrize("killed_at_s", [30.0, 29.999, 30.001, 31.7, 33.3])
async def test_a_killed_leader_costs_no_slot(autojump_clock: MockClock, stage: Stage, killed_at_s: float) -> None:
    """Another leads after the lease; each slot of the gap ran, or is missed by the catch-up policy."""
    tasks = group()
    noting(tasks, "*/2 * * * * *")
    workers = await crew(stage, 3, tasks)
    await stage.until(killed_at_s)
    [leader] = leaders(workers)
    leader.kill()
    await stage.until(80.5)
    slots = await verdicts_by_slot(stage, "g/t", 2)
    assert slots == Counter(2.0 * n for n in range(1, 41))
    assert {verdict for verdict, _ in await stage.verdicts("g/t")} == {"ran", "missed"}
    workers.remove(leader)
    assert len(leaders(workers)) == 1


@pytest.mark.parametrize("seed", range(4))
async def test_a_leader_that_is_cut_off_writes_nothing_any_more(
    autojump_clock: MockClock, stage: Stage, seed: int
) -> None:
    """It comes back when another leads: at most one leader's writes are accepted at any time."""
    tasks = group()
    noting(tasks, "*/2 * * * * *")
    workers = await crew(stage, 2, tasks)
    cut_s = 20 + seed * 0.77
    await stage.until(cut_s)
    [first] = leaders(workers)
    first.cable.cut()
    await stage.until(cut_s + 9.5 + seed * 0.31)
    first.cable.join()
    await stage.until(60.5)
    assert await verdicts_by_slot(stage, "g/t", 2) == Counter(2.0 * n for n in range(1, 31))
    assert len(leaders(workers)) == 1
    assert not first.leads


async def test_a_slot_is_published_once_whoever_believes_to_lead(autojump_clock: MockClock, stage: Stage) -> None:
    """Leaders come and go every few seconds; every epoch is greater than the one before."""
    tasks = group()
    started_s = noting(tasks, "* * * * * *")
    workers = await crew(stage, 3, tasks, leader_heartbeat_interval=0.5, leader_retry_interval=0.5)
    epochs = []
    for turn in range(12):
        await stage.until(5.0 * (turn + 1) + 0.13 * turn)
        epochs.append(int(await stage.redis.get(stage.store.keys.epoch)))
        leader = await stage.store.election.leader()
        for worker in workers:
            if worker.identity.key == leader:
                worker.cable.cut()
            else:
                worker.cable.join()
    for worker in workers:
        worker.cable.join()
    await stage.until(70.5)
    slots = await verdicts_by_slot(stage, "g/t", 1)
    assert slots == Counter(float(n) for n in range(1, 71))
    assert len(started_s) == len(set(started_s))
    assert epochs == sorted(set(epochs))
    assert len(epochs) == 12


async def test_a_leader_that_stops_is_followed_at_once(autojump_clock: MockClock, stage: Stage) -> None:
    """While it still executes a long run, which completes once."""
    tasks, starts = group(), list[float]()

    @tasks.add_task("* * * * *", name="t")
    async def long() -> None:
        starts.append(trio.current_time())
        await trio.sleep(10)

    first = await stage.worker(tasks)
    second = await stage.worker(tasks, concurrent_tasks=0)
    await stage.until(61)
    assert first.leads
    stage.nursery.start_soon(first.stop)
    await stage.until(61.1)
    assert second.leads
    await stage.until(75)
    assert starts == [60]
    assert await stage.verdicts("g/t") == [("ran", "")]


@pytest.mark.parametrize("down_s", [1.0, 15.0, 300.0])
async def test_losing_redis_crashes_nobody_and_costs_no_slot(
    autojump_clock: MockClock, stage: Stage, down_s: float
) -> None:
    """However long: no restart of any actor, and one verdict for each slot."""
    tasks = group()
    noting(tasks, "*/2 * * * * *")
    workers = await crew(stage, 2, tasks)
    await stage.until(20.3)
    stage.server.stop()
    await stage.until(20.3 + down_s)
    stage.server.start()
    end_s = round(20 + down_s) + 41
    await stage.until(end_s + 0.5)
    assert await verdicts_by_slot(stage, "g/t", 2) == Counter(2.0 * n for n in range(1, end_s // 2 + 1))
    assert all(node.restarts == 0 for worker in workers for node in worker.supervision.snapshot().walk())


async def test_a_worker_can_start_before_redis(autojump_clock: MockClock, stage: Stage) -> None:
    """It waits, and works when Redis is there."""
    tasks = group()
    started_s = noting(tasks, "* * * * * *")
    stage.server.stop()
    worker = await stage.worker(tasks)
    await stage.until(10.5)
    stage.server.start()
    await stage.until(20.5)
    assert started_s[-9:] == pytest.approx([float(second) for second in range(12, 21)], abs=0.001)
    assert all(node.restarts == 0 for node in worker.supervision.snapshot().walk())


@pytest.mark.parametrize("tasks_declared", [10, 1_000])
async def test_an_idle_worker_costs_the_same_for_any_number_of_tasks(
    autojump_clock: MockClock, stage: Stage, tasks_declared: int
) -> None:
    """Under five requests a second, the blocking reads included."""
    tasks = group()
    for number in range(tasks_declared):
        noting(tasks, "0 0 1 1 *", name=f"t{number}")
    worker = await stage.worker(tasks)
    await stage.until(10)
    before = worker.cable.statistics().commands_sent
    await stage.until(610)
    sent = worker.cable.statistics().commands_sent - before
    assert 600 * 3 < sent < 600 * 4


async def test_mailboxes_stay_nearly_empty(autojump_clock: MockClock, stage: Stage) -> None:
    """Nobody is told faster than he hears, outages included."""
    tasks, gate = group(), Gate()
    gate.open.set()
    for number in range(20):
        tasks.add_task("* * * * * *", name=f"t{number}")(gate.walk)
    workers = await crew(stage, 2, tasks, concurrent_tasks=20)
    await stage.until(5)
    stage.server.stop()
    await stage.until(25)
    stage.server.start()
    await stage.until(30)
    for worker in workers:
        for node in worker.supervision.snapshot().walk():
            if node.mailbox is not None:
                assert node.mailbox.high_water < 20, node.path


async def test_a_task_that_does_not_overlap_runs_one_at_a_time_across_workers(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """The slots meanwhile are skipped, each with a verdict."""
    tasks, gate = group(allow_parallel=False), Gate()

    @tasks.add_task("* * * * * *", name="t")
    async def work() -> None:
        with trio.move_on_after(2.5):
            await gate.walk()

    await crew(stage, 3, tasks)
    await stage.until(31)
    assert gate.most_inside == 1
    slots = await verdicts_by_slot(stage, "g/t", 1)
    assert {slot: slots[slot] for slot in range(1, 29)} == dict.fromkeys(range(1, 29), 1)
    assert set(await stage.verdicts("g/t")) == {("ran", ""), ("skipped", "overlap")}


@pytest.mark.parametrize("name", ["leader", "consumer", "heartbeat"])
async def test_an_actor_that_crashes_during_a_drain_takes_no_work(
    autojump_clock: MockClock, stage: Stage, name: str
) -> None:
    """Nobody tells its successor to drain, which must know by itself."""
    tasks, gate = group(), Gate()
    tasks.add_task("* * * * * *", name="t")(gate.walk)
    worker = await stage.worker(tasks, concurrent_tasks=2, shutdown_grace=30)
    await stage.until(3)
    stage.nursery.start_soon(worker.stop)
    await stage.until(4)
    worker.crash(name)
    await stage.until(20)
    worker.crashes.clear()
    assert worker.restarts(name) == 1
    assert not worker.leads
    still_going = 0 if name == "consumer" else 2
    assert gate.inside == still_going
    # Without runs nothing keeps the worker: it has gone.
    assert [presence.draining for presence in await stage.store.leases.workers()] == [True] * (name != "consumer")
    gate.open.set()
    await stage.until(60)
    assert gate.passed == still_going


async def test_a_process_that_stood_still_while_it_was_told_to_stop_stops(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """When it goes on, all its deadlines have passed: it takes leave without waiting any longer."""
    tasks, gate = group(), Gate()
    tasks.add_task("* * * * * *", name="t")(gate.walk)
    worker = await stage.worker(tasks, shutdown_grace=5)
    await stage.until(3)
    stopped = trio.Event()

    async def stop() -> None:
        await worker.stop()
        stopped.set()

    stage.nursery.start_soon(stop)
    await stage.until(4.2)
    autojump_clock.jump(120)
    with trio.fail_after(30):
        await stopped.wait()
    assert gate.inside == 0

"""Reading ahead: while bodies are swift, the next runs are there when those before them end, and only then."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from actors.pace import BATCHES_WITHIN_S, LONGEST_PAUSE_S, SWIFT_S, Pace
from engine.store.script import script_of
from tests.unit.actors.stage import Gate, Publisher, group, noting
from tests.unit.actors.wires import Full

if TYPE_CHECKING:
    from trio.testing import MockClock

    from engine.domain.group import TaskGroup
    from tests.unit.actors.stage import Stage, Worker

YEARLY = "0 0 1 1 *"
ROUND_TRIP_S = 0.001


@pytest.fixture
async def publisher(stage: Stage) -> Publisher:
    return await Publisher.elected(stage)


def ids_in(command: tuple[object, ...]) -> list[str]:
    """The runs that a script is asked about."""
    return [word for word in command if isinstance(word, str) and word.startswith("g/") and "@" in word]


def most_at_once(worker: Worker) -> int:
    """How many runs Redis took for running at most: what was claimed, less what was ended, in the order of commands."""
    running, most = set[str](), 0
    for _, command in worker.cable.sent:
        match script_of(command):
            case "claim":
                running.update(ids_in(command))
            case "complete":
                running.difference_update(ids_in(command))
            case _:
                pass
        most = max(most, len(running))
    return most


async def quick_and_slow(stage: Stage) -> tuple[Worker, TaskGroup, Gate]:
    """A worker with a task that ends at once and one that is held."""
    tasks, gate = group(), Gate()
    noting(tasks, YEARLY, name="quick")
    tasks.add_task(YEARLY, name="slow")(gate.walk)
    worker = await stage.worker(tasks, can_lead=False, concurrent_tasks=4)
    await stage.settle()
    worker.cable.slow_s = ROUND_TRIP_S
    return worker, tasks, gate


# -- where it pays --------------------------------------------------------------------------------------------------


async def test_swift_runs_are_claimed_in_the_moment_in_which_those_before_them_end(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """Half of the slots cost one round trip, in which the last are ended and the next are claimed.

    Never are there more of them for Redis than the worker may execute: it hears of the ends first.
    """
    tasks = group()
    done_s = noting(tasks, YEARLY)
    worker = await stage.worker(tasks, can_lead=False, concurrent_tasks=4)
    await stage.settle()
    worker.cable.slow_s = ROUND_TRIP_S
    await publisher.queue("g/t", 80)
    await stage.until(10)
    assert len(done_s) == 80
    halves = 80 / 2
    assert max(done_s) - min(done_s) < 1.1 * halves * ROUND_TRIP_S
    assert most_at_once(worker) == 4
    assert len(await stage.verdicts("g/t")) == 80


async def test_a_run_that_follows_another_of_its_task_does_not_overlap_it(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """Redis is told of the end of the one before it is asked for the other."""
    tasks = group()
    done_s = noting(tasks, YEARLY)
    worker = await stage.worker(tasks, can_lead=False, concurrent_tasks=1)
    await stage.settle()
    worker.cable.slow_s = ROUND_TRIP_S
    for run_id in await publisher.queue("g/t", 30):
        await stage.redis.hset(stage.store.keys.run(run_id), "overlap", "skip")
    await stage.until(10)
    assert len(done_s) == 30
    assert most_at_once(worker) == 1


@pytest.mark.parametrize("after_ms", range(10, 22))
async def test_so_it_is_when_both_have_to_be_told_again(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, after_ms: int
) -> None:
    """Redis was away when the end and the claim were on their way."""
    tasks = group()
    done_s = noting(tasks, YEARLY)
    worker = await stage.worker(tasks, can_lead=False, concurrent_tasks=1)
    await stage.settle()
    worker.cable.slow_s = ROUND_TRIP_S
    for run_id in await publisher.queue("g/t", 60):
        await stage.redis.hset(stage.store.keys.run(run_id), "overlap", "skip")
    await stage.until(after_ms / 1000 + ROUND_TRIP_S / 5)
    worker.cable.cut()
    await stage.until(1)
    assert 0 < len(done_s) < 60
    worker.cable.join()
    await stage.until(10)
    assert len(done_s) == 60
    assert most_at_once(worker) == 1


async def test_a_high_run_comes_next_however_swift_the_low_ones_are(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """What was read ahead goes first; that is one batch, and takes as long as one."""
    tasks = group()
    noting(tasks, YEARLY)
    high_s = noting(tasks, YEARLY, name="h", high_priority=True)
    worker = await stage.worker(tasks, can_lead=False, concurrent_tasks=4)
    await stage.settle()
    worker.cable.slow_s = ROUND_TRIP_S
    await publisher.queue("g/t", 400)
    await stage.until(0.05)
    asked_s = trio.current_time()
    await publisher.queue("g/h", priority="high")
    await stage.until(10)
    assert high_s[0] - asked_s <= 8 * ROUND_TRIP_S


# -- where it does not ----------------------------------------------------------------------------------------------


async def test_what_was_read_ahead_goes_to_others_when_no_room_comes(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """Behind swift runs came slow ones, which take all slots: another worker starts what this one cannot."""
    _, tasks, gate = await quick_and_slow(stage)
    await publisher.queue("g/quick", 40)
    await publisher.queue("g/slow", 12)
    await stage.until(1)
    assert gate.inside == 4
    assert len((await stage.store.leases.pending(min_idle_ms=0)).entries) == 4
    await stage.worker(tasks, can_lead=False, concurrent_tasks=20)
    await stage.until(2)
    assert gate.inside == 12
    gate.open.set()


async def test_nothing_is_lost_when_a_worker_stops_that_has_read_ahead(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """It goes back at once, and what has begun ends."""
    tasks = group()
    done_s = noting(tasks, YEARLY)
    worker = await stage.worker(tasks, can_lead=False, concurrent_tasks=4)
    await stage.settle()
    worker.cable.slow_s = ROUND_TRIP_S
    await publisher.queue("g/t", 100)
    await stage.until(0.0105)
    await worker.stop()
    await stage.until(5)
    left = int(await stage.redis.xlen(stage.store.keys.stream_low))
    assert 0 < left < 100
    assert len(done_s) + left == 100
    assert (await stage.store.leases.pending(min_idle_ms=0)).entries == ()
    await stage.worker(tasks, can_lead=False, concurrent_tasks=4)
    await stage.until(10)
    assert len(await stage.verdicts("g/t")) == len(done_s) == 100


async def test_what_was_read_ahead_goes_back_though_redis_refuses_it_at_first(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher
) -> None:
    """However long the runs of this worker go on: it asks again before one of them has ended."""
    worker, tasks, gate = await quick_and_slow(stage)
    redis = Full(worker.cable, "release")
    await publisher.queue("g/quick", 40)
    await publisher.queue("g/slow", 12)
    await stage.until(0.2)
    assert len((await stage.store.leases.pending(min_idle_ms=0)).entries) > 4
    redis.is_full_no_longer()
    await stage.worker(tasks, can_lead=False, concurrent_tasks=20)
    await stage.until(2)
    assert gate.inside == 12
    gate.open.set()


@pytest.mark.parametrize(("capacity", "slow_s"), [(2, 0.004), (4, 0.004), (2, 0.05), (4, 0.05), (10, 0.05)])
async def test_hardly_a_run_loses_its_place_where_swift_and_slow_ones_mix(
    autojump_clock: MockClock, stage: Stage, publisher: Publisher, capacity: int, slow_s: float
) -> None:
    """What goes back goes to the end of the queue: when no room came, nothing is read ahead for a while."""
    tasks, chance = group(), random.Random(7)
    noting(tasks, YEARLY, name="quick")
    tasks.add_task(YEARLY, name="slow")(partial(trio.sleep, slow_s))
    worker = await stage.worker(tasks, can_lead=False, concurrent_tasks=capacity)
    await stage.settle()
    worker.cable.slow_s = ROUND_TRIP_S / 2
    for _ in range(600):
        await publisher.queue("g/slow" if chance.random() < 0.3 else "g/quick")
    await stage.until(60)
    assert len(await stage.verdicts("g/slow")) + len(await stage.verdicts("g/quick")) == 600
    back = [len(ids_in(command)) for _, command in worker.cable.sent if script_of(command) == "release"]
    assert sum(back) <= 4 * capacity


# -- what decides ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("since_s", "duration_s", "ahead"),
    [
        (BATCHES_WITHIN_S / 2, SWIFT_S / 2, 3),
        (BATCHES_WITHIN_S * 2, SWIFT_S / 2, 0),
        (BATCHES_WITHIN_S / 2, SWIFT_S * 2, 0),
    ],
    ids=["swift", "now and then", "slow"],
)
def test_as_many_are_read_ahead_as_ended_together_last(since_s: float, duration_s: float, ahead: int) -> None:
    """If one batch follows the other, and none of the bodies took long."""
    pace = Pace()
    pace.note([0.0] * 5, now_s=100.0)
    assert pace.ahead == 0, "what came before is not known"
    pace.note([0.0, duration_s, 0.0], now_s=100.0 + since_s)
    assert pace.ahead == ahead


def swift_at(pace: Pace, now_s: float) -> bool:
    """Is anything read ahead after two batches of swift bodies?"""
    pace.note([0.0], now_s=now_s - BATCHES_WITHIN_S / 2)
    pace.note([0.0], now_s=now_s)
    return pace.ahead > 0


def test_nothing_is_read_ahead_for_a_while_when_no_room_came() -> None:
    """Twice as long each time, and as short as at first when it has gone well as long as the last pause."""
    pace = Pace()
    assert swift_at(pace, 100)
    pace.lag(now_s=100)
    assert not swift_at(pace, 100.9)
    assert swift_at(pace, 101.1)
    pace.lag(now_s=102)
    assert not swift_at(pace, 103.9)
    assert swift_at(pace, 104.1)
    for number in range(10):
        pace.lag(now_s=200.0 + number)
    assert not swift_at(pace, 209 + LONGEST_PAUSE_S - 0.1)
    assert swift_at(pace, 209 + LONGEST_PAUSE_S + 0.1)
    assert swift_at(pace, 209 + 2 * LONGEST_PAUSE_S + 0.1)
    pace.lag(now_s=400)
    assert swift_at(pace, 401.1)

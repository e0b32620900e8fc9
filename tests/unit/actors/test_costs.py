"""What a run costs, in requests to Redis and in turns of tasks: counts, which are the same on every machine."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio

from engine.domain.group import TaskGroup
from engine.store.script import script_of
from tests.unit.actors.stage import Publisher, noting

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.actors.stage import Stage

YEARLY = "0 0 1 1 *"
ROUNDS, AT_ONCE = 10, 50
ROUND_TRIP_S = 0.001
IDLE_REQUESTS = 165
"""In a minute, without those of the reader of events."""


class Turns(trio.abc.Instrument):
    """Counts the turns that tasks get."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


@pytest.mark.parametrize("priority", ["low", "high"])
async def test_runs_share_their_requests_and_take_few_turns(
    autojump_clock: MockClock, stage: Stage, priority: str
) -> None:
    """Runs that are queued together are claimed together, and their ends are told together.

    A turn starts the run, one goes on with its body, and the rest is shared: whoever adds a switch of tasks, or a
    request for each run, fails here.
    """
    publisher, runs = await Publisher.elected(stage), ROUNDS * AT_ONCE
    group, gate, done = TaskGroup("g"), trio.Event(), list[float]()

    async def body() -> None:
        await gate.wait()
        done.append(trio.current_time())

    group.add_task(YEARLY, name="t", high_priority=priority == "high")(body)
    worker = await stage.worker(group, concurrent_tasks=AT_ONCE, can_lead=False)
    await publisher.queue("g/t", AT_ONCE + runs, priority=priority)
    await stage.until(10.25)
    sent, reads, turns = len(worker.cable.sent), worker.cable.reads_of_runs, Turns()
    trio.lowlevel.add_instrument(turns)
    worker.cable.slow_s = ROUND_TRIP_S
    gate.set()
    await stage.until(10.25 + 100 * ROUND_TRIP_S)
    trio.lowlevel.remove_instrument(turns)
    assert len(done) == AT_ONCE + runs
    words = Counter(script_of(command) or command[0] for _, command in worker.cable.sent[sent:])
    halves = 2 * ROUNDS
    assert words["claim"] <= halves
    assert words["complete"] <= halves + 2
    assert set(words) == {"claim", "complete"}
    assert worker.cable.reads_of_runs - reads <= (1.5 if priority == "low" else 2.5) * halves
    assert turns.count / runs < 2.7


@pytest.mark.parametrize("tasks", [5, 500])
async def test_a_worker_with_nothing_to_do_asks_for_little_however_many_tasks_there_are(
    autojump_clock: MockClock, stage: Stage, tasks: int
) -> None:
    """The leader of a schedule, which has the most to ask for: requests in a minute."""
    group = TaskGroup("g")
    for number in range(tasks):
        noting(group, YEARLY, name=f"t{number}")
    worker = await stage.worker(group)
    await stage.until(100)
    sent, reads = len(worker.cable.sent), worker.cable.reads_of_runs
    await stage.until(160)
    words = Counter(script_of(command) or str(command[0]) for _, command in worker.cable.sent[sent:])
    assert words.total() + worker.cable.reads_of_runs - reads <= IDLE_REQUESTS, words

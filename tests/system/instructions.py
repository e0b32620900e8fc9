"""What ``test_instructions`` counts: ``python -m tests.system.instructions TIMES`` does each pure thing so often."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, Final

from actors.agenda import plan
from actors.ending import report
from actors.running import Returned, Running
from engine.config import Config
from engine.domain.run import RunContext
from engine.domain.schedule import Schedule
from engine.domain.task import Definition, Task
from engine.store.keys import Keys
from engine.store.runs import Claimed, Hold
from engine.store.timetable import Due

NOW_MS: Final = 1_764_000_000_000


async def body() -> None:
    """Never called."""


def definition(name: str, expression: str = "*/5 * * * *") -> Definition:
    """Of a task."""
    return Definition(group="reports", name=name, function="body", expression=expression)


def unit() -> Callable[[int], object]:
    """The measure of the others: a small object to JSON and back, which moves with the interpreter as they do."""
    value = {"attempt": 1, "worker": "host-1", "started_ms": NOW_MS, "duration_s": 0.001, "outcome": "ran"}
    return lambda _: json.loads(json.dumps(value))


def next_instant() -> Callable[[int], object]:
    """Of a schedule, from another instant each time: nothing is remembered."""
    schedule = Schedule.parse("*/5 9-17 * * 1-5", "Europe/Rome")
    return lambda number: schedule.next_after(NOW_MS + number * 7_919_000)


def shared_instant() -> Callable[[int], object]:
    """The same for one of many tasks with one expression: remembered."""
    schedule = Schedule.parse("*/5 9-17 * * 1-5", "Europe/Rome")
    return lambda _: schedule.next_after(NOW_MS)


def plan_of_ten() -> Callable[[int], object]:
    """What the leader decides about ten tasks that are due together."""
    tasks = {f"reports/t{n}": definition(f"t{n}") for n in range(10)}
    due = [Due(id=task_id, at_ms=NOW_MS, is_run=False) for task_id in tasks]
    return lambda _: plan(due, tasks, NOW_MS, allow_parallel=True)


def report_of_a_run() -> Callable[[int], object]:
    """What Redis is told of a run that ended well."""
    task, config = Task(definition("t0"), body), Config(redis_host="nowhere")
    common: dict[str, Any] = {"run_id": "reports/t0@1", "fence": 1, "attempt": 1}
    claimed = Claimed(**common, task_id="reports/t0", slot_ms=1, deliveries=0, kwargs="")
    context = RunContext(**common, task_id="reports/t0", group="reports", name="t0", slot_ms=1, worker_id="w")
    running = Running(claimed, task, context, Hold("reports/t0@1", 1, "token"), last_delivery=False)
    return lambda _: report(running, Returned(None), config, worker="w", duration_s=0.001, now_ms=NOW_MS)


def keys_of_a_run() -> Callable[[int], object]:
    """Their names, of a run that was not seen before."""
    keys = Keys("bench")
    return lambda number: keys.of_run(f"reports/t0@{number}")


def declaration() -> Callable[[int], object]:
    """A definition, with all its checks."""
    return lambda number: definition(f"t{number}")


THINGS: Final = (unit, next_instant, shared_instant, plan_of_ten, report_of_a_run, keys_of_a_run, declaration)


def main(times: str) -> None:
    """Each of them, between two calls at which whoever counts takes down the count."""
    for thing in THINGS:
        do = thing()
        do(-1)
        os.getpriority(os.PRIO_PROCESS, 0)
        for number in range(int(times)):
            do(number)
        os.getpriority(os.PRIO_PROCESS, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])

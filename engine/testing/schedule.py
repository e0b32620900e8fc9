"""The only place that reaches into trio: deterministic scheduling, and processes that stand still."""

from __future__ import annotations

import math
import random
import threading
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol, final

import trio
from trio._core import _run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextvars import Context

    import outcome

__all__ = ["PROCESS", "Freezable", "first_deadline_s", "freeze", "governed", "thaw"]


class Freezable(Protocol):
    """A process whose tasks may get no turns."""

    frozen: bool
    held: list[trio.lowlevel.Task]


PROCESS: ContextVar[Freezable | None] = ContextVar("the process that a task belongs to", default=None)
"""Inherited by every task that a task of the process starts."""

_inside: Any = _run


@final
class _Chance:
    """Stands in for trio's source of chance: threads that are governed have one each, the others share trio's."""

    def __init__(self) -> None:
        self.of_thread = threading.local()
        self._of_others = _run._r  # noqa: SLF001

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(self.of_thread, "chance", self._of_others), name)


_chance = _Chance()
_before = (_run._r, _inside.Runner.reschedule, _inside._ALLOW_DETERMINISTIC_SCHEDULING)  # noqa: SLF001
_lock = threading.Lock()
_governed = 0
"""How many threads are."""


@contextmanager
def governed(seed: int) -> Iterator[None]:
    """During the block (around ``trio.run``) the order of tasks follows from ``seed``, and processes can be frozen."""
    _govern(+1)
    _chance.of_thread.chance = random.Random(seed)  # noqa: S311 # nosec B311 # it shall be predictable
    try:
        yield
    finally:
        del _chance.of_thread.chance
        _govern(-1)


def _govern(by: int) -> None:
    """Count threads, and have trio as it was while there are none."""
    global _governed  # noqa: PLW0603
    with _lock:
        _governed += by
        inside = (_chance, _reschedule, True) if _governed else _before
        _inside._r, _inside.Runner.reschedule, _inside._ALLOW_DETERMINISTIC_SCHEDULING = inside  # noqa: SLF001


def _reschedule(
    runner: Any,
    task: trio.lowlevel.Task,
    next_send: outcome.Outcome[object] = _run._NO_SEND,  # noqa: SLF001
) -> None:
    _before[1](runner, task, next_send)
    process = task.context.get(PROCESS)
    if process is not None and process.frozen:
        runner.runq.pop()
        process.held.append(task)


def first_deadline_s(of: Callable[[Context], bool]) -> float:
    """The first instant at which a task is to be woken by a deadline, of those tasks whose context is admitted."""
    found, tasks = math.inf, [trio.lowlevel.current_root_task()]
    while tasks:
        task = tasks.pop()
        if task is None:
            continue
        tasks += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        if of(task.context):
            found = min(found, task._cancel_status.effective_deadline())  # noqa: SLF001
    return found


def freeze(process: Freezable) -> None:
    """Let no task of it have a turn, as SIGSTOP does. Its clock goes on, and what wakes its tasks is kept for later."""
    process.frozen = True
    runq = _run.GLOBAL_RUN_CONTEXT.runner.runq
    due = list(runq)
    runq.clear()
    for task in due:
        (process.held if task.context.get(PROCESS) is process else runq).append(task)


def thaw(process: Freezable) -> None:
    """As SIGCONT: everything that was due happens now."""
    process.frozen = False
    held, process.held = process.held, []
    _run.GLOBAL_RUN_CONTEXT.runner.runq.extend(held)

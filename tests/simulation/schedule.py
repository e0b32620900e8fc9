"""The only place that reaches into trio: deterministic scheduling, and processes that stand still."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from trio._core import _run

if TYPE_CHECKING:
    from collections.abc import Iterator

    import outcome
    import trio


class Freezable(Protocol):
    """A process whose tasks may get no turns."""

    frozen: bool
    held: list[trio.lowlevel.Task]


PROCESS: ContextVar[Freezable | None] = ContextVar("the simulated process that a task belongs to", default=None)
"""Inherited by every task that a task of the process starts."""


_inside: Any = _run


@contextmanager
def governed(seed: int) -> Iterator[None]:
    """During the block (around ``trio.run``) the order of tasks follows from ``seed``, and processes can be frozen."""
    inner, order, allowed = _inside.Runner.reschedule, _run._r.getstate(), _run._ALLOW_DETERMINISTIC_SCHEDULING

    def reschedule(runner: Any, task: trio.lowlevel.Task, next_send: outcome.Outcome[object] = _run._NO_SEND) -> None:
        inner(runner, task, next_send)
        process = task.context.get(PROCESS)
        if process is not None and process.frozen:
            assert runner.runq.pop() is task
            process.held.append(task)

    _inside.Runner.reschedule = reschedule
    _inside._ALLOW_DETERMINISTIC_SCHEDULING = True
    _run._r.seed(seed)
    try:
        yield
    finally:
        _inside.Runner.reschedule = inner
        _inside._ALLOW_DETERMINISTIC_SCHEDULING = allowed
        _run._r.setstate(order)


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

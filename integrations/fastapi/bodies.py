"""Tasks of the application's loop that can be cancelled one by one: a body in each.

On trio they are those of an anyio group. On asyncio they are tasks of asyncio, each in a cancel scope of anyio, so that
the same can be done within: a task of a group keeps books that nobody reads here, for a ninth of the time of a run.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol, final

import anyio
import trio

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable, Coroutine

    from anyio.abc import TaskGroup

__all__ = ["Bodies", "open_bodies"]


class Bodies(Protocol):
    """Where tasks are started, on the loop that runs."""

    def start(
        self, function: Callable[[], Coroutine[Any, Any, None]], *, name: str, never_begun: Callable[[], None]
    ) -> Callable[[], object]:
        """Start a task, which may raise nothing but its cancellation; what is returned cancels it.

        ``never_begun`` is called when it was cancelled before its first step.
        """


@asynccontextmanager
async def open_bodies() -> AsyncIterator[Bodies]:
    """For a block; at its end all of them are cancelled, and waited for, whatever is cancelled around it."""
    if trio.lowlevel.in_trio_task():
        async with anyio.create_task_group() as group:
            try:
                yield _Grouped(group)
            finally:
                group.cancel_scope.cancel()
    else:
        tasks = _Tasks()
        try:
            yield tasks
        finally:
            await tasks.end()


@final
class _Grouped:
    def __init__(self, group: TaskGroup) -> None:
        self._group = group

    def start(
        self,
        function: Callable[[], Coroutine[Any, Any, None]],
        *,
        name: str,
        never_begun: Callable[[], None],  # noqa: ARG002  # a task of a group always gets to its first step
    ) -> Callable[[], object]:
        return self._group.start_soon(function, name=name).cancel


@final
class _Tasks:
    def __init__(self) -> None:
        import asyncio

        self._asyncio, self._loop = asyncio, asyncio.get_running_loop()
        self._going: dict[asyncio.Task[None], tuple[anyio.CancelScope, Callable[[], None]]] = {}

    def start(
        self, function: Callable[[], Coroutine[Any, Any, None]], *, name: str, never_begun: Callable[[], None]
    ) -> Callable[[], object]:
        scope = anyio.CancelScope()
        task = self._loop.create_task(_within(scope, function), name=name)
        self._going[task] = scope, never_begun
        task.add_done_callback(self._note_end)
        return scope.cancel

    def _note_end(self, task: asyncio.Task[None]) -> None:
        _, never_begun = self._going.pop(task)
        if task.cancelled():
            never_begun()

    async def end(self) -> None:
        interrupted: BaseException | None = None
        with anyio.CancelScope(shield=True):
            while self._going:
                for scope, _ in self._going.values():
                    scope.cancel()
                try:
                    await self._asyncio.wait(self._going)
                except self._asyncio.CancelledError as error:  # the loop itself ends, and cancels each of its tasks
                    interrupted = error
        if interrupted is not None:
            raise interrupted


async def _within(scope: anyio.CancelScope, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with scope:
        await function()

"""Threads of ``def`` tasks. They cannot be cancelled, so they outlive what waits for them, the Consumer included."""

from __future__ import annotations

import contextvars
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from actors.running import Running


@final
@dataclass(slots=True, eq=False)
class ThreadCall:
    """A function in a worker thread. ``done`` is set in the trio run that started it, when it has returned."""

    running: Running
    done: trio.Event = field(default_factory=trio.Event)
    error: BaseException | None = None


@final
class Threads:
    """The calls in progress. Belongs to the Consumer's place in the tree, not to its instance.

    Has a limiter of its own, so that runs do not compete with other users of trio's threads. ``trio.from_thread`` works
    inside the functions.
    """

    def __init__(self, capacity: int) -> None:
        self._limiter = trio.CapacityLimiter(max(1, capacity))
        self._calls: dict[Running, ThreadCall] = {}

    def start(self, running: Running, function: Callable[[], object]) -> ThreadCall:
        """Call it in a thread, in a copy of the current context."""
        call = ThreadCall(running)
        self._calls[running] = call
        trio.lowlevel.spawn_system_task(
            self._work, call, function, name=f"thread of {running.run_id}", context=contextvars.copy_context()
        )
        return call

    def still_going(self) -> list[ThreadCall]:
        """Calls whose function has not returned, or whose end nobody has taken note of."""
        return list(self._calls.values())

    def forget(self, running: Running) -> None:
        """Its end has been dealt with. A run without a thread has nothing to forget."""
        self._calls.pop(running, None)

    async def _work(self, call: ThreadCall, function: Callable[[], object]) -> None:
        try:
            await trio.to_thread.run_sync(
                function, abandon_on_cancel=True, limiter=self._limiter, thread_name=call.running.run_id
            )
        except trio.Cancelled:
            raise
        except BaseException as error:  # noqa: BLE001  # whatever a run raises ends at the run
            call.error = error
        call.done.set()

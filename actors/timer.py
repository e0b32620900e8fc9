"""An actor's alarm: one message to itself, at an instant that can be moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar, final

import trio

if TYPE_CHECKING:
    from engine.runtime import Context

M = TypeVar("M")


@final
class Timer(Generic[M]):
    """Sends ``message`` to the actor's own mailbox when it is time. Lives and dies in the actor's nursery."""

    def __init__(self, context: Context[M], message: M) -> None:
        self._context, self._message = context, message
        self._deadline = float("inf")
        self._moved = trio.Event()
        context.nursery.start_soon(self._run)

    def after(self, delay_s: float) -> None:
        """Ring in ``delay_s`` seconds, instead of when it would have."""
        self._deadline = self._context.clock.monotonic() + max(0.0, delay_s)
        self._moved.set()

    def stop(self) -> None:
        """Do not ring until set again."""
        self.after(float("inf"))

    async def _run(self) -> None:
        while True:
            self._moved = trio.Event()
            with trio.move_on_at(self._deadline):
                await self._moved.wait()
                continue
            self._deadline = float("inf")
            await self._context.mailbox.send(self._message)

"""Time that moves only when it is told to, and only when everything that was due has happened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, final

import trio
from trio.testing import wait_all_tasks_blocked

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock

__all__ = ["VirtualTime", "World"]

SLACK_S = 0.001
"""Redis counts milliseconds: what is due so little after an instant is due at it."""

LEAST_IDLE_S = 5.0
"""A shorter stretch in which nothing is due is lived through; of a longer one the rest is skipped."""

BEFORE_S = 1.0
"""So long before something is due, everybody is awake again."""


class World(Protocol):
    """What happens while virtual time passes."""

    def at_work(self) -> str | None:
        """Something that takes real time, for people: time stands still until it is done. None: nothing does."""

    def next_timer_s(self) -> float:
        """The first instant at which something wants to wake that trio does not know of; infinite if nothing does."""

    def idle_until_s(self) -> float:
        """Up to when nobody does more than renew what it has; infinite if nobody ever does, 0 if somebody does now."""

    def moved(self) -> None:
        """The clock has been moved."""

    def pass_unnoticed(self, seconds: float) -> None:
        """The clock will be moved so far, and nobody shall take note of it."""


@final
class VirtualTime:
    """Instants are those of trio's clock, 0 at the start."""

    def __init__(self, clock: MockClock, world: World) -> None:
        self._clock, self._world = clock, world
        self.steps = 0
        """Grows while something happens."""

    async def settle(self) -> None:
        """Let everything happen that is due now. What takes real time (threads, sockets) is waited for."""
        cushion_s = 0.0
        while True:
            await wait_all_tasks_blocked(cushion_s)
            if self._world.at_work() is None:
                self.steps += 1
                return
            cushion_s = min(0.01, cushion_s * 2 or 0.0003)

    async def pass_until(self, until_s: float, *, enough: Callable[[], bool] = lambda: False) -> None:
        """Move the clock from one thing that is due to the next, up to and with what is due at ``until_s``."""
        while True:
            await self.settle()
            if enough():
                return
            now_s = trio.current_time()
            next_s = min(
                now_s + trio.lowlevel.current_statistics().seconds_to_next_deadline, self._world.next_timer_s()
            )
            if next_s > until_s + SLACK_S:
                self._move_to(until_s)
                await self.settle()
                return
            idle_s = min(self._world.idle_until_s(), until_s) - BEFORE_S - now_s
            if idle_s > LEAST_IDLE_S:
                self._world.pass_unnoticed(idle_s)
                next_s = now_s + idle_s
            self._move_to(next_s)

    def _move_to(self, at_s: float) -> None:
        self._clock.jump(max(0.0, at_s - trio.current_time()))
        self._world.moved()

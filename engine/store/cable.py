"""What lies between one process and the Redis in this program: it can be cut, and is told of every script."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import trio

from engine.errors import RedisUnavailable
from engine.store.client import Client
from engine.store.inprocess import InProcess
from engine.store.script import script_of
from engine.store.transport import Lane

if TYPE_CHECKING:
    from engine.store.history import History
    from engine.store.inprocess import InProcessServer
    from engine.store.transport import LinkStatistics

__all__ = ["Cable", "Watcher"]


INSTANT_S = 1e-6
"""Between the arrivals of two commands that were sent at once."""


class Watcher(Protocol):
    """Who is told of the scripts that a process sends. What is awaited here holds up the process alone."""

    async def sends(self, script: str, args: tuple[Any, ...]) -> None:
        """It is about to be executed. Raises RedisUnavailable: it never will be."""

    async def executed(self, script: str, args: tuple[Any, ...]) -> None:
        """It was executed. Raises RedisUnavailable: the process never hears the reply."""


class Cable:
    """A `Transport` to a shared server that can be cut for one process alone."""

    def __init__(self, server: InProcessServer, watcher: Watcher | None = None) -> None:
        self._inner, self._watcher = InProcess(server), watcher
        self._whole = trio.Event()
        self._whole.set()
        self._joined_s = -math.inf
        self._reads: set[trio.CancelScope] = set()
        self._stalled = False
        self.refusing = False
        """Whether Redis is there and answers nothing but a refusal (no replicas, loading)."""
        self.slow_s = 0.0
        """How long each command of the first lane is on its way; those that were sent before it arrive before it."""
        self._arrives_s = -math.inf
        """When the last of them does."""
        self.commands = self.replicated = Client(partial(self._request, Lane.COMMANDS), may_block=False)
        self.runs = Client(partial(self._request, Lane.RUNS), may_block=True)
        self.events = Client(partial(self._request, Lane.EVENTS), may_block=True)

    def greet_with(self, history: History) -> None:
        """Ask this before the first command after each start of the server."""
        self._inner.greet_with(history)

    def cut(self) -> None:
        """Fail everything from now on, the reads in progress included."""
        self._whole, self._arrives_s = trio.Event(), -math.inf
        for read in self._reads:
            read.cancel()

    def stall(self) -> None:
        """Let nothing through from now on, and say nothing about it."""
        self._stalled = True

    def join(self) -> None:
        """Be whole again."""
        self._joined_s = trio.current_time()
        self._whole.set()

    @property
    def is_whole(self) -> bool:
        """Whether it is not cut."""
        return self._whole.is_set()

    def is_up(self) -> bool:
        """Whether it is whole and the server is there."""
        return self._whole.is_set() and self._inner.is_up()

    async def wait_up(self) -> None:
        """Return when it is whole and the server is there."""
        while not self.is_up():
            await self._whole.wait()
            await self._inner.wait_up()

    async def unblock(self, lane: Lane) -> None:
        """See `Transport`."""
        if not self._whole.is_set():
            raise RedisUnavailable("the cable is cut")
        await self._inner.unblock(lane)

    def statistics(self) -> LinkStatistics:
        """Those of the transport behind it."""
        return self._inner.statistics()

    def steady_since_s(self, *, slower_than_s: float) -> float:
        """See `Transport`."""
        if not self._whole.is_set():
            return trio.current_time()
        return max(self._joined_s, self._inner.steady_since_s(slower_than_s=slower_than_s))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do nothing until cancelled."""
        await self._inner.run(task_status=task_status)

    async def _request(self, lane: Lane, args: tuple[Any, ...], block_s: float) -> Any:
        if self._whole.is_set():
            if self.refusing:
                raise RedisUnavailable("NOREPLICAS Not enough good replicas to write.")
            with trio.CancelScope() as read:
                self._reads.add(read)
                try:
                    if self._stalled:
                        await trio.sleep_forever()
                    if lane is Lane.COMMANDS:
                        await self._travel()
                    return await self._execute(lane, args, block_s)
                finally:
                    self._reads.discard(read)
        raise RedisUnavailable("the cable is cut")

    async def _travel(self) -> None:
        if self.slow_s:
            self._arrives_s = max(trio.current_time() + self.slow_s, self._arrives_s + INSTANT_S)
            await trio.sleep_until(self._arrives_s)
        else:
            await trio.lowlevel.checkpoint()

    async def _execute(self, lane: Lane, args: tuple[Any, ...], block_s: float) -> Any:
        script = script_of(args) if self._watcher is not None else None
        if self._watcher is None or script is None:
            return await self._inner.request(lane, args, block_s)
        await self._watcher.sends(script, args)
        reply = await self._inner.request(lane, args, block_s)
        await self._watcher.executed(script, args)
        return reply

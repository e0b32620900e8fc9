"""Losing Redis is a state: wait for it and go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import trio

from engine.errors import RedisUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.store.transport import Transport

R = TypeVar("R")

PAUSE_S = 0.2
"""Between tries while the link is up and Redis refuses all the same (loading, no replicas, full memory)."""


async def insist(transport: Transport, operation: Callable[[], Awaitable[R]]) -> R:
    """Repeat an operation until Redis answers it. Every operation of the store can be repeated.

    Waits as long as the outage lasts: only for an actor's own tasks, not for its ``receive``.
    """
    while True:
        try:
            return await operation()
        except RedisUnavailable:
            await trio.sleep(PAUSE_S)
            await transport.wait_up()

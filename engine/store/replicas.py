"""Writes that count only when replicas have them: each is followed by WAIT, over a connection of its own."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

import trio

from engine.errors import RedisUnavailable
from engine.store.call import Failed
from engine.store.dial import expect
from engine.store.script import Script

if TYPE_CHECKING:
    from engine.address import Address
    from engine.store.connection import Connection
    from engine.store.dial import Exchange

__all__ = ["MARK", "ReplicaWait", "Replicas", "see_wait_allowed"]

logger = logging.getLogger("fastapi.task-manager.link")

MARK: Final = Script.load("mark")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaWait:
    """How many replicas must have a write, and how long they may take."""

    count: int
    timeout_s: float
    """The connection can do nothing else meanwhile."""

    mark: str
    """The key that is written behind each command: see ``lua/mark.lua``."""


async def see_wait_allowed(exchange: Exchange, *, address: Address) -> None:
    """On each new connection, before anything is written over it.

    Raises:
        DialFailed: the user has no right to WAIT, or this is a replica itself.
    """
    (reply,) = await exchange.ask(("WAIT", 0, 1))
    expect("WAIT", reply, address)


@final
class Replicas:
    """Sends commands of which replicas must have what they wrote, before they count as done.

    Where too few say so in time, the write stands and is not acknowledged: the command raises `RedisUnavailable`, and
    its caller repeats it, which a script can bear. That is told when it begins and when it ends.
    """

    def __init__(self, connection: Connection, wait: ReplicaWait, address: Address) -> None:
        self._connection, self._wait, self._address = connection, wait, address
        self.missing_since_s: float | None = None
        """On trio's clock; None while the last write was acknowledged."""

    @property
    def trouble(self) -> str | None:
        """For people, while the last write was not acknowledged."""
        return None if self.missing_since_s is None else self._too_few

    @property
    def _too_few(self) -> str:
        wait = self._wait
        return f"fewer than {wait.count} replica(s) have acknowledged a write within {wait.timeout_s:g} s"

    async def request(self, args: tuple[Any, ...], block_s: float) -> Any:
        """As `Connection.request`, for commands that do not block: ``block_s`` is 0.

        Raises:
            RedisUnavailable: also when the command was done, and too few replicas have acknowledged it.
        """
        wait = self._wait
        marked = ("EVAL", MARK.text, 1, wait.mark)
        waited = ("WAIT", wait.count, max(1, round(wait.timeout_s * 1000)))  # 0 would be for ever
        replies = await self._connection.request_together((args, marked, waited), block_s + wait.timeout_s)
        for reply in replies:
            if type(reply) is Failed:
                raise reply.error
        reply, _, acknowledged = replies
        if acknowledged < wait.count:
            self._note_missing()
            raise RedisUnavailable(f"{self._too_few}; what was asked is done, and is asked again")
        self._note_there()
        return reply

    def _note_missing(self) -> None:
        if self.missing_since_s is None:
            self.missing_since_s = trio.current_time()
            logger.warning(
                "Redis at %s: %s; nothing new is published, and no run counts as ended, until they do",
                self._address.label,
                self._too_few,
            )

    def _note_there(self) -> None:
        if self.missing_since_s is not None:
            lasted_s = trio.current_time() - self.missing_since_s
            self.missing_since_s = None
            logger.warning(
                "Redis at %s: replicas acknowledge what is written again, after %.1f s", self._address.label, lasted_s
            )

"""Which history of Redis this process works in: a restart, a failover or FLUSHALL may begin another one.

Redis can lose what it acknowledged: a replica that lagged takes over, the tail of an append-only file is not written,
all keys are deleted. So each new connection asks, before its first command, whether Redis goes on where this process
left it (``enter.lua``), and each beat asks again.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, final

import trio

from engine.errors import RedisUnavailable
from engine.store.dial import DialFailed
from engine.store.script import Script

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.store.dial import Exchange
    from engine.store.keys import Keys

__all__ = ["ENTER", "History"]

ENTER = Script.load("enter")


def _new_id() -> str:
    return secrets.token_hex(8)


@final
class History:
    """What one process knows of it. Part of its `Store`; greets its new connections.

    Args:
        keys: of the application.
        lease_ms: how long the others are given to tell what Redis forgot.
        new_id: names a history that is to be begun.
    """

    def __init__(self, keys: Keys, *, lease_ms: int = 9_000, new_id: Callable[[], str] = _new_id) -> None:
        self._keys, self._lease_ms, self._new_id = keys, lease_ms, new_id
        self.id = ""
        """Of the history that Redis was last seen to go on with; empty before the first connection."""

        self._told = ""
        self.server = ""
        """The run id of the server at the other end: another one may lack what this one acknowledged."""

        self._heard = trio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        """Greet a new connection.

        Raises:
            DialFailed: Redis did not answer, or not with its run id.
        """
        (facts,) = await exchange.ask(("INFO", "server"))
        server = run_id(facts)
        (reply,) = await exchange.ask(self.question(server))
        if isinstance(reply, Exception):
            said = reply.reason if isinstance(reply, RedisUnavailable) else str(reply)
            raise DialFailed(f"{self._keys.generation}: {said}") from reply
        self.heard(server, reply)

    def question(self, server: str) -> tuple[Any, ...]:
        """The command that asks which history this server goes on with, or begins another one."""
        return ("EVAL", ENTER.text, len(self.names), *self.names, *self.arguments(server))

    @property
    def names(self) -> tuple[str, ...]:
        """KEYS of the script."""
        keys = self._keys
        return keys.generation, keys.leader, keys.version, keys.events

    def arguments(self, server: str) -> tuple[str | int, ...]:
        """ARGV of the script."""
        return server, self._new_id(), self.told, self._lease_ms

    def heard(self, server: str, reply: list[str]) -> None:
        """Take in the answer."""
        self.server = server
        self.saw(reply[0])

    def saw(self, history_id: str) -> None:
        """Redis goes on with this history."""
        if history_id != self.id:
            self.id = history_id
            self._note()

    @property
    def told(self) -> str:
        """The history that knows all that this process remembers: nothing of it is lost by going on there."""
        return self._told

    @told.setter
    def told(self, history_id: str) -> None:
        self._told = history_id
        self._note()

    @property
    def in_doubt(self) -> bool:
        """Redis goes on with a history that this process has not told what it remembers."""
        return self.id != self._told

    async def doubt(self) -> None:
        """Return while it is in doubt what Redis knows."""
        while not self.in_doubt:
            await self._heard.wait()

    async def certainty(self) -> None:
        """Return while Redis knows all that this process remembers."""
        while self.in_doubt:
            await self._heard.wait()

    def _note(self) -> None:
        self._heard.set()
        self._heard = trio.Event()


def run_id(facts: object) -> str:
    """The run id in what INFO says.

    Raises:
        DialFailed: it is not there.
    """
    if isinstance(facts, Exception):
        raise DialFailed(f"INFO: {facts}") from facts
    for line in str(facts).splitlines():
        name, _, value = line.partition(":")
        if name == "run_id":
            return value.strip()
    raise DialFailed("INFO does not tell the run_id of this server")

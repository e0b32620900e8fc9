"""What goes between workers and Redis: recorded at Redis's end, and held at an exact step of a run.

A `Tap` listens to the connections of one proxy. It writes down every command and its reply, and a `Trap` set on it
holds the first command that matches: before Redis sees it, or after Redis has answered, before the client hears of it.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from hashlib import sha1
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, final

import trio

from engine.store.script import Script
from tests.faults.resp import Splitter, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.store.proxy import Send

SCRIPTS: Final = {
    Script.load(path.name.removesuffix(".lua")).sha: path.name.removesuffix(".lua")
    for path in (files("engine.store") / "lua").iterdir()
    if path.name.endswith(".lua") and path.name != "lib.lua"
}
"""SHA -> name of every script of the engine."""

NO_PAIRS: Final = frozenset({"PSYNC", "SYNC", "SUBSCRIBE", "PSUBSCRIBE", "MONITOR"})
"""After these a connection carries no request and reply in turn."""


@final
@dataclass(slots=True, eq=False)
class Exchange:
    """A command that reached Redis, and its reply. Times are monotonic."""

    who: str
    """The proxy that it came through."""

    name: str
    """Of the script, or the command in capitals."""

    argv: tuple[str, ...]
    sent_s: float
    """Redis executed it after this."""

    reply: Any = None
    replied_s: float | None = None
    """And before this. None: no reply was seen, and it may or may not have been executed."""

    left_s: float | None = None
    """When the reply left for the client; None: never, it was lost."""

    @property
    def answered(self) -> bool:
        """It was executed, and not refused."""
        return self.replied_s is not None and not isinstance(self.reply, Exception)


def exchange_of(who: str, words: list[str], at_s: float) -> Exchange:
    """A command as it is on the wire."""
    command = words[0].upper()
    if command in ("EVALSHA", "EVAL"):
        sha = words[1] if command == "EVALSHA" else sha1(words[1].encode(), usedforsecurity=False).hexdigest()
        count = int(words[2])
        name = SCRIPTS.get(sha.lower(), sha)
        return Exchange(who, name, tuple(words[3 + count :]), at_s)
    return Exchange(who, command, tuple(words[1:]), at_s)


@final
@dataclass(slots=True, eq=False)
class Trap:
    """Holds the first matching command: at its ``request``, or at its ``reply`` when Redis has executed it."""

    name: str
    at: str
    matches: Callable[[Exchange], bool] = lambda _: True
    sprung: trio.Event = field(default_factory=trio.Event)
    caught: Exchange | None = None
    drops: bool = False
    armed: bool = True
    _over: trio.Event = field(default_factory=trio.Event)

    def release(self) -> None:
        """It goes on its way."""
        self._over.set()

    def drop(self) -> None:
        """It is lost."""
        self.drops = True
        self._over.set()

    async def hold(self, exchange: Exchange) -> None:
        """Until it is released or dropped."""
        self.caught = exchange
        self.sprung.set()
        await self._over.wait()


async def first_of(traps: Iterable[Trap]) -> None:
    """Wait until one of them has caught something."""
    async with trio.open_nursery() as nursery:

        async def watch(trap: Trap) -> None:
            await trap.sprung.wait()
            nursery.cancel_scope.cancel()

        for trap in traps:
            nursery.start_soon(watch, trap)


@final
@dataclass(slots=True)
class Tap:
    """Listens to every connection of one proxy."""

    who: str
    record: list[Exchange]
    traps: list[Trap] = field(default_factory=list)
    mute: bool = False
    """Replicas hear nothing; their connections are of no use afterwards."""

    def connect(self) -> _Ear:
        """What a proxy wants for each connection."""
        return _Ear(self)

    def set(self, trap: Trap) -> Trap:
        """The first match springs it, once."""
        self.traps.append(trap)
        return trap

    def clear(self) -> None:
        """Whatever is held goes on; nothing more is."""
        for trap in self.traps:
            trap.release()
        self.traps.clear()

    def trap_for(self, exchange: Exchange, at: str) -> Trap | None:
        """The trap that this springs."""
        for trap in self.traps:
            if trap.armed and (trap.at, trap.name) == (at, exchange.name) and trap.matches(exchange):
                trap.armed = False
                return trap
        return None


@final
class _Ear:
    """One connection: requests and replies in turn."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self._requests, self._replies = Splitter(), Splitter()
        self._open: deque[Exchange] = deque()
        self._deaf = False

    async def request(self, data: bytes, send: Send) -> None:
        if self._deaf:
            await send(data)
            return
        for message in self._requests.feed(data):
            exchange = exchange_of(self._tap.who, parse(message), time.monotonic())
            trap = self._tap.trap_for(exchange, "request")
            if trap is not None:
                await trap.hold(exchange)
                if trap.drops:
                    continue
                exchange.sent_s = time.monotonic()
            self._deaf = self._deaf or exchange.name in NO_PAIRS
            if not self._deaf:
                self._tap.record.append(exchange)
                self._open.append(exchange)
            await send(message)
        if self._deaf and (rest := self._requests.rest()):
            await send(rest)

    async def reply(self, data: bytes, send: Send) -> None:
        if self._deaf and not self._open:
            if not self._tap.mute:
                await send(data)
            return
        for message in self._replies.feed(data):
            if not self._open:
                self._deaf = True  # nobody asked: this is no client of ours
            if not self._deaf or self._open:
                await self._note(self._open.popleft(), message, send)
            else:
                await send(message)
        if self._deaf and not self._open and (rest := self._replies.rest()):
            await send(rest)

    async def _note(self, exchange: Exchange, message: bytes, send: Send) -> None:
        exchange.reply, exchange.replied_s = parse(message), time.monotonic()
        trap = self._tap.trap_for(exchange, "reply") if exchange.answered else None
        if trap is not None:
            await trap.hold(exchange)
            if trap.drops:
                return
        exchange.left_s = time.monotonic()
        await send(message)

    def ended(self) -> None:
        """What has no reply yet never gets one."""
        self._open.clear()

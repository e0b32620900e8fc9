"""The transport without sockets: a fake Redis in this process, for tests and simulations in virtual time.

It is fakeredis with a Lua interpreter, from the extra ``testing``. What differs from a real server, and stays so: a
command takes no time; a cancelled blocking read has taken nothing; memory has no limit, nothing is persisted, there
are no replicas; a script that sets a global breaks every later script; texts of errors differ, their classes do not.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, final

import fakeredis
import trio
from redis.exceptions import ConnectionError as ServerGone
from redis.exceptions import ResponseError

from engine.errors import RedisUnavailable
from engine.store.client import Client
from engine.store.fake_time import Governed, govern_fakeredis
from engine.store.replies import reply_error
from engine.store.transport import Lane, LinkStatistics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.store.history import History

__all__ = ["InProcess", "InProcessServer", "Saved"]


@final
@dataclass(frozen=True, slots=True)
class Saved:
    """The data of an `InProcessServer` at one instant; nothing to look into."""

    data: dict[bytes, Any]


@final
class InProcessServer:
    """A fake Redis that any number of `InProcess` transports share, all in one trio run.

    Args:
        wall: Unix seconds; what the server takes for now in TIME, entry ids, idle times and expiry.
    """

    def __init__(self, *, wall: Callable[[], float] = time.time) -> None:
        govern_fakeredis()
        self.wall = wall
        self.governed = Governed(wall)
        self.fake = fakeredis.FakeServer(version=(7,))
        self._pool = fakeredis.FakeRedis(
            server=self.fake, decode_responses=True, encoding_errors="backslashreplace", protocol=2
        ).connection_pool
        self.starts = 1
        self.run_id = "1"
        """Another one after each start, as a server process has it."""

        self.started_s: float | None = -math.inf
        """Instant of the last start on trio's clock; None while stopped."""
        self._changed = trio.Event()
        self._waiting: dict[bytes, dict[trio.Event, None]] = {}
        """Who waits for a write to that key. In order, so that nothing depends on hashes."""
        self._hear_of_writes()

    def _hear_of_writes(self) -> None:
        database = self.fake.dbs[0]
        tell_others = database.notify_watch

        def written(key: bytes) -> None:
            tell_others(key)
            self._change()
            for event in self._waiting.get(key, ()):
                event.set()

        vars(database)["notify_watch"] = written  # its own method has the key, and its callbacks do not

    def stop(self) -> None:
        """Be unreachable and keep all data: every command fails with `RedisUnavailable` until `start`."""
        self.started_s = None
        self.wake_readers()

    def save(self) -> Saved:
        """All data as they are now, as in a file that a server writes, or on a replica that lags."""
        database: Any = self.fake.dbs[0]
        return Saved({key: copy.deepcopy(database[key]) for key in database})

    def start(self, saved: Saved | None = None) -> None:
        """Be reachable again, with all data, or with those that were saved."""
        if self.started_s is None:
            if saved is not None:
                self._load(saved)
            self.starts += 1
            self.run_id = str(self.starts)
            self.started_s = trio.current_time()
            self.wake_readers()

    def _load(self, saved: Saved) -> None:
        database: Any = self.fake.dbs[0]
        for key in list(database):
            del database[key]
        for key, item in saved.data.items():
            database[key] = copy.deepcopy(item)

    async def wait_change(self) -> None:
        """Return at the next write by anybody, when the server stops or starts, or when a reader is unblocked."""
        await self._changed.wait()

    async def wait_written(self, keys: Sequence[bytes]) -> None:
        """Return at the next write to one of these keys, and whenever `wake_readers` is called."""
        event = trio.Event()
        for key in keys:
            self._waiting.setdefault(key, {})[event] = None
        try:
            await event.wait()
        finally:
            for key in keys:
                self._waiting[key].pop(event, None)

    def wake_readers(self) -> None:
        """Have everybody who waits look again."""
        self._change()
        for waiting in self._waiting.values():
            for event in waiting:
                event.set()

    def connect(self) -> Any:
        """One more connection of redis-py to the fake server."""
        connection = self._pool.connection_class(**self._pool.connection_kwargs)
        connection.connect()
        return connection

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@final
class InProcess:
    """A `Transport` to an `InProcessServer`: no socket, no task, and blocking reads that wait in trio's time.

    Args:
        server: one of its own by default.
        history: asked before the first command after each start of the server, as at a new connection.
    """

    def __init__(self, server: InProcessServer | None = None, *, history: History | None = None) -> None:
        self.server = server or InProcessServer()
        self.history = history
        self._greeted = ""
        self._lanes = {lane: _Lane(self.server) for lane in Lane}
        self.commands = Client(partial(self.request, Lane.COMMANDS), may_block=False)
        self.replicated = self.commands  # as if each replica had everything at once
        self.runs = Client(self._lanes[Lane.RUNS].request, may_block=True)
        self.events = Client(self._lanes[Lane.EVENTS].request, may_block=True)

    def greet_with(self, history: History) -> None:
        """Ask this before the first command after each start of the server."""
        self.history = history

    def greet(self) -> None:
        """Ask which history the server goes on with, if it was started since this was asked last."""
        if self.history is not None and self._greeted != self.server.run_id:
            server = self.server.run_id
            reply = self._lanes[Lane.COMMANDS].execute(self.history.question(server))
            self._greeted = server
            self.history.heard(server, reply)

    def is_up(self) -> bool:
        """Whether the server is reachable."""
        return self.server.started_s is not None

    async def wait_up(self) -> None:
        """Return once the server is reachable."""
        while not self.is_up():
            await self.server.wait_change()

    async def request(self, lane: Lane, args: tuple[Any, ...], block_s: float) -> Any:
        """Execute one command as it is, for those who stand between a process and its transport."""
        if lane is Lane.COMMANDS and self._greeted != self.server.run_id and self.is_up():
            self.greet()
        return await self._lanes[lane].request(args, block_s)

    def look(self, *command: Any) -> Any:
        """The raw reply to a command that does not block, asked by nobody, in no time."""
        return self._lanes[Lane.COMMANDS].execute(command)

    async def unblock(self, lane: Lane) -> None:
        """End the blocking read that is in progress on ``lane``: it returns nothing. No read: no effect."""
        await trio.lowlevel.checkpoint()
        self._lanes[lane].unblock()

    def statistics(self) -> LinkStatistics:
        """Counters and state. Bytes are 0, since none are made."""
        lanes = self._lanes.values()
        stops = self.server.starts - (1 if self.is_up() else 0)
        return LinkStatistics(
            commands_sent=sum(lane.commands_sent for lane in lanes),
            bytes_sent=0,
            bytes_received=0,
            connects=len(lanes) * self.server.starts,
            drops=len(lanes) * stops,
            up_since_s=self.server.started_s,
            waiting=sum(lane.waiting for lane in lanes),
            last_error="the server is stopped" if stops else None,
            trouble=None if self.is_up() else "no connection to Redis: the server is stopped",
        )

    def steady_since_s(self, *, slower_than_s: float) -> float:  # noqa: ARG002 - no reply takes any time here
        """The instant, on trio's clock, since when the server is reachable; now if it is not."""
        started_s = self.server.started_s
        return trio.current_time() if started_s is None else started_s

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do nothing until cancelled: there is no connection to keep up."""
        task_status.started()
        await trio.sleep_forever()


@final
class _Lane:
    """One connection to the fake server: one command at a time, in order."""

    def __init__(self, server: InProcessServer) -> None:
        self._server = server
        self._connection = server.connect()
        self._turn = trio.Lock()
        self._unblocked = False
        self.commands_sent = 0
        self.waiting = 0

    async def request(self, args: tuple[Any, ...], block_s: float) -> Any:
        """Execute a command, and wait for up to ``block_s`` if it is a read that found nothing."""
        self.waiting += 1
        try:
            async with self._turn:
                self.commands_sent += 1
                return await self._read(args, block_s) if block_s else self.execute(args)
        finally:
            self.waiting -= 1

    def unblock(self) -> None:
        """As CLIENT UNBLOCK does, answer the read in progress with nothing."""
        self._unblocked = True
        self._server.wake_readers()

    async def _read(self, args: tuple[Any, ...], block_s: float) -> Any:
        deadline_s = trio.current_time() + block_s
        args, keys = self._from_here_on(_without_block(args))
        self._unblocked = False
        while not (reply := self.execute(args)):  # fakeredis says None or an empty array
            if self._unblocked or trio.current_time() >= deadline_s:
                return None
            with trio.move_on_at(deadline_s):
                await self._server.wait_written(keys)
        return reply

    def _from_here_on(self, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], list[bytes]]:
        """Replace the id ``$`` by the last id there is, as a real server does once, when the read arrives.

        And say which streams are read.
        """
        words = list(args)
        streams = _position("STREAMS", args)
        count = (len(args) - streams - 1) // 2
        for position in range(streams + 1 + count, len(args)):
            if words[position] in ("$", b"$"):
                words[position] = self._last_id(words[position - count])
        names = words[streams + 1 : streams + 1 + count]
        return tuple(words), [name if isinstance(name, bytes) else str(name).encode() for name in names]

    def _last_id(self, stream: Any) -> str:
        try:
            facts = self.execute(("XINFO", "STREAM", stream))
        except ResponseError:
            return "0-0"  # no such stream yet
        last_id: str = facts[facts.index("last-generated-id") + 1]
        return last_id

    def execute(self, args: tuple[Any, ...]) -> Any:
        """Execute a command that does not block now, whoever waits for this connection."""
        if self._server.started_s is None:
            raise RedisUnavailable("the in-process server is stopped")
        with self._server.governed:
            try:
                self._connection.send_command(*args)
                return self._connection.read_response()
            except ServerGone as error:
                raise RedisUnavailable(str(error)) from error
            except AttributeError as error:
                if not str(args[0]).startswith("XREAD"):
                    raise
                # fakeredis reads as a stream whatever is there.
                raise ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value") from error
            except ResponseError as error:
                meant = reply_error(str(error))
                if isinstance(meant, RedisUnavailable):
                    raise meant from error
                if "XGROUP subcommand requires" in str(error) and args[0] == "XREADGROUP":
                    # fakeredis answers this for a stream that does not exist, Redis says NOGROUP.
                    raise ResponseError(f"NOGROUP No such key or group {args[2]!r} in XREADGROUP") from error
                raise


def _position(word: str, args: tuple[Any, ...]) -> int:
    """Where an option of XREAD or XREADGROUP stands."""
    first = 4 if args[0] == "XREADGROUP" else 1  # behind the names of group and reader
    return next(i for i in range(first, len(args)) if args[i] in (word, word.encode()))


def _without_block(args: tuple[Any, ...]) -> tuple[Any, ...]:
    position = _position("BLOCK", args)
    return args[:position] + args[position + 2 :]

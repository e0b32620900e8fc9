"""A transport whose every failing is the simulation's choice: delays, lost replies, cuts, late commands.

What a process sends travels outside of it, in tasks that go on when the process stands still or is dead: a command
that is on its way can be executed after its sender has given it up and sent it again over a new connection.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, final

import trio

from engine.errors import RedisUnavailable
from engine.store.client import Client
from engine.store.slow_replies import SlowReplies
from engine.store.transport import Lane, LinkStatistics
from tests.simulation.swift import swift_lanes

if TYPE_CHECKING:
    import random

    from engine.store.history import History
    from tests.simulation.world import World

DEADLINE_S = 3.0
"""A command that is not answered within this time, beyond what it may block, ends its connection."""

LATE_S = 2.5
"""A command can be executed so long after its connection has ended."""

_UNBLOCK = object()


@final
@dataclass(eq=False)
class Call:
    """One command on its way."""

    args: tuple[Any, ...]
    block_s: float
    at_s: float
    arrives_s: float
    over: trio.Event = field(default_factory=trio.Event)
    reply: Any = None
    error: Exception | None = None

    def end(self, reply: Any, error: Exception | None = None) -> None:
        """Once; what comes later is dropped."""
        if not self.over.is_set():
            self.reply, self.error = reply, error
            self.over.set()


@final
class Connection:
    """What lies between one connect and the next cut: three lanes, each in order."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.lanes = wire.world.spare.pop() if wire.world.spare else swift_lanes(wire.world.server)
        self._server = wire.world.server.run_id
        self._carriers = len(Lane)
        self.open = True
        self.scopes = {lane: trio.CancelScope() for lane in Lane}
        self.queues: dict[Lane, deque[Call]] = {lane: deque() for lane in Lane}
        self.filled = {lane: trio.Event() for lane in Lane}
        self.last_arrival_s = dict.fromkeys(Lane, 0.0)
        self.waiting: dict[Call, Lane] = {}
        self.reading: dict[Lane, Call | None] = dict.fromkeys(Lane)

    def send(self, lane: Lane, args: tuple[Any, ...], block_s: float, delay_s: float) -> Call:
        now_s = trio.current_time()
        arrives_s = self.last_arrival_s[lane] = max(self.last_arrival_s[lane], now_s + delay_s)
        call = Call(args, block_s, now_s, arrives_s)
        self.waiting[call] = lane
        self.queues[lane].append(call)
        self.filled[lane].set()
        return call

    def end_in(self, seconds: float) -> None:
        """What has not been executed then is lost."""
        for scope in self.scopes.values():
            scope.deadline = trio.current_time() + seconds
            if seconds <= 0:
                scope.cancel()

    async def carry(self, lane: Lane) -> None:
        """Execute what is sent over one lane, in order, until the scope is cancelled."""
        world, queue = self.wire.world, self.queues[lane]
        with self.scopes[lane]:
            while True:
                while not queue:
                    self.filled[lane] = trio.Event()
                    await self.filled[lane].wait()
                call = queue.popleft()
                if call.arrives_s > trio.current_time():
                    await trio.sleep_until(call.arrives_s)
                while world.redis_stalled.is_set():
                    await world.redis_awake.wait()
                if self._server != world.server.run_id:
                    break  # no connection outlives the server at its other end
                await self._execute(lane, call)
        self._carriers -= 1
        if not self._carriers:
            world.spare.append(self.lanes)  # making them costs a millisecond

    async def _execute(self, lane: Lane, call: Call) -> None:
        if call.args[0] is _UNBLOCK:
            read = self.reading[call.args[1]]
            if read is not None:
                self.lanes[call.args[1]].unblock()
            self.wire.answer(self, call, 1 if read is not None else 0, None)
            return
        reply: Any = None
        error: Exception | None = None
        self.reading[lane] = call if call.block_s else None
        try:
            if call.block_s:
                reply = await self.lanes[lane].request(call.args, call.block_s)
            else:
                reply = self.lanes[lane].execute(call.args)  # nobody else is at this lane
        except RedisUnavailable as gone:
            if self.wire.world.server.started_s is None:
                self.wire.cut(half_open_s=0.0, why=gone.reason)
                return
            error = gone
        except Exception as refusal:  # noqa: BLE001 - of the command, whatever it is: it is the reply
            error = refusal
        finally:
            self.reading[lane] = None
        self.wire.world.executed(self.wire, call.args, reply, error)
        self.wire.answer(self, call, reply, error)


@final
class Wire:
    """One process's `Transport`. Chance comes from ``chance`` alone."""

    def __init__(self, world: World, name: str, chance: random.Random) -> None:
        self.world, self.name, self.chance = world, name, chance
        self.slow_s = 0.0
        """The longest time that a command or a reply is on its way."""
        self.slow_until_s = -math.inf
        """Until when it is, or was last."""
        self.loss = 0.0
        """How likely the connection ends with a command: before the reply comes, or before the command is executed."""
        self.lossy_until_s = self.cut_s = -math.inf
        """Until when it is so, or was last; until when somebody cut it last."""
        self.held_down = False
        """It stays cut until somebody lets it up."""
        self.commands = Client(partial(self._request, Lane.COMMANDS), may_block=False)
        self.replicated = self.commands
        self.runs = Client(partial(self._request, Lane.RUNS), may_block=True)
        self.events = Client(partial(self._request, Lane.EVENTS), may_block=True)
        self._connection: Connection | None = None
        self._changed = trio.Event()
        self._joined_s = -math.inf
        self._slow_replies = SlowReplies()
        self._last_error: str | None = None
        self._connects = self._sent = 0
        self.disturbed_s = -math.inf
        """The last instant at which it was cut or let up."""
        self._history: History | None = None
        self.connect()

    def greet_with(self, history: History) -> None:
        """Ask which history Redis goes on with, before the first command of each connection."""
        self._history = history
        self._greet()

    def _greet(self) -> None:
        connection = self._connection
        if self._history is not None and connection is not None:
            server, commands = self.world.server.run_id, connection.lanes[Lane.COMMANDS]
            question = self._history.question(server)
            reply = commands.execute(question)
            self.world.executed(self, question, reply, None)
            self._history.heard(server, reply)

    # -- what the simulation does to it -------------------------------------------------------------------------------

    def connect(self) -> None:
        """Be up, if Redis is and nobody holds it down."""
        if self._connection is not None or self.held_down or self.world.server.started_s is None:
            return
        self._connection = connection = Connection(self)
        self._connects += 1
        self._joined_s = self.disturbed_s = trio.current_time()
        self._greet()
        for lane in Lane:
            self.world.start_soon(connection.carry, lane)
        self._change()

    def cut(self, *, half_open_s: float, why: str = "the connection is cut") -> None:
        """Fail what waits. What is on its way is executed all the same, for so long; then it is lost."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        connection.open = False
        self._last_error = why
        self.disturbed_s = trio.current_time()
        if half_open_s > 0 and self.world.redis_stalled.is_set():
            self.world.left_in_buffers.append(connection)  # read when Redis wakes, before it sees that they are closed
        else:
            connection.end_in(half_open_s)
        for call in list(connection.waiting):
            call.end(None, RedisUnavailable(why))
        self._change()
        self.world.start_soon(self._reconnect, self.chance.uniform(0.01, 0.6))

    def answer(self, connection: Connection, call: Call, reply: Any, error: Exception | None) -> None:
        """A reply leaves the server."""
        if not connection.open:
            return
        if self.loss and self.chance.random() < self.loss:
            self.cut(half_open_s=self.chance.choice((0.0, 0.5)), why="the reply is lost")
        elif self.slow_s:
            self.world.start_soon(self._deliver, connection, call, reply, error)
        else:
            call.end(reply, error)

    async def _deliver(self, connection: Connection, call: Call, reply: Any, error: Exception | None) -> None:
        await trio.sleep(self.chance.uniform(0, self.slow_s))
        if connection.open:
            call.end(reply, error)

    async def _reconnect(self, after_s: float) -> None:
        await trio.sleep(after_s)
        self.connect()

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # -- what the process sees ----------------------------------------------------------------------------------------

    async def _request(self, lane: Lane, args: tuple[Any, ...], block_s: float) -> Any:
        connection = self._connection
        if connection is None:
            raise RedisUnavailable(self._last_error or "not connected")
        self._sent += 1
        late = self.loss > 0 and self.chance.random() < self.loss / 2
        delay_s = self.chance.uniform(0.05, LATE_S) if late else self.chance.uniform(0, self.slow_s)
        call = connection.send(lane, args, block_s, delay_s)
        if late:
            self.cut(half_open_s=LATE_S, why="the connection ended with a command on its way")
        try:
            with trio.move_on_at(call.at_s + DEADLINE_S + block_s):
                await call.over.wait()
        finally:
            connection.waiting.pop(call, None)
        if not call.over.is_set():
            if connection.open:
                self.cut(half_open_s=1.0, why="no answer in time")
            raise RedisUnavailable("no answer in time")
        now_s = trio.current_time()
        self._slow_replies.record(now_s, max(0.0, now_s - call.at_s - block_s))
        if call.error is not None:
            raise call.error
        return call.reply

    def is_up(self) -> bool:
        return self._connection is not None

    async def wait_up(self) -> None:
        while self._connection is None:
            await self._changed.wait()

    async def unblock(self, lane: Lane) -> None:
        connection = self._connection
        if connection is None:
            raise RedisUnavailable("not connected")
        read = next((call for call, its in connection.waiting.items() if its is lane and call.block_s), None)
        while read is not None and not read.over.is_set():
            if await self._request(Lane.COMMANDS, (_UNBLOCK, lane), 0.0):
                return
            await trio.sleep(0.01)

    def statistics(self) -> LinkStatistics:
        return LinkStatistics(
            commands_sent=self._sent,
            bytes_sent=0,
            bytes_received=0,
            connects=self._connects,
            drops=self._connects - (self._connection is not None),
            up_since_s=self._joined_s if self._connection is not None else None,
            waiting=len(self._connection.waiting) if self._connection is not None else 0,
            last_error=self._last_error,
        )

    def steady_since_s(self, *, slower_than_s: float) -> float:
        now_s, connection = trio.current_time(), self._connection
        if connection is None or any(now_s - c.at_s - c.block_s > slower_than_s for c in connection.waiting):
            return now_s
        return max(self._joined_s, self._slow_replies.last_s(slower_than_s=slower_than_s))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

"""The transport over sockets: three connections to one Redis, or four, kept up by trio tasks."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, final

import trio

from engine.store.client import Client
from engine.store.connection import Connection
from engine.store.patience import LinkSettings
from engine.store.replicas import Replicas, see_wait_allowed
from engine.store.slow_replies import SlowReplies
from engine.store.topology import Topology
from engine.store.transport import Lane, LinkStatistics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.address import Address
    from engine.store.dial import Exchange
    from engine.store.replicas import ReplicaWait

__all__ = ["Link", "LinkSettings"]

_UNBLOCK_AGAIN_S = 0.005
_ASK_AGAIN_S = 1.0
"""Between two questions to a Sentinel while the link is up."""


@final
class Link:
    """A `Transport` over sockets. See `Connection` for how a command travels.

    The commands connection is dialled first and the others once it is up, so that a Redis that is down costs one try
    and one line in the log at a time.

    Args:
        address: where Redis is.
        name: what CLIENT LIST shows, followed by the lane. No spaces.
        settings: deadlines and limits.
        chance: a number in [0, 1) at each call; spreads the reconnects of many processes.
        greet: awaited on each new connection for commands before its first; `DialFailed` refuses the connection, and
            no command is sent over any.
        key: in a Cluster, a key that is where all commands go: the keys of an application have one hash tag.
        wait: replicas that must acknowledge what goes over `replicated`, which then has a connection of its own.

    Raises:
        ConfigError: a certificate file of ``address`` cannot be read.
    """

    def __init__(
        self,
        address: Address,
        *,
        name: str = "troupe",
        settings: LinkSettings | None = None,
        chance: Callable[[], float] = random.random,
        greet: Callable[[Exchange], Awaitable[None]] | None = None,
        key: str = "",
        wait: ReplicaWait | None = None,
    ) -> None:
        self.address = address
        self._slow_replies = SlowReplies()
        self._changed = trio.Event()
        context = address.ssl_context()
        settings = settings or LinkSettings()
        asked_s = settings.connect_timeout_s / (len(address.nodes) + 1)
        topology = self._topology = Topology(address, context, key=key, timeout_s=asked_s)

        def connect(what: str, greet: Callable[[Exchange], Awaitable[None]] | None) -> Connection:
            return Connection(
                address,
                context,
                topology,
                name=f"{name}:{what}",
                settings=settings,
                slow_replies=self._slow_replies,
                after=trio.lowlevel.checkpoint if what == Lane.COMMANDS.value else self._commands_up,
                on_change=self._note_change,
                chance=chance,
                greet=greet,
            )

        self._lanes = {lane: connect(lane.value, greet if lane is Lane.COMMANDS else None) for lane in Lane}
        self._connections = [*self._lanes.values()]
        self.commands = self.replicated = Client(self._lanes[Lane.COMMANDS].request, may_block=False)
        self._replicas: Replicas | None = None
        if wait is not None:
            connection = connect("replicated", partial(see_wait_allowed, address=address))
            self._connections.append(connection)
            self._replicas = Replicas(connection, wait, address)
            self.replicated = Client(self._replicas.request, may_block=False)
        self.runs = Client(self._lanes[Lane.RUNS].request, may_block=True)
        self.events = Client(self._lanes[Lane.EVENTS].request, may_block=True)

    def is_up(self) -> bool:
        """Whether all connections are up."""
        return all(connection.up_since_s is not None for connection in self._connections)

    async def wait_up(self) -> None:
        """Return once all connections are up. Waits for ever while `run` does not run."""
        while not self.is_up():
            await self._changed.wait()

    async def unblock(self, lane: Lane) -> None:
        """End the blocking read that is in progress on ``lane``: it returns what came, or nothing.

        Repeated until that read ends, since the read can still be on its way when the first CLIENT UNBLOCK arrives.

        Raises:
            RedisUnavailable: no answer; the read ends by its own BLOCK time at the latest.
        """
        connection = self._lanes[lane]
        call = connection.blocking_call()
        while call is not None and connection.blocking_call() is call and connection.client_id is not None:
            if await self.commands.execute_command("CLIENT UNBLOCK", connection.client_id):
                return
            await trio.sleep(_UNBLOCK_AGAIN_S)

    def statistics(self) -> LinkStatistics:
        """Counters and state, as of now."""
        lanes, replicas = self._connections, self._replicas
        ups = [lane.up_since_s for lane in lanes if lane.up_since_s is not None]
        return LinkStatistics(
            commands_sent=sum(lane.commands_sent for lane in lanes),
            bytes_sent=sum(lane.bytes_sent for lane in lanes),
            bytes_received=sum(lane.bytes_received for lane in lanes),
            connects=sum(lane.connects for lane in lanes),
            drops=sum(lane.drops for lane in lanes),
            up_since_s=max(ups) if len(ups) == len(lanes) else None,
            waiting=sum(lane.waiting() for lane in lanes),
            last_error=next((lane.last_error for lane in lanes if lane.last_error), None),
            trouble=self._trouble(),
            unacknowledged_since_s=None if replicas is None else replicas.missing_since_s,
        )

    def _trouble(self) -> str | None:
        down = [connection for connection in self._connections if connection.up_since_s is None]
        if down:
            why = next((connection.last_error for connection in down if connection.last_error), None)
            return f"no connection to Redis: {why}" if why else "no connection to Redis"
        refusal = next((why for connection in self._connections if (why := connection.refusal())), None)
        if refusal is not None:
            return f"Redis refuses commands: {refusal}"
        return None if self._replicas is None else self._replicas.trouble

    def steady_since_s(self, *, slower_than_s: float) -> float:
        """The instant, on trio's clock, since when nothing was down, refused or slower; now if something is."""
        up_since_s = self.statistics().up_since_s
        if up_since_s is None or any(lane.overdue_s() > slower_than_s for lane in self._connections):
            return trio.current_time()
        refused_at_s = max(lane.refused_at_s for lane in self._lanes.values())
        return max(up_since_s, refused_at_s, self._slow_replies.last_s(slower_than_s=slower_than_s))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the lanes up until cancelled. Started at once, not when up: see `wait_up`."""
        async with trio.open_nursery() as nursery:
            for connection in self._connections:
                nursery.start_soon(connection.run)
            if self.address.is_sentinel:
                nursery.start_soon(self._follow)
            await trio.lowlevel.checkpoint()
            task_status.started()

    async def _follow(self) -> None:
        """Leave a server that Sentinels no longer name, also one that has not noticed."""
        commands = self._lanes[Lane.COMMANDS]
        while True:
            await trio.sleep(_ASK_AGAIN_S)
            server = commands.server
            if commands.up_since_s is not None and server is not None and not await self._topology.is_still_at(server):
                for lane in self._connections:
                    if lane.server == server:
                        lane.drop("Sentinel names another primary")

    async def _commands_up(self) -> None:
        while self._lanes[Lane.COMMANDS].up_since_s is None:
            await self._changed.wait()

    def _note_change(self) -> None:
        commands = self._lanes[Lane.COMMANDS]
        for lane in self._connections:
            if commands.up_since_s is not None and lane.up_since_s is not None and lane.server != commands.server:
                lane.drop("Redis is elsewhere now")
        self._changed.set()
        self._changed = trio.Event()

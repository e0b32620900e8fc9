"""What the store needs from whatever carries its commands, and the facts that carrier tells about itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, unique
from typing import TYPE_CHECKING, Protocol, final

import trio

if TYPE_CHECKING:
    from engine.store.client import Client


@unique
class Lane(Enum):
    """One of the three connections that a process always holds."""

    COMMANDS = "commands"
    """Everything that Redis answers at once, from all actors, pipelined."""

    RUNS = "runs"
    """Blocking XREADGROUP, one reader."""

    EVENTS = "events"
    """Blocking XREAD, one reader."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LinkStatistics:
    """A snapshot of a transport. Counters only grow, over all lanes and all reconnects."""

    commands_sent: int
    """Requests handed to Redis, handshakes included: what MONITOR would have shown."""

    bytes_sent: int
    bytes_received: int

    connects: int
    """Connections that came up. Three are normal, or four with ``wait_replicas``; each one more is a reconnect."""

    drops: int
    """Connections that were up and ended without being asked to."""

    up_since_s: float | None
    """Instant on trio's clock since when all connections are up; None while one is down."""

    waiting: int
    """Requests without a reply, queued ones included."""

    last_error: str | None
    """Why the last try or connection failed, for people. Kept after the link is up again."""

    trouble: str | None = None
    """What is wrong now, for people: it is down, refuses commands, or replicas acknowledge nothing. None: nothing."""

    unacknowledged_since_s: float | None = None
    """Instant since when replicas do not acknowledge what is written; None while they do, or are not asked."""


class Transport(Protocol):
    """Executes Redis commands, and says how far its silence can be trusted.

    A command that gets no answer raises `RedisUnavailable`: it may or may not have been done.
    One that is cancelled may be done all the same, and its reply is dropped.
    """

    @property
    def commands(self) -> Client:
        """Lane.COMMANDS. Refuses what blocks."""

    @property
    def replicated(self) -> Client:
        """For what must outlive the loss of a server: Lane.COMMANDS, unless replicas are waited for.

        Then it is a connection of its own, and a command that too few of them have acknowledged raises
        `RedisUnavailable`, though it was done.
        """

    @property
    def runs(self) -> Client:
        """Lane.RUNS. Never cancel its XREADGROUP: see `unblock`."""

    @property
    def events(self) -> Client:
        """Lane.EVENTS."""

    def is_up(self) -> bool:
        """Whether all lanes are up."""

    async def wait_up(self) -> None:
        """Return once all lanes are up."""

    async def unblock(self, lane: Lane) -> None:
        """End the blocking read in progress on ``lane``: it returns what came, or nothing. No read: no effect.

        Raises:
            RedisUnavailable: no answer; the read ends by its own BLOCK time at the latest.
        """

    def statistics(self) -> LinkStatistics:
        """Counters and state, as of now."""

    def steady_since_s(self, *, slower_than_s: float) -> float:
        """The instant, on trio's clock, since when nothing disturbed the link: now, if something does.

        A disturbance is a lane that is down, a reply that said "not now", or one (the one awaited included) that took
        longer than ``slower_than_s`` beyond the time it was told to block.
        """

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the lanes up until cancelled. Started at once, not when up: see `wait_up`.

        At its end every waiting command fails with `RedisUnavailable`. May be run again afterwards.
        """

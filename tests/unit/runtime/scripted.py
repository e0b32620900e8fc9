"""An actor that does as it is told and keeps a journal, and the tree around it."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count

import trio

from engine.runtime import (
    Actor,
    Backoff,
    Child,
    Environment,
    Mailbox,
    Node,
    Reply,
    Restart,
    Strategy,
    Supervision,
    Supervisor,
    SupervisorEvent,
    supervise,
    virtual_clock,
)

NO_DELAY = Backoff(first_s=0.0, max_s=0.0)


class Boom(Exception):
    """The crash of these tests."""


@dataclass(frozen=True)
class Say:
    """Write to the journal, after a while."""

    text: str
    after_s: float = 0.0


@dataclass(frozen=True)
class Crash:
    """Raise in the middle of the message."""

    error: BaseException


@dataclass(frozen=True)
class CrashOwnTask:
    """Raise in a task of the actor's nursery."""

    error: Exception


@dataclass(frozen=True)
class Finish:
    """End normally."""


@dataclass(frozen=True)
class Ask:
    """Answer with the actor's path."""

    reply: Reply[str]


Order = Say | Crash | CrashOwnTask | Finish | Ask
Hook = Callable[[], Awaitable[None]]


async def nothing() -> None:
    """A hook that does nothing."""


class Journal:
    """What happened, and when."""

    def __init__(self) -> None:
        self.entries: list[tuple[float, str]] = []

    def write(self, text: str) -> None:
        self.entries.append((trio.current_time(), text))

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.entries]

    def since(self, mark: int) -> list[str]:
        return self.texts[mark:]

    def times(self, text: str) -> list[float]:
        return [at_s for at_s, entry in self.entries if entry == text]

    def __len__(self) -> int:
        return len(self.entries)


class Scripted(Actor[Order]):
    """Writes ``+name`` when started, ``-name`` when stopping and ``xname`` when its task is gone."""

    def __init__(self, name: str, journal: Journal, starting: Hook, stopping: Hook) -> None:
        self.name, self.journal = name, journal
        self.starting_hook, self.stopping_hook = starting, stopping

    async def started(self) -> None:
        self.context.nursery.start_soon(self.note_the_end)
        await self.starting_hook()
        self.journal.write(f"+{self.name}")

    async def receive(self, message: Order) -> None:
        match message:
            case Say(text, after_s):
                await trio.sleep(after_s)
                self.journal.write(text)
            case Crash(error):
                raise error
            case CrashOwnTask(error):
                self.context.nursery.start_soon(self.crash, error)
                await trio.sleep_forever()
            case Finish():
                self.context.finish()
            case Ask(reply):
                reply.send(self.context.path)

    async def stopping(self) -> None:
        await self.stopping_hook()
        self.journal.write(f"-{self.name}")

    async def note_the_end(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.journal.write(f"x{self.name}")

    async def crash(self, error: Exception) -> None:
        raise error


class Stage:
    """Children that share a journal, each with a mailbox to be told by."""

    def __init__(self) -> None:
        self.journal = Journal()
        self.mail: dict[str, Mailbox[Order]] = {}
        self.events: list[SupervisorEvent] = []
        numbers = count(1)
        self.environment = Environment(
            clock=virtual_clock(1_700_000_000.0),
            random=random.Random(7),
            new_id=lambda: f"id-{next(numbers)}",
        )

    def child(
        self,
        name: str,
        *,
        starting: Hook = nothing,
        stopping: Hook = nothing,
        restart: Restart = Restart.PERMANENT,
        shutdown_s: float = 5.0,
        backoff: Backoff | None = None,
    ) -> Child:
        self.mail[name] = Mailbox(name)
        return Child(
            name=name,
            start=partial(Scripted, name, self.journal, starting, stopping),
            mailbox=self.mail[name],
            restart=restart,
            shutdown_s=shutdown_s,
            backoff=backoff,
        )

    async def run(self, nursery: trio.Nursery, spec: Supervisor) -> Supervision:
        """Start the tree; everything that happened until now is in the journal."""
        start = partial(supervise, on_event=self.events.append)
        tree: Supervision = await nursery.start(start, spec, self.environment)
        return tree

    def happened(self, kind: type[SupervisorEvent]) -> list[SupervisorEvent]:
        return [event for event in self.events if isinstance(event, kind)]


def group(
    *children: Child | Supervisor,
    strategy: Strategy = Strategy.ONE_FOR_ONE,
    name: str = "root",
    max_restarts: int = 5,
    within_s: float = 30.0,
    backoff: Backoff = NO_DELAY,
) -> Supervisor:
    return Supervisor(
        name=name,
        strategy=strategy,
        children=children,
        max_restarts=max_restarts,
        within_s=within_s,
        backoff=backoff,
    )


def states(node: Node) -> dict[str, str]:
    return {each.name: each.state.value for each in node.walk()}


def failing_first(times: int, error: Exception) -> Hook:
    """A hook that raises the first ``times`` times."""
    left: Iterator[int] = iter(range(times))

    async def hook() -> None:
        if next(left, None) is not None:
            raise error

    return hook

"""The place of one child in the tree: what outlives the restarts of the actor or supervisor in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias, final

import trio

from engine.errors import SupervisorSpecError
from engine.runtime.failure import RecordedFailure
from engine.runtime.mailbox import Mailbox
from engine.runtime.spec import Backoff, Child, Restart, Supervisor
from engine.runtime.strategy import LEAVING, UP, Phase
from engine.runtime.tree import Failure, Kind, Node, State


class Life(Protocol):
    """One run of what fills the slot: of an actor or of a supervisor."""

    @property
    def activity(self) -> str:
        """What it does now, for the tree."""

    def request_stop(self) -> None:
        """Ask it to end in order."""

    async def run(self, on_started: Callable[[], None]) -> None:
        """Live until the end or the crash."""


class _Place:
    """What the two kinds of slot share. The supervisor above it writes; everyone may read."""

    def __init__(self, name: str, restart: Restart, parent: SupervisorSlot | None) -> None:
        self.name = name
        self.restart = restart
        self.parent = parent
        self.path: str = name if parent is None else f"{parent.path}.{name}"

        self.phase = Phase.WAITING
        self.life: Life | None = None
        self.scope = trio.CancelScope()
        self.fresh = True
        """Never up since its supervisor started."""
        self.start_again = False
        """Once down, when it is on its way down."""
        self.not_before_s = -math.inf
        """The end of its backoff."""
        self.cancel_at_s = math.inf
        """While it stops: when patience ends."""
        self.cancelled_at_s: float | None = None
        """While it stops: when it was cancelled."""

        self.starts = 0
        self.up_since_s: float | None = None
        self.failures_in_a_row = 0
        self.failed = False
        """The last end was a failure, and it is not started again."""
        self.last_failure: RecordedFailure | None = None

    @property
    def restarts(self) -> int:
        """How many times it was started after the first."""
        return max(0, self.starts - 1)

    def state(self, now_s: float) -> State:
        """The phase, as people see it."""
        if self.phase in LEAVING:
            return State.STOPPING
        if self.phase in UP:
            return State.RUNNING if self.phase is Phase.RUNNING else State.STARTING
        if self.phase is Phase.DONE:
            return State.FAILED if self.failed else State.STOPPED
        return State.BACKING_OFF if now_s < self.not_before_s else State.STARTING

    def uptime_s(self, now_s: float) -> float:
        """Seconds since its start was complete; 0.0 unless it is up."""
        return 0.0 if self.up_since_s is None else now_s - self.up_since_s

    def failure(self, now_s: float) -> Failure | None:
        """The last failure with its age."""
        last = self.last_failure
        return None if last is None else Failure(last.error, last.traceback, now_s - last.at_s)

    def doing(self) -> str:
        """What fills it says that it does."""
        return "" if self.life is None else self.life.activity


@final
class ActorSlot(_Place):
    """The place of an actor, and the owner of its mailbox."""

    def __init__(self, spec: Child, parent: SupervisorSlot | None) -> None:
        super().__init__(spec.name, spec.restart, parent)
        self.spec = spec
        self.mailbox: Mailbox[Any] = Mailbox(self.path) if spec.mailbox is None else spec.mailbox
        if self.mailbox.closed:
            reason = "its mailbox was closed with a former tree; make a new one"
            raise SupervisorSpecError(f"child {self.path!r}", reason)

    @property
    def shutdown_s(self) -> float:
        """Its deadline when asked to stop."""
        return self.spec.shutdown_s

    @property
    def backoff(self) -> Backoff | None:
        """Its own, if it has one."""
        return self.spec.backoff

    def walk(self) -> Iterator[Slot]:
        """Yield this slot."""
        yield self

    def snapshot(self, now_s: float) -> Node:
        """The actor, as data."""
        return Node(
            name=self.name,
            path=self.path,
            kind=Kind.ACTOR,
            strategy=None,
            state=self.state(now_s),
            uptime_s=self.uptime_s(now_s),
            restarts=self.restarts,
            last_failure=self.failure(now_s),
            mailbox=self.mailbox.statistics(),
            doing=self.doing(),
        )


@final
class SupervisorSlot(_Place):
    """The place of a supervisor, with the places below it, which outlive its own restarts too."""

    shutdown_s = math.inf
    """No deadline of its own: it ends when the last of its children's has passed."""
    backoff: Backoff | None = None
    """Its spec's backoff is for its children; it is restarted with that of the supervisor above."""

    def __init__(self, spec: Supervisor, parent: SupervisorSlot | None = None) -> None:
        super().__init__(spec.name, spec.restart, parent)
        self.spec = spec
        self.children: tuple[Slot, ...] = tuple(
            SupervisorSlot(child, self) if isinstance(child, Supervisor) else ActorSlot(child, self)
            for child in spec.children
        )

    def walk(self) -> Iterator[Slot]:
        """Yield this slot and all below it, in start order."""
        yield self
        for child in self.children:
            yield from child.walk()

    def snapshot(self, now_s: float) -> Node:
        """Everything from here down, as data."""
        return Node(
            name=self.name,
            path=self.path,
            kind=Kind.SUPERVISOR,
            strategy=self.spec.strategy,
            state=self.state(now_s),
            uptime_s=self.uptime_s(now_s),
            restarts=self.restarts,
            last_failure=self.failure(now_s),
            mailbox=None,
            doing=self.doing(),
            children=tuple(child.snapshot(now_s) for child in self.children),
        )


Slot: TypeAlias = ActorSlot | SupervisorSlot

"""A run from its publication to its verdict, and what the running task can know of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import Context, ContextVar
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final, final

from engine.errors import NoCurrentRun


@final
class RunState(Enum):
    """Where a run is. Queued, parked, running and waiting are so named in its record; a final state is a verdict."""

    SCHEDULED = "scheduled"
    """Its slot is known and not yet due: no record exists."""
    QUEUED = "queued"
    """Published: an entry of a stream waits for a worker."""
    PARKED = "parked"
    """Published and held back for a worker that knows its function."""
    RUNNING = "running"
    """A worker claimed it and renews its lease."""
    WAITING = "waiting"
    """It failed and will be tried again after a delay."""
    SUCCEEDED = "succeeded"
    """The function returned. Final."""
    FAILED = "failed"
    """It had started, and raised, was overtaken, or its task was paused; nothing tries it again. Final."""
    TIMED_OUT = "timed_out"
    """It took longer than its timeout. Final, also while a thread of it goes on."""
    CANCELLED = "cancelled"
    """Somebody stopped it. Final."""
    DEAD = "dead"
    """Its retries or deliveries are spent; kept with its story. Final: retried by hand, it is a new run."""
    SKIPPED = "skipped"
    """It was due, and refused before it started. Final."""


_S = RunState
NEXT: Final[Mapping[RunState, frozenset[RunState]]] = MappingProxyType(
    {
        _S.SCHEDULED: frozenset({_S.QUEUED, _S.SKIPPED}),
        _S.QUEUED: frozenset({_S.RUNNING, _S.PARKED, _S.SKIPPED, _S.FAILED, _S.CANCELLED}),
        _S.PARKED: frozenset({_S.QUEUED, _S.SKIPPED, _S.FAILED, _S.CANCELLED}),
        _S.RUNNING: frozenset(
            {_S.SUCCEEDED, _S.FAILED, _S.WAITING, _S.DEAD, _S.TIMED_OUT, _S.CANCELLED, _S.QUEUED},
        ),
        _S.WAITING: frozenset({_S.QUEUED, _S.FAILED, _S.CANCELLED}),
        _S.SUCCEEDED: frozenset(),
        _S.FAILED: frozenset(),
        _S.TIMED_OUT: frozenset(),
        _S.CANCELLED: frozenset(),
        _S.DEAD: frozenset(),
        _S.SKIPPED: frozenset(),
    }
)
"""Every transition that a script performs. RUNNING to QUEUED: its worker stops and hands it back, or is lost."""


@final
class Verdict(Enum):
    """What became of a slot or a trigger: exactly one for each."""

    RAN = "ran"
    FAILED = "failed"
    DEAD = "dead"
    SKIPPED = "skipped"
    MISSED = "missed"


@final
class Reason(Enum):
    """Why a verdict is what it is. ``REASONS`` says which belong together."""

    RAISED = "raised"
    """The function raised and retries are forbidden."""
    TIMED_OUT = "timed out"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    """A newer slot or a trigger took the place of its retry."""
    PAUSED = "paused"
    NEXT_SLOT = "next slot came first"
    """The next try would come at or after the task's next slot."""
    RETRIES_SPENT = "max_retries"
    DELIVERIES_SPENT = "max_deliveries"
    """Its workers were lost too often: it may be what kills them."""
    OVERLAP = "overlap"
    QUEUE_FULL = "queue full"
    NO_WORKER = "no worker"
    """No worker knows its function, and as many runs as may wait for one already do; or its task is gone."""
    CATCH_UP = "catch-up"
    """It came due while nobody led, and a later slot was published in its place."""
    FORGOTTEN = "forgotten"
    """Redis lost what became of it, and a later slot of its task is known to have started."""


REASONS: Final[Mapping[Verdict, frozenset[Reason]]] = MappingProxyType(
    {
        Verdict.RAN: frozenset(),
        Verdict.FAILED: frozenset(
            {
                Reason.RAISED,
                Reason.TIMED_OUT,
                Reason.CANCELLED,
                Reason.SUPERSEDED,
                Reason.PAUSED,
                Reason.NEXT_SLOT,
                Reason.NO_WORKER,
            }
        ),
        Verdict.DEAD: frozenset({Reason.RETRIES_SPENT, Reason.DELIVERIES_SPENT}),
        Verdict.SKIPPED: frozenset({Reason.PAUSED, Reason.OVERLAP, Reason.QUEUE_FULL, Reason.NO_WORKER}),
        Verdict.MISSED: frozenset({Reason.CATCH_UP, Reason.FORGOTTEN}),
    }
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What a running task can know of its run, through ``RunContext.current()``."""

    run_id: str
    task_id: str
    group: str
    name: str
    slot_ms: int | None
    """The instant it was due, in milliseconds since the epoch, UTC; None for a triggered run."""
    attempt: int
    """1 at the first start, one more after each failure. A start after a lost worker keeps the number."""
    fence: int
    """Grows with each start of the run. Write it with what the task writes, and refuse smaller ones there."""
    worker_id: str

    @staticmethod
    def current() -> RunContext:
        """The run that the calling code belongs to, in tasks and threads that inherited its context.

        Raises:
            NoCurrentRun: the code was not called by the engine.
        """
        try:
            return _current.get()
        except LookupError:
            raise NoCurrentRun from None

    def entered(self) -> Entered:
        """Make this run the current one for the ``with`` block."""
        return Entered(self)


@final
class Entered:
    """A block with a current run. A class, since a generator costs several times as much on each run."""

    __slots__ = ("_run", "_token")

    def __init__(self, run: RunContext) -> None:
        self._run = run

    def __enter__(self) -> None:
        self._token = _current.set(self._run)

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)


_current: ContextVar[RunContext] = ContextVar("troupe_run")


def belongs_to_run(context: Context) -> bool:
    """Whether a task or a thread with this context works for a run."""
    return _current in context

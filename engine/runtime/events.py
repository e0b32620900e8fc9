"""What supervisors report: one frozen record for each fact, and the log line of each."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TypeAlias, final

from engine.runtime.failure import describe

_log = logging.getLogger("fastapi.task-manager.supervisor")


@final
@dataclass(frozen=True, slots=True)
class ChildStarted:
    """A child's ``started`` has returned."""

    child: str
    restarts: int
    """How many times it was started before; 0 for the first."""


@final
@dataclass(frozen=True, slots=True)
class ChildFailed:
    """A child crashed."""

    child: str
    error: Exception
    restart_in_s: float | None
    """The backoff; None when it is not restarted."""
    restarts_left: int
    """What the supervisor's intensity still grants."""


@final
@dataclass(frozen=True, slots=True)
class ChildEnded:
    """A child ended by itself, normally."""

    child: str
    restart_in_s: float | None
    restarts_left: int


@final
@dataclass(frozen=True, slots=True)
class ChildStopped:
    """A child ended as it was asked to, or cancelled after its deadline."""

    child: str


@final
@dataclass(frozen=True, slots=True)
class ChildFailedStopping:
    """A child that was on its way down crashed. The stop goes on, and nothing is counted."""

    child: str
    error: Exception


@final
@dataclass(frozen=True, slots=True)
class ChildStopOverdue:
    """A child did not stop in time and is cancelled now."""

    child: str
    shutdown_s: float


@final
@dataclass(frozen=True, slots=True)
class ChildIgnoresCancellation:
    """A cancelled child still runs: it shields itself. No task can be abandoned, so the stop waits for it."""

    child: str
    cancelled_for_s: float


@final
@dataclass(frozen=True, slots=True)
class SupervisorGaveUp:
    """One restart too many: the supervisor stops its children and fails upward."""

    supervisor: str
    child: str
    restarts: int
    within_s: float


SupervisorEvent: TypeAlias = (
    ChildStarted
    | ChildFailed
    | ChildEnded
    | ChildStopped
    | ChildFailedStopping
    | ChildStopOverdue
    | ChildIgnoresCancellation
    | SupervisorGaveUp
)


def log_event(event: SupervisorEvent) -> None:  # noqa: C901  # one flat case for each event
    """Write the event to the logger ``fastapi.task-manager.supervisor``."""
    match event:
        case ChildStarted(child, restarts=0):
            _log.debug("%s started", child)
        case ChildStarted(child, restarts):
            _log.info("%s restarted (restart %d)", child, restarts)
        case ChildFailed(child, error, None, left):
            _log.error(
                "%s failed: %s; not restarted; restarts left: %d",
                child,
                describe(error),
                left,
                exc_info=error,
            )
        case ChildFailed(child, error, delay_s, left):
            text = "%s failed: %s; restart in %.2f s; restarts left: %d"
            _log.warning(text, child, describe(error), delay_s, left, exc_info=error)
        case ChildEnded(child, None, _):
            _log.info("%s ended; not restarted", child)
        case ChildEnded(child, delay_s, left):
            _log.warning("%s ended; restart in %.2f s; restarts left: %d", child, delay_s, left)
        case ChildStopped(child):
            _log.debug("%s stopped", child)
        case ChildFailedStopping(child, error):
            _log.warning("%s failed while stopping: %s", child, describe(error), exc_info=error)
        case ChildStopOverdue(child, shutdown_s):
            _log.warning("%s did not stop within %g s and is cancelled", child, shutdown_s)
        case ChildIgnoresCancellation(child, cancelled_for_s):
            text = "%s was cancelled %g s ago and still runs; the stop waits for it"
            _log.error(text, child, cancelled_for_s)
        case SupervisorGaveUp(supervisor, child, restarts, within_s):
            text = "%s gives up: %s needed more than %d restarts in %g s"
            _log.error(text, supervisor, child, restarts, within_s)

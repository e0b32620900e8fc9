"""What supervisors write to the log, for the person who reads it at night."""

from __future__ import annotations

import logging

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from engine.runtime import (
    Backoff,
    ChildEnded,
    ChildFailed,
    ChildFailedStopping,
    ChildIgnoresCancellation,
    ChildStarted,
    ChildStopOverdue,
    ChildStopped,
    SupervisorEvent,
    SupervisorGaveUp,
)
from engine.runtime.events import log_event
from tests.unit.runtime.scripted import Boom, Crash, Stage, group

LOGGER = "fastapi.task-manager.supervisor"


@pytest.mark.parametrize(
    ("event", "level", "text"),
    [
        (ChildStarted("e.a", 0), logging.DEBUG, "e.a started"),
        (ChildStarted("e.a", 2), logging.INFO, "e.a restarted (restart 2)"),
        (
            ChildFailed("e.a", Boom("why"), 1.5, 4),
            logging.WARNING,
            "e.a failed: Boom: why; restart in 1.50 s; restarts left: 4",
        ),
        (
            ChildFailed("e.a", Boom("why"), None, 0),
            logging.ERROR,
            "e.a failed: Boom: why; not restarted; restarts left: 0",
        ),
        (ChildEnded("e.a", 0.5, 4), logging.WARNING, "e.a ended; restart in 0.50 s; restarts left: 4"),
        (ChildEnded("e.a", None, 5), logging.INFO, "e.a ended; not restarted"),
        (ChildStopped("e.a"), logging.DEBUG, "e.a stopped"),
        (ChildFailedStopping("e.a", Boom("why")), logging.WARNING, "e.a failed while stopping: Boom: why"),
        (ChildStopOverdue("e.a", 5.0), logging.WARNING, "e.a did not stop within 5 s and is cancelled"),
        (
            ChildIgnoresCancellation("e.a", 5.0),
            logging.ERROR,
            "e.a was cancelled 5 s ago and still runs; the stop waits for it",
        ),
        (
            SupervisorGaveUp("e", "e.a", 5, 30.0),
            logging.ERROR,
            "e gives up: e.a needed more than 5 restarts in 30 s",
        ),
    ],
)
def test_each_event_has_its_line(
    caplog: pytest.LogCaptureFixture, event: SupervisorEvent, level: int, text: str
) -> None:
    """Failures carry their traceback."""
    with caplog.at_level(logging.DEBUG, LOGGER):
        log_event(event)

    [record] = caplog.records
    assert (record.name, record.levelno, record.getMessage()) == (LOGGER, level, text)
    assert bool(record.exc_info) is isinstance(event, ChildFailed | ChildFailedStopping)


async def test_crash_is_logged_and_told_with_delay_and_restarts_left(
    stage: Stage, nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The hook hears the same facts as the log."""
    error = Boom("why")
    await stage.run(nursery, group(stage.child("a", backoff=Backoff(2.0, 2.0)), max_restarts=3))
    stage.mail["a"].tell(Crash(error))
    await wait_all_tasks_blocked()

    [event] = stage.happened(ChildFailed)
    assert isinstance(event, ChildFailed)
    assert (event.child, event.error, event.restarts_left) == ("root.a", error, 2)
    assert event.restart_in_s is not None
    assert f"root.a failed: Boom: why; restart in {event.restart_in_s:.2f} s; restarts left: 2" in caplog.messages

"""One run in progress: how its body ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actors.running import Returned, TimedOut, rejoin
from actors.threads import ThreadCall
from tests.unit.actors.test_ending import block, running

if TYPE_CHECKING:
    from trio.testing import MockClock


async def test_a_thread_that_returned_before_it_was_rejoined_has_returned(autojump_clock: MockClock) -> None:
    """Also if its time is over by then."""
    run = running(block, timeout=5)
    run.started_s = -10.0
    call = ThreadCall(run)
    assert await rejoin(call) == TimedOut(call)
    call.done.set()
    assert await rejoin(call) == Returned(None)

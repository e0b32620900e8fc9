"""What this worker's runs came to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actors.messages import CountsAsked, RunEnd, RunsEnded
from actors.stats import Stats
from engine.runtime import Child, Mailbox

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.actors.stage import Stage


async def test_it_counts_how_runs_ended(autojump_clock: MockClock, stage: Stage) -> None:
    """And shows it in the tree."""
    mailbox = Mailbox[Any]("stats")
    tree = await stage.actor(Child("stats", Stats, mailbox))
    mailbox.tell(RunsEnded((RunEnd("a", "ran", 0.1), RunEnd("b", "ran", 0.2))))
    mailbox.tell(RunsEnded((RunEnd("c", "failed", 0.1),)))
    assert await mailbox.ask(CountsAsked, timeout_s=1) == {"ran": 2, "failed": 1}
    assert tree.snapshot().children[0].doing == "1 failed, 2 ran"


async def test_a_restart_begins_at_nothing(autojump_clock: MockClock, stage: Stage) -> None:
    """The ledger in Redis is the truth; these are counts of one process."""
    mailbox, events = Mailbox[Any]("stats"), list[Any]()
    await stage.actor(Child("stats", Stats, mailbox), events=events)
    mailbox.tell(RunsEnded((RunEnd("a", "ran", 0.1),)))
    mailbox.tell(object())
    await stage.until(1)
    assert await mailbox.ask(CountsAsked, timeout_s=1) == {}
    events.clear()

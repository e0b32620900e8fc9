"""The statistics show what the roles wrote: workers how their attempts ended, the leader whom it found lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from engine.domain.run import RunContext
from engine.views import read_statistics
from tests.unit.actors.stage import config, group

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.actors.stage import Stage


async def test_a_run_that_was_lost_then_failed_then_worked_shows_all_three(
    autojump_clock: MockClock, stage: Stage
) -> None:
    """With their workers, as far as somebody lived to tell."""
    starts = 0

    async def body() -> None:
        nonlocal starts
        starts += 1
        await trio.sleep(5)
        if RunContext.current().attempt == 1:
            raise ValueError("the first time")

    tasks = group()
    tasks.add_task("1 * * * *", name="t")(body)
    await stage.worker(tasks, concurrent_tasks=0)
    dying = await stage.worker(tasks, can_lead=False)
    await stage.until(61)
    dying.kill()
    heir = await stage.worker(tasks, can_lead=False)
    await stage.until(120)
    assert starts == 3

    shown = await read_statistics(stage.store, "g/t", config())
    assert [(one.outcome, one.attempt, one.duration_s) for one in shown] == [
        ("ran", 2, 5.0),
        ("failed", 1, 5.0),
        ("lost", 1, None),
    ]
    assert [one.worker for one in shown] == [heir.identity.worker_id, heir.identity.worker_id, None]
    assert shown[1].error is not None
    assert shown[1].error.startswith("ValueError: the first time")
    assert [(one.started_at or "").startswith("2025-11-24T16:01:") for one in shown] == [True, True, False]

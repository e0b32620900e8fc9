"""Whole workers over one Redis: every slot has exactly one verdict, whoever leads, and whoever dies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.unit.actors.stage import at_ms, group, noting

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.actors.stage import Stage


async def test_every_slot_of_an_hour_has_one_verdict(autojump_clock: MockClock, stage: Stage) -> None:
    """Two workers, one task a minute: sixty slots, sixty runs."""
    tasks = group()
    started_s = noting(tasks, "* * * * *")
    await stage.worker(tasks)
    await stage.worker(tasks)
    await stage.until(3_601)
    assert started_s == [60.0 * minute for minute in range(1, 61)]
    assert await stage.verdicts("g/t") == [("ran", "")] * 60


@pytest.mark.parametrize("actor", ["coordinator", "leader", "reconciler", "consumer", "catalog", "heartbeat", "stats"])
async def test_a_crash_of_any_actor_loses_no_slot(autojump_clock: MockClock, stage: Stage, actor: str) -> None:
    """It is restarted, and the work goes on."""
    tasks = group()
    started_s = noting(tasks, "* * * * * *")
    worker = await stage.worker(tasks)
    await stage.until(10.5)
    worker.crash(actor)
    await stage.until(20.5)
    assert [crash.child.rpartition(".")[2] for crash in worker.crashes] == [actor]
    worker.crashes.clear()
    assert len(started_s) == 20
    assert len(await stage.ledger("g/t")) == 20
    assert at_ms(0)
    assert trio.current_time() == 20.5

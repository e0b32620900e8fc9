"""A Redis whose memory is full (noeviction): it refuses what grows, and the workers wait for it."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from engine import Config, Engine, TaskGroup
from engine.store.operations import Trigger
from tests.system.cluster import EVERY_SECOND, QUICK, YEARLY, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.system.cluster import Cluster, View

LEASE_S = 3 * QUICK["running_heartbeat_interval"]


class Work:
    """Tasks whose bodies say what happened to them."""

    def __init__(self) -> None:
        self.group = TaskGroup("work")
        self.ticks = 0
        self.long: Counter[str] = Counter()
        self.short: Counter[str] = Counter()
        self.may_end = trio.Event()

        @self.group.add_task(EVERY_SECOND, name="tick")
        async def tick() -> None:
            await trio.lowlevel.checkpoint()
            self.ticks += 1

        @self.group.add_task(YEARLY, name="long", run_on_first_start=True)
        async def long() -> None:
            self.long["started"] += 1
            try:
                await trio.sleep_forever()
            finally:
                self.long["ended"] += 1

        @self.group.add_task(YEARLY, name="short", run_on_first_start=True)
        async def short() -> None:
            self.short["started"] += 1
            await self.may_end.wait()


async def limit_memory(view: View, limit_bytes: int) -> None:
    await view.query("CONFIG SET", "maxmemory-policy", "noeviction")
    await view.query("CONFIG SET", "maxmemory", limit_bytes)


def restarts(engine: Engine) -> dict[str, int]:
    return {node.name: node.restarts for node in engine.tree().walk() if node.restarts}


@asynccontextmanager
async def serving(engine: Engine) -> AsyncIterator[None]:
    """The engine runs during the block, and is cancelled behind it."""
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.serve)
        yield
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_a_full_redis_is_waited_for_and_runs_in_progress_go_on(
    cluster: Cluster, view: View, caplog: pytest.LogCaptureFixture
) -> None:
    """No actor restarts: leases are renewed and ends are told meanwhile, and slots go on when there is memory again."""
    work = Work()
    engine = Engine(Config(redis_url=cluster.url, redis_key_prefix=cluster.prefix, **QUICK), [work.group])

    async def started() -> bool:
        return work.long["started"] == work.short["started"] == 1 and work.ticks > 0

    async with serving(engine):
        await eventually(started, "the runs are in progress")
        await limit_memory(view, 1)
        full_at_ms = await view.store.leases.redis_ms()

        async def overdue() -> bool:
            """Slots stay due, for longer than a lease: it was renewed, or it would have been lost."""
            due = await view.store.timetable.tasks()
            now_ms = await view.store.leases.redis_ms()
            return now_ms - due["work/tick"] > 2_000 and now_ms - full_at_ms > 3 * LEASE_S * 1000

        await eventually(overdue, "nothing is published")
        work.may_end.set()
        [end] = await view.settled("work/short")
        assert end.verdict == "ran"
        [presence] = await view.store.leases.workers()
        assert presence.seen_ms > full_at_ms + 2 * LEASE_S * 1000
        assert engine.leads
        before = work.ticks
        await limit_memory(view, 0)

        async def ticking() -> bool:
            return work.ticks > before + 2

        await eventually(ticking, "slots go on")
        assert restarts(engine) == {}
        assert work.long == {"started": 1}
    refusals = [record.getMessage() for record in caplog.records if "refuses commands (" in record.getMessage()]
    assert len(refusals) == 1
    assert "raise maxmemory" in refusals[0]


@pytest.mark.slow
async def test_what_is_queued_when_memory_runs_out_is_done_when_there_is_some_again(
    cluster: Cluster, view: View
) -> None:
    """A claim that is refused is asked again, and nothing is lost, counted or cancelled by it."""
    work = Work()
    engine = Engine(Config(redis_url=cluster.url, redis_key_prefix=cluster.prefix, **QUICK), [work.group])

    async def started() -> bool:
        return work.long["started"] == 1

    async with serving(engine):
        await eventually(started, "the long run is in progress")
        asked = [Trigger(f"work/tick@t-{number}", "low", "allow") for number in range(200)]
        await view.store.operations.trigger(asked, who="test", queue_cap=1_000)
        await limit_memory(view, 1)
        full_at_ms = await view.store.leases.redis_ms()

        async def a_while() -> bool:
            return await view.store.leases.redis_ms() - full_at_ms > 2_000

        await eventually(a_while, "time has passed")
        await limit_memory(view, 0)

        async def done() -> bool:
            ran = {entry.run_id for entry in await view.verdicts("work/tick") if entry.verdict == "ran"}
            return ran >= {one.run_id for one in asked}

        await eventually(done, "all are done")
        assert restarts(engine) == {}
        assert work.long == {"started": 1}


@pytest.mark.slow
async def test_a_worker_that_starts_on_a_full_redis_works_as_soon_as_there_is_memory(
    cluster: Cluster, view: View
) -> None:
    """It can neither declare nor lead until then, and waits."""
    work = Work()
    await limit_memory(view, 1)
    engine = Engine(Config(redis_url=cluster.url, redis_key_prefix=cluster.prefix, **QUICK), [work.group])
    async with serving(engine):
        begun_ms = await view.store.leases.redis_ms()

        async def a_while() -> bool:
            return await view.store.leases.redis_ms() - begun_ms > 3_000

        await eventually(a_while, "time has passed")
        assert work.ticks == 0
        await limit_memory(view, 0)

        async def ticking() -> bool:
            return work.ticks > 1

        await eventually(ticking, "slots are published")
        assert restarts(engine) == {}

"""Whatever others write into a real Redis: the worker goes on, and says what it found."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio

from engine import Config, Engine, TaskGroup
from engine.store.keys import Keys
from tests.system.cluster import EVERY_SECOND, QUICK, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.system.cluster import Cluster, View

KEYS: Final = Keys("cluster")

BESIDE_OURS: Final[tuple[tuple[Any, ...], ...]] = (
    ("ZADD", KEYS.due, "-inf", b"\xff\xfe", 5, "garbage", "inf", "t/work/gone", 7, "r/work/gone@1"),
    ("ZADD", KEYS.leases, "-inf", b"\xff#5", "inf", "work/gone@1#5", 5, "garbage"),
    ("ZADD", KEYS.workers_seen, "inf", "nobody"),
    ("XADD", KEYS.stream_low, "*", b"\xff", b"\xfe"),
    ("XADD", KEYS.stream_high, "*", "run", "no run"),
    ("XADD", KEYS.stream_high, "*", "run", "work/gone@5"),
    ("XADD", KEYS.wake, "*", "due", "nothing", "at", "nan"),
    ("XADD", KEYS.events, "*", "event", "declared", "what", b"\xff"),
    ("XADD", KEYS.dead, "*", "run", "x"),
    ("XADD", KEYS.ledger("work/tick"), "*", "verdict", "x"),
    ("HSET", KEYS.workers, "nobody", "D|" + "[" * 9_000, "somebody", ""),
    ("HSET", KEYS.dynamic, "work/gone", "1|{}", "x", "x"),
    ("HSET", KEYS.paused, "work/gone", "x"),
    ("HSET", KEYS.declarations, "digest", "x"),
    ("HSET", KEYS.declared("digest"), "0", "[" * 9_000, "x", "y"),
    ("HSET", KEYS.unused, "digest", "x"),
    ("HSET", KEYS.cleared, "work/tick", "x"),
    ("HSET", KEYS.live("work/tick"), "work/tick@5", "running"),
    ("SADD", KEYS.cancel, b"\xff"),
    ("INCR", KEYS.version),
)
"""Entries, members and fields of others, in every key that holds several."""

NEEDED: Final = (
    *(KEYS.due, KEYS.leases, KEYS.stream_low, KEYS.stream_high, KEYS.leader, KEYS.epoch, KEYS.passed, KEYS.version),
    *(KEYS.events, KEYS.wake, KEYS.dead, KEYS.paused, KEYS.cancel, KEYS.workers, KEYS.workers_seen, KEYS.declarations),
)
"""Keys without which something waits, or which can be done without."""


class Ticks:
    """A worker with one task, which counts how often it ran."""

    def __init__(self, cluster: Cluster) -> None:
        self.count = 0
        work = TaskGroup("work")

        @work.add_task(EVERY_SECOND, name="tick", allow_parallel=False)
        async def tick() -> None:
            await trio.lowlevel.checkpoint()
            self.count += 1

        self.engine = Engine(Config(redis_url=cluster.url, redis_key_prefix=cluster.prefix, **QUICK), [work])

    @asynccontextmanager
    async def going(self) -> AsyncIterator[None]:
        """It runs during the block, at the end of which no actor was restarted."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.engine.serve)
            await self.on(2)
            yield
            assert {node.name: node.last_failure for node in self.engine.tree().walk() if node.restarts} == {}
            nursery.cancel_scope.cancel()

    async def on(self, times: int) -> None:
        """Wait until it has run some more times."""
        before = self.count

        async def more() -> bool:
            return self.count >= before + times

        await eventually(more, f"the task runs {times} times more")


@pytest.mark.slow
async def test_what_others_write_beside_ours_stops_nobody(
    cluster: Cluster, view: View, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes that are no text included; what is in the way is gone, and kept aside."""
    ticks = Ticks(cluster)
    async with ticks.going():
        for command in BESIDE_OURS:
            await view.query(*command)

        async def tidied() -> bool:
            due = await view.query("ZRANGE", KEYS.due, 0, -1)
            leases = await view.query("ZRANGE", KEYS.leases, 0, -1)
            return due == ["t/work/tick"] and all(member.startswith("work/tick@") for member in leases)

        await eventually(tidied, "what is no task, run or lease has gone")
        await ticks.on(4)
        aside = {fields["name"] for _, fields in await view.query("XRANGE", KEYS.aside, "-", "+")}
        assert {"garbage", "t/work/gone"} <= aside
        assert ticks.engine.health().broken is None
    told = [record.getMessage() for record in caplog.records if "did not write" in record.getMessage()]
    assert len(told) == len(set(told)) > 8


PUT_A_LIST = "redis.call('DEL', KEYS[1]) return redis.call('RPUSH', KEYS[1], 'not ours')"
"""In one step: an engine at work would make the key anew between two."""


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_key_of_another_type_is_waited_for_and_health_says_which(cluster: Cluster, view: View) -> None:
    """One after the other. Nobody restarts; when it is gone, all goes on."""
    ticks = Ticks(cluster)
    async with ticks.going():
        for key in NEEDED:
            await view.query("EVAL", PUT_A_LIST, 1, key)
            named = False
            with trio.move_on_after(3):
                while not named:
                    broken = ticks.engine.health().broken
                    named = broken is not None and key in broken
                    await trio.sleep(0.05)
            before = ticks.count
            with trio.move_on_after(0 if named else 5):
                await ticks.on(1)
            assert named or ticks.count > before, f"{key} is broken, and nobody says so"
            await view.query("DEL", key)
            await ticks.on(2)

"""A Redis that is there and refuses: a state with a name, in health and tree, which everybody waits out."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, final

import pytest
import trio

from engine import Config, Engine, TaskGroup
from tests.store.servers import free_port
from tests.system.cluster import (
    EVERY_SECOND,
    QUICK,
    YEARLY,
    Cluster,
    any_redis,
    assert_one_verdict_each,
    eventually,
    look_at,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from engine.store.transport import Transport
    from tests.store.servers import RedisServer
    from tests.system.cluster import View

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

LASTING: Final = ("--appendonly", "yes", "--appendfsync", "always")


@final
class Work:
    """A task each second, and a run that goes on through it all."""

    def __init__(self) -> None:
        self.group = TaskGroup("work")
        self.ticks = self.starts = self.ends = 0

        @self.group.add_task(EVERY_SECOND, name="tick")
        async def tick() -> None:
            await trio.lowlevel.checkpoint()
            self.ticks += 1

        @self.group.add_task(YEARLY, name="long", run_on_first_start=True)
        async def long() -> None:
            self.starts += 1
            try:
                await trio.sleep_forever()
            finally:
                self.ends += 1

    def engine(self, cluster: Cluster) -> Engine:
        settings = {**QUICK, "running_heartbeat_interval": 20}  # leases outlive what is refused here
        return Engine(Config(redis_url=cluster.url, redis_key_prefix=cluster.prefix, **settings), [self.group])


@asynccontextmanager
async def serving(engine: Engine) -> AsyncIterator[None]:
    """The engine runs during the block, and is cancelled behind it."""
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.serve)
        yield
        nursery.cancel_scope.cancel()


def link_says(engine: Engine) -> str:
    return next(node.doing for node in engine.tree().walk() if node.path == "engine.link")


async def says(engine: Engine, what: str) -> bool:
    """Do health and tree say that this is wrong with Redis?"""
    if engine.worker_id is None:  # not started yet
        return False
    return what in (engine.health().redis_trouble or "") and what in link_says(engine)


async def ticked(work: Work, times: int) -> bool:
    return work.ticks > times


def restarts(engine: Engine) -> dict[str, int]:
    return {node.name: node.restarts for node in engine.tree().walk() if node.restarts}


@final
@dataclass(frozen=True, slots=True)
class Refusal:
    """What an operator, or an accident, does to a Redis; and how it is undone."""

    said: str
    begin: Callable[[Transport, RedisServer], Awaitable[object]]
    end: Callable[[Transport, RedisServer], Awaitable[object]]
    connected: bool = True
    """Whether the connections stay up meanwhile."""


def by_setting(said: str, name: str, refusing: str, fine: str) -> Refusal:
    """One setting of Redis, and back."""

    async def begin(link: Transport, _: RedisServer) -> None:
        await link.commands.config_set(name, refusing)

    async def end(link: Transport, _: RedisServer) -> None:
        await link.commands.config_set(name, fine)

    return Refusal(said, begin, end)


async def follow_nobody(link: Transport, _: RedisServer) -> None:
    await link.commands.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))


async def lead_again(link: Transport, _: RedisServer) -> None:
    await link.commands.execute_command("REPLICAOF", "NO", "ONE")


async def save_nowhere(link: Transport, _: RedisServer) -> None:
    """Saves fail, as on a full disk: nobody can create a file in /proc."""
    await link.commands.config_set("dir", "/proc")
    await link.commands.config_set("save", "3600 1")
    await link.commands.bgsave()


async def save_again(link: Transport, server: RedisServer) -> None:
    await link.commands.config_set("dir", str(server.directory))
    await link.commands.bgsave()


REFUSALS: Final = (
    by_setting("too few replicas follow it", "min-replicas-to-write", "1", "0"),
    by_setting("raise maxmemory or free some", "maxmemory", "1", "0"),
    Refusal("it is a read-only replica", follow_nobody, lead_again, connected=False),
    Refusal("it cannot save its data", save_nowhere, save_again),
)


@pytest.mark.parametrize("cluster", [("--enable-protected-configs", "yes")], indirect=True, ids=["7.0"])
async def test_a_redis_that_refuses_is_a_state_that_says_why_and_passes(
    cluster: Cluster, view: View, caplog: pytest.LogCaptureFixture
) -> None:
    """For one reason after the other. Nothing restarts, runs go on, and every slot has its verdict in the end."""
    work, link = Work(), view.store.transport
    engine = work.engine(cluster)

    async def started() -> bool:
        return work.starts == 1 and work.ticks > 0

    async with serving(engine):
        await eventually(started, "runs are in progress")
        assert engine.health().redis_trouble is None
        for refusal in REFUSALS:
            await refusal.begin(link, cluster.server)
            await eventually(partial(says, engine, refusal.said), f"health and tree say: {refusal.said}")
            ticks = work.ticks
            for _ in range(30):  # it is said for as long as it lasts
                assert await says(engine, refusal.said)
                assert engine.health().redis_connected or not refusal.connected
                await trio.sleep(0.1)
            assert work.ticks <= ticks + 1
            await refusal.end(link, cluster.server)
            await eventually(partial(ticked, work, ticks + 3), "slots go on")

        async def forgotten() -> bool:
            return engine.health().redis_trouble is None and link_says(engine) == engine.health().store

        await eventually(forgotten, "nothing is wrong any longer")
        assert restarts(engine) == {}
        assert engine.health().down == ()
        assert (work.starts, work.ends) == (1, 0)
    assert_one_verdict_each(await view.verdicts("work/tick"))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for refusal in REFUSALS:
        told = [text for text in warnings if refusal.said in text]
        assert 1 <= len(told) <= 8, f"it is told when it begins, not at each try: {told}"


@pytest.mark.parametrize("cluster", [LASTING], indirect=True, ids=["append-only"])
async def test_a_redis_that_loads_its_data_is_a_state_that_says_so_and_passes(cluster: Cluster, view: View) -> None:
    """It was killed and comes back with much to read, and answers everything but commands meanwhile."""
    work = Work()
    engine = work.engine(cluster)

    async def started() -> bool:
        return work.starts == 1 and work.ticks > 0

    async with serving(engine):
        await eventually(started, "runs are in progress")
        await view.query("EVAL", "for i = 1, 8000 do redis.call('SET', KEYS[1] .. i, i) end", 1, "other")
        cluster.server.kill()
        assert engine.health().down == ()
        # Slow motion: a pause behind each key that is read.
        slowly = ("--key-load-delay", "500", "--loading-process-events-interval-bytes", "1024")
        cluster.server.options = (*LASTING, *slowly)
        cluster.server.start()
        await eventually(partial(says, engine, "it is loading its data"), "health and tree say so")
        assert not engine.health().redis_connected
        ticks = work.ticks
        await eventually(partial(ticked, work, ticks + 3), "slots go on", limit_s=60)
        assert engine.health().redis_trouble is None
        assert restarts(engine) == {}
        assert (work.starts, work.ends) == (1, 0)
    assert_one_verdict_each(await view.verdicts("work/tick"))


async def test_an_engine_whose_address_is_a_replica_waits_until_that_is_the_primary(
    cluster: Cluster, nursery: trio.Nursery
) -> None:
    """It does not begin its work there, says why, and begins it as soon as that has been promoted. Nothing restarts."""
    await set_up(cluster)
    replica = any_redis(cluster.directory / "replica", "--replicaof", "127.0.0.1", str(cluster.server.port))
    try:
        beside, work = Cluster(replica, cluster.directory), Work()
        async with look_at(beside) as view:

            async def follows() -> bool:
                return bool(await view.query("EXISTS", view.store.keys.meta))

            await eventually(follows, "the replica follows")
            engine = work.engine(beside)
            nursery.start_soon(engine.serve)
            await eventually(partial(says, engine, "it is a read-only replica"), "health and tree say so")
            await trio.sleep(3)  # what does not happen in this time
            assert await says(engine, "it is a read-only replica")
            assert (work.ticks, work.starts, engine.leads) == (0, 0, False)
            await lead_again(view.store.transport, replica)
            await eventually(partial(ticked, work, 1), "it works")
            assert engine.health().redis_trouble is None
            assert restarts(engine) == {}
            nursery.cancel_scope.cancel()
    finally:
        replica.kill()


async def set_up(cluster: Cluster) -> None:
    """Have an engine run once, so that Redis holds an application."""
    async with look_at(cluster) as view, serving(Work().engine(cluster)):
        await view.settled("work/tick")

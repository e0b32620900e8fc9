"""An engine inside a trio program that stops or cancels it at awkward moments."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from engine import Config, Engine

if TYPE_CHECKING:
    from tests.system.cluster import Cluster

NOWHERE = "redis://127.0.0.1:1"


async def test_an_engine_that_is_stopped_before_redis_is_reached_just_returns(nursery: trio.Nursery) -> None:
    """Whoever waits for its start is told, rather than left with a start that never was."""
    engine = Engine(Config(redis_url=NOWHERE))
    with trio.fail_after(30):
        async with trio.open_nursery() as program:

            async def stop_soon() -> None:
                while engine.worker_id is None:
                    await trio.lowlevel.checkpoint()
                engine.stop()

            program.start_soon(stop_soon)
            assert await program.start(engine.serve) is engine


async def test_cancelling_an_engine_ends_it_within_moments_though_redis_stands_still(cluster: Cluster) -> None:
    """Taking leave of Redis has a limit of its own, which does not add up with the actors' deadlines."""
    engine = Engine(Config(redis_url=cluster.url, redis_key_prefix=cluster.prefix))
    with trio.fail_after(60):
        async with trio.open_nursery() as program:
            await program.start(engine.serve)
            cluster.server.pause()
            cancelled_s = trio.current_time()
            program.cancel_scope.cancel()
    took_s = trio.current_time() - cancelled_s
    assert took_s < 4.8, took_s

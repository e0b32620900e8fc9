"""A primary that dies is replaced by its replica, and the engines follow without a restart."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio

from tests.store.servers import NoSuchServer
from tests.store.topologies import replicated
from tests.system.cluster import EVERY_SECOND, QUICK, Cluster, eventually, look_at, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.store.topologies import Replicated

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

TASKS = 5


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Replicated]:
    try:
        with replicated(tmp_path / "redis") as found:
            yield found
    except NoSuchServer as error:
        pytest.skip(str(error))


@pytest.fixture
def cluster(servers: Replicated, tmp_path: Path) -> Iterator[Cluster]:
    found = Cluster(servers.servers[0], tmp_path, redis_url=servers.url)
    yield found
    found.close()


@pytest.mark.parametrize("fault", ["killed", "paused", "asked to go"])
async def test_a_failover_is_followed_without_a_restart(cluster: Cluster, servers: Replicated, fault: str) -> None:
    """Runs go on, slots after it have verdicts, no start has the fence of another, and the log says what happened."""
    old, new = servers.servers

    def lose() -> None:
        match fault:
            case "killed":
                old.kill()
            case "paused":
                old.pause()
            case _:
                servers.ask_for_failover()
                servers.wait_moved()

    await survive(lose, cluster)
    assert servers.primary() is new
    for worker in cluster.workers:
        *_, moved = worker.program.lines("has moved from")  # a Sentinel that has not heard of it yet may say otherwise
        assert f"to redis://127.0.0.1:{new.port}/0" in moved
        assert worker.program.lines("lost Redis")
        assert not worker.program.lines("Traceback")


async def test_a_primary_that_comes_back_as_a_replica_is_left_alone(cluster: Cluster, servers: Replicated) -> None:
    """Its Sentinels make it follow the new one; nobody writes to it."""
    old, new = servers.servers

    def lose() -> None:
        old.kill()
        servers.wait_moved()
        old.start()
        servers.wait_followed(old)

    await survive(lose, cluster)
    for worker in cluster.workers:
        *_, moved = worker.program.lines("has moved from")
        assert f"to redis://127.0.0.1:{new.port}/0" in moved
        assert not worker.program.lines("Traceback")


async def survive(lose: Callable[[], None], cluster: Cluster) -> None:
    """Lose the primary under load; wait until slots after it have verdicts; judge the effects."""
    tasks = [{"name": f"t{number}", "expression": EVERY_SECOND, "seconds": 0.3} for number in range(TASKS)]
    for _ in range(2):
        cluster.worker(*tasks, **{**QUICK, "running_heartbeat_interval": 2, "concurrent_tasks": 10})
    async with look_at(cluster) as view:
        await view.present()
        await view.settled("work/t0", count=2)

        async def in_progress() -> bool:
            return len(cluster.starts()) - len(cluster.ends()) >= TASKS

        await eventually(in_progress, "runs of every task are in progress")
        killed_ms = await view.store.leases.redis_ms()
        await trio.to_thread.run_sync(lose)
        back_ms = await eventually(view.store.leases.redis_ms, "Redis answers again", limit_s=60)
        say(f"Redis answers again {back_ms - killed_ms} ms after its primary was lost")

        async def resumed() -> bool:
            ledgers = [await view.verdicts(f"work/t{number}") for number in range(TASKS)]
            return all(ledger and (ledger[-1].to_ms or 0) >= back_ms + 2_000 for ledger in ledgers)

        await eventually(resumed, "slots after the failover have verdicts", limit_s=60)
        await cluster.stop()
    starts = Counter((effect.run, effect.fence) for effect in cluster.starts())
    assert all(count == 1 for count in starts.values()), [start for start, count in starts.items() if count != 1]
    runs = Counter(run for run, _ in starts)
    say(f"{len(runs)} runs, {sum(count - 1 for count in runs.values())} starts more than that")

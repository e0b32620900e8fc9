"""A primary that dies is replaced by its replica, and the engines follow without a restart."""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
import trio

from engine.address import Address
from engine.errors import RedisUnavailable
from engine.store.keys import Keys
from engine.store.link import Link
from engine.store.replicas import ReplicaWait
from engine.store.store import Store
from tests.store.guard import Guard, rights_of_page
from tests.store.servers import NoSuchServer
from tests.store.topologies import replicated
from tests.system.cluster import (
    EVERY_SECOND,
    QUICK,
    Cluster,
    assert_one_verdict_each,
    eventually,
    look_at,
    say,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.store.topologies import Replicated

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

TASKS = 5


@pytest.fixture
def guard(request: pytest.FixtureRequest, tmp_path: Path) -> Guard | None:
    """Who is let in: everybody, or by an indirect parameter (True) only who has a password, over TLS."""
    if not getattr(request, "param", False):
        return None
    return Guard.make(tmp_path / "guard", [*rights_of_page("cluster"), "+role"])


@pytest.fixture
def servers(guard: Guard | None, tmp_path: Path) -> Iterator[Replicated]:
    try:
        with replicated(tmp_path / "redis", guard=guard) as found:
            yield found
    except NoSuchServer as error:
        pytest.skip(str(error))


@pytest.fixture
def cluster(servers: Replicated, tmp_path: Path) -> Iterator[Cluster]:
    settings = {} if servers.guard is None else servers.guard.sentinel_settings()
    found = Cluster(servers.servers[0], tmp_path, redis_url=servers.url, settings=settings)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("guard", "fault"),
    [(False, "killed"), (False, "paused"), (True, "asked to go")],
    indirect=["guard"],
    ids=["killed", "paused", "asked to go, TLS and users"],
)
async def test_a_failover_is_followed_without_a_restart(cluster: Cluster, servers: Replicated, fault: str) -> None:
    """Runs go on, slots after it have verdicts, no start has the fence of another, and the log says what happened."""
    old, new = servers.servers
    scheme = "redis" if servers.guard is None else "rediss"

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
        assert f"to {scheme}://127.0.0.1:{new.port}/0" in moved
        assert not worker.program.lines("p/w"), "no password is told"
        assert worker.program.lines("lost Redis")
        assert not worker.program.lines("Traceback")


async def test_a_primary_that_comes_back_as_a_replica_is_left_alone_and_nothing_acknowledged_is_lost(
    cluster: Cluster, servers: Replicated, nursery: trio.Nursery
) -> None:
    """Its Sentinels make it follow the new one; nobody writes to it. With ``wait_replicas`` it is waited for, too."""
    old, new = servers.servers
    keys = Keys(cluster.prefix)
    wait = ReplicaWait(count=1, timeout_s=1, mark=keys.mark)
    link = Link(Address.parse(servers.url), name="writer", key=keys.tag, wait=wait)
    await nursery.start(link.run)
    acknowledged: set[int] = set()

    async def write() -> None:
        """Numbers, one after the other, each until it is acknowledged."""
        for number in count():
            while number not in acknowledged:
                try:
                    await link.replicated.sadd(f"{keys.tag}numbers", number)
                    acknowledged.add(number)
                except RedisUnavailable:
                    await trio.sleep(0.05)
            await trio.sleep(0.002)

    nursery.start_soon(write)

    def lose() -> None:
        old.kill()
        servers.wait_moved()
        old.start()
        servers.wait_followed(old)

    before_s = trio.current_time()
    await survive(lose, cluster, wait_replicas=1)
    for worker in cluster.workers:
        *_, moved = worker.program.lines("has moved from")
        assert f"to redis://127.0.0.1:{new.port}/0" in moved
        assert not worker.program.lines("Traceback")
    so_far = set(acknowledged)
    kept = {int(number) for number in await link.commands.smembers(f"{keys.tag}numbers")}
    took_s = trio.current_time() - before_s
    say(f"{len(so_far)} writes were acknowledged in {took_s:.0f} s; {len(so_far - kept)} are lost")
    assert so_far
    assert so_far <= kept
    for number in range(TASKS):
        assert_one_verdict_each(await Store.over(link, prefix=cluster.prefix).ledger.all(f"work/t{number}"))
    nursery.cancel_scope.cancel()


async def survive(lose: Callable[[], None], cluster: Cluster, **config: Any) -> None:
    """Lose the primary under load; wait until slots after it have verdicts; judge the effects."""
    tasks = [{"name": f"t{number}", "expression": EVERY_SECOND, "seconds": 0.3} for number in range(TASKS)]
    for _ in range(2):
        cluster.worker(*tasks, **{**QUICK, "running_heartbeat_interval": 2, "concurrent_tasks": 10, **config})
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

"""``wait_replicas``: what no replica acknowledges does not count, and waits for the replica to come back."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
import redis
import trio

from tests.store.servers import RedisServer
from tests.store.topologies import AT_ONCE, until
from tests.system.cluster import (
    EVERY_SECOND,
    QUICK,
    TROUPE,
    assert_never_at_once,
    assert_one_verdict_each,
    eventually,
    say,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.cluster import Cluster, View

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

TASKS = 5
NOBODY = "have acknowledged a write"
BEGINS, ENDS = "nothing new is published", "acknowledge what is written again"


@pytest.fixture
def replica(cluster: Cluster) -> Iterator[RedisServer]:
    """One replica of the cluster's Redis."""
    primary, directory = cluster.server, cluster.directory / "replica"
    directory.mkdir()
    found = RedisServer(primary.binary, directory, ("--replicaof", "127.0.0.1", str(primary.port)))
    try:
        found.start()
        with redis.Redis(unix_socket_path=primary.path) as client:
            until(lambda: client.wait(1, 1_000) == 1, "the replica follows")
        yield found
    finally:
        found.kill()


@pytest.mark.parametrize("cluster", [AT_ONCE], indirect=True, ids=["replicated"])
async def test_while_the_replica_stands_still_nothing_new_is_scheduled_and_then_all_goes_on(
    cluster: Cluster, view: View, replica: RedisServer
) -> None:
    """Everybody sees why. No run is doubled, and every slot has one verdict."""
    tasks = [{"name": f"t{number}", "expression": EVERY_SECOND, "seconds": 0.3} for number in range(TASKS)]
    settings = {**QUICK, "leader_heartbeat_interval": 1, "running_heartbeat_interval": 1, "concurrent_tasks": 10}
    for _ in range(3):
        cluster.worker(*tasks, wait_replicas=1, **settings)
    await view.present()
    for number in range(TASKS):
        await view.settled(f"work/t{number}", count=2)
    leader = await view.some_leader()

    replica.pause()
    await leader.program.logged(BEGINS)
    behind_ms = await view.store.leases.redis_ms()
    await trio.sleep(4)  # what does not happen in this time
    late = [effect for effect in cluster.starts() if (effect.slot_ms or 0) > behind_ms + 1_000]
    assert not late, "a slot was published that nobody has acknowledged"

    async def shown() -> bool:
        trees = [found.account().tree for found in (await view.presences()).values()]
        return any(NOBODY in str(tree) for tree in trees)

    await eventually(shown, "the tree says so")
    tree = cluster.program(TROUPE, "tree", "--redis-url", cluster.url, "--prefix", cluster.prefix, name="tree")
    assert await tree.ended() == 0
    assert NOBODY in tree.log()
    replica.resume()
    back_ms = await view.store.leases.redis_ms()

    async def resumed() -> bool:
        ledgers = [await view.verdicts(f"work/t{number}") for number in range(TASKS)]
        return all((ledger[-1].to_ms or 0) >= back_ms + 2_000 for ledger in ledgers)

    await eventually(resumed, "slots after it have verdicts")
    await leader.program.logged(ENDS)
    await cluster.stop()
    verdicts: Counter[str] = Counter()
    for number in range(TASKS):
        entries = await view.verdicts(f"work/t{number}")
        assert_one_verdict_each(entries)
        verdicts.update({entry.verdict: entry.count for entry in entries})
    starts = Counter(effect.run for effect in cluster.starts())
    say(f"verdicts around the time without a replica: {dict(verdicts)}")
    assert set(starts.values()) == {1}
    assert_never_at_once(cluster.effects())
    for worker in cluster.workers:
        assert not worker.program.lines("Traceback")
        began, ended = (len(worker.program.lines(text)) for text in (BEGINS, ENDS))
        assert began - ended in {0, 1}, "it is told when it begins and when it ends, not at each try"

"""A Cluster of several nodes: the one that has an application's keys is found, and followed when it is another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from redis.crc import key_slot

from engine.store.keys import Keys
from tests.store.guard import Guard, rights_of_page
from tests.store.servers import NoSuchServer
from tests.store.topologies import ask, clustered, until
from tests.system.cluster import Cluster, assert_never_at_once, assert_one_verdict_each, look_at
from tests.system.test_sentinel import TASKS, survive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.store.topologies import Nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SLOT = key_slot(Keys("cluster").tag.encode())


@pytest.fixture
def guard(request: pytest.FixtureRequest, tmp_path: Path) -> Guard | None:
    """Who is let in: everybody, or by an indirect parameter (True) only who has a password, over TLS."""
    if not getattr(request, "param", False):
        return None
    return Guard.make(tmp_path / "guard", [*rights_of_page("cluster"), "+cluster|slots"])


@pytest.fixture
def nodes(guard: Guard | None, tmp_path: Path) -> Iterator[Nodes]:
    try:
        with clustered(tmp_path / "redis", guard=guard) as found:
            yield found
    except NoSuchServer as error:
        pytest.skip(str(error))


@pytest.fixture
def cluster(nodes: Nodes, tmp_path: Path) -> Iterator[Cluster]:
    found = Cluster(nodes.owner(SLOT), tmp_path, redis_url=nodes.url)
    yield found
    found.close()


def replica_of(nodes: Nodes, port: int) -> int:
    """The port of the replica of a primary."""
    return nodes.servers[[server.port for server in nodes.servers].index(port) + 3].port


@pytest.mark.parametrize(
    ("guard", "fault"),
    [(False, "killed"), (True, "paused")],
    indirect=["guard"],
    ids=["killed", "paused, TLS and users"],
)
async def test_a_failover_is_followed_without_a_restart(cluster: Cluster, nodes: Nodes, fault: str) -> None:
    """Runs go on, slots after it have verdicts, no start has the fence of another, and the log says what happened."""
    old = nodes.owner(SLOT)
    scheme = "redis" if nodes.guard is None else "rediss"
    await survive(old.kill if fault == "killed" else old.pause, cluster)
    new = replica_of(nodes, old.port)
    for worker in cluster.workers:
        *_, moved = worker.program.lines("has moved from")
        assert f"to {scheme}://127.0.0.1:{new}/0" in moved
        assert not worker.program.lines("p/w"), "no password is told"
        assert worker.program.lines("lost Redis")
        assert not worker.program.lines("Traceback")


async def test_a_slot_that_is_moved_to_another_node_is_followed_and_nothing_is_lost_or_doubled(
    cluster: Cluster, nodes: Nodes
) -> None:
    """While its keys are on their way nothing is decided; then all go on at the new node, with all that there was."""
    old = nodes.owner(SLOT)
    new = next(server for server in nodes.servers[:3] if server is not old)

    def move() -> None:
        begin, end = nodes.steps_of_move(SLOT, new)
        begin()
        for worker in cluster.workers:
            until(lambda worker=worker: worker.program.lines("being moved"), "it cannot act on a part of its keys")  # type: ignore[misc]
        end()

    await survive(move, cluster)
    assert nodes.owner(SLOT) is new
    assert ask(old, "CLUSTER COUNTKEYSINSLOT", SLOT) == 0
    assert_never_at_once(cluster.effects())
    async with look_at(cluster) as view:
        ended: set[str | None] = set()
        for number in range(TASKS):
            entries = await view.verdicts(f"work/t{number}")
            assert_one_verdict_each(entries)
            ended |= {entry.run_id for entry in entries if entry.verdict == "ran"}
        assert {effect.run for effect in cluster.starts()} == ended
        left = await view.query("ZRANGE", view.store.keys.leases, 0, -1)
        left += await view.query("XRANGE", view.store.keys.stream("low"), "-", "+")
    assert left == [], "a lease or an entry of a run that has ended"
    for worker in cluster.workers:
        *_, moved = worker.program.lines("has moved from")
        assert f"to redis://127.0.0.1:{new.port}/0" in moved
        assert not worker.program.lines("Traceback")

"""A process forks while an engine runs in it: the child has nothing of the engine, and cannot keep it alive."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integrations.fastapi.serving import serve
from tests.system.cluster import ONCE, eventually, look_at

if TYPE_CHECKING:
    from tests.system.cluster import Cluster

pytestmark = pytest.mark.slow


def runs(pid: int) -> bool:
    """Does such a process live? One that nobody has taken leave of does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("server", ["uvicorn uvloop", "hypercorn trio"])
@pytest.mark.parametrize("where", ["handler", "thread"])
async def test_a_forked_child_has_nothing_of_the_engine(where: str, server: str, cluster: Cluster) -> None:
    """It does not lead, holds no connection to Redis, not even when its parent dies, and ends by itself."""
    tasks = [{"name": "held", "kind": "gated", **ONCE}]
    if where == "thread":
        tasks.append({"name": "fork", "kind": "fork", **ONCE})
    served = serve(cluster, server, tasks=tasks)
    await served.wait_for("start", task="held")
    await served.leading()
    if where == "handler":
        await served.get("/fork")
    [child] = await served.wait_for("child")
    assert child["health"] == "unhealthy"
    assert child["health_took_s"] < 1
    assert child["manager"] == [False, False, None]
    assert child["engine"] == [False, None, False]
    assert [peer for peer in child["connections"] if peer.endswith("redis.sock")] == []  # others are HTTP's

    async with look_at(cluster) as view:

        async def connections() -> int:
            return str(await view.query("CLIENT", "LIST")).count("troupe-")

        epoch, before = await view.epoch(), await connections()
        assert before == 3
        await served.leading()
        parent = (await served.get("/state") or {})["pid"]
        os.kill(parent, signal.SIGKILL)

        async def forgotten() -> bool:
            return await connections() == 0 and await view.store.election.leader() is None

        await eventually(forgotten, "nobody leads, and nobody is connected")
        assert await view.epoch() == epoch
    assert runs(child["pid"])
    served.open_gate()

    async def gone() -> bool:
        return not runs(child["pid"])

    await served.wait_for("child leaves")
    await eventually(gone, "the child ends")
    assert len(served.effects("end", task="held")) == 0

"""Every part of the engine inside a web application is restarted over HTTP: no run is doubled, and no slot is lost."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.integrations.fastapi.serving import Served, serve
from tests.system.cluster import (
    EVERY_SECOND,
    Cluster,
    any_redis,
    assert_never_at_once,
    assert_one_verdict_each,
    eventually,
    look_at,
)
from tests.system.test_restarts import ACTORS, SUPERVISORS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

TASKS = [
    {"name": "loop", "kind": "loop", "seconds": 1.3, "expression": EVERY_SECOND},
    {"name": "thread", "kind": "thread", "seconds": 2.4, "expression": EVERY_SECOND},
]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A Redis of the test's own."""
    found = Cluster(any_redis(tmp_path / "redis"), tmp_path)
    try:
        yield found
    finally:
        found.close()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("server", ["uvicorn uvloop", "hypercorn trio"])
async def test_restarts_over_http_double_no_run_and_lose_no_slot(server: str, cluster: Cluster) -> None:
    """While bodies are in progress on the application's loop and in threads, each part in turn."""
    served = serve(cluster, server, tasks=TASKS, concurrent_tasks=12)
    await served.healthy()
    for path in (*ACTORS, *SUPERVISORS):
        before = len(served.effects("start", task="loop"))
        await served.wait_for("start", task="loop", count=before + 1)
        await restart(served, path)
    async with look_at(cluster) as view:
        so_far = len(await view.verdicts("work/loop"))
        await view.settled("work/loop", count=so_far + 3)
        served.program.signal(signal.SIGTERM)
        await served.program.ended()
        for task in ("loop", "thread"):
            assert_one_verdict_each(await view.verdicts(f"work/{task}"))
    assert_never_at_once(served.runs())
    assert len(served.program.lines("is restarted, as")) == len(ACTORS) + len(SUPERVISORS)


async def restart(served: Served, path: str) -> None:
    """Ask for it, and wait until all parts are up again."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}/manage", timeout=20) as client:
        node = (await client.get(f"/supervisor/{path}")).json()
        asked = await client.post(f"/supervisor/{path}/restart", headers={"X-Requested-With": "tests"})
        assert asked.status_code == 200, asked.text

        async def up() -> bool:
            tree: dict[str, Any] = (await client.get("/supervisor")).json()
            return restarts(tree, path) > node["restarts"] and all(state == "running" for state in states(tree))

        await eventually(up, f"{path} is up again")


def restarts(tree: dict[str, Any], path: str) -> int:
    """Of one part."""
    if tree["path"] == f"engine.{path}":
        return int(tree["restarts"])
    return max((restarts(child, path) for child in tree["children"]), default=0)


def states(tree: dict[str, Any]) -> list[str]:
    """Of all parts."""
    return [tree["state"], *(state for child in tree["children"] for state in states(child))]

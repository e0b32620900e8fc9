"""The same application as real processes under each server, with signals, several workers and a blocked loop."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import httpx
import pytest
import trio

from tests.store.servers import free_port
from tests.system.cluster import QUICK, Cluster, Program, any_redis, eventually, look_at

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

APP = "tests.integrations.fastapi.served:app"
SERVERS = {
    "uvicorn asyncio": ("uvicorn", APP, "--loop", "asyncio", "--port", "{port}"),
    "uvicorn uvloop": ("uvicorn", APP, "--loop", "uvloop", "--port", "{port}"),
    "hypercorn asyncio": ("hypercorn", APP, "-k", "asyncio", "--bind", "127.0.0.1:{port}"),
    "hypercorn trio": ("hypercorn", APP, "-k", "trio", "--bind", "127.0.0.1:{port}"),
}


@final
@dataclass
class Served:
    """An application in a server's process."""

    program: Program
    port: int
    effects_path: Path

    async def get(self, path: str) -> dict[str, Any] | None:
        """What it answers, as soon as it answers."""

        async def answer() -> httpx.Response | None:
            async with httpx.AsyncClient(timeout=20) as client:
                try:
                    return await client.get(f"http://127.0.0.1:{self.port}{path}")
                except httpx.ConnectError:
                    assert self.program.process.poll() is None, self.program.log()
                    return None

        response = await eventually(answer, f"{path} is answered")
        assert response is not None
        assert response.status_code == 200, response.text
        found: dict[str, Any] | None = response.json()
        return found

    def effects(self, event: str = "", **facts: Any) -> list[dict[str, Any]]:
        """What it has written down, in order."""
        lines = self.effects_path.read_text().splitlines() if self.effects_path.exists() else []
        return [
            effect
            for effect in map(json.loads, lines)
            if event in {"", effect["event"]} and facts.items() <= effect.items()
        ]

    async def wait_for(self, event: str, **facts: Any) -> dict[str, Any]:
        """The first such effect."""

        async def found() -> list[dict[str, Any]]:
            return self.effects(event, **facts)

        return (await eventually(found, f"{event} {facts}"))[0]

    async def healthy(self) -> dict[str, Any]:
        """Its health, as soon as that is good."""

        async def found() -> dict[str, Any] | None:
            health = await self.get("/health")
            assert health is not None
            return health if health["status"] == "healthy" else None

        health = await eventually(found, "it is healthy")
        assert health is not None
        return health


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A Redis of the test's own."""
    found = Cluster(any_redis(tmp_path / "redis"), tmp_path)
    try:
        yield found
    finally:
        found.close()


def serve(cluster: Cluster, server: str, *more: str, seconds: float = 0, **config: Any) -> Served:
    port, effects = free_port(), cluster.directory / "served.effects"
    spec = {
        "config": {"redis_url": cluster.url, "redis_key_prefix": cluster.prefix, **QUICK, **config},
        "effects": str(effects),
        "seconds": seconds,
    }
    module, *options = SERVERS[server]
    command = [sys.executable, "-m", module, *(option.format(port=port) for option in options), *more]
    return Served(cluster.program(*command, name=module, APPLICATION=json.dumps(spec)), port, effects)


@pytest.mark.parametrize("server", SERVERS)
async def test_an_application_and_its_tasks_live_and_end_with_the_server(server: str, cluster: Cluster) -> None:
    """Tasks run on its loop and in threads, within the lifespan; SIGTERM lets the run in progress end first."""
    served = serve(cluster, server, seconds=1.5)
    state = await served.get("/state")
    assert state is not None
    assert state["pool"] == "open"
    started = await served.wait_for("start", task="loop")
    await served.wait_for("start", task="thread")
    assert (await served.healthy())["is_leader"]
    served.program.signal(signal.SIGTERM)
    code = await served.program.ended()

    [entered] = served.effects("entered")
    assert {key: started[key] for key in ("thread", "loop", "pool")} == {
        "thread": "MainThread",
        "loop": {"uvicorn asyncio": "asyncio", "uvicorn uvloop": "uvloop"}.get(server, server.split()[1]),
        "pool": "open",
    }
    [thread] = served.effects("start", task="thread")
    assert thread["thread"] not in {"MainThread", "troupe-engine"}
    assert len(served.effects("end", task="loop")) == 1
    events = [effect["event"] for effect in served.effects()]
    assert (events[0], events[-1]) == ("entered", "left")
    assert entered["loop"] == started["loop"]
    assert code in {0, -signal.SIGTERM}, code  # uvicorn ends by the signal itself
    assert "Stopping: runs in progress get" in served.program.log()
    assert "Traceback" not in served.program.log()


async def test_one_of_several_server_workers_leads(cluster: Cluster) -> None:
    """Each has a worker of its own; a run is started by one of them."""
    served = serve(cluster, "uvicorn asyncio", "--workers", "2")
    async with look_at(cluster) as view:

        async def both() -> bool:
            return len(await view.presences()) == 2

        await eventually(both, "two workers are present")
        await served.wait_for("start", task="loop")
        await served.wait_for("start", task="thread")
        assert len(served.program.lines("became LEADER")) == 1
    served.program.signal(signal.SIGTERM)
    await served.program.ended()
    assert len(served.effects("left")) == len(served.effects("entered")) == 2
    assert len(served.effects("start")) == 2


async def test_a_blocked_loop_costs_neither_leadership_nor_leases(cluster: Cluster) -> None:
    """For several leases, with another worker that would take over; the log names the line that blocks."""
    served = serve(cluster, "uvicorn asyncio", seconds=5)
    await served.wait_for("start", task="loop")
    assert (await served.healthy())["is_leader"]
    async with look_at(cluster) as view:
        epoch = await view.epoch()
        rival = cluster.worker(**QUICK)
        await view.present(rival)
        await served.get("/block?seconds=4")
        await served.wait_for("end", task="loop")
        assert await view.epoch() == epoch
    assert (await served.healthy())["is_leader"]
    assert len(served.effects("start", task="loop")) == 1
    [stall] = served.program.lines("has not answered for")
    assert "it is here" in stall
    assert "time.sleep(seconds)" in served.program.log()
    await cluster.stop(rival)


async def test_an_application_starts_without_redis_and_its_engine_joins_later(cluster: Cluster) -> None:
    """Health says so in the meantime."""
    cluster.server.kill()
    served = serve(cluster, "uvicorn asyncio")
    health = await served.get("/health")
    assert health is not None
    assert (health["status"], health["redis_connected"]) == ("unhealthy", False)
    await trio.to_thread.run_sync(cluster.server.start)
    await served.wait_for("start", task="loop")
    await served.healthy()
    served.program.signal(signal.SIGTERM)
    await served.program.ended()

"""An application as a real process under each server."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import httpx

from tests.store.servers import free_port
from tests.system.cluster import QUICK, Cluster, Effect, Program, eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

APP: Final = "tests.integrations.fastapi.served:app"
SERVERS: Final = {
    "uvicorn asyncio": ("uvicorn", APP, "--loop", "asyncio", "--port", "{port}"),
    "uvicorn uvloop": ("uvicorn", APP, "--loop", "uvloop", "--port", "{port}"),
    "gunicorn preload": (
        *("gunicorn", APP, "--preload", "--worker-class", "uvicorn_worker.UvicornWorker", "--no-control-socket"),
        *("--bind", "127.0.0.1:{port}"),
    ),
    "hypercorn asyncio": ("hypercorn", APP, "-k", "asyncio", "--bind", "127.0.0.1:{port}"),
    "hypercorn trio": ("hypercorn", APP, "-k", "trio", "--bind", "127.0.0.1:{port}"),
}
LOOPS: Final = {
    "uvicorn asyncio": "asyncio",
    "uvicorn uvloop": "uvloop",
    "gunicorn preload": "uvloop",
    "hypercorn asyncio": "asyncio",
    "hypercorn trio": "trio",
}


@final
@dataclass
class Served:
    """An application in a server's process."""

    program: Program
    port: int
    effects_path: Path

    async def get(self, path: str, timeout_s: float = 20) -> dict[str, Any] | None:
        """What it answers, as soon as it answers."""

        async def answer() -> httpx.Response | None:
            async with httpx.AsyncClient(timeout=timeout_s) as client:
                try:
                    return await client.get(f"http://127.0.0.1:{self.port}{path}")
                except httpx.ConnectError:
                    assert self.program.process.poll() is None, self.program.log()
                    return None

        response = await eventually(answer, f"{path} is answered", limit_s=timeout_s + 30)
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

    def runs(self) -> list[Effect]:
        """What its tasks have done, in order."""
        return [Effect(**{name: line[name] for name in Effect.__slots__}) for line in self.effects() if line.get("run")]

    async def wait_for(self, event: str, *, count: int = 1, **facts: Any) -> list[dict[str, Any]]:
        """Such effects, as soon as there are so many."""

        async def found() -> list[dict[str, Any]]:
            effects = self.effects(event, **facts)
            return effects if len(effects) >= count else []

        return await eventually(found, f"{count} of {event} {facts}")

    async def healthy(self, *, leads: bool = False) -> dict[str, Any]:
        """Its health, as soon as that is good."""

        async def found() -> dict[str, Any] | None:
            health = await self.get("/health")
            assert health is not None
            return health if health["status"] == "healthy" and health["is_leader"] >= leads else None

        health = await eventually(found, "it is healthy" + " and leads" * leads)
        assert health is not None
        return health

    async def leading(self) -> dict[str, Any]:
        """Its health, as soon as it leads and that is good."""
        return await self.healthy(leads=True)

    def open_gate(self) -> None:
        """Let what waits for it end."""
        self.effects_path.with_suffix(".gate").touch()


def serve(
    cluster: Cluster,
    server: str,
    *options: str,
    name: str = "served",
    seconds: float = 0,
    tasks: Sequence[dict[str, Any]] | None = None,
    **config: Any,
) -> Served:
    """Start it, with an effect log of that name; two of one name share the log."""
    port, effects = free_port(), cluster.directory / f"{name}.effects"
    spec: dict[str, Any] = {
        "config": {"redis_url": cluster.url, "redis_key_prefix": cluster.prefix, **QUICK, **config},
        "effects": str(effects),
        "seconds": seconds,
    }
    if tasks is not None:
        spec["tasks"] = tasks
    module, *usual = SERVERS[server]
    command = [sys.executable, "-m", module, *(option.format(port=port) for option in usual), *options]
    program = cluster.program(*command, name=name, APPLICATION=json.dumps(spec))
    return Served(program, port, effects)

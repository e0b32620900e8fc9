"""Three applications on one Redis, asked over HTTP: what one is told all of them do, and any of them shows all."""

from __future__ import annotations

import json
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import httpx
import pytest
import trio

from tests.store.servers import free_port
from tests.system.cluster import EVERY_SECOND, QUICK, Cluster, Program, any_redis, eventually, look_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

APP = "tests.integrations.fastapi.managed_app:app"


@final
@dataclass
class Managed:
    """One application, in a server's process, and its management API."""

    program: Program
    effects_path: Path
    client: httpx.AsyncClient

    async def get(self, path: str, **params: str) -> Any:
        """What it answers."""
        response = await self.client.get(path, params=params)
        assert response.status_code == 200, response.text
        return response.json()

    async def send(self, method: str, path: str, body: Any = None, **params: str) -> Any:
        """Change something, as ann."""
        headers = {"X-Requested-With": "tests", "X-User": "ann"}
        response = await self.client.request(method, path, json=body, params=params, headers=headers)
        assert response.status_code == 200, response.text
        return response.json()

    async def up(self) -> None:
        """Wait until it is healthy."""

        async def healthy() -> bool:
            try:
                return (await self.client.get("/health")).status_code == 200
            except httpx.ConnectError:
                assert self.program.process.poll() is None, self.program.log()
                return False

        await eventually(healthy, "it is healthy")

    def effects(self) -> list[dict[str, Any]]:
        """What its tasks have done."""
        lines = self.effects_path.read_text().splitlines() if self.effects_path.exists() else []
        return [json.loads(line) for line in lines]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A Redis of the test's own."""
    found = Cluster(any_redis(tmp_path / "redis"), tmp_path)
    try:
        yield found
    finally:
        found.close()


@asynccontextmanager
async def applications(cluster: Cluster, count: int, **config: Any) -> AsyncIterator[list[Managed]]:
    """So many, each in a process of its own."""
    async with trio.open_nursery() as nursery:
        found = [_start(cluster, f"app{number}", config) for number in range(count)]
        for managed in found:
            nursery.start_soon(managed.up)
    try:
        yield found
    finally:
        for managed in found:
            await managed.client.aclose()


def _start(cluster: Cluster, name: str, config: dict[str, Any]) -> Managed:
    port, effects = free_port(), cluster.directory / f"{name}.effects"
    settings = {"redis_url": cluster.url, "redis_key_prefix": cluster.prefix, **QUICK, **config}
    command = (sys.executable, "-m", "uvicorn", APP, "--port", str(port))
    program = cluster.program(*command, name=name, MANAGED=json.dumps({"config": settings, "effects": str(effects)}))
    return Managed(program, effects, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/tm", timeout=20))


async def test_a_dynamic_task_is_made_through_one_runs_on_others_and_is_removed_through_a_third(
    cluster: Cluster,
) -> None:
    """Every process knows it at once; removed, it stops everywhere, and nothing of it is left."""
    async with applications(cluster, 3) as (one, two, three):
        made = await one.send(
            "POST",
            "/tasks",
            {"task_group_name": "work", "function_name": "note", "cron_expression": EVERY_SECOND, "name": "fresh"},
        )
        assert (made["task_name"], made["dynamic"]) == ("fresh", True)
        one.program.kill()  # now only others can run it

        async def ran() -> bool:
            return bool(two.effects() or three.effects())

        await eventually(ran, "it runs on one of the others")
        [shown] = await two.get("/tasks", name="fresh")
        assert shown["dynamic"]
        assert not shown["orphan"]

        await three.send("DELETE", "/tasks", task_group_name="work", task_name="fresh")
        for managed in (two, three):
            assert await managed.get("/tasks", name="fresh") == []
        async with look_at(cluster) as view:

            async def at_rest() -> bool:
                return not await view.store.runs.live("work/fresh")

            await eventually(at_rest, "the runs in progress have ended")
            assert "work/fresh" not in await view.store.timetable.tasks()
            assert await view.store.ledger.all("work/fresh") == []
            told = await view.store.catalog.recent_events(count=100)
        assert [
            (event.name, event.fields.get("what"), event.fields.get("who")) for event in told if "who" in event.fields
        ] == [
            ("forgotten", "work/fresh", "ann"),
            ("defined", "work/fresh", "ann"),
        ]
        before = [*two.effects(), *three.effects()]

        # Another task that runs every second shows that the time goes on.
        await two.send(
            "POST",
            "/tasks",
            {
                "task_group_name": "work",
                "function_name": "note",
                "cron_expression": EVERY_SECOND,
                "kwargs": {"text": "x"},
            },
        )

        async def went_on() -> bool:
            return [effect["text"] for effect in [*two.effects(), *three.effects()]].count("x") >= 3

        await eventually(went_on, "three seconds passed")
        after = [effect for effect in [*two.effects(), *three.effects()] if effect["text"] != "x"]
        assert len(after) == len(before)


async def test_each_shows_the_trees_of_all_and_a_crashed_actor_shows_as_its_restart(cluster: Cluster) -> None:
    """Whichever is asked; a task that breaks an actor of the process in which it runs."""
    async with applications(cluster, 3) as found:
        asked = await shown_by_each(found)
        assert all(len(workers) == 3 for workers in asked)
        assert len({frozenset(workers) for workers in asked}) == 1
        assert all(tree["state"] == "running" for workers in asked for tree in workers.values())

        await found[0].send("POST", "/tasks/trigger", task_name="crash")

        async def shows() -> list[dict[str, Any]]:
            leaders = [_leader(tree) for tree in (await _trees(found[1])).values()]
            return [leader for leader in leaders if leader["restarts"] == 1]

        [broken] = await eventually(shows, "the restart is shown elsewhere")
        assert broken["last_failure"]["error"].startswith("Crashed")
        assert broken["state"] == "running"


async def shown_by_each(found: list[Managed]) -> list[dict[str, Any]]:
    """What each shows, as soon as all are up and present everywhere."""
    answers = []
    for managed in found:

        async def all_running(asked: Managed = managed) -> dict[str, Any] | None:
            trees = await _trees(asked)
            return trees if len(trees) == 3 and all(tree["state"] == "running" for tree in trees.values()) else None

        answer = await eventually(all_running, "three workers are shown")
        assert answer is not None
        answers.append(answer)
    return answers


async def _trees(managed: Managed) -> dict[str, Any]:
    cluster = await managed.get("/supervisor", scope="cluster")
    return {worker["worker_id"]: worker["tree"] for worker in cluster["workers"]}


def _leader(tree: dict[str, Any]) -> dict[str, Any]:
    [scheduling] = [node for node in tree["children"] if node["name"] == "scheduling"]
    [leader] = [node for node in scheduling["children"] if node["name"] == "leader"]
    found: dict[str, Any] = leader
    return found

"""Coming from fastapi-task-manager, the real package: what it kept is taken over, and its live leader is noticed."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import httpx
import pytest

from engine.migration import NO_SUCH_TASK, OF_NO_TASK
from tests.store.servers import free_port
from tests.system.cluster import QUICK, TROUPE, eventually

if TYPE_CHECKING:
    from tests.system.cluster import Cluster, Program, View

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OLD, NEW = "fastapi_task_manager", "integrations.fastapi"
OLD_PREFIX = "old[app]*"
"""With characters that are patterns to Redis."""


@final
@dataclass(frozen=True, slots=True)
class Served:
    """``tests.system.migrating`` under one of the two systems."""

    program: Program
    address: str

    async def ask(self, method: str, path: str, **options: Any) -> Any:
        """What its management API answers, as soon as it answers; it must be a success."""

        async def answer() -> httpx.Response | None:
            async with httpx.AsyncClient(timeout=20, base_url=self.address) as client:
                try:
                    return await client.request(method, path, **options)
                except httpx.ConnectError:
                    assert self.program.process.poll() is None, self.program.log()
                    return None

        response = await eventually(answer, f"{path} is answered")
        assert response is not None
        assert response.status_code < 300, response.text
        return response.json()

    async def tasks(self) -> dict[str, str]:
        """Names of all its tasks, by expression."""
        return {task["expression"]: task["name"] for task in await self.ask("GET", "/tasks")}

    async def create(self, **task: Any) -> str:
        """Make a dynamic task; its name."""
        body = {"task_group_name": "reports", "function_name": "send", **task}
        name: str = (await self.ask("POST", "/tasks", json=body))["task_name"]
        return name

    async def disable(self, *names: str) -> None:
        """Disable these tasks, and no other."""
        for name in names:
            said = await self.ask("POST", "/tasks/disable", params={"task_group_name": "reports", "task_name": name})
            assert said["count"] == 1

    async def stop(self) -> None:
        """As a deployment does."""
        self.program.signal(signal.SIGTERM)
        await self.program.ended()


def serve(cluster: Cluster, system: str, name: str, **settings: Any) -> Served:
    """Start it under uvicorn."""
    port = free_port()
    config = {"redis_host": "127.0.0.1", "redis_port": cluster.server.port, **settings}
    program = cluster.program(
        *(sys.executable, "-m", "uvicorn", "tests.system.migrating:app", "--port", str(port)),
        name=name,
        SYSTEM=system,
        CONFIG=json.dumps(config),
    )
    return Served(program, f"http://127.0.0.1:{port}/task-manager")


async def take_over(cluster: Cluster, *options: str, code: int) -> str:
    """Run the command; what it prints."""
    command = (TROUPE, "import", "--from-prefix", OLD_PREFIX, "--redis-url", cluster.url, "--prefix", cluster.prefix)
    program = cluster.program(*command, *options, name=f"import-{len(cluster.programs)}")
    assert await program.ended() == code, program.log()
    return program.log()


async def test_dynamic_tasks_and_disabled_flags_are_taken_over(cluster: Cluster, view: View) -> None:
    """Made and disabled through the old HTTP API; then the application runs with its import line changed."""
    old = serve(cluster, OLD, "old", redis_key_prefix=OLD_PREFIX)
    names = await old.tasks()
    unnamed = await old.create(cron_expression="0 9 1 1 *", kwargs={"to": "ada"})
    await old.create(cron_expression="0 10 1 1 *", name="friday", tags=["mail"], high_priority=True, retry_backoff=3)
    await old.create(cron_expression="5-5 * 1 1 *", name="refused")
    await old.create(cron_expression="0 11 1 1 *", name="nightly")
    static = [names[f"0 {hour} 1 1 *"] for hour in ("3", "4", "6", " 7", "8")]
    await old.disable(*static, unnamed, "friday", "refused")
    await view.query("HSET", f"{OLD_PREFIX}_dynamic_tasks", "reports:broken", "{")
    await old.stop()
    before = {key: await view.query("DUMP", key) for key in await view.query("KEYS", "old*")}

    new = serve(cluster, NEW, "new", redis_key_prefix=cluster.prefix)
    await new.program.logged("Scheduled 6 new task(s)")
    dry = await take_over(cluster, "--dry-run", code=65)
    assert "would be taken definition reports:friday as reports/friday" in dry
    assert "nothing was changed" in dry
    contents = await view.store.catalog.contents()
    assert (contents.dynamic, contents.paused) == ({}, {})

    found = {one["source"]: one for one in json.loads(await take_over(cluster, "--json", code=65))}
    printed = await take_over(cluster, code=65)
    again = {one["source"]: one for one in json.loads(await take_over(cluster, "--json", code=65))}

    flag = f"{OLD_PREFIX}_reports_{{}}_disabled".format
    taken = {
        "reports:friday": "reports/friday",
        f"reports:{unnamed}": f"reports/{unnamed}",
        flag("friday"): "reports/friday",
        flag(unnamed): f"reports/{unnamed}",
        flag(static[0]): "reports/nightly",
        flag(static[1]): "reports/weekly",
        flag(static[2]): "reports/of_shop-2",
    }
    assert {source: one["task"] for source, one in found.items() if one["outcome"] == "taken"} == taken
    refused = {source: one["reason"] for source, one in found.items() if one["outcome"] == "not taken"}
    assert refused.keys() == {
        *("reports:refused", "reports:nightly", "reports:broken"),
        *(flag("refused"), flag(static[3]), flag(static[4])),
    }
    assert "'5'" in refused["reports:refused"]
    assert "code declares a task of this name" in refused["reports:nightly"]
    assert "not JSON" in refused["reports:broken"]
    assert refused[flag("refused")] == OF_NO_TASK
    assert refused[flag(static[3])] == refused[flag(static[4])] == NO_SUCH_TASK
    assert {source: one["outcome"] for source, one in again.items()} == {
        source: "there already" if source in taken else "not taken" for source in found
    }
    assert f"not taken      definition reports:broken: {refused['reports:broken']}" in printed.splitlines()
    assert "there already  definition reports:friday as reports/friday" in printed.splitlines()
    assert {key: await view.query("DUMP", key) for key in await view.query("KEYS", "old*")} == before

    friday = json.loads((await view.store.catalog.contents()).dynamic["reports/friday"])
    expected = {"function": "send", "expression": "0 10 1 1 *", "kwargs": {}, "tags": ["mail"], "high_priority": True}
    assert expected.items() <= friday.items()
    assert (friday["retry_backoff"], friday["timezone"]) == (3, "UTC")

    async def known() -> dict[str, bool]:
        active = {task["name"]: task["is_active"] for task in await new.ask("GET", "/tasks")}
        return active if "friday" in active else {}

    disabled = {"nightly", "weekly", "of_shop-2", "friday", unnamed}
    assert await eventually(known, "the process knows what was taken over") == {
        name: name not in disabled for name in disabled | {"of_shop-1", "spaced", "nested"}
    }
    await new.stop()


async def test_where_nothing_is_kept_that_is_said(cluster: Cluster) -> None:
    """A wrong prefix looks like this: the prefix is repeated. In JSON it is an empty array."""
    assert await take_over(cluster, code=0) == f"nothing is under the prefix {OLD_PREFIX!r} of fastapi-task-manager\n"
    assert json.loads(await take_over(cluster, "--json", code=0)) == []


async def test_what_redis_does_not_show_is_for_a_person_to_act_on(cluster: Cluster, view: View) -> None:
    """A user of Redis without the right to read it would be told so as well."""
    await view.query("SET", f"{OLD_PREFIX}_dynamic_tasks", "no hash")
    (line,) = (await take_over(cluster, code=78)).splitlines()
    assert line.startswith("error: HGETALL old[app]*_dynamic_tasks cannot be read: WRONGTYPE")


async def test_a_live_leader_of_the_old_system_is_named(cluster: Cluster, view: View) -> None:
    """Under the same prefix; without being asked to wait, this system schedules all the same."""
    old = serve(cluster, OLD, "old", redis_key_prefix=cluster.prefix)
    await old.program.logged("became LEADER")
    holder = await view.query("GET", f"{cluster.prefix}_leader_lock")
    worker = cluster.worker(**QUICK)
    await worker.program.logged("became LEADER")
    [line] = worker.program.lines(holder)
    assert "ERROR" in line
    assert "fastapi.task-manager.leader" in line
    await cluster.stop()
    await old.stop()


async def test_a_worker_that_waits_executes_until_the_old_leader_has_gone(cluster: Cluster, view: View) -> None:
    """Then it schedules. Another worker, which does not wait, gives it something to execute meanwhile."""
    old = serve(cluster, OLD, "old", redis_key_prefix=cluster.prefix)
    await old.program.logged("became LEADER")
    holder = await view.query("GET", f"{cluster.prefix}_leader_lock")
    waits = cluster.worker({"name": "tick", "expression": "* * * * * *"}, **QUICK, wait_for_predecessor=True)
    await waits.program.logged(holder)
    hasty = cluster.worker({"name": "tick", "expression": "* * * * * *"}, **QUICK | {"concurrent_tasks": 0})
    await cluster.started(waits)
    assert await view.some_leader() is hasty
    await cluster.stop(hasty)
    assert waits.program.lines("became LEADER") == []

    await old.stop()
    await waits.program.logged("has gone: worker")
    await waits.program.logged("became LEADER")
    assert len(waits.program.lines(holder)) == 1
    before = len(waits.effects())

    async def goes_on() -> bool:
        return len(waits.effects()) > before

    await eventually(goes_on, "what it schedules is executed")
    await cluster.stop(waits)

"""The same application as real processes under each server: its tasks live and end with it."""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import httpx
import pytest
import trio

from tests.integrations.fastapi.serving import LOOPS, SERVERS, serve
from tests.system.cluster import ONCE, look_at

if TYPE_CHECKING:
    from tests.system.cluster import Cluster

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("server", SERVERS)
async def test_an_application_and_its_tasks_live_and_end_with_the_server(server: str, cluster: Cluster) -> None:
    """Tasks run on its loop and in threads, within the lifespan; SIGTERM lets the run in progress end first."""
    served = serve(cluster, server, seconds=1.5)
    state = await served.get("/state")
    assert state is not None
    assert state["pool"] == "open"
    [started] = await served.wait_for("start", task="loop")
    [thread] = await served.wait_for("start", task="thread")
    health = await served.leading()
    assert str(state["pid"]) in health["worker_id"]
    served.program.signal(signal.SIGTERM)
    code = await served.program.ended()

    [entered] = served.effects("entered")
    assert {key: started[key] for key in ("thread", "loop", "pool")} == {
        "thread": "MainThread",
        "loop": LOOPS[server],
        "pool": "open",
    }
    assert thread["thread"] not in {"MainThread", "troupe-engine"}
    assert (thread["loop"], thread["pool"]) == (None, "open")
    assert len(served.effects("end", task="loop")) == 1
    events = [effect["event"] for effect in served.effects()]
    assert (events[0], events[-1]) == ("entered", "left")
    assert entered["loop"] == started["loop"]
    assert code in {0, -signal.SIGTERM}, code  # uvicorn ends by the signal itself
    assert "Stopping: runs in progress, if any, get" in served.program.log()
    assert "Traceback" not in served.program.log()


async def test_a_task_that_calls_asyncio_fails_under_trio_and_is_told_of_the_server(cluster: Cluster) -> None:
    """In the log and in the ledger."""
    task = {"name": "old", "kind": "asyncio", "max_retries": 0, **ONCE}
    served = serve(cluster, "hypercorn trio", tasks=[task])
    async with look_at(cluster) as view:
        [entry] = await view.settled("work/old")
    assert entry.verdict in {"failed", "dead"}
    [story] = entry.story
    sentence = "this task calls asyncio, and the server of this application runs trio"
    assert f"WrongLoop: {sentence}" in story
    assert "Task work/old failed" in served.program.log()
    assert f"WrongLoop: {sentence}" in served.program.log()
    served.program.signal(signal.SIGTERM)
    await served.program.ended()


@pytest.mark.parametrize("server", ["uvicorn uvloop", "hypercorn trio"])
async def test_plain_tasks_do_not_wait_for_the_threads_of_routes(server: str, cluster: Cluster) -> None:
    """All of which are busy: a further plain route has to wait, a plain task does not, nor does health."""
    task = {"name": "tick", "kind": "thread", "expression": "* * * * * *"}
    served = serve(cluster, server, tasks=[task])
    await served.healthy()
    async with trio.open_nursery() as nursery:
        for _ in range(41):
            nursery.start_soon(served.get, "/hold")
        await served.wait_for("held", count=40)
        so_far = len(served.effects("end", task="tick"))
        await served.wait_for("end", count=so_far + 2, task="tick")
        await served.healthy()
        assert len(served.effects("held")) == 40
        await served.get("/release")
    assert len(served.effects("held")) == 41
    served.program.signal(signal.SIGTERM)
    await served.program.ended()


async def test_a_second_ctrl_c_skips_the_lifespan_and_leaves_neither_a_leader_nor_a_run(cluster: Cluster) -> None:
    """While a request is open, uvicorn waits at the first one, and at the second ends its loop there and then."""
    tasks = [{"name": "gated", "kind": "gated", **ONCE}]
    served = serve(cluster, "uvicorn asyncio", tasks=tasks, shutdown_grace=60, running_heartbeat_interval=20)
    await served.leading()
    [started] = await served.wait_for("start", task="gated")

    async def ask() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            with suppress(httpx.HTTPError):
                await client.get(f"http://127.0.0.1:{served.port}/endless")

    async with look_at(cluster) as view, trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await served.wait_for("waits")
        served.program.signal(signal.SIGINT)
        await served.program.logged("Waiting for connections to close")
        served.program.signal(signal.SIGINT)
        await served.program.ended()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            assert await view.store.election.leader() is None
            state, deliveries = await view.query("HMGET", view.store.keys.run(started["run"]), "state", "deliveries")
            assert deliveries == "0"
            assert state in {"queued", "parked"}  # the latter if its own worker read it once more
    assert [effect["event"] for effect in served.effects(task="gated")] == ["start", "cancelled"]


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

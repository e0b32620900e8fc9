"""``troupe run --api`` and ``engine.run(api=...)``: a worker that serves its management API, from outside."""

from __future__ import annotations

import signal
import socket
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest
import trio

from tests.store.servers import free_port
from tests.system.cluster import PATIENCE_S, TROUPE, YEARLY, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.system.cluster import Cluster, Program

TOKEN: Final = "open-sesame"  # noqa: S105  # of these tests
LOCAL: Final = "127.0.0.1:0"
ACT: Final = {"X-Requested-With": "test"}

SHOP: Final = f"""
import logging
import sys
import trio
from engine import Config, Engine, TaskGroup

work = TaskGroup("work")

@work.add_task("{YEARLY}")
async def job(seconds: float = 0):
    print("job begins", flush=True)
    await trio.sleep(seconds)
    print("job is done", flush=True)

@work.add_task("{YEARLY}", kwargs={{"seconds": 3}}, name="long")
async def long(seconds: float):
    await job(seconds)

engine = Engine(Config(), [work])
if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    engine.run(api=sys.argv[1])
"""

COMMAND: Final = (TROUPE, "run", "shop:engine", "--api")
SCRIPT: Final = (sys.executable, "shop.py")
both_ways = pytest.mark.parametrize("how", [COMMAND, SCRIPT], ids=["command", "script"])


def start(cluster: Cluster, *command: str, **settings: object) -> Program:
    """Start the shop in the test's folder, with settings from the environment, as in a container."""
    (cluster.directory / "shop.py").write_text(SHOP)
    given = {"redis_url": cluster.url, "redis_key_prefix": cluster.prefix, **settings}
    env: dict[str, Any] = {f"TROUPE_{key.upper()}": str(value) for key, value in given.items()}
    return cluster.program(*command, name=f"shop-{len(cluster.programs)}", cwd=cluster.directory, **env)


@asynccontextmanager
async def client_of(program: Program, token: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """Of the address that it says it listens at, each request on a connection of its own."""
    said = "The management API listens at "
    await program.logged(said)
    url = program.lines(said)[-1].rpartition(" ")[2].replace("//0.0.0.0:", "//127.0.0.1:")
    headers = {"Connection": "close"} | ({"Authorization": f"Bearer {token}"} if token else {})
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=PATIENCE_S) as client:
        yield client


async def healthy(client: httpx.AsyncClient) -> dict[str, Any]:
    """Wait until the worker leads and all is well; how it is then."""

    async def leads() -> dict[str, Any] | None:
        found: dict[str, Any] = (await client.get("/health")).json()
        return found if found["status"] == "healthy" and found["is_leader"] else None

    answer = await eventually(leads, "the worker is healthy, and leads")
    assert answer is not None
    return answer


@both_ways
async def test_a_worker_serves_the_api_beside_its_work(cluster: Cluster, how: tuple[str, ...]) -> None:
    """Without a token on a loopback address: health, the tree, a trigger that runs, and who did it."""
    program = start(cluster, *how, LOCAL)
    async with client_of(program) as client:
        health = await healthy(client)
        assert f"-{program.pid}-" in health["worker_id"]
        assert (await client.get("/health/live")).json() == {"status": "ok"}
        assert (await client.get("/health/ready")).json() == {"status": "ok"}
        assert {task["name"] for task in (await client.get("/tasks")).json()} == {"job", "long"}
        tree = (await client.get("/supervisor")).json()
        assert tree["children"][-1]["path"] == "engine.api"
        assert tree["children"][-1]["doing"] == str(client.base_url).rstrip("/")
        assert (await client.get("/docs")).status_code == 200
        triggered = await client.post("/tasks/trigger", params={"task_name": "job"}, headers=ACT)
        assert triggered.status_code == 200
        await program.logged("job is done")
        created = {"task_group_name": "work", "function_name": "job", "cron_expression": YEARLY, "name": "made"}
        assert (await client.post("/tasks", json=created)).status_code in {200, 201}
        assert "made" in {task["name"] for task in (await client.get("/tasks")).json()}
        refused = await client.get("/tasks/work/nothing/statistics")
        assert (refused.status_code, refused.json()["code"]) == (404, "no_such_task")
    program.signal(signal.SIGTERM)
    assert await program.ended() == 0
    assert "Traceback" not in program.log()
    assert len(program.lines("The management API listens at ")) == 1, "and by one handler"


def speaks_ipv6() -> bool:
    """Has this host the loopback address of IPv6? Some containers have not."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


only_with_ipv6 = pytest.mark.skipif(not speaks_ipv6(), reason="this host has no IPv6 loopback address")


@pytest.mark.parametrize("address", ["0.0.0.0:0", LOCAL, pytest.param("[::1]:0", marks=only_with_ipv6)])
async def test_with_a_token_the_api_answers_those_who_show_it(cluster: Cluster, address: str) -> None:
    """Wherever it listens; probes need none. Nothing that is logged or answered shows it."""
    program = start(cluster, *COMMAND, address, api_token=TOKEN)
    async with client_of(program) as stranger, client_of(program, TOKEN) as friend:
        await healthy(friend)
        answers = [await stranger.get(path) for path in ("/health", "/config", "/tasks", "/docs", "/openapi.json")]
        answers.append(await stranger.post("/tasks/trigger", headers=ACT))
        answers.append(await stranger.get("/tasks", headers={"Authorization": f"Bearer {TOKEN}x"}))
        for answer in answers:
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert answer.json()["code"] == "token_needed"
        assert (await stranger.get("/health/live")).status_code == 200
        assert (await stranger.get("/health/ready")).status_code == 200
        shown = await friend.get("/config")
        assert shown.status_code == 200
        assert TOKEN not in shown.text
        assert (await friend.post("/tasks/trigger", params={"task_name": "job"}, headers=ACT)).status_code == 200
        await program.logged("job is done")
    program.signal(signal.SIGTERM)
    assert await program.ended() == 0
    assert TOKEN not in program.log()


async def test_while_runs_in_progress_end_the_worker_is_alive_and_not_ready(cluster: Cluster) -> None:
    """SIGTERM: load balancers are told, operators can look on, the run ends, and then the address is free."""
    program = start(cluster, *COMMAND, LOCAL)
    async with client_of(program) as client:
        await healthy(client)
        assert (await client.post("/tasks/trigger", params={"task_name": "long"}, headers=ACT)).status_code == 200
        await program.logged("job begins")
        program.signal(signal.SIGTERM)

        async def not_ready() -> bool:
            return (await client.get("/health/ready")).status_code == 503

        await eventually(not_ready, "it is not ready")
        assert (await client.get("/health/live")).status_code == 200
        assert [worker["pid"] for worker in (await client.get("/workers")).json()] == [program.pid]
        assert "job is done" not in program.log(), "the run took less time than this test: nothing was seen"
        assert await program.ended() == 0
        assert "job is done" in program.log()
        with pytest.raises(httpx.ConnectError):
            await client.get("/health/live")
    assert "Traceback" not in program.log()


@both_ways
@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "0.0.0.0:0",
            "api '0.0.0.0:0': other hosts can reach it, so whoever asks must show a token: set TROUPE_API_TOKEN",
        ),
        ("[::]:0", "must show a token"),
        ("8000", "api '8000': give an IP address of this host and a port, such as 127.0.0.1:8000"),
        ("shop.example:80", "'shop.example' is no IP address"),
    ],
)
async def test_an_address_that_cannot_be_served_ends_the_command_with_78(
    cluster: Cluster, how: tuple[str, ...], address: str, message: str
) -> None:
    """One line, before anything starts."""
    program = start(cluster, *how, address)
    assert await program.ended() == 78
    assert message in program.log()
    assert len(program.log().splitlines()) == 1


async def test_a_token_that_no_header_carries_ends_the_command_with_78(cluster: Cluster) -> None:
    """And is not shown."""
    program = start(cluster, *COMMAND, LOCAL, api_token=f"{TOKEN}\n")
    assert await program.ended() == 78
    assert "Config.api_token: it has a character" in program.log()
    assert TOKEN not in program.log()


@both_ways
async def test_an_address_that_is_taken_ends_the_command_with_69(cluster: Cluster, how: tuple[str, ...]) -> None:
    """A service manager tries again: the process that has it may be on its way out. Nothing was started."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        program = start(cluster, *how, f"127.0.0.1:{other.getsockname()[1]}")
        assert await program.ended() == 69
    assert "another process listens there" in program.log()
    assert len(program.log().splitlines()) == 1


async def test_the_api_restarts_itself_and_answers_first(cluster: Cluster) -> None:
    """The request that asks for it gets its answer, and the next one is answered by the new instance."""
    program = start(cluster, *COMMAND, LOCAL)
    async with client_of(program) as client:
        await healthy(client)
        for path in ("api", "engine.api"):
            before = (await client.get("/supervisor/api")).json()["restarts"]
            answer = await client.post(f"/supervisor/{path}/restart", headers=ACT)
            assert (answer.status_code, answer.json()["path"]) == (200, "engine.api")
            after = (await client.get("/supervisor/api")).json()
            while after["restarts"] == before:  # the stop is asked for, and may come after this very request
                after = (await client.get("/supervisor/api")).json()
            assert (after["restarts"], after["state"]) == (before + 1, "running")
        await healthy(client)
    urls = {line.rpartition(" ")[2] for line in program.lines("The management API listens at")}
    assert len(program.lines("The management API listens at")) == 3
    assert len(urls) == 1
    program.signal(signal.SIGTERM)
    assert await program.ended() == 0
    assert "Traceback" not in program.log()


@pytest.mark.slow
async def test_the_api_answers_while_redis_is_away(cluster: Cluster) -> None:
    """Before the first connection and after the last: alive, ready, unhealthy; what needs Redis says 503."""
    cluster.server.kill()
    program = start(cluster, *COMMAND, LOCAL, startup_timeout=600)
    async with client_of(program) as client:

        async def says_so() -> None:
            async def unhealthy() -> bool:
                answer = await client.get("/health")
                return (answer.status_code, answer.json()["redis_connected"]) == (503, False)

            await eventually(unhealthy, "health says that Redis is away")
            assert (await client.get("/health/live")).status_code == 200
            assert (await client.get("/health/ready")).status_code == 200

        await says_so()
        answer = await client.get("/tasks")
        assert (answer.status_code, answer.json()["code"]) == (503, "redis_unavailable")
        await trio.to_thread.run_sync(cluster.server.start)
        await healthy(client)
        cluster.server.kill()
        await says_so()
    program.signal(signal.SIGTERM)
    assert await program.ended() == 0


async def test_a_disabled_engine_serves_no_api(cluster: Cluster) -> None:
    """It starts nothing at all, though a wrong address is still told."""
    port = free_port()
    program = start(cluster, *COMMAND, f"127.0.0.1:{port}", enabled=False)
    await program.logged("Troupe is disabled")
    program.signal(signal.SIGTERM)
    assert await program.ended() == 0
    assert not program.lines("The management API")
    wrong = start(cluster, *COMMAND, "8000", enabled=False)
    assert await wrong.ended() == 78

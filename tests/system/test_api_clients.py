"""The API of a standalone engine and clients that stall, babble or stay: none of them concerns an actor."""

from __future__ import annotations

import os
import socket
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import httpx
import pytest
import trio
import trio.testing

from engine import Config, Engine, RunContext, TaskGroup
from engine.errors import EngineStateError
from engine.runtime.tree import State
from integrations import hypercorn as served
from tests.system.cluster import EVERY_SECOND, PATIENCE_S, QUICK, eventually, say

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.runtime import Node
    from tests.system.cluster import Cluster


LONG = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
"""A request whose answer is long."""


def node_of(engine: Engine) -> Node:
    """The API in the tree."""
    return next(node for node in engine.tree().walk() if node.path == "engine.api")


@asynccontextmanager
async def serving(cluster: Cluster, *groups: TaskGroup) -> AsyncIterator[tuple[Engine, int]]:
    """An engine in this trio run that serves its API, and on which port; stopped gracefully at the end."""
    engine = Engine(Config(redis_url=cluster.url, redis_key_prefix=cluster.prefix, **QUICK), groups)
    ended = trio.Event()

    async def serve(*, task_status: trio.TaskStatus[Engine]) -> None:
        await engine.serve(api="127.0.0.1:0", task_status=task_status)
        ended.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        yield engine, int(node_of(engine).doing.rpartition(":")[2])
        engine.stop()
        with trio.fail_after(PATIENCE_S):
            await ended.wait()


async def connect(port: int, *, receive_buffer: int | None = None) -> trio.SocketStream:
    """A connection to the API, spoken byte by byte."""
    plain = trio.socket.socket()
    if receive_buffer is not None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        await plain.connect(("127.0.0.1", port))
    except OSError:
        plain.close()
        raise
    return trio.SocketStream(plain)


async def closed(stream: trio.SocketStream) -> bool:
    """Read to the end; how that came does not matter."""
    try:
        while await stream.receive_some():
            pass
    except trio.BrokenResourceError:
        pass
    return True


async def send_on_and_on(stream: trio.SocketStream) -> None:
    """Ask for something long until the connection breaks, and read nothing of it."""
    while True:
        await stream.send_all(LONG)


async def fill(stream: trio.SocketStream) -> None:
    """Ask again and again for something long, and read nothing of it, until the engine cannot send any more."""
    with trio.move_on_after(1) as patience:
        for _ in range(1_000_000):
            await stream.send_all(LONG)
            patience.deadline = trio.current_time() + 1  # while it takes them, it has not come to a stop
    assert patience.cancelled_caught, "the client was never made to wait, so neither was the server"


async def test_clients_that_do_not_read_hold_up_neither_runs_nor_the_stop(cluster: Cluster) -> None:
    """What is being sent to them is dropped when the grace is over."""
    slots: list[int | None] = []
    group = TaskGroup("work")

    @group.add_task(EVERY_SECOND)
    async def tick() -> None:
        slots.append(RunContext.current().slot_ms)

    async with serving(cluster, group) as (engine, port):
        streams = [await connect(port, receive_buffer=4096) for _ in range(3)]
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(fill, stream)
        so_far = len(slots)

        async def ticked() -> bool:
            return len(slots) >= so_far + 2

        await eventually(ticked, "slots run")
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{port}/health")).json()["status"] == "healthy"
        began_s = trio.current_time()
    took_s = trio.current_time() - began_s
    say(f"stopped in {took_s:.1f} s")
    assert took_s < served.GRACE_S + 3
    assert node_of(engine).restarts == 0
    for stream in streams:
        await stream.aclose()


async def test_a_client_that_does_not_read_loses_its_connection(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After SEND_S, which is shortened here; else a hundred of them would be the end of the API."""
    monkeypatch.setattr(served, "SEND_S", 0.3)
    async with serving(cluster) as (engine, port):
        stream = await connect(port, receive_buffer=4096)
        with trio.fail_after(PATIENCE_S), pytest.raises(trio.BrokenResourceError):
            await send_on_and_on(stream)
        await stream.aclose()
        assert node_of(engine).restarts == 0


BABBLE = {
    "no HTTP": b"EHLO shop\r\n\r\n",
    "bytes": bytes(range(256)) * 4,
    "TLS": bytes.fromhex("16030100f4010000f00303") + bytes(240),
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "endless header": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000,
    "HTTP/2, then noise": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"noise" * 100,
    "upgrade to HTTP/2 with noise": (
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"Authorization: Bearer sesame\r\nHTTP2-Settings: A\r\n\r\nnoise"
    ),
    "upgrade to HTTP/2 with wrong settings": (
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAQAAP__ZZZZ\r\n\r\n"
    ),
    "a websocket": (
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ),
    "two lengths": b"POST /tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "a bad chunk": b"POST /tasks HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc",
    "half a body": (
        b"POST /tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{"
    ),
    "a path that is no text": b"GET /tasks/%ff%00/\xff/statistics?tag=%ff HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


async def test_whatever_a_client_says_ends_at_its_connection(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even the actor that serves the API restarts for it. The log repeats nothing of what was sent."""
    async with serving(cluster) as (engine, port):
        for what, said in BABBLE.items():
            stream = await connect(port)
            with trio.fail_after(PATIENCE_S):
                try:
                    await stream.send_all(said)
                    await stream.send_eof()
                except trio.BrokenResourceError:
                    say(f"{what}: closed before all was said")
                await closed(stream)
            await stream.aclose()
            async with httpx.AsyncClient() as client:
                answer = await client.get(f"http://127.0.0.1:{port}/supervisor/api")
            assert answer.status_code == 200, what
            assert (answer.json()["restarts"], answer.json()["last_failure"]) == (0, None), what
        assert engine.tree().state is State.RUNNING
    assert "sesame" not in caplog.text
    assert "Traceback" not in caplog.text


async def test_a_connection_without_a_request_is_closed(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it says nothing, or never comes to the end of its headers; after KEEP_ALIVE_S, shortened here."""
    monkeypatch.setattr(served, "KEEP_ALIVE_S", 0.3)
    async with serving(cluster) as (_, port):
        for said in (b"", b"GET /health HTTP/1.1\r\nHost: loc"):
            stream = await connect(port)
            if said:
                await stream.send_all(said)
            with trio.fail_after(PATIENCE_S):
                assert await closed(stream)
            await stream.aclose()


async def test_more_connections_than_are_meant_are_closed_at_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """So that clients cannot use up the files of the process; one warning. When some go, others may come at once."""
    monkeypatch.setattr(served, "MOST_CONNECTIONS", 3)
    monkeypatch.setattr(served, "KEEP_ALIVE_S", 600.0)
    async with serving(cluster) as (_, port):
        request = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
        streams = []
        for _ in range(3):
            streams.append(stream := await connect(port))
            await stream.send_all(request)
            assert b"200" in await stream.receive_some()
        for _ in range(2):
            with trio.fail_after(PATIENCE_S):
                stream = await connect(port)
                assert await closed(stream)
                await stream.aclose()
        assert len([r for r in caplog.records if "More than 3 connections" in r.getMessage()]) == 1
        for stream in streams:
            await stream.aclose()

        async def answered() -> bool:
            async with httpx.AsyncClient() as client:
                try:
                    return (await client.get(f"http://127.0.0.1:{port}/health/live")).status_code == 200
                except httpx.TransportError:
                    return False

        await eventually(answered, "there is room again")


async def test_a_crash_of_the_api_restarts_it_at_the_same_address_and_nothing_else(cluster: Cluster) -> None:
    """It listens all the while, so who asks meanwhile waits for the answer."""
    async with serving(cluster) as (engine, port):
        up_before = {node.path: node.restarts for node in engine.tree().walk()}
        engine.crash("api", RuntimeError("a bug in the API"))

        async def crashed() -> bool:
            return node_of(engine).state is not State.RUNNING

        await eventually(crashed, "it is down")
        with trio.fail_after(PATIENCE_S):
            async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
                answer = (await client.get(f"http://127.0.0.1:{port}/supervisor/api")).json()
        assert (answer["restarts"], answer["state"]) == (1, "running")
        assert "a bug in the API" in str(answer["last_failure"])
        restarts = {node.path: node.restarts for node in engine.tree().walk()}
        assert restarts == up_before | {"engine.api": 1}


async def test_the_address_is_free_again_when_the_engine_has_ended(cluster: Cluster) -> None:
    """Also for the next start of the same engine, though clients were connected."""
    async with serving(cluster) as (_, port):
        stream = await connect(port)
        await stream.send_all(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" in await stream.receive_some()
    with pytest.raises(OSError, match="connect"):
        await connect(port)
    await stream.aclose()
    engine = Engine(Config(redis_url=cluster.url, redis_key_prefix=cluster.prefix))
    start = partial(engine.serve, api=f"127.0.0.1:{port}")
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            await nursery.start(start)
            with pytest.raises(EngineStateError):
                await engine.serve(api=f"127.0.0.1:{port}")
            async with httpx.AsyncClient() as client:
                assert (await client.get(f"http://127.0.0.1:{port}/health/ready")).status_code == 200
            engine.stop()


async def test_a_cancelled_engine_leaves_no_connection_behind(cluster: Cluster) -> None:
    """Within moments, as without an API."""
    engine = Engine(Config(redis_url=cluster.url, redis_key_prefix=cluster.prefix))
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(engine.serve, api="127.0.0.1:0"))
            stream = await connect(int(node_of(engine).doing.rpartition(":")[2]), receive_buffer=4096)
            await fill(stream)
            nursery.cancel_scope.cancel()
            began_s = trio.current_time()
        assert trio.current_time() - began_s < 4.8
        assert await closed(stream)
    await stream.aclose()


@pytest.mark.parametrize("answered", [True, False])
async def test_a_request_in_progress_gets_a_moment_when_the_api_stops(cluster: Cluster, *, answered: bool) -> None:
    """It waits for Redis, which comes back within the grace, or does not; then the client is told by the end."""
    async with serving(cluster) as (engine, port):
        outcome: list[str] = []

        async def ask() -> None:
            async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
                try:
                    answer = await client.get(f"http://127.0.0.1:{port}/workers")
                    outcome.append(str(answer.status_code))
                except httpx.RemoteProtocolError:
                    outcome.append("closed")

        async with trio.open_nursery() as nursery:
            cluster.server.pause()
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.2)
            engine.restart("api")
            began_s = trio.current_time()

            async def stops() -> bool:
                return node_of(engine).state is State.STOPPING

            await eventually(stops, "the API stops")
            assert outcome == []
            if answered:
                cluster.server.resume()
        cluster.server.resume()
        took_s = trio.current_time() - began_s
        assert outcome == ["200" if answered else "closed"]
        assert answered or served.GRACE_S <= took_s + 0.1 < served.GRACE_S + 2


async def test_a_fork_holds_none_of_its_sockets(cluster: Cluster) -> None:
    """Else a child that outlives the engine would keep its address from the next one, and clients waiting."""
    async with serving(cluster) as (_, port):
        stream = await connect(port)
        await stream.send_all(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" in await stream.receive_some()
        assert sockets_at(port) == 3, "the engine's, the actor's, and the connection"
        child = os.fork()
        if child == 0:
            os._exit(sockets_at(port))
        _, status = await trio.to_thread.run_sync(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        await stream.aclose()


def sockets_at(port: int) -> int:
    """How many descriptors of this process are sockets of this port of ours."""
    found = 0
    for descriptor in range(3, 500):
        try:
            copy = socket.socket(fileno=os.dup(descriptor))
        except OSError:
            continue
        with copy:
            found += copy.family == socket.AF_INET and copy.getsockname()[1] == port
    return found

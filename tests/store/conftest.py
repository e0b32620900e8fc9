"""Redis for the tests of the store: in this process, or real servers that the tests start and end themselves."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from engine.store.inprocess import InProcess
from engine.store.link import Link
from engine.store.store import Store
from tests.store.scenario import Stage
from tests.store.servers import NoSuchServer, RedisServer, find_binary

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from engine.store.transport import Transport


@contextmanager
def _servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RedisServer]]:
    """A function that starts servers, and ends all of them behind the block."""
    started: list[RedisServer] = []

    def start(series: str = "7.0", *options: str, run: bool = True) -> RedisServer:
        try:
            binary = find_binary(series)
        except NoSuchServer as error:
            pytest.skip(str(error))
        server = RedisServer(binary, tmp_path_factory.mktemp("redis"), options)
        started.append(server)
        return server.start() if run else server

    try:
        yield start
    finally:
        for server in started:
            server.kill()


@pytest.fixture
def start_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RedisServer]]:
    """``start_redis(series="7.0", *options, run=True)`` gives a server of this test's own, which ends with it.

    Options are redis-server's: ``start_redis("6.2", "--maxmemory", "1")``. Skips where there is no such server.
    """
    with _servers(tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], RedisServer]]:
    """``shared_redis("6.2")`` gives the one server of that series which all tests share; they empty it first."""
    running: dict[str, RedisServer] = {}
    with _servers(tmp_path_factory) as start:

        def get(series: str) -> RedisServer:
            if series not in running:
                running[series] = start(series)
            return running[series]

        yield get


@pytest.fixture(params=["in-process", "redis-5.0", "redis-6.2", "redis-7.0"])
def redis_server(request: pytest.FixtureRequest, shared_redis: Callable[[str], RedisServer]) -> RedisServer | None:
    """Under each transport in turn; None: in this process. No coroutine: what they skip is not explained."""
    kind: str = request.param
    return None if kind == "in-process" else shared_redis(kind.removeprefix("redis-"))


@pytest.fixture
async def transport(redis_server: RedisServer | None) -> AsyncIterator[Transport]:
    """Each transport in turn, up, on a Redis that holds nothing: for tests of what all must have in common."""
    transport: Transport = InProcess() if redis_server is None else Link(redis_server.address)
    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run)
        await transport.wait_up()
        await transport.commands.flushall()
        await transport.commands.script_flush()
        yield transport
        nursery.cancel_scope.cancel()


@pytest.fixture
def store(transport: Transport) -> Store:
    """The typed operations over each transport in turn."""
    return Store.over(transport, prefix="test")


@pytest.fixture
async def stage(store: Store) -> Stage:
    """A leader is elected and workers can read."""
    return await Stage.set(store)

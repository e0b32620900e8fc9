"""The proxy does to its traffic what a test asks for, and nothing else."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from engine.address import Address
from tests.store.proxy import Proxy, listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIMIT_S = 20.0
SHORT_S = 0.2
"""In which nothing may come, where nothing should."""


async def echo(stream: trio.SocketStream) -> None:
    """Answer with what was said, and say when that is over."""
    async for data in stream:
        await stream.send_all(data)
    await stream.send_all(b"over")
    await stream.aclose()


@asynccontextmanager
async def through_proxy() -> AsyncIterator[tuple[Proxy, trio.SocketStream]]:
    """A proxy in front of an echo, and a connection through it."""
    async with listening(echo) as address, trio.open_nursery() as nursery:
        proxy = Proxy(address)
        await nursery.start(proxy.run)
        async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as client:
            yield proxy, client
        nursery.cancel_scope.cancel()


async def read(client: trio.SocketStream) -> bytes:
    with trio.fail_after(LIMIT_S):
        return bytes(await client.receive_some(100))


async def hears_nothing(client: trio.SocketStream) -> bool:
    with trio.move_on_after(SHORT_S):
        await client.receive_some(100)
        return False
    return True


async def test_what_is_delayed_comes_later_and_in_order() -> None:
    """Pieces do not overtake each other, whatever each one's delay is."""
    async with through_proxy() as (proxy, client):
        delays = iter([0.2, 0.0, 0.1])
        proxy.to_server.delay_s = lambda: next(delays)
        begun_s = trio.current_time()
        heard = b""
        for piece in (b"a", b"b", b"c"):
            await client.send_all(piece)
            await trio.sleep(0.01)
        while len(heard) < 3:
            heard += await read(client)
        assert heard == b"abc"
        assert trio.current_time() - begun_s >= 0.2


async def test_what_is_stalled_arrives_when_it_goes_on() -> None:
    """Nothing is lost, as by packets that are sent again."""
    async with through_proxy() as (proxy, client):
        proxy.to_client.stall()
        await client.send_all(b"a")
        assert await hears_nothing(client)
        proxy.to_client.go_on()
        assert await read(client) == b"a"


@pytest.mark.parametrize("direction", ["to_server", "to_client"])
async def test_a_black_hole_swallows_one_direction(direction: str) -> None:
    """What went in while it was there never comes out."""
    async with through_proxy() as (proxy, client):
        getattr(proxy, direction).black_hole = True
        await client.send_all(b"a")
        assert await hears_nothing(client)
        getattr(proxy, direction).black_hole = False
        await client.send_all(b"b")
        assert await read(client) == b"b"


async def test_a_direction_that_is_closed_leaves_the_other_open() -> None:
    """The server reads the end, and what it says then still arrives."""
    async with through_proxy() as (proxy, client):
        await client.send_all(b"a")
        assert await read(client) == b"a"
        await proxy.half_close(to_client=False)
        assert await read(client) == b"over"


async def test_half_open_connections_are_silent_and_new_ones_are_fine() -> None:
    """The client never hears that there is nobody any more."""
    async with through_proxy() as (proxy, client):
        await client.send_all(b"a")
        assert await read(client) == b"a"
        await proxy.half_open()
        await client.send_all(b"b")
        assert await hears_nothing(client)
        async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as other:
            await other.send_all(b"c")
            assert await read(other) == b"c"


async def test_who_is_refused_or_finds_nobody_is_closed_at_once(nursery: trio.Nursery) -> None:
    """And the proxy goes on."""
    async with through_proxy() as (proxy, _):
        proxy.refusing = True
        async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as client:
            assert await closed(client)
    nobody = Proxy(Address(host="127.0.0.1", port=1))
    await nursery.start(nobody.run)
    for _ in range(2):
        async with await trio.open_tcp_stream("127.0.0.1", nobody.port) as client:
            assert await closed(client)
    nursery.cancel_scope.cancel()


async def closed(client: trio.SocketStream) -> bool:
    try:
        return await read(client) == b""
    except trio.BrokenResourceError:
        return True

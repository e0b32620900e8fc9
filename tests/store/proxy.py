"""Bad company on a port: a proxy that mistreats its traffic, and servers of a few lines that are no Redis."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, final

import trio

from engine.address import Address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Send = Callable[[bytes], Awaitable[object]]

ROOMY = 1_000_000
"""Pieces that may be on their way at once: more than any test sends."""


@asynccontextmanager
async def listening(talk: Callable[[trio.SocketStream], Awaitable[object]]) -> AsyncIterator[Address]:
    """Serve every connection by ``talk``, for the block; gives where. A client that hangs up ends its talk."""

    async def serve(stream: trio.SocketStream) -> None:
        try:
            await talk(stream)
        except trio.BrokenResourceError:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield Address(host="127.0.0.1", port=listener.socket.getsockname()[1])
        nursery.cancel_scope.cancel()


class Talk(Protocol):
    """What listens to one connection at the server's end of it, and may keep, drop or hold what it hears."""

    async def request(self, data: bytes, send: Send) -> None:
        """Bytes of the client, about to reach the server: whatever is sent does."""

    async def reply(self, data: bytes, send: Send) -> None:
        """Bytes that the server has sent, about to leave for the client: whatever is sent does."""

    def ended(self) -> None:
        """The connection is closed."""


@final
class Silent:
    """Lets everything pass."""

    async def request(self, data: bytes, send: Send) -> None:
        await send(data)

    async def reply(self, data: bytes, send: Send) -> None:
        await send(data)

    def ended(self) -> None:
        pass


@final
@dataclass(slots=True)
class Way:
    """One direction of the traffic, for all connections of a proxy."""

    delay_s: Callable[[], float] = lambda: 0.0
    """How long each piece is on its way; pieces do not overtake each other."""

    black_hole: bool = False
    """Swallow everything, and say nothing: a cable that was pulled. Cut the connections when it is plugged in again."""

    _free: trio.Event | None = None

    def stall(self) -> None:
        """Let nothing arrive until ``go_on``; then all of it does: packets are sent again until they get through."""
        if self._free is None:
            self._free = trio.Event()

    def go_on(self) -> None:
        """What was stalled arrives."""
        if self._free is not None:
            self._free.set()
            self._free = None

    async def passed(self) -> None:
        """Returns at once unless stalled."""
        while self._free is not None:
            await self._free.wait()


@final
@dataclass(slots=True, eq=False)
class _Connection:
    client: trio.SocketStream
    server: trio.SocketStream
    half_open: bool = False


@final
@dataclass(slots=True)
class Proxy:
    """Between clients and a server, in this process."""

    target: Address
    chunk_bytes: Callable[[], int] = lambda: 65536
    """Size of each piece on its way to the client."""

    listener: Callable[[], Talk] = Silent
    """Makes what listens to a new connection."""

    to_server: Way = field(default_factory=Way)
    to_client: Way = field(default_factory=Way)
    refusing: bool = False
    """Close new connections at once."""

    port: int = 0
    _connections: list[_Connection] = field(default_factory=list)

    @property
    def address(self) -> Address:
        """Where clients should connect to."""
        return Address(host="127.0.0.1", port=self.port)

    @property
    def black_hole(self) -> bool:
        """Both directions swallow everything."""
        return self.to_server.black_hole and self.to_client.black_hole

    @black_hole.setter
    def black_hole(self, swallow: bool) -> None:
        self.to_server.black_hole = self.to_client.black_hole = swallow

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry connections until cancelled. A port that was given is kept."""
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
            self.port = listener.socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, self._carry, [listener])
            task_status.started()

    async def cut(self) -> None:
        """Close every connection there is."""
        for connection in self._connections:
            await trio.aclose_forcefully(connection.client)
            await trio.aclose_forcefully(connection.server)
        self._connections.clear()

    async def half_close(self, *, to_client: bool) -> None:
        """End one direction of every connection: one side reads the end of it, and what it sends still arrives."""
        for connection in self._connections:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
                await (connection.client if to_client else connection.server).send_eof()

    async def half_open(self) -> None:
        """The server has forgotten every connection there is, and the clients never hear of it; new ones are fine."""
        for connection in self._connections:
            connection.half_open = True
            await trio.aclose_forcefully(connection.server)

    async def _carry(self, client: trio.SocketStream) -> None:
        if self.refusing:
            await trio.aclose_forcefully(client)
            return
        try:
            server = await trio.open_tcp_stream(self.target.host, self.target.port)
        except OSError:  # nobody listens there now
            await trio.aclose_forcefully(client)
            return
        talk, connection = self.listener(), _Connection(client, server)
        self._connections.append(connection)
        try:
            async with client, server, trio.open_nursery() as nursery:
                nursery.start_soon(self._to_server, connection, talk, nursery.cancel_scope)
                nursery.start_soon(self._to_client, connection, talk, nursery.cancel_scope)
        finally:
            talk.ended()
            if connection in self._connections:
                self._connections.remove(connection)

    async def _to_server(self, connection: _Connection, talk: Talk, scope: trio.CancelScope) -> None:
        async def arrive(data: bytes) -> None:
            if not (self.to_server.black_hole or connection.half_open):
                await talk.request(data, connection.server.send_all)

        async with _line(self.to_server, arrive) as put:
            await _read(connection.client, lambda: 65536, put)
        scope.cancel()

    async def _to_client(self, connection: _Connection, talk: Talk, scope: trio.CancelScope) -> None:
        async def arrive(data: bytes) -> None:
            if not self.to_client.black_hole:
                await connection.client.send_all(data)

        async with _line(self.to_client, arrive) as put:
            await _read(connection.server, self.chunk_bytes, lambda data: talk.reply(data, put))
        if connection.half_open:
            await trio.sleep_forever()
        scope.cancel()


async def _read(source: trio.SocketStream, size: Callable[[], int], put: Send) -> None:
    try:
        while data := await source.receive_some(size()):
            await put(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


@asynccontextmanager
async def _line(way: Way, arrive: Send) -> AsyncIterator[Send]:
    """What is put in arrives later, in order; all of it does before the block is left, unless nobody is there."""
    put, take = trio.open_memory_channel[tuple[float, bytes]](ROOMY)

    async def carry() -> None:
        last_s = 0.0
        try:
            async for put_in_s, data in take:
                last_s = max(last_s, put_in_s + way.delay_s())
                await trio.sleep_until(last_s)
                await way.passed()
                await arrive(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            take.close()

    async def send(data: bytes) -> None:
        with suppress(trio.BrokenResourceError):
            await put.send((trio.current_time(), data))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(carry)
        with put:
            yield send

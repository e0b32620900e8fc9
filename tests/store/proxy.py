"""Bad company on a port: a proxy that mistreats its traffic, and servers of a few lines that are no Redis."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

import trio

from engine.address import Address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


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


@final
@dataclass(slots=True)
class Proxy:
    """Between a link and a server, in this process."""

    target: Address
    chunk_bytes: Callable[[], int] = lambda: 65536
    """Size of each piece on its way to the client."""

    black_hole: bool = False
    """Swallow everything in both directions, and say nothing: a cable that was pulled."""

    port: int = 0
    _streams: list[trio.SocketStream] = field(default_factory=list)

    @property
    def address(self) -> Address:
        """Where clients should connect to."""
        return Address(host="127.0.0.1", port=self.port)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry connections until cancelled."""
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            self.port = listener.socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, self._carry, [listener])
            task_status.started()

    async def cut(self) -> None:
        """Close every connection there is."""
        for stream in self._streams:
            await trio.aclose_forcefully(stream)
        self._streams.clear()

    async def _carry(self, client: trio.SocketStream) -> None:
        server = await trio.open_tcp_stream(self.target.host, self.target.port)
        self._streams += [client, server]
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(self._copy, client, server, lambda: 65536, nursery.cancel_scope)
            nursery.start_soon(self._copy, server, client, self.chunk_bytes, nursery.cancel_scope)

    async def _copy(
        self, source: trio.SocketStream, sink: trio.SocketStream, size: Callable[[], int], scope: trio.CancelScope
    ) -> None:
        try:
            while data := await source.receive_some(size()):
                if not self.black_hole:
                    await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()

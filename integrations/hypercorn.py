"""Serves the management API of a standalone engine with hypercorn, on the engine's own trio loop.

Connections are accepted here, and only their protocol is hypercorn's. Its own ``serve`` ends with the first connection
that fails, and waits without limit for a client that does not read: neither may happen to an engine.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import traceback
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, final

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from engine.errors import ApiRefused, ApiUnavailable
from engine.runtime import Actor, Child
from engine.runtime.failure import real_cause
from engine.runtime.fork import given_up_by_children
from engine.services import ApiAddress
from integrations.fastapi.standalone import make_app

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from engine.app import Engine

__all__ = ["management_api"]

log = logging.getLogger("fastapi.task-manager.api")

GRACE_S: Final = 1.0
"""How long requests in progress may go on when the API stops."""

SEND_S: Final = 30.0
"""How long a client may take to read what is sent to it at once: an answer, as a rule."""

RECEIVE_S: Final = 30
"""How long a client may send nothing while it is expected to."""

KEEP_ALIVE_S: Final = 5.0
"""How long a connection may be without a request."""

MOST_CONNECTIONS: Final = 100
"""Further ones are closed at once: clients must not use up the files that this process may open."""


@contextmanager
def management_api(engine: Engine, address: ApiAddress) -> Iterator[Child]:
    """The entry point ``api`` of ``troupe.services``: see ``engine.services.Service``.

    It listens for the whole block: while the actor restarts, clients wait, and nobody else gets the address.

    Raises:
        ApiRefused: this process may not have the address.
        ApiUnavailable: the address is taken, or not of this host.
    """
    app = make_app(engine)
    with _listening(address) as listening:
        yield Child("api", lambda: ApiServer(app, listening), shutdown_s=GRACE_S + 1.0)


@contextmanager
def _listening(address: ApiAddress) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if address.ip.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        given_up_by_children(listening)
        if os.name == "posix":  # elsewhere it would let two processes have one address
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            listening.bind((str(address.ip), address.port))
            listening.listen()
        except PermissionError as error:
            raise ApiRefused(str(address), "this user may not listen there; give a port above 1023") from error
        except OSError as error:
            raise ApiUnavailable(str(address), _why_not(error)) from error
        yield listening


def _why_not(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "another process listens there; stop that one, or give another port"
        case errno.EADDRNOTAVAIL:
            return "it is no address of this host; give one that is, or 0.0.0.0 or [::] for all of them"
        case number:
            return os.strerror(number) if number else str(error)


@final
class ApiServer(Actor[Any]):
    """Accepts connections and answers requests, in its nursery. A restart closes connections after their answers.

    Args:
        app: an ASGI application without a lifespan.
        listening: a socket that outlives this actor.
    """

    def __init__(self, app: Any, listening: socket.socket) -> None:
        self._app, self._listening = ASGIWrapper(app), listening
        self._config, self._stop = _settings(), WorkerContext(None)
        self._accepting = trio.CancelScope()
        self._ended = trio.Event()
        self._told_full = False

    async def started(self) -> None:
        """Accept from here on."""
        host, port = self._listening.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self.context.nursery.start_soon(self._serve)
        self.context.doing(url)
        log.info("The management API listens at %s", url)

    async def stopping(self) -> None:
        """Accept no more, and let requests in progress end, for ``GRACE_S`` at most."""
        self._accepting.cancel()
        await self._ended.wait()

    async def _serve(self) -> None:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._listening.dup()))
        given_up_by_children(listener.socket)
        async with trio.open_nursery() as connections:
            with self._accepting:
                attend = partial(self._attend, connections)
                await trio.serve_listeners(attend, [listener], handler_nursery=connections)
            await self._stop.terminated.set()
            connections.cancel_scope.deadline = trio.current_time() + GRACE_S
        self._ended.set()

    async def _attend(self, connections: trio.Nursery, stream: trio.SocketStream) -> None:
        """Speak with one client. Whatever comes of that ends at its connection."""
        if len(connections.child_tasks) > MOST_CONNECTIONS:
            if not self._told_full:
                self._told_full = True
                log.warning("More than %d connections to the management API: further ones are closed", MOST_CONNECTIONS)
            return
        given_up_by_children(stream.socket)
        state = ConnectionState({})
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_close_when_cancelled, stream)
                connection: Any = _Connection(stream)
                server = TCPServer(self._app, self._config, self._stop, state, connection)
                connection.at_end = server.idle_task.stop
                await server
                nursery.cancel_scope.cancel()
        except* Exception as failures:  # noqa: BLE001  # what a client sends must end no actor
            _tell(real_cause(failures))


def _tell(failure: Exception) -> None:
    """Where it was, and not what: hypercorn's errors hold requests, and those hold tokens."""
    place = traceback.extract_tb(failure.__traceback__)[-1]
    log.warning(
        "A connection to the management API failed: %s at %s:%s", type(failure).__name__, place.filename, place.lineno
    )


async def _close_when_cancelled(stream: trio.SocketStream) -> None:
    """Hypercorn shields what it sends from cancellation; that its socket closes ends it all the same."""
    try:
        await trio.sleep_forever()
    finally:
        stream.socket.close()


@final
class _Connection:
    """What hypercorn needs of a stream. A client that does not read loses it."""

    at_end: Callable[[], Awaitable[None]]
    """Ends hypercorn's wait for a further request, which it keeps up when there can be none."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream, self.socket = stream, stream.socket
        self.send_eof, self.aclose = stream.send_eof, stream.aclose

    async def receive_some(self, max_bytes: int) -> bytes:
        """Receive; nothing when the client has said all, or broke off."""
        try:
            data = await self._stream.receive_some(max_bytes)
        except trio.BrokenResourceError:
            data = b""
        if not data:
            await self.at_end()
        return bytes(data)

    async def send_all(self, data: bytes) -> None:
        """Send, within ``SEND_S``."""
        with trio.move_on_after(SEND_S) as limit:
            await self._stream.send_all(data)
        if limit.cancelled_caught:
            await self._stream.aclose()
            raise trio.BrokenResourceError("the client does not read")


def _settings() -> Config:
    config = Config()
    config.errorlog, config.accesslog = log, None  # a logger is taken as it is: no handler and no level is set
    config.keep_alive_timeout, config.read_timeout = KEEP_ALIVE_S, RECEIVE_S
    config.include_server_header = False
    return config

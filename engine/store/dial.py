"""Opening a connection to Redis: socket, TLS, login."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import hiredis
import trio

from engine.errors import RedisUnavailable, TroupeError
from engine.runtime.fork import given_up_by_children
from engine.store.replies import reply_error

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from engine.address import Address

_NO_ACL = "wrong number of arguments"  # what Redis 5 says to AUTH with a user name


class DialFailed(TroupeError):
    """One try to connect failed. ``reason`` names the step, and holds no password."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

    def __str__(self) -> str:
        return self.reason


async def open_stream(address: Address, context: ssl.SSLContext | None) -> trio.abc.Stream:
    """A byte stream to the server, verified if there is a ``context``. Bounded by no deadline of its own.

    Raises:
        DialFailed: no such host, nobody listens, or the certificate is not to be trusted.
    """
    try:
        if address.path:
            socket = await trio.open_unix_socket(address.path)
        else:
            socket = await trio.open_tcp_stream(address.host, address.port)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that no DNS can hold
        raise DialFailed(_why(error)) from error
    given_up_by_children(socket.socket)
    if context is None:
        return socket
    stream = trio.SSLStream(socket, context, server_hostname=address.host, https_compatible=True)
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError as error:
        await trio.aclose_forcefully(stream)
        raise DialFailed(f"TLS: {_why(error.__cause__ or error)}") from error
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


async def log_in(
    stream: trio.abc.Stream,
    address: Address,
    name: str,
    on_request: Callable[[int, int, int], None],
    greet: Callable[[Exchange], Awaitable[None]] | None = None,
) -> int:
    """Say who we are, choose the database and take a name. Returns the server's id for this connection.

    RESP2 and no HELLO, so that Redis 5 understands it. ``on_request`` is told requests, bytes out and bytes in.
    ``greet`` has the last word: it may ask, and refuse the connection.

    Raises:
        DialFailed: Redis refuses a step, is still loading, or hangs up.
    """
    exchange = Exchange(stream, on_request)
    await authenticate(exchange, address, address.username, address.password)
    steps: dict[str, tuple[Any, ...]] = {
        f"SELECT {address.db}": ("SELECT", address.db),
        "CLIENT SETNAME": ("CLIENT", "SETNAME", name),
        "PING": ("PING",),  # refused while loading, which the others are not
        "CLIENT ID": ("CLIENT", "ID"),
    }
    replies = await exchange.ask(*steps.values())
    for step, reply in zip(steps, replies, strict=True):
        expect(step, reply, address)
    if greet is not None:
        await greet(exchange)
    return int(replies[-1])


async def authenticate(exchange: Exchange, address: Address, username: str | None, password: str | None) -> None:
    """Show user and password, if there are any. ``address`` keeps them out of the error.

    Raises:
        DialFailed: they are refused.
    """
    if password is None:
        return
    user = (username,) if username else ()
    (reply,) = await exchange.ask(("AUTH", *user, password))
    if user and isinstance(reply, Exception) and _NO_ACL in str(reply):
        (reply,) = await exchange.ask(("AUTH", password))
    expect("AUTH", reply, address)


class Exchange:
    """Commands and their replies, in turn."""

    def __init__(self, stream: trio.abc.Stream, on_request: Callable[[int, int, int], None]) -> None:
        self._stream, self._on_request = stream, on_request
        self._pending = object()
        self._reader = hiredis.Reader(
            replyError=reply_error, encoding="utf-8", errors="backslashreplace", notEnoughData=self._pending
        )

    async def ask(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Send them together; their replies in order, error replies as exceptions.

        Raises:
            DialFailed: the connection broke or ended.
        """
        data = b"".join(hiredis.pack_command(command) for command in commands)
        replies: list[Any] = []
        received = 0
        try:
            await self._stream.send_all(data)
            while len(replies) < len(commands):
                reply = self._reader.gets()
                if reply is not self._pending:
                    replies.append(reply)
                    continue
                chunk = await self._stream.receive_some(4096)
                if not chunk:
                    raise DialFailed("the server closed the connection during the login")
                received += len(chunk)
                self._reader.feed(chunk)  # type: ignore[arg-type] # its stub forgets bytearray
        except trio.BrokenResourceError as error:
            raise DialFailed(f"the connection broke during the login: {_why(error.__cause__ or error)}") from error
        except hiredis.ProtocolError as error:
            raise DialFailed(f"this is no Redis: {error}") from error
        finally:
            self._on_request(len(commands), len(data), received)
        return replies


def expect(step: str, reply: object, address: Address) -> None:
    """Raise DialFailed, without a password, if the reply to that step is an error."""
    if isinstance(reply, Exception):
        said = reply.reason if isinstance(reply, RedisUnavailable) else str(reply)
        raise DialFailed(address.redact(f"{step}: {said}")[:500]) from reply


def _why(error: BaseException) -> str:
    """The text of an error, or of what caused it: trio's "all attempts failed" hides the reasons in a group."""
    cause = error.__cause__
    if isinstance(cause, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(str(each) for each in cause.exceptions))
    return str(cause or error) or type(error).__name__

"""redis-py's command layer over a request function of ours, so that it runs under trio.

redis-py has no trio client. Its asyncio client keeps the event loop out of everything but the connection pool, so
this subclass replaces what uses the pool and keeps the commands, their signatures and the shaping of replies.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Final, NamedTuple, NoReturn, Self, final

from redis.asyncio import ConnectionPool, Redis
from redis.client import EMPTY_RESPONSE, NEVER_DECODE

from engine.errors import CommandRefused

Request = Callable[[tuple[Any, ...], float], Awaitable[Any]]
"""Sends a command and returns its reply, undigested; the second argument is how long Redis is told to block, in s."""

_SHARED = "many callers share this connection, and it would change it under all of them"
_SUBSCRIBES = "it ends the one-reply-for-one-command order; read a stream instead"
_BLOCKS = "it would hold up every command behind it; use a stream and XREAD"

REFUSED: Final[Mapping[str, str]] = MappingProxyType(
    dict.fromkeys(("SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "MONITOR", "SYNC", "PSYNC"), _SUBSCRIBES)
    | dict.fromkeys(("AUTH", "HELLO", "SELECT", "QUIT", "RESET", "CLIENT REPLY", "ASKING", "READONLY"), _SHARED)
    | dict.fromkeys(("MULTI", "EXEC", "DISCARD", "WATCH", "UNWATCH"), f"{_SHARED}; write a Lua script instead")
    | dict.fromkeys(("BLPOP", "BRPOP", "BRPOPLPUSH", "BLMOVE", "BLMPOP"), _BLOCKS)
    | dict.fromkeys(("BZPOPMIN", "BZPOPMAX", "BZMPOP", "WAIT", "WAITAOF"), _BLOCKS)
)
"""Commands that a shared, pipelined connection cannot carry, and why."""


class _Known(NamedTuple):
    """What to do with a command, worked out when its name is first used."""

    words: tuple[str, ...]
    """Its name as Redis wants it, if that differs from the first argument: ``XGROUP CREATE`` is two words."""

    callback: Callable[..., Any] | None
    reads_stream: int
    """Position of the first option if it is a command with a BLOCK option; 0 for all others."""


@final
class Client(Redis):
    """A redis-py client whose commands run under trio. Holds no connection of its own: closing it does nothing.

    Replies are shaped by redis-py (RESP2) and decoded as UTF-8. Each command raises what `engine.store.transport.
    Transport` says, or a `redis.exceptions.ResponseError` when Redis refuses the command itself.

    Raises:
        CommandRefused: a command, or a method of redis-py, that cannot work on a shared connection.
    """

    def __init__(self, request: Request, *, may_block: bool) -> None:
        super().__init__(connection_pool=_unused_pool())
        self._request = request
        self._may_block = may_block
        self._known: dict[object, _Known] = {}

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command; the first argument is its name. Cancelled: it may be done all the same."""
        known = self._known.get(args[0]) or self._learn(args[0])
        block_s = block_of_s(args, known.reads_stream) if known.reads_stream else 0.0
        if block_s and not self._may_block:
            raise CommandRefused(known.words[0] if known.words else str(args[0]), "use the lane made for it")
        if known.words:
            args = known.words + args[1:]
        if options:
            if NEVER_DECODE in options:
                raise CommandRefused(
                    str(args[0]), "every reply is decoded as text; fetch bytes with a client of your own"
                )
            options.pop("keys", None)  # for redis-py's cache, which is not used
            options.pop(EMPTY_RESPONSE, None)  # for a blocking pop, which is refused
        reply = await self._request(args, block_s)
        return reply if known.callback is None else known.callback(reply, **options)

    def _learn(self, name: str | bytes) -> _Known:
        text = name.decode() if isinstance(name, bytes) else name
        words = tuple(text.split())
        canonical = " ".join(words).upper()
        for refused in (canonical, canonical.partition(" ")[0]):
            if refused in REFUSED:
                raise CommandRefused(refused, REFUSED[refused])
        known = self._known[name] = _Known(
            words=words if len(words) > 1 else (),
            callback=self.response_callbacks.get(canonical),
            reads_stream={"XREAD": 1, "XREADGROUP": 4}.get(canonical, 0),
        )
        return known

    def set_response_callback(self, command: str, callback: Any) -> None:
        """As in redis-py. The callback must be a plain function."""
        super().set_response_callback(command, callback)
        self._known.clear()

    async def aclose(self, close_connection_pool: bool | None = None) -> None:  # noqa: FBT001 - redis-py's signature
        """Do nothing: connections belong to the transport, and end with its `run`."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        return None

    def pipeline(self, *_args: Any, **_options: Any) -> NoReturn:
        """Refused: concurrent commands share one write by themselves."""
        raise CommandRefused(
            "pipeline()", "start the commands in a nursery, they share one write; or write a Lua script"
        )

    def transaction(self, *_args: Any, **_options: Any) -> NoReturn:
        """Refused: a transaction needs a connection for itself."""
        raise CommandRefused("transaction()", "write a Lua script")

    def lock(self, *_args: Any, **_options: Any) -> NoReturn:
        """Refused: it sleeps in asyncio, and it fences nothing."""
        raise CommandRefused("lock()", "use a lease with a fence, in a Lua script")

    def pubsub(self, *_args: Any, **_options: Any) -> NoReturn:
        """Refused: a subscriber's connection answers no commands."""
        raise CommandRefused("pubsub()", "read a stream with XREAD")

    def keyspace_notifications(self, *_args: Any, **_options: Any) -> NoReturn:
        """Refused, as `pubsub` is."""
        raise CommandRefused("keyspace_notifications()", "read a stream with XREAD")

    def monitor(self) -> NoReturn:
        """Refused: a monitoring connection answers no commands."""
        raise CommandRefused("monitor()", "run redis-cli monitor")

    def client(self) -> NoReturn:
        """Refused: there is one connection to a lane."""
        raise CommandRefused("client()", "use this client from as many tasks as you like")


@cache
def _unused_pool() -> ConnectionPool:
    """redis-py reads off its pool how replies are shaped, and making one for each client costs it milliseconds."""
    return ConnectionPool(decode_responses=True, protocol=2)


def block_of_s(args: tuple[Any, ...], first: int) -> float:
    """How long an XREAD or XREADGROUP asks Redis to block, in seconds; 0 if it does not.

    Args:
        args: the command with its name.
        first: where its options begin, behind names that could be called BLOCK themselves.

    Raises:
        CommandRefused: it would block for ever, so that a dead connection would not be noticed.
    """
    for position in range(first, len(args) - 1):
        word = args[position]
        name = (word.decode() if isinstance(word, bytes) else str(word)).upper()
        if name == "STREAMS":
            break
        if name == "BLOCK":
            block_ms = int(args[position + 1])
            if block_ms <= 0:
                raise CommandRefused("BLOCK 0", "it blocks for ever; give milliseconds, and repeat")
            return block_ms / 1000
    return 0.0

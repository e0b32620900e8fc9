"""What Redis's error replies mean to us: the one table at the edge."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import MappingProxyType
from typing import Final, final

from redis.asyncio.connection import DefaultParser
from redis.exceptions import AuthenticationError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as RefusedConnection

from engine.errors import RedisUnavailable

RECOVERING: Final = "RECOVERING"
"""What scripts of ours answer while Redis is told what it forgot: no refusal of Redis, and over within a lease."""

UNAVAILABLE: Final = MappingProxyType(
    {
        "LOADING": "it is loading its data",
        "READONLY": "it is a read-only replica",
        "MOVED": "another node of the cluster has this key",
        "ASK": "this key is being moved to another node of the cluster",
        "TRYAGAIN": "these keys are being moved to another node of the cluster",
        "UNBLOCKED": "the stream that was waited for has gone, or has moved to another node of the cluster",
        "CLUSTERDOWN": "its cluster is down",
        "MASTERDOWN": "it is a replica that lost its master",
        "NOREPLICAS": "too few replicas follow it for it to accept writes",
        "MISCONF": "it cannot save its data and refuses writes",
        "BUSY": "a script keeps it busy",
        RECOVERING: "it lost data or was restarted, and its workers tell it what it forgot",
        "NOAUTH": "it wants a password",
        "OOM": "its memory is full: raise maxmemory or free some, and keep maxmemory-policy noeviction",
    }
)
"""Error codes that mean "not now", whatever the command was. All other codes are about the command."""

DROPS_CONNECTION: Final = (ReadOnlyError, AuthenticationError)
"""Causes after which this connection is of no more use: another server, or a new login, is wanted."""

QUIET_S: Final = 10.0
"""Without a refusal for so long, Redis refuses no more. Whoever waits tries again much sooner."""

# Before 7.0, Redis wraps the error of a redis.call inside a script and puts its own in front.
_IN_SCRIPT = re.compile(
    r"ERR Error running script \(call to f_[0-9a-f]{40}\): (?:@user_script: ?\d+: )+-?(?P<error>[A-Z]+ .*)", re.DOTALL
)

# From 7.0 on, it says behind the error which script that was, and where.
_PLACE = re.compile(r",? script: [0-9a-f]{40}, on @user_script:\d+\.$")


def unwrap(text: str) -> str:
    """An error reply as Redis 7 words it: the error of a script's command itself, not that the script failed."""
    inside = _IN_SCRIPT.match(text)
    return inside["error"] if inside else text


def reply_error(text: str) -> RedisError | RedisUnavailable:
    """The exception that an error reply stands for: `RedisUnavailable`, or redis-py's own class for it."""
    text = unwrap(text)
    cause: RedisError = DefaultParser.parse_error(text)  # type: ignore[no-untyped-call] # it has no annotations
    meaning = UNAVAILABLE.get(text.partition(" ")[0])
    if meaning is None and not isinstance(cause, RefusedConnection):
        return cause
    if meaning is not None:
        text = f"{meaning} ({_PLACE.sub('', text)})"
    error = RedisUnavailable(text)
    error.__cause__ = cause
    return error


def failure_in(reply: object, errors: Sequence[Exception]) -> Exception | None:
    """What to raise for a reply in which ``errors`` were found, in order; None if the reply is to be returned.

    Error replies inside an array stay values in it, as redis-py has it, unless one of them says that Redis is
    unavailable: half an answer is none.
    """
    if isinstance(reply, Exception):
        return reply
    return next((error for error in errors if isinstance(error, RedisUnavailable)), None)


@final
class Refusals:
    """A connection that is up while Redis refuses what comes over it: a state, told when it begins and when it ends.

    Only silence shows its end, since a full Redis, say, refuses what grows and answers all else.
    """

    def __init__(self) -> None:
        self._last_s: float | None = None
        self._meanings: set[str] = set()
        self.reason: str | None = None
        """Why it refused the last one, until that has ended."""

    def began(self, now_s: float, reason: str) -> bool:
        """Redis has refused a command; True if it has not done so before for this reason, since it began to refuse."""
        meaning = reason.partition(" (")[0]
        new = meaning not in self._meanings
        self._meanings.add(meaning)
        self._last_s, self.reason = now_s, reason
        return new

    def ended(self, now_s: float) -> bool:
        """True, once, when Redis has refused nothing for a while after it had."""
        if self._last_s is None or now_s - self._last_s < QUIET_S:
            return False
        self._last_s = self.reason = None
        self._meanings.clear()
        return True

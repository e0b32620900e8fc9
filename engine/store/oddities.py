"""What is found in Redis that Troupe did not write: the log hears of each thing once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, final

import trio
from redis.exceptions import ResponseError

from engine.errors import KeyMalformed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from engine.store.keys import Keys

__all__ = ["LONGEST_MS", "Oddities", "instant_ms", "is_number", "shown"]

log = logging.getLogger("fastapi.task-manager.store")

MOST: Final = 1_000
"""Things that are remembered, so that each is told once. Of more, only that there are more."""

STANDS_S: Final = 10.0
"""A broken key that was met so lately is taken to be there still: whoever needs it tries much more often."""

LONGEST_MS: Final = 2**53
"""The largest instant that a sorted set holds exactly."""

_CODES: Final = ("WRONGTYPE", "MALFORMED")
"""Refusals that are about what a key holds. The second is what our scripts say of a string that is no number."""


MANY_DIGITS: Final = 16
"""No number of Troupe's has so many, and Lua would not count on from one that has."""


def is_number(text: str) -> bool:
    """Is it a whole number, as Troupe writes it?"""
    return text.isascii() and text.isdigit() and len(text) < MANY_DIGITS


def instant_ms(score: float) -> int | None:
    """An instant as Troupe writes it into a sorted set, Redis ms; None for any other number."""
    return int(score) if 0 <= score <= LONGEST_MS and score == int(score) else None


@final
class Oddities:
    """What one process has met. Whoever may write to Redis may write anything: none of it is a reason to crash."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()
        self._broken: tuple[KeyMalformed, float] | None = None

    def tell(self, key: str, name: str, what: str) -> None:
        """Warn of something in a key, once: ``name`` says which, ``what`` says what becomes of it."""
        if self._is_news(key, name):
            log.warning("%s holds something that Troupe did not write, %s: %s", key, what, shown(name))

    def broken(self) -> KeyMalformed | None:
        """The key that somebody waits for now, if there is one."""
        if self._broken is None or trio.current_time() - self._broken[1] > STANDS_S:
            return None
        return self._broken[0]

    async def refused(
        self, error: ResponseError, named: Sequence[object], keys: Keys, ask: Callable[..., Awaitable[object]]
    ) -> KeyMalformed | None:
        """What to raise for a refusal that is about what a key holds; None: it is about something else."""
        text = str(error)
        code = next((code for code in _CODES if code in text), None)
        if code is None:
            return None
        if code == "MALFORMED":
            key, _, found = text.partition("MALFORMED ")[2].partition(" ")
            malformed = KeyMalformed(key, found)
        else:
            malformed = await _wrong_type([name for name in named if isinstance(name, str)], keys, ask)
        return self.malformed(malformed, keys)

    def malformed(self, error: KeyMalformed, keys: Keys) -> KeyMalformed:
        """Note a key that cannot be used, and tell of it once; ``error`` itself."""
        if keys.is_shared(error.key):
            self._broken = error, trio.current_time()
        if self._is_news(error.key, "malformed"):  # a script and this process may word it differently
            log.error("%s. What needs it waits", error)
        return error

    def _is_news(self, key: str, name: str) -> bool:
        thing = key, name[:500]
        if thing in self._told or len(self._told) > MOST:
            return False
        self._told.add(thing)
        if len(self._told) > MOST:
            log.warning("There are more things in Redis that Troupe did not write; this process says no more of them")
            return False
        return True


async def _wrong_type(named: Sequence[str], keys: Keys, ask: Callable[..., Awaitable[object]]) -> KeyMalformed:
    """Find the key of another type among those that a command named."""
    ours = [name for name in dict.fromkeys(named) if keys.kind(name) is not None]
    for key in ours:
        try:
            kind = await ask("TYPE", key)
        except ResponseError:  # this user may not ask
            return KeyMalformed(", ".join(ours[:20]), "(one of them) has another type than Troupe gave it")
        if kind not in ("none", keys.kind(key)):
            return KeyMalformed(key, f"is of type {kind}, where Troupe keeps a {keys.kind(key)}")
    return KeyMalformed(", ".join(ours[:20]), "(one of them) had another type than Troupe gave it")


def shown(text: str) -> str:
    """A text of unknown origin, for people."""
    return repr(text if len(text) <= 200 else f"{text[:200]}…")

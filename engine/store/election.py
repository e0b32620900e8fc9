"""Who leads: one holder of the current epoch, by lease."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from engine.store.keys import SCHEMA
from engine.store.oddities import LONGEST_MS
from engine.store.script import Script

if TYPE_CHECKING:
    from engine.store.session import Session

__all__ = ["Elected", "ElectionStore", "Held", "Lost", "OtherHistory", "Renewed"]

_ELECT = Script.load("elect")
_RENEW = Script.load("renew")
_RESIGN = Script.load("resign")


@final
@dataclass(frozen=True, slots=True)
class Elected:
    """This candidacy leads. ``value`` (``worker:epoch:nonce``) is what every leader's write must show."""

    value: str
    redis_ms: int

    @property
    def epoch(self) -> int:
        """Grows with every new leader."""
        return int(self.value.rsplit(":", 2)[1])


@final
@dataclass(frozen=True, slots=True)
class Held:
    """Another worker leads; its lease has ``left_ms`` left unless it renews."""

    worker: str
    left_ms: int


@final
@dataclass(frozen=True, slots=True)
class OtherHistory:
    """Redis goes on with another history (empty: with none) than the one that knows what this worker remembers."""

    id: str


@final
@dataclass(frozen=True, slots=True)
class Renewed:
    """The lease was extended. ``minimum_ms`` is the first instant in ``due``, None when nothing is due ever."""

    redis_ms: int
    minimum_ms: int | None
    version: int

    beyond: bool = False
    """Something in ``due`` is due at no instant at all: Troupe did not write it."""


@final
@dataclass(frozen=True, slots=True)
class Lost:
    """The lease ended, or another worker (None: nobody) leads."""

    worker: str | None


@final
@dataclass(frozen=True, slots=True)
class ElectionStore:
    """Elect, renew, resign. Each may raise RedisUnavailable: repeat it with the same arguments."""

    session: Session

    async def elect(
        self, worker: str, nonce: str, *, lease_ms: int, history: str = ""
    ) -> Elected | Held | OtherHistory:
        """Lead if nobody does. One nonce for each candidacy, so that a lost reply can be asked for again.

        ``history`` is the one that this worker has told all that it remembers: nobody leads in another one.
        """
        keys = self.session.keys
        names = [keys.leader, keys.epoch, keys.meta, keys.generation, keys.once(f"{worker}:{nonce}")]
        reply = await self.session.call(_ELECT, names, worker, nonce, lease_ms, SCHEMA, history)
        if reply[0] == "led":
            return Elected(value=reply[1], redis_ms=reply[2])
        if reply[0] == "other":
            return OtherHistory(reply[1])
        return Held(worker=_worker(reply[1]), left_ms=max(0, reply[2]))

    async def renew(self, value: str, *, lease_ms: int) -> Renewed | Lost:
        """Extend the lease of this candidacy; never take one."""
        keys = self.session.keys
        reply = await self.session.call(_RENEW, [keys.leader, keys.due, keys.version], value, lease_ms)
        if reply[0] == "lost":
            return Lost(worker=(_worker(reply[1]) or None) if reply[1] else None)
        return Renewed(
            redis_ms=reply[1],
            minimum_ms=int(max(0.0, min(float(reply[2]), LONGEST_MS))) if reply[2] else None,
            version=int(reply[3]),
            beyond=bool(reply[4]) and float(reply[4]) > LONGEST_MS,
        )

    async def resign(self, value: str) -> bool:
        """Stop leading and tell the followers. False: it led no longer.

        A candidacy whose answer was lost resigns with what it knows, ``worker::nonce``: it leads neither now nor later.
        """
        keys = self.session.keys
        worker, _, nonce = value.rsplit(":", 2)
        names = [keys.leader, keys.events, keys.once(f"{worker}:{nonce}")]
        return bool(await self.session.call(_RESIGN, names, value))

    async def leader(self) -> str | None:
        """The worker that leads, None when nobody does."""
        value = await self.session.query("GET", self.session.keys.leader)
        return (_worker(value) or None) if value else None


def _worker(value: str) -> str:
    return value.rsplit(":", 2)[0]

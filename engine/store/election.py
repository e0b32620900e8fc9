"""Who leads: one holder of the current epoch, by lease."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from engine.store.keys import SCHEMA
from engine.store.script import Script

if TYPE_CHECKING:
    from engine.store.session import Session

__all__ = ["Elected", "ElectionStore", "Held", "Lost", "Renewed"]

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
class Renewed:
    """The lease was extended. ``minimum_ms`` is the first instant in ``due``, None when nothing is due ever."""

    redis_ms: int
    minimum_ms: int | None
    version: int


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

    async def elect(self, worker: str, nonce: str, *, lease_ms: int) -> Elected | Held:
        """Lead if nobody does. One nonce for each candidacy, so that a lost reply can be asked for again."""
        keys = self.session.keys
        names = [keys.leader, keys.epoch, keys.meta]
        reply = await self.session.call(_ELECT, names, worker, nonce, lease_ms, SCHEMA)
        if reply[0] == "led":
            return Elected(value=reply[1], redis_ms=reply[2])
        return Held(worker=_worker(reply[1]), left_ms=max(0, reply[2]))

    async def renew(self, value: str, *, lease_ms: int) -> Renewed | Lost:
        """Extend the lease of this candidacy; never take one."""
        keys = self.session.keys
        reply = await self.session.call(_RENEW, [keys.leader, keys.due, keys.version], value, lease_ms)
        if reply[0] == "lost":
            return Lost(worker=_worker(reply[1]) if reply[1] else None)
        return Renewed(
            redis_ms=reply[1],
            minimum_ms=int(float(reply[2])) if reply[2] else None,
            version=int(reply[3]),
        )

    async def resign(self, value: str) -> bool:
        """Stop leading and tell the followers. False: it led no longer."""
        keys = self.session.keys
        return bool(await self.session.call(_RESIGN, [keys.leader, keys.events], value))

    async def leader(self) -> str | None:
        """The worker that leads, None when nobody does."""
        value = await self.session.query("GET", self.session.keys.leader)
        return _worker(value) if value else None


def _worker(value: str) -> str:
    return value.rsplit(":", 2)[0]

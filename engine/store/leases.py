"""Who is there and which runs are in progress: leases, presence, and taking over from workers that are lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, final

from engine.store.keys import CONSUMER_GROUP, PRIORITIES
from engine.store.presence import Account
from engine.store.runs import Entry
from engine.store.script import MAX_ITEMS, Script, WrongReply
from engine.store.session import Broken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.store.session import Session

__all__ = ["Beat", "Lease", "LeaseStore", "PendingEntry", "Presence", "Reclaimed"]

_BEAT = Script.load("beat")
_RECLAIM = Script.load("reclaim")
_BURY = Script.load("bury")


@final
@dataclass(frozen=True, slots=True)
class Lease:
    """A run in progress: under which fence, and until when by Redis time unless it is renewed."""

    run_id: str
    fence: int
    expiry_ms: int

    @property
    def member(self) -> str:
        """As it stands in ``leases``."""
        return f"{self.run_id}#{self.fence}"


@final
@dataclass(frozen=True, slots=True)
class Beat:
    """The answer to a beat."""

    redis_ms: int
    version: int
    """Of the catalog and the pauses; another one than before: read them again."""

    lost: frozenset[tuple[str, int]]
    """Runs and fences that are not this worker's any longer."""

    stop: frozenset[tuple[str, int]]
    """Runs and fences that somebody has asked to stop."""


@final
@dataclass(frozen=True, slots=True)
class Reclaimed:
    """A lease that was taken: the run is queued again, or dead, or just ended (its verdict stood already)."""

    outcome: Literal["queued", "dead", "ended"]
    worker: str


@final
@dataclass(frozen=True, slots=True)
class PendingEntry:
    """An entry that a worker has read and nobody has acknowledged, for ``idle_ms``."""

    entry: Entry
    worker: str
    idle_ms: int


@final
@dataclass(frozen=True, slots=True)
class Presence:
    """What a worker says of itself (JSON, see `Account`), and when it said so last (Redis ms)."""

    worker: str
    draining: bool
    details: str
    seen_ms: int

    @property
    def digest(self) -> str:
        """What it declares; empty if it does not say."""
        return self.account().digest

    @property
    def name(self) -> str:
        """Its name for people."""
        return self.account().worker_id or self.worker

    @property
    def started_ms(self) -> int:
        """When it started, by its own clock; 0 if it does not say."""
        return self.account().started_ms

    def account(self) -> Account:
        """The details, as far as this version understands them."""
        return Account.from_json(self.details)


ReclaimReply: TypeAlias = Reclaimed | Broken | None


@final
@dataclass(frozen=True, slots=True)
class LeaseStore:
    """Operations on leases and presence. All raise RedisUnavailable and can be repeated."""

    session: Session

    async def beat(
        self, worker: str, held: Sequence[tuple[str, int]], *, lease_ms: int, details: str, draining: bool
    ) -> Beat:
        """Renew every lease that this worker holds, and its presence. Revives nothing that was lost."""
        keys = self.session.keys
        names = [keys.leases, keys.cancel, keys.workers, keys.workers_seen, keys.version]
        presence = f"{'D' if draining else '-'}|{details}"
        lost: set[tuple[str, int]] = set()
        stop: set[tuple[str, int]] = set()
        redis_ms = version = 0
        for start in range(0, max(1, len(held)), MAX_ITEMS):
            members = [f"{run_id}#{fence}" for run_id, fence in held[start : start + MAX_ITEMS]]
            reply = await self.session.call(_BEAT, names, worker, presence, lease_ms, *members)
            redis_ms, version = int(reply[0]), int(reply[1])
            lost.update(_member(member) for member in reply[2])
            stop.update(_member(member) for member in reply[3])
        return Beat(redis_ms=redis_ms, version=version, lost=frozenset(lost), stop=frozenset(stop))

    async def expiring(self, until_ms: int, *, page: int = 500) -> list[Lease]:
        """Leases that end before ``until_ms``, the first to end first; at most a page."""
        raw = await self.session.query(
            "ZRANGEBYSCORE",
            self.session.keys.leases,
            "-inf",
            until_ms,
            "WITHSCORES",
            "LIMIT",
            0,
            page,
            withscores=True,
        )
        return [Lease(*_member(member), expiry_ms=int(score)) for member, score in raw]

    async def reclaim(
        self, leader: str, leases: Sequence[Lease], *, max_deliveries: int, story: str
    ) -> list[ReclaimReply]:
        """Take the runs of lost leases: queued again, or dead. None: it was renewed, or is gone.

        Raises:
            Deposed: ``leader`` does not lead.
        """
        items = [(lease.run_id, (lease.run_id, lease.fence, lease.expiry_ms, story)) for lease in leases]
        raw = await self.session.on_runs(_RECLAIM, (leader, max_deliveries), items, tail=(self.session.keys.workers,))
        return [_reclaim_reply(reply) for reply in raw]

    async def pending(self, *, min_idle_ms: int, page: int = 500) -> list[PendingEntry]:
        """Entries read at least ``min_idle_ms`` ago that nobody has acknowledged, by cursor over all of them."""
        keys = self.session.keys
        found: list[PendingEntry] = []
        for priority in PRIORITIES:
            start, stream = "-", keys.stream(priority)
            while True:
                raw = await self.session.query("XPENDING", stream, CONSUMER_GROUP, start, "+", page, parse_detail=True)
                for item in raw:
                    if item["time_since_delivered"] >= min_idle_ms:
                        entry = Entry(run_id="", entry_id=item["message_id"], priority=priority)
                        found.append(PendingEntry(entry, item["consumer"], item["time_since_delivered"]))
                if len(raw) < page:
                    break
                start = _after(raw[-1]["message_id"])
        return [await self._named(item) for item in found]

    async def _named(self, item: PendingEntry) -> PendingEntry:
        """With the run that the entry names; an entry that was deleted names none."""
        keys, entry = self.session.keys, item.entry
        stream = keys.stream(entry.priority)
        raw = await self.session.query("XRANGE", stream, entry.entry_id, entry.entry_id)
        run_id = raw[0][1]["run"] if raw else "@"
        return PendingEntry(Entry(run_id, entry.entry_id, entry.priority), item.worker, item.idle_ms)

    async def workers(self) -> list[Presence]:
        """Every worker that is present, the last seen first."""
        query, keys = self.session.query, self.session.keys
        seen = dict(await query("ZREVRANGE", keys.workers_seen, 0, -1, "WITHSCORES", withscores=True))
        said = await query("HGETALL", keys.workers)
        return [
            Presence(worker=worker, draining=text[0] == "D", details=text[2:], seen_ms=int(seen[worker]))
            for worker in seen
            if (text := said.get(worker))
        ]

    async def bury(self, worker: str, *, seen_ms: int) -> str:
        """Forget a worker that is gone: ``buried``, or why not yet (``alive``, ``pending``, ``leased``)."""
        keys = self.session.keys
        names = [keys.stream_high, keys.stream_low, keys.workers, keys.workers_seen, keys.leases, keys.runs]
        return str(await self.session.call(_BURY, names, worker, seen_ms))

    async def redis_ms(self) -> int:
        """Redis's own time."""
        seconds, microseconds = await self.session.query("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000


def _member(member: str) -> tuple[str, int]:
    run_id, _, fence = member.rpartition("#")
    return run_id, int(fence)


def _after(entry_id: str) -> str:
    milliseconds, _, sequence = entry_id.partition("-")
    return f"{milliseconds}-{int(sequence) + 1}"


def _reclaim_reply(raw: Any) -> ReclaimReply:
    match raw:
        case ["queued", worker]:
            return Reclaimed("queued", worker)
        case ["dead", worker]:
            return Reclaimed("dead", worker)
        case "ended":
            return Reclaimed("ended", "")
        case "renewed" | "gone":
            return None
        case ["broken", why]:
            return Broken(why)
        case _:
            raise WrongReply(raw)

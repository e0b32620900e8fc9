"""Who is there and which runs are in progress: leases, presence, and taking over from workers that are lost."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, final

from engine.store.keys import CONSUMER_GROUP, PRIORITIES
from engine.store.presence import Account
from engine.store.runs import Entry
from engine.store.script import MAX_ITEMS, Script, WrongReply
from engine.store.session import Broken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.store.session import Session

__all__ = ["DEAD_LENGTH", "Beat", "Lease", "LeaseStore", "Pending", "PendingEntry", "Presence", "Reclaimed"]

log = logging.getLogger("fastapi.task-manager.reconciler")

_BEAT = Script.load("beat")
_RECLAIM = Script.load("reclaim")
_BURY = Script.load("bury")

DEAD_LENGTH = 10_000
"""As many dead runs are kept, about; then the oldest go (``bury_run`` of ``lib.lua``)."""


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
class Pending:
    """What the consumer groups wait for."""

    entries: tuple[PendingEntry, ...]
    """Those of runs in progress are among them: they are acknowledged when their runs end."""

    deleted: tuple[tuple[str, str], ...]
    """Priority and id of entries that somebody deleted from their stream: nothing says which runs they named."""


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

    async def expiring(self, until_ms: int, *, page: int = 500, most: int = 50_000) -> list[Lease]:
        """Leases that end before ``until_ms``, the first to end first, read page by page; about ``most`` of them."""
        found: dict[str, Lease] = {}
        start_ms: int | str = "-inf"
        seen_there = 0  # of the leases that end at start_ms; a beat gives all leases of its worker one end
        while len(found) < most:
            raw = await self.session.query(
                "ZRANGEBYSCORE",
                self.session.keys.leases,
                start_ms,
                until_ms,
                "WITHSCORES",
                "LIMIT",
                seen_there,
                page,
                withscores=True,
            )
            for member, score in raw:
                if _is_ours(member):
                    found[member] = Lease(*_member(member), expiry_ms=int(score))
                else:
                    _warn_of(member)
            if len(raw) < page:
                break
            last_ms = int(raw[-1][1])
            there = sum(int(score) == last_ms for _, score in raw)
            seen_there = seen_there + there if last_ms == start_ms else there
            start_ms = last_ms
        return list(found.values())

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

    async def pending(self, *, min_idle_ms: int, page: int = 500) -> Pending:
        """Entries read at least ``min_idle_ms`` ago that nobody has acknowledged, by cursor over all of them."""
        keys = self.session.keys
        entries: list[PendingEntry] = []
        deleted: list[tuple[str, str]] = []
        for priority in PRIORITIES:
            start, stream = "-", keys.stream(priority)
            while True:
                raw = await self.session.query("XPENDING", stream, CONSUMER_GROUP, start, "+", page, parse_detail=True)
                idle = [item for item in raw if item["time_since_delivered"] >= min_idle_ms]
                names = await self._names(stream, [item["message_id"] for item in idle])
                for item in idle:
                    entry_id = item["message_id"]
                    if entry_id in names:
                        entry = Entry(names[entry_id], entry_id, priority)
                        entries.append(PendingEntry(entry, item["consumer"], item["time_since_delivered"]))
                    else:
                        deleted.append((priority, entry_id))
                if len(raw) < page:
                    break
                start = _after(raw[-1]["message_id"])
        return Pending(tuple(entries), tuple(deleted))

    async def _names(self, stream: str, entry_ids: Sequence[str]) -> dict[str, str]:
        """The runs that entries of a page of the pending list name, by id; those between them are pending too."""
        if not entry_ids:
            return {}
        raw = await self.session.query("XRANGE", stream, entry_ids[0], entry_ids[-1])
        return {entry_id: fields["run"] for entry_id, fields in raw}

    async def acknowledge_deleted(self, deleted: Sequence[tuple[str, str]]) -> None:
        """Have the groups wait no longer for entries that are not there. Those of runs go by ``release``."""
        redis, keys = self.session.transport.commands, self.session.keys
        for priority, entry_id in deleted:
            await redis.xack(keys.stream(priority), CONSUMER_GROUP, entry_id)

    async def dead(self) -> int:
        """How many runs were given up on and wait for somebody's decision."""
        return int(await self.session.query("XLEN", self.session.keys.dead))

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


def _is_ours(member: str) -> bool:
    _, _, fence = member.rpartition("#")
    return fence.isascii() and fence.isdigit()


@lru_cache(maxsize=100)
def _warn_of(member: str) -> None:
    """Once in a process."""
    log.warning("There is something among the leases that is none, and is passed over: %.200r", member)


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

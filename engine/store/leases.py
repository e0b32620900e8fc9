"""Who is there and which runs are in progress: leases, presence, and taking over from workers that are lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, final

from engine.domain.names import is_run_id
from engine.store.keys import CONSUMER_GROUP, PRIORITIES
from engine.store.oddities import instant_ms
from engine.store.presence import Account
from engine.store.runs import Entry, entries_of
from engine.store.script import MAX_ITEMS, Script, WrongReply
from engine.store.session import Broken
from engine.store.tidying import tidy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.store.session import Session

__all__ = ["DEAD_LENGTH", "Beat", "Lease", "LeaseStore", "Pending", "PendingEntry", "Presence", "Reclaimed"]

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

    history: str
    """With which Redis goes on. With another one than was shown the beat renewed nothing."""

    roster: int
    """Another number than before: a worker came or went."""

    beats: int
    """How many were acknowledged so far, to any worker. Redis has lost something if it knows of fewer."""

    passed_ms: int
    """The latest slot that any task was moved past, which the clock of Redis may be behind of; 0: none."""


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
        self,
        worker: str,
        held: Sequence[tuple[str, int]],
        *,
        lease_ms: int,
        details: str,
        draining: bool,
        history: str = "",
    ) -> Beat:
        """Renew every lease that this worker holds, and its presence. Revives nothing that was lost.

        ``history`` is the one that this worker has told all that it remembers.
        """
        keys = self.session.keys
        names = [keys.leases, keys.cancel, keys.workers, keys.workers_seen, keys.version, keys.generation]
        names += [keys.passed]
        presence = f"{'D' if draining else '-'}|{details}"
        lost: set[tuple[str, int]] = set()
        stop: set[tuple[str, int]] = set()
        redis_ms = version = roster = beats = passed_ms = 0
        found = history
        for start in range(0, max(1, len(held)), MAX_ITEMS):
            members = [f"{run_id}#{fence}" for run_id, fence in held[start : start + MAX_ITEMS]]
            reply = await self.session.call(_BEAT, names, worker, presence, lease_ms, history, *members)
            redis_ms, version, found = int(reply[0]), int(reply[1]), reply[4]
            roster, beats, passed_ms = int(reply[5]), int(reply[6]), int(reply[7])
            lost.update(_member(member) for member in reply[2])
            stop.update(_member(member) for member in reply[3])
            if found != history:
                break
        return Beat(
            redis_ms=redis_ms,
            version=version,
            lost=frozenset(lost),
            stop=frozenset(stop),
            history=found,
            roster=roster,
            beats=beats,
            passed_ms=passed_ms,
        )

    async def expiring(self, until_ms: int, *, page: int = 500, most: int = 50_000) -> list[Lease]:
        """Leases that end before ``until_ms``, the first to end first, read page by page; about ``most`` of them.

        What is no lease is passed over: see ``tidy``.
        """
        found: dict[str, Lease] = {}
        start = float("-inf")
        seen_there = 0  # of the leases that end at start; a beat gives all leases of its worker one end
        while len(found) < most:
            raw = await self.session.query(
                "ZRANGEBYSCORE",
                self.session.keys.leases,
                str(start),
                until_ms,
                "WITHSCORES",
                "LIMIT",
                seen_there,
                page,
                withscores=True,
            )
            for member, score in raw:
                expiry_ms = instant_ms(score)
                if expiry_ms is not None and _is_ours(member):
                    found[member] = Lease(*_member(member), expiry_ms=expiry_ms)
            if len(raw) < page:
                break
            last = raw[-1][1]
            there = sum(score == last for _, score in raw)
            seen_there = seen_there + there if last == start else there
            start = last
        return list(found.values())

    async def tidy(self) -> frozenset[str]:
        """Set aside what is no lease, and have those end now whose end is no instant; the members that were so."""
        return await tidy(self.session, "leases")

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
                there, named = await self._named(priority, [item["message_id"] for item in idle])
                for item in idle:
                    entry_id = item["message_id"]
                    if entry_id in named:
                        entries.append(PendingEntry(named[entry_id], item["consumer"], item["time_since_delivered"]))
                    elif entry_id not in there:
                        deleted.append((priority, entry_id))
                if len(raw) < page:
                    break
                start = _after(raw[-1]["message_id"])
        return Pending(tuple(entries), tuple(deleted))

    async def _named(self, priority: str, entry_ids: Sequence[str]) -> tuple[set[str], dict[str, Entry]]:
        """Which entries of a page of the pending list are there, and those that name runs, by id."""
        if not entry_ids:
            return set(), {}
        stream = self.session.keys.stream(priority)
        raw = await self.session.query("XRANGE", stream, entry_ids[0], entry_ids[-1])
        pending = set(entry_ids)
        read = [(entry_id, fields) for entry_id, fields in raw if entry_id in pending]  # between them others may be
        named = await entries_of(self.session, [(stream, read)], {stream: priority})
        return {entry_id for entry_id, _ in read}, {entry.entry_id: entry for entry in named}

    async def acknowledge_deleted(self, deleted: Sequence[tuple[str, str]]) -> None:
        """Have the groups wait no longer for entries that are not there. Those of runs go by ``release``."""
        redis, keys = self.session.transport.commands, self.session.keys
        for priority, entry_id in deleted:
            await redis.xack(keys.stream(priority), CONSUMER_GROUP, entry_id)

    async def dead(self) -> int:
        """How many runs were given up on and wait for somebody's decision."""
        return int(await self.session.query("XLEN", self.session.keys.dead))

    async def workers(self) -> list[Presence]:
        """Every worker that is present, the last seen first. One that never was, and can be buried, comes last."""
        query, keys = self.session.query, self.session.keys
        seen = dict(await query("ZREVRANGE", keys.workers_seen, 0, -1, "WITHSCORES", withscores=True))
        said = await query("HGETALL", keys.workers)
        found = []
        for worker in [*(worker for worker in seen if worker in said), *(said.keys() - seen.keys())]:
            text, seen_ms = said[worker], instant_ms(seen.get(worker, 0))
            if seen_ms is None:
                self.session.oddities.tell(keys.workers_seen, f"{worker} {seen[worker]}", "for its score, passed over")
            else:
                found.append(Presence(worker, draining=text[:1] == "D", details=text[2:], seen_ms=seen_ms))
        return found

    async def bury(self, worker: str, *, seen_ms: int) -> str:
        """Forget a worker that is gone: ``buried``, or why not yet (``alive``, ``pending``, ``leased``)."""
        keys = self.session.keys
        names = [keys.stream_high, keys.stream_low, keys.workers, keys.workers_seen, keys.leases, keys.runs]
        names.append(keys.generation)
        return str(await self.session.call(_BURY, names, worker, seen_ms))

    async def redis_ms(self) -> int:
        """Redis's own time."""
        seconds, microseconds = await self.session.query("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000


def _is_ours(member: str) -> bool:
    run_id, _, fence = member.rpartition("#")
    return fence.isascii() and fence.isdigit() and is_run_id(run_id)


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

"""What the tests of the store's scripts share: a stage on which runs are brought where a test wants them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, final

from engine.store.election import Elected
from engine.store.keys import CONSUMER_GROUP
from engine.store.leases import Lease
from engine.store.operations import _FORGET
from engine.store.runs import Claimed, Completion, Entry, Failure, Hold, Parked, Waiting
from engine.store.timetable import Due, Enrolment, Published, Slot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.store.session import Broken
    from engine.store.store import Store

T = TypeVar("T")

LEASE_MS = 600_000
"""So long that no test sees one end by itself."""

TASK, OTHER = "group/task", "group/other"

CLAIM, END = "claim", "end"
"""The tokens of a test that needs only one of each."""

Snapshot = dict[str, tuple[str, Any]]
"""Every key, with its type and all that it holds."""


def expect(kind: type[T], reply: object) -> T:
    """The reply, which must be of this kind."""
    assert isinstance(reply, kind), reply
    return reply


@final
@dataclass(frozen=True)
class Stage:
    """One application on one Redis: a leader, workers A and B, and each step from a slot to its verdict."""

    store: Store
    leader: str
    """What the leader shows with its writes."""

    now_ms: int
    """Redis time when the stage was set; slots and delays are counted from here."""

    @classmethod
    async def set(cls, store: Store) -> Stage:
        """Elect a leader and make the consumer groups."""
        elected = expect(Elected, await store.election.elect("leader", "nonce", lease_ms=LEASE_MS))
        await store.runs.make_groups()
        return cls(store, elected.value, elected.redis_ms)

    @property
    def redis(self) -> Any:
        """The command lane, to look at what was written. Untyped: redis-py's types admit replies that never come."""
        return self.store.transport.commands

    # -- steps ----------------------------------------------------------------------------------------------------

    async def due(self, task: str = TASK, *, in_ms: int = -1_000) -> int:
        """Give a task a due instant, by default one that is due already; the instant."""
        due_ms = self.now_ms + in_ms
        await self.enroll(Enrolment(task, due_ms))
        return due_ms

    async def enroll(self, *enrolments: Enrolment) -> list[str | Broken]:
        """Enroll tasks as a leader that has read the newest catalog."""
        version = await self.store.catalog.version()
        return await self.store.timetable.enroll(self.leader, enrolments, version=version)

    def slot(self, task: str = TASK, *, in_ms: int = -1_000, overlap: str = "allow", priority: str = "low") -> Slot:
        """A slot whose successor is far away."""
        return Slot(task, self.now_ms + in_ms, self.now_ms + 3_600_000, priority, overlap)

    async def queued(self, task: str = TASK, *, overlap: str = "allow", priority: str = "low", ago_ms: int = 1) -> str:
        """A run of this task in its stream; its id. ``ago_ms`` tells several runs of one task apart."""
        slot = self.slot(task, in_ms=-ago_ms, overlap=overlap, priority=priority)
        await self.redis.zadd(self.store.keys.due, {f"t/{task}": slot.due_ms})
        assert await self.store.timetable.publish(self.leader, [slot], queue_cap=100_000) == [Published()]
        return f"{task}@{slot.due_ms}"

    async def read(self, worker: str = "A", *, priority: str = "low") -> list[Entry]:
        """What this worker gets from a stream."""
        return await self.store.runs.read(worker, priorities=[priority], count=100_000, block_ms=None)

    async def claim(self, entries: Sequence[Entry], worker: str = "A", *, token: str = CLAIM) -> list[Claimed]:
        """Claim what this worker has read."""
        replies = await self.store.runs.claim(worker, token, entries, lease_ms=LEASE_MS)
        return [expect(Claimed, reply) for reply in replies]

    async def running(
        self, task: str = TASK, worker: str = "A", *, overlap: str = "allow", ago_ms: int = 1, priority: str = "low"
    ) -> Hold:
        """A run in progress on this worker."""
        await self.queued(task, overlap=overlap, ago_ms=ago_ms, priority=priority)
        return await self.taken(worker, priority=priority)

    async def taken(self, worker: str = "A", *, priority: str = "low", token: str = CLAIM) -> Hold:
        """The one run that waits in a stream, read and claimed by this worker."""
        [claimed] = await self.claim(await self.read(worker, priority=priority), worker, token=token)
        return hold(claimed)

    async def waiting(self, task: str = TASK, *, overlap: str = "allow", ago_ms: int = 1, delay_ms: int = 0) -> Due:
        """A run that failed and is tried again after the delay."""
        held = await self.running(task, overlap=overlap, ago_ms=ago_ms)
        [reply] = await self.store.runs.fail("A", [Failure(held, delay_ms, "{}")])
        return Due(held.run_id, expect(Waiting, reply).due_ms, is_run=True)

    async def parked(self, task: str = TASK, *, overlap: str = "allow", first_ms: int = 0) -> Due:
        """A run that was put aside because worker A does not know its function."""
        run_id = await self.queued(task, overlap=overlap)
        [reply] = await self.store.runs.defer("A", await self.read(), most=1_000, first_ms=first_ms)
        return Due(run_id, expect(Parked, reply).due_ms, is_run=True)

    async def lease(self, held: Hold) -> Lease:
        """The lease as a reconciler sees it."""
        score = await self.redis.zscore(self.store.keys.leases, f"{held.run_id}#{held.fence}")
        assert score is not None
        return Lease(held.run_id, held.fence, int(score))

    # -- what Redis holds -----------------------------------------------------------------------------------------

    async def record(self, run_id: str) -> dict[str, str]:
        """The record of a run; empty when there is none."""
        found: dict[str, str] = await self.redis.hgetall(self.store.keys.run(run_id))
        return found

    async def live(self, task: str = TASK) -> dict[str, str]:
        """The index of a task's runs."""
        found: dict[str, str] = await self.redis.hgetall(self.store.keys.live(task))
        return found

    async def due_ms(self, member: str) -> int | None:
        """When ``t/<task>`` or ``r/<run>`` is due."""
        score = await self.redis.zscore(self.store.keys.due, member)
        return None if score is None else int(score)

    async def entries(self, stream: str) -> list[dict[str, str]]:
        """The entries of a stream, without their ids."""
        return [fields for _, fields in await self.redis.xrange(stream)]

    async def in_stream(self, priority: str = "low") -> list[str]:
        """The runs in a stream, read or not."""
        keys = self.store.keys
        return [
            fields["run"] for fields in await self.entries(keys.stream_high if priority == "high" else keys.stream_low)
        ]

    async def verdicts(self, task: str = TASK) -> list[tuple[str, str]]:
        """Verdict and reason of each ledger entry, the oldest first."""
        return [(entry.verdict, entry.reason) for entry in await self.store.ledger.all(task)]

    async def snapshot(self) -> Snapshot:
        """All that this application has in Redis."""
        return await snapshot(self.redis, self.store.keys.tag)


def hold(claimed: Claimed, token: str = END) -> Hold:
    """What proves that a claimed run is its worker's."""
    return Hold(claimed.run_id, claimed.fence, token)


def completion(held: Hold, verdict: str = "ran", reason: str = "", story: str = "{}") -> Completion:
    """The final end of a run."""
    return Completion(held, verdict, reason, story)


async def forget_in_part(store: Store, task: str, *, most: int, declared: bool = False) -> int:
    """The first call of a removal, whose caller then dies; the runs that ended with it."""
    operations, keys = store.operations, store.keys
    tail = (keys.dynamic, keys.cleared, keys.version, keys.once("forget"))
    head = (task, "", most, "", "1" if declared else "")
    [reply] = await operations.session.on_runs(_FORGET, head, [(f"{task}@", ())], tail=tail)
    word, ended = reply
    assert word == "more"
    return int(ended)


async def snapshot(redis: Any, tag: str = "") -> Snapshot:
    """Every key that begins with ``tag``, with its type and all that it holds; not when it expires."""
    found: Snapshot = {}
    for key in sorted([key async for key in redis.scan_iter(count=1_000)]):
        if key.startswith(tag):
            kind: str = await redis.execute_command("TYPE", key)
            found[key] = kind, await _contents(redis, key, kind)
    return found


async def _contents(redis: Any, key: str, kind: str) -> Any:
    match kind:
        case "string":
            return await redis.get(key)
        case "hash":
            return await redis.hgetall(key)
        case "set":
            return set(await redis.execute_command("SMEMBERS", key))
        case "zset":
            return dict(await redis.zrange(key, 0, -1, withscores=True))
        case "list":
            return await redis.execute_command("LRANGE", key, 0, -1)
        case "stream":
            return await redis.xrange(key), await _pending(redis, key)
        case _:
            raise AssertionError(f"{key} is of the unknown type {kind}")


async def _pending(redis: Any, stream: str) -> list[tuple[str, str]]:
    """Which consumer has read which entry and not acknowledged it."""
    if CONSUMER_GROUP not in {group["name"] for group in await redis.xinfo_groups(stream)}:
        return []
    raw = await redis.xpending_range(stream, CONSUMER_GROUP, "-", "+", 100_000)
    return [(item["message_id"], item["consumer"]) for item in raw]

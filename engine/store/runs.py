"""Taking, ending and giving back runs: the operations of a consumer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, final

from redis.exceptions import ResponseError

from engine.domain.names import is_run_id, task_of
from engine.store.keys import CONSUMER_GROUP, PRIORITIES
from engine.store.script import Script, WrongReply
from engine.store.session import Broken, Done
from engine.store.survey import LiveStory, Survey, stories, survey
from engine.store.timetable import Ended

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.store.session import Session

__all__ = [
    "Claimed",
    "Completion",
    "Entry",
    "Failure",
    "Fenced",
    "Gone",
    "Hold",
    "Parked",
    "RunStore",
    "Stale",
    "Waiting",
]

_CLAIM = Script.load("claim")
_COMPLETE = Script.load("complete")
_FAIL = Script.load("fail")
_HAND_BACK = Script.load("hand_back")
_DEFER = Script.load("defer")
_RELEASE = Script.load("release")
_ABANDON = Script.load("abandon")
_BEGIN = Script.load("begin")

_ANY_NUMBER = 2**53


@final
class Entry(NamedTuple):
    """A stream entry that this worker has read: the run it names, and in which stream (``high`` or ``low``)."""

    run_id: str
    entry_id: str
    priority: str

    @property
    def task_id(self) -> str:
        """The task of that run."""
        return task_of(self.run_id)

    @property
    def item(self) -> tuple[str, tuple[str, str, str]]:
        """As a script takes it."""
        return self.run_id, (self.run_id, self.entry_id, self.priority)


@final
class Claimed(NamedTuple):
    """The run is this worker's, under this fence, for as long as its lease is renewed."""

    run_id: str
    fence: int
    task_id: str
    slot_ms: int | None
    attempt: int
    deliveries: int
    kwargs: str
    """JSON given with this run, empty when the task's own apply."""


@final
@dataclass(frozen=True, slots=True)
class Stale:
    """The entry is not the run's current one, or not this worker's."""


@final
class Hold(NamedTuple):
    """What proves that a run is this worker's: shown to complete, fail and hand back it."""

    run_id: str
    fence: int
    token: str
    """Chosen once for the end of this attempt, so that a lost reply can be asked for again."""


@final
class Completion(NamedTuple):
    """The final end of a run."""

    hold: Hold
    verdict: str
    reason: str
    story: str
    """One line of JSON about this attempt."""


@final
class Failure(NamedTuple):
    """The end of an attempt that is tried again."""

    hold: Hold
    delay_ms: int
    story: str


@final
@dataclass(frozen=True, slots=True)
class Waiting:
    """The retry is due then."""

    due_ms: int


@final
@dataclass(frozen=True, slots=True)
class Parked:
    """The run is put aside until then."""

    due_ms: int


@final
@dataclass(frozen=True, slots=True)
class Gone:
    """There is no such run. On a repeat: it was done before."""


@final
@dataclass(frozen=True, slots=True)
class Fenced:
    """The run was lost to another worker; nothing was written."""


ClaimReply: TypeAlias = Claimed | Ended | Stale | Broken
EndReply: TypeAlias = Done | Gone | Fenced | Broken


@final
@dataclass(frozen=True, slots=True)
class RunStore:
    """Operations on runs. All raise RedisUnavailable: repeat them with the same tokens."""

    session: Session

    async def make_groups(self) -> None:
        """Make both streams and their consumer group, from the first entry on, where they are missing."""
        redis, keys = self.session.transport.commands, self.session.keys
        for priority in PRIORITIES:
            stream = keys.stream(priority)
            make = partial(redis.xgroup_create, stream, CONSUMER_GROUP, id="0", mkstream=True)
            try:
                await self.session.guarded(make, stream)
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise

    async def read(self, worker: str, *, priorities: Sequence[str], count: int, block_ms: int | None) -> list[Entry]:
        """Read up to ``count`` new entries of each stream; wait for them if ``block_ms`` is not None.

        Never cancel this: entries would be pending for a reader that does not know of them. To end the wait, unblock
        the lane of runs and take the reply. Makes the consumer groups when Redis has forgotten them.
        """
        keys = self.session.keys
        names = {keys.stream(priority): priority for priority in priorities}
        redis = self.session.transport.runs
        where: dict[Any, Any] = dict.fromkeys(names, ">")
        read = partial(redis.xreadgroup, CONSUMER_GROUP, worker, where, count=count, block=block_ms)
        try:
            raw = await self.session.guarded(read, *names)
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            await self.make_groups()
            return []
        return await entries_of(self.session, raw or [], names)

    async def unclaimed(self, worker: str, *, page: int = 500) -> list[Entry]:
        """Everything pending for this worker: what it read, claimed or not, since it was never acknowledged.

        Nothing where Redis has forgotten the consumer groups.
        """
        # Over the lane of runs: behind a read that was given up, whose entries it must see.
        redis, keys = self.session.transport.runs, self.session.keys
        found: list[Entry] = []
        for priority in PRIORITIES:
            last, stream = "0", keys.stream(priority)
            while True:
                read = partial(redis.xreadgroup, CONSUMER_GROUP, worker, {stream: last}, count=page)
                try:
                    raw: Any = await self.session.guarded(read, stream)
                except ResponseError as error:
                    if not str(error).startswith("NOGROUP"):
                        raise
                    break
                found += await entries_of(self.session, raw or [], {stream: priority})
                ids = [entry_id for _, entries in raw or [] for entry_id, _ in entries]
                if len(ids) < page:
                    break
                last = ids[-1]
        return found

    async def held(self, worker: str, run_ids: Sequence[str], token: str) -> list[Hold]:
        """Those of the runs that are in progress on this worker by their records, with their fences and this token."""
        holds = []
        for run_id in run_ids:
            names = ("state", "worker", "fence")
            state, owner, fence = await self.session.query("HMGET", self.session.keys.run(run_id), *names)
            if (state, owner) == ("running", worker) and fence and fence.isdigit():
                holds.append(Hold(run_id, int(fence), token))
        return holds

    async def live(self, task_id: str) -> dict[str, str]:
        """The runs of a task that have not ended: run id -> queued, parked, running or waiting."""
        found: dict[str, str] = await self.session.query("HGETALL", self.session.keys.live(task_id))
        return found

    async def survey(self, task_ids: Sequence[str]) -> list[Survey | Broken]:
        """How each of these tasks fares: live runs, retries, newest verdict. Calls of at most 500, sent together."""
        return await survey(self.session, task_ids)

    async def stories(self, task_id: str) -> list[LiveStory]:
        """The runs of a task that have no verdict yet, with their attempts that ended.

        One that gets its verdict meanwhile may be left out, or told as it was: read the ledger afterwards, and let a
        verdict win over what was told here of the same run.
        """
        return await stories(self.session, task_id)

    async def claim(self, worker: str, token: str, entries: Sequence[Entry], *, lease_ms: int) -> list[ClaimReply]:
        """Take the runs of entries that this worker read. No body may start before the answer."""
        raw = await self.session.on_runs(_CLAIM, (worker, token, lease_ms), [entry.item for entry in entries])
        return [_claim_reply(entry.run_id, reply) for entry, reply in zip(entries, raw, strict=True)]

    async def begin(self, worker: str, hold: Hold) -> EndReply:
        """Say that the body of a run begins whose workers were lost before: the loss of this one counts from now on."""
        [reply] = await self.session.on_runs(_BEGIN, (worker,), [(hold.run_id, (hold.run_id, hold.fence))])
        return _end_reply(reply)

    async def complete(self, worker: str, completions: Sequence[Completion]) -> list[EndReply]:
        """End runs for good, with their verdicts."""
        replies, _ = await self.complete_and_look(worker, completions)
        return replies

    async def complete_and_look(self, worker: str, completions: Sequence[Completion]) -> tuple[list[EndReply], int]:
        """As ``complete``; with how many runs of high priority nobody had read by then."""
        items = [(c.hold.run_id, (c.hold.run_id, c.hold.fence, c.verdict, c.reason, c.story)) for c in completions]
        raw = await self.session.on_runs(_COMPLETE, (worker,), items, replicated=True)
        replies = [_end_reply(reply) for reply in raw if type(reply) is not int]  # one number for each call
        return replies, raw[-1] if raw else 0

    async def fail(self, worker: str, failures: Sequence[Failure]) -> list[Waiting | Gone | Fenced | Broken]:
        """End attempts that are tried again after a delay."""
        items = [(f.hold.run_id, (f.hold.run_id, f.hold.fence, f.hold.token, f.delay_ms, f.story)) for f in failures]
        replies = await self.session.on_runs(_FAIL, (worker,), items, replicated=True)
        return [Waiting(raw[1]) if raw[0] == "waiting" else _refusal(raw) for raw in replies]

    async def hand_back(self, worker: str, holds: Sequence[Hold]) -> list[EndReply]:
        """Give runs back, uncounted, whose bodies have ended or never began."""
        items = [(hold.run_id, (hold.run_id, hold.fence, hold.token)) for hold in holds]
        return [_end_reply(reply) for reply in await self.session.on_runs(_HAND_BACK, (worker,), items)]

    async def abandon(self, worker: str, hold: Hold, *, reason: str, story: str) -> EndReply:
        """Write the verdict of a run whose thread goes on. Complete it when the thread has returned."""
        head = (worker, hold.run_id, hold.fence, reason, story)
        [reply] = await self.session.on_runs(_ABANDON, head, [(hold.run_id, ())], replicated=True)
        return _end_reply(reply)

    async def defer(
        self,
        worker: str,
        entries: Sequence[Entry],
        *,
        why: str = "unknown function",
        most: int | None,
        first_ms: int = 100,
        longest_ms: int = 5_000,
    ) -> list[Parked | Ended | Stale | Broken]:
        """Put runs aside that this worker cannot start; the delay doubles each time.

        If a task has more than ``most`` runs, they are skipped instead; None: never.
        """
        head = (worker, _ANY_NUMBER if most is None else most, first_ms, longest_ms, why)
        raw = await self.session.on_runs(_DEFER, head, [entry.item for entry in entries])
        return [_defer_reply(reply) for reply in raw]

    async def release(self, entries: Sequence[Entry]) -> list[str | Broken]:
        """Give back entries that were read and never claimed: ``requeued``, ``dropped`` or ``kept`` for each."""
        replies = await self.session.on_runs(_RELEASE, (), [entry.item for entry in entries])
        return [reply if isinstance(reply, str) else Broken(reply[1]) for reply in replies]


async def entries_of(session: Session, raw: Any, priority_of: dict[str, str]) -> list[Entry]:
    """What was read of streams of runs. An entry that names no run is set aside, and the others go on."""
    found = []
    for stream, entries in raw:
        for entry_id, fields in entries:
            run_id = fields.get("run", "") if fields else ""
            if is_run_id(run_id):
                found.append(Entry(run_id, entry_id, priority_of[stream]))
            elif fields:  # an entry that was deleted while pending comes without fields
                await session.set_aside(priority_of[stream], entry_id, str(fields))
    return found


def _claim_reply(run_id: str, raw: Any) -> ClaimReply:
    if type(raw) is list and raw[0] == "claimed":  # nearly always, and a pattern costs as much as all the rest
        _, fence, task_id, slot, attempt, deliveries, kwargs = raw
        slot_ms = int(slot) if slot else None
        return Claimed(run_id, int(fence), task_id, slot_ms, int(attempt), int(deliveries), kwargs)
    match raw:
        case ["ended", verdict, reason]:
            return Ended(verdict, reason)
        case "stale":
            return Stale()
        case ["broken", why]:
            return Broken(why)
        case _:
            raise WrongReply(raw)


def _end_reply(raw: Any) -> EndReply:
    return Done() if raw == "ok" else _refusal(raw)


def _refusal(raw: Any) -> Gone | Fenced | Broken:
    match raw:
        case "gone":
            return Gone()
        case "fenced":
            return Fenced()
        case ["broken", why]:
            return Broken(why)
        case _:
            raise WrongReply(raw)


def _defer_reply(raw: Any) -> Parked | Ended | Stale | Broken:
    match raw:
        case ["parked", due_ms]:
            return Parked(due_ms)
        case ["ended", verdict, reason]:
            return Ended(verdict, reason)
        case "stale":
            return Stale()
        case ["broken", why]:
            return Broken(why)
        case _:
            raise WrongReply(raw)

"""When what is due, and moving it: the operations of the coordinator. Each needs the value of the leader's lease."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, final

from engine.domain.names import is_run_id, is_task_id, slot_run_id, task_of
from engine.store.oddities import LONGEST_MS, instant_ms, is_number
from engine.store.script import MAX_ITEMS, Script, WrongReply, chunks
from engine.store.session import Broken, Deposed, Done
from engine.store.tidying import tidy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine.store.session import Session

__all__ = [
    "Due",
    "Early",
    "Ended",
    "Enrolment",
    "Move",
    "Moved",
    "Published",
    "Queued",
    "Skipped",
    "Slot",
    "Timetable",
    "due_of",
]

FOREVER_MS = LONGEST_MS

_ENROLL = Script.load("enroll")
_PUBLISH = Script.load("publish")
_MOVE = Script.load("move")
_REQUEUE = Script.load("requeue")
_STRIKE = Script.load("strike")


@final
@dataclass(frozen=True, slots=True)
class Due:
    """An entry of ``due``: a task's open slot, or a run (``is_run``) that waits or is parked."""

    id: str
    at_ms: int
    is_run: bool


@final
@dataclass(frozen=True, slots=True)
class Enrolment:
    """A task that may have no due instant yet. ``first_run_id`` asks for a run now if it never had one."""

    task_id: str
    first_ms: int
    first_run_id: str = ""
    priority: str = "low"
    overlap: str = "allow"


@final
@dataclass(frozen=True, slots=True)
class Slot:
    """A slot to publish. ``next_ms`` is the task's next due instant, None when there is none."""

    task_id: str
    due_ms: int
    next_ms: int | None
    priority: str
    overlap: str


@final
@dataclass(frozen=True, slots=True)
class Move:
    """Take a task from one due instant to another; the slots passed over, if any, get one verdict together."""

    task_id: str
    due_ms: int
    next_ms: int | None
    count: int = 0
    last_ms: int = 0
    verdict: str = "missed"
    reason: str = "catch-up"


@final
@dataclass(frozen=True, slots=True)
class Published:
    """The slot has a run, queued now or by an earlier try."""


@final
@dataclass(frozen=True, slots=True)
class Skipped:
    """The slot has a verdict: it does not run, for ``reason``."""

    reason: str


@final
@dataclass(frozen=True, slots=True)
class Early:
    """Redis says that it is not due yet; nothing was written."""

    redis_ms: int


@final
@dataclass(frozen=True, slots=True)
class Moved:
    """``due`` holds another instant (None: none at all, or none that can be read); nothing was written."""

    due_ms: int | None


@final
@dataclass(frozen=True, slots=True)
class Queued:
    """The run is in its stream again."""


@final
@dataclass(frozen=True, slots=True)
class Ended:
    """The run has a verdict instead."""

    verdict: str
    reason: str


MoveReply: TypeAlias = Done | Early | Moved | Broken
PublishReply: TypeAlias = Published | Skipped | Early | Moved | Broken
RequeueReply: TypeAlias = Queued | Ended | Early | Moved | Broken


@final
@dataclass(frozen=True, slots=True)
class Timetable:
    """Operations on ``due``. All raise RedisUnavailable, and the writes Deposed when ``leader`` does not lead."""

    session: Session

    async def window(self, until_ms: int, *, page: int = 500) -> list[Due]:
        """What is due until then, earliest first, read in pages. What is not Troupe's is passed over: see ``tidy``."""
        found, _ = await self._read(until_ms, page)
        return found

    async def look(self, until_ms: int) -> tuple[list[Due], bool]:
        """As ``window``, and whether all that was there is Troupe's: if not, it is for ``tidy``."""
        return await self._read(until_ms, MAX_ITEMS)

    async def _read(self, until_ms: int, page: int) -> tuple[list[Due], bool]:
        found: list[Due] = []
        offset, command = 0, ("ZRANGEBYSCORE", self.session.keys.due, "-inf", until_ms, "WITHSCORES", "LIMIT")
        while True:
            raw = await self.session.query(*command, offset, page, withscores=True)
            found += [due for member, score in raw if (due := due_of(member, score)) is not None]
            offset += len(raw)
            if len(raw) < page:
                return found, len(found) == offset

    async def tidy(self) -> frozenset[str]:
        """Set aside what is neither task nor run, and mend what is due at no instant; the members that were so.

        A task leaves ``due``, to be enrolled again; a run is due now.
        """
        return await tidy(self.session, "due")

    async def tasks(self) -> dict[str, int]:
        """Every task that has a due instant, with it (ms)."""
        return {due.id: due.at_ms for due in await self.window(FOREVER_MS) if not due.is_run}

    async def passed_ms(self) -> int:
        """The latest slot that any task was moved past: none up to it is opened again, whatever the clock says."""
        return await self.session.number(self.session.keys.passed)

    async def retold(self) -> dict[str, int]:
        """Runs of which workers told Redis what it had forgotten, with their slots (ms), which may be open still."""
        key, found = self.session.keys.retold, dict[str, int]()
        for run_id, slot_ms in (await self.session.query("HGETALL", key)).items():
            if is_run_id(run_id) and is_number(slot_ms):
                found[run_id] = int(slot_ms)
            else:
                self.session.oddities.tell(key, f"{run_id} {slot_ms}", "passed over")
        return found

    async def strike(self, leader: str, retold: Mapping[str, int]) -> int:
        """Forget that workers told of these runs; how many were struck off: those whose slots have been moved past."""
        keys, struck = self.session.keys, 0
        for chunk in chunks(list(retold.items())):
            words = [word for run_id, slot_ms in chunk for word in (run_id, task_of(run_id), slot_ms)]
            reply = await self.session.call(_STRIKE, [keys.leader, keys.due, keys.retold], leader, *words)
            if reply == "deposed":
                raise Deposed(leader)
            struck += reply
        return struck

    async def enroll(self, leader: str, enrolments: Sequence[Enrolment], *, version: int) -> list[str | Broken]:
        """Give tasks their first due instant: ``enrolled``, ``started`` or ``known`` for each.

        ``outdated`` for all of a call, and nothing written, when the catalog is not at this version any longer.
        """
        replies = await self.session.on_runs(
            _ENROLL,
            (leader, version),
            [
                (
                    e.first_run_id or f"{e.task_id}@first",
                    (e.task_id, e.first_ms, e.first_run_id, e.priority, e.overlap),
                )
                for e in enrolments
            ],
            tail=(self.session.keys.version,),
        )
        return [reply if isinstance(reply, str) else Broken(reply[1]) for reply in replies]

    async def publish(self, leader: str, slots: Sequence[Slot], *, queue_cap: int) -> list[PublishReply]:
        """Move each task past its slot: published, or skipped with a verdict that says why."""
        items = []
        for slot in slots:
            run_id = slot_run_id(slot.task_id, slot.due_ms)
            next_ms = "" if slot.next_ms is None else slot.next_ms
            items.append((run_id, (slot.task_id, slot.due_ms, next_ms, run_id, slot.priority, slot.overlap)))
        tail = (self.session.keys.passed,)
        await self._let_replicas_catch_up()
        replies = await self.session.on_runs(_PUBLISH, (leader, queue_cap), items, tail, replicated=True)
        return [_publish_reply(raw) for raw in replies]

    async def move(self, leader: str, moves: Sequence[Move]) -> list[MoveReply]:
        """Pass over slots (count > 0) or only reschedule (count 0)."""
        items = [
            (
                f"{move.task_id}@",
                (
                    move.task_id,
                    move.due_ms,
                    "" if move.next_ms is None else move.next_ms,
                    move.count,
                    move.last_ms,
                    move.verdict,
                    move.reason,
                ),
            )
            for move in moves
        ]
        replies = await self.session.on_runs(_MOVE, (leader,), items, tail=(self.session.keys.passed,))
        return [Done() if raw == "done" else _not_done(raw) for raw in replies]

    async def requeue(self, leader: str, runs: Sequence[Due]) -> list[RequeueReply]:
        """Queue retries that waited and runs that were parked, or end them with a verdict."""
        items = [(run.id, (run.id, run.at_ms)) for run in runs]
        await self._let_replicas_catch_up()
        return [_requeue_reply(raw) for raw in await self.session.on_runs(_REQUEUE, (leader,), items, replicated=True)]

    async def _let_replicas_catch_up(self) -> None:
        """Nothing new is started while replicas lack what was: a failover would forget the more, the longer that lasts.

        Ends of runs are told all the same: their bodies have run.
        """
        transport = self.session.transport
        if transport.statistics().unacknowledged_since_s is not None:
            await transport.replicated.ping()


def due_of(member: str, score: float) -> Due | None:
    """A member of ``due`` and its score; None if Troupe did not write it so."""
    kind, _, name = member.partition("/")
    at_ms = instant_ms(score)
    if at_ms is None or not {"t": is_task_id, "r": is_run_id}.get(kind, lambda _: False)(name):
        return None
    return Due(id=name, at_ms=at_ms, is_run=kind == "r")


def _publish_reply(raw: Any) -> PublishReply:
    match raw:
        case "published":
            return Published()
        case ["skipped", reason]:
            return Skipped(reason)
        case _:
            return _not_done(raw)


def _requeue_reply(raw: Any) -> RequeueReply:
    match raw:
        case "queued":
            return Queued()
        case "gone":
            return Moved(None)
        case ["ended", verdict, reason]:
            return Ended(verdict, reason)
        case _:
            return _not_done(raw)


def _not_done(raw: Any) -> Early | Moved | Broken:
    match raw:
        case ["early", redis_ms]:
            return Early(redis_ms)
        case ["moved", due_ms]:
            return Moved(instant_ms(float(due_ms)) if due_ms else None)
        case ["broken", why]:
            return Broken(why)
        case _:
            raise WrongReply(raw)

"""When what is due, and moving it: the operations of the coordinator. Each needs the value of the leader's lease."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, final

from engine.domain.names import slot_run_id
from engine.store.script import Script, WrongReply
from engine.store.session import Broken, Done

if TYPE_CHECKING:
    from collections.abc import Sequence

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

FOREVER_MS = 2**53
"""The largest instant that a sorted set holds exactly."""

_ENROLL = Script.load("enroll")
_PUBLISH = Script.load("publish")
_MOVE = Script.load("move")
_REQUEUE = Script.load("requeue")


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
    """``due`` holds another instant (None: none at all); nothing was written."""

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
        """What is due until then, earliest first, read in pages."""
        found: list[Due] = []
        command = ("ZRANGEBYSCORE", self.session.keys.due, "-inf", until_ms, "WITHSCORES", "LIMIT")
        while True:
            raw = await self.session.query(*command, len(found), page, withscores=True)
            found += [due_of(member, score) for member, score in raw]
            if len(raw) < page:
                return found

    async def tasks(self) -> dict[str, int]:
        """Every task that has a due instant, with it (ms)."""
        return {due.id: due.at_ms for due in await self.window(FOREVER_MS) if not due.is_run}

    async def passed_ms(self) -> int:
        """The latest slot that any task was moved past: none up to it is opened again, whatever the clock says."""
        return int(await self.session.query("GET", self.session.keys.passed) or 0)

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
        replies = await self.session.on_runs(_PUBLISH, (leader, queue_cap), items, tail)
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
        return [_requeue_reply(raw) for raw in await self.session.on_runs(_REQUEUE, (leader,), items)]


def due_of(member: str, score: float) -> Due:
    """A member of ``due`` and its score."""
    kind, _, name = member.partition("/")
    return Due(id=name, at_ms=int(score), is_run=kind == "r")


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
            return Moved(int(float(due_ms)) if due_ms else None)
        case ["broken", why]:
            return Broken(why)
        case _:
            raise WrongReply(raw)

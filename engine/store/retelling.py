"""Telling Redis what it forgot: runs in progress and how runs ended, pauses, dynamic tasks, due instants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, final

from engine.store.history import ENTER
from engine.store.oddities import is_number
from engine.store.runs import Completion
from engine.store.script import MAX_ITEMS, Script, WrongReply
from engine.store.session import Broken

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engine.store.history import History
    from engine.store.runs import Hold
    from engine.store.session import Session

__all__ = ["BEING_FORGOTTEN", "WITHDRAWN", "Adopted", "Adoption", "Retelling", "Retried", "Tables", "Told"]

WITHDRAWN = "-"
"""In ``dynamic``, in the place of a definition: removed, and hidden for as long as processes declare it nonetheless."""

BEING_FORGOTTEN = ("", ">-")
"""There, while runs of the task are left: behind it there is nothing, or it is withdrawn."""

_ADOPT = Script.load("adopt")
_RESTORE = Script.load("restore")
_TOLD = Script.load("told")

_DYNAMIC, _PAUSED, _DUE = 1, 2, 3

Adopted: TypeAlias = Literal["kept", "told", "newer", "ended"] | Broken
"""Nothing was forgotten; it was, and is there again; somebody had the run since; it has ended or went with its task."""


@final
@dataclass(frozen=True, slots=True)
class Retried:
    """An attempt failed, and the run was to be tried again at that instant (Redis ms)."""

    due_ms: int
    story: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """A run that this worker has, or had lately: all that makes its record."""

    hold: Hold
    task_id: str
    slot_ms: int | None
    attempt: int
    deliveries: int
    priority: str
    overlap: str
    kwargs: str
    """JSON given with the run, empty when the task's own apply."""

    end: Completion | Retried | None = None
    """None: it is in progress."""

    @property
    def item(self) -> tuple[str, tuple[str | int, ...]]:
        """As the script takes it."""
        hold, slot = self.hold, "" if self.slot_ms is None else self.slot_ms
        match self.end:
            case None:
                end: tuple[str | int, ...] = ("", "", "", "")
            case Retried(due_ms, story):
                end = ("waiting", "", story, due_ms)
            case Completion():
                end = (self.end.verdict, self.end.reason, self.end.story, "")
        run = (hold.run_id, hold.fence, hold.token, self.task_id, slot, self.attempt, self.deliveries)
        return hold.run_id, (*run, self.priority, self.overlap, self.kwargs, *end)


@final
@dataclass(frozen=True, slots=True)
class Tables:
    """What operators decided, as Redis held it at one version of the catalog: task id -> value, opaque here."""

    version: int
    dynamic: Mapping[str, str] = field(default_factory=dict)
    paused: Mapping[str, str] = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True)
class Told:
    """Redis knows all that this worker remembers."""

    lost_from_ms: int | None
    """It had lost what it acknowledged after that instant (Redis ms; 0: all). None: nothing of this worker's."""


@final
@dataclass(frozen=True, slots=True)
class Retelling:
    """Operations of a worker that finds another history. All raise RedisUnavailable and can be repeated."""

    session: Session
    history: History

    async def enter(self) -> str:
        """As each new connection does: for a Redis that lost its keys while it was connected. The history's id."""
        history = self.history
        reply = await self.session.call(ENTER, history.names, *history.arguments(history.server))
        history.heard(history.server, reply)
        return history.id

    async def adopt(
        self, worker: str, adoptions: Sequence[Adoption], *, lease_ms: int, tables: Tables
    ) -> list[Adopted]:
        """Tell about runs. One in progress is this worker's again unless somebody had it since.

        ``tables`` are those that this worker remembers, and has brought back as far as they count: by them a run that
        Redis has forgotten is told from one that went with its task.
        """
        items = []
        for adoption in adoptions:
            run_id, words = adoption.item
            text = tables.dynamic.get(adoption.task_id, "")
            is_mark = _parts(text)[1] in (*BEING_FORGOTTEN, WITHDRAWN)
            items.append((run_id, (*words, "1" if text and not is_mark else text)))
        tail = (self.session.keys.retold, self.session.keys.passed, self.session.keys.dynamic)
        raw = await self.session.on_runs(_ADOPT, (worker, lease_ms, tables.version), items, tail=tail)
        return [_adopted(reply) for reply in raw]

    async def restore(self, history_id: str, tables: Tables) -> int | None:
        """Bring back dynamic tasks and pauses as they were; how many. None: it is too late, others have decided since.

        A removal is begun again: what the task has by now is for the leader to end. Where a worker that remembered
        nothing came first, what was decided since is left, and only what is missing comes back.
        """
        keys, brought_back = self.session.keys, 0
        only_missing = await self.session.query("HGET", keys.generation, "opened") is not None
        while True:
            changes: list[tuple[int, str, str, str]] = []
            for kind, key in (_DYNAMIC, keys.dynamic), (_PAUSED, keys.paused):
                now: dict[str, str] = await self.session.query("HGETALL", key)
                then = removed_again(now, tables.dynamic) if kind == _DYNAMIC else tables.paused
                changes += [(kind, *change) for change in differences(now, then, only_missing=only_missing)]
            if not changes:
                return brought_back
            done = await self._restore(history_id, tables.version, changes)
            if done is None:
                return None
            brought_back += done

    async def restore_due(self, history_id: str, version: int, due: Mapping[str, int], *, passed_ms: int) -> int | None:
        """Give tasks that have no due instant the one that they had, ms; how many. None: as for ``restore``.

        ``passed_ms`` is the latest slot that any task was moved past: none up to it is opened again, and an instant
        that another memory brought back before it is as late as this one.
        """
        changes = [(_DUE, f"t/{task_id}", "", str(due_ms)) for task_id, due_ms in due.items()]
        return await self._restore(history_id, version, changes, passed_ms=passed_ms)

    async def has_lost_all(self) -> bool:
        """Were all keys of the application gone when this history began?"""
        return bool(await self.session.query("HGET", self.session.keys.generation, "gone"))

    async def told(
        self, history_id: str, worker: str, *, floor_ms: int, beats: int, count: int, others: Sequence[str]
    ) -> Told | None:
        """This worker has told all. None: Redis goes on with yet another history by now.

        Args:
            history_id: whom it was told.
            worker: who told.
            floor_ms: no fence was given before that exceeds this (Redis ms).
            beats: how many had been acknowledged, to any worker, by the last answer that this one had, or 0.
            count: how many things Redis had forgotten.
            others: the workers that are waited for.
        """
        keys = self.session.keys
        names = [keys.generation, keys.leader, keys.events]
        head = (history_id, worker, floor_ms, beats, count)
        reply = await self.session.call(_TOLD, names, *head, *others)
        match reply:
            case ["other", _]:
                return None
            case ["over" | "waiting", lost_from]:
                return Told(int(lost_from) if lost_from else None)
            case _:
                raise WrongReply(reply)

    async def _restore(
        self, history_id: str, version: int, changes: Sequence[tuple[int, str, str, str]], *, passed_ms: int = 0
    ) -> int | None:
        keys, restored = self.session.keys, 0
        names = [keys.generation, keys.leader, keys.version, keys.events, keys.dynamic, keys.paused, keys.due]
        names += [keys.passed]
        for start in range(0, len(changes), MAX_ITEMS):
            words = [word for change in changes[start : start + MAX_ITEMS] for word in change]
            reply = await self.session.call(_RESTORE, names, history_id, version, passed_ms, *words)
            if reply in ("over", "older"):
                return None
            restored += int(reply)
        return restored


def removed_again(now: Mapping[str, str], then: Mapping[str, str]) -> dict[str, str]:
    """What ``dynamic`` is to hold, where it held that then: a removal that Redis forgot is not over, but begun.

    Redis has what the task had before it was removed, runs and pause and ledger, and a worker that has not told yet may
    have a run of it. The leader, or whoever makes the task anew, goes on with the removal.
    """
    wanted = dict(then)
    for task_id, text in now.items():
        revision, definition = _parts(text)
        if task_id not in then and definition != WITHDRAWN:  # a mark alone means that no process declares it any more
            wanted[task_id] = text if definition in BEING_FORGOTTEN else f"{revision}|"
    for task_id, text in then.items():
        revision, definition = _parts(text)
        present = now.get(task_id, "")
        if definition == WITHDRAWN and present != text:
            wanted[task_id] = present if present.endswith("|>-") else f"{revision}|>-"
    return wanted


def _parts(text: str) -> tuple[str, str]:
    """Revision and definition; what is none of ours is a definition without a revision."""
    revision, bar, definition = text.partition("|")
    return (revision, definition) if bar and (revision == "" or is_number(revision)) else ("", "?")


def differences(
    now: Mapping[str, str], then: Mapping[str, str], *, only_missing: bool
) -> Iterator[tuple[str, str, str]]:
    """Field, value now and value then ('' for none), of those that differ."""
    for name, value in then.items():
        if name not in now or (now[name] != value and not only_missing):
            yield name, now.get(name, ""), value
    if not only_missing:
        yield from ((name, value, "") for name, value in now.items() if name not in then)


def _adopted(raw: Any) -> Adopted:
    match raw:
        case "kept" | "told" | "newer" | "ended":
            word: Adopted = raw
            return word
        case ["broken", why]:
            return Broken(why)
        case _:
            raise WrongReply(raw)

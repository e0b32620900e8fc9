"""What operators do, by hand or through the API: each once, however often its request is repeated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, final

from engine.domain.names import task_of
from engine.store.script import MAX_ITEMS, Script, WrongReply, chunks
from engine.store.session import Broken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.store.session import Session

__all__ = [
    "Accepted",
    "Changed",
    "DeadRun",
    "Defined",
    "Dynamic",
    "OperationStore",
    "Refused",
    "Taken",
    "Trigger",
    "Unchanged",
]

_TRIGGER = Script.load("trigger")
_REVIVE = Script.load("revive")
_DISCARD = Script.load("discard")
_CANCEL = Script.load("cancel")
_RESET_RETRY = Script.load("reset_retry")
_DEFINE = Script.load("define")
_FORGET = Script.load("forget")


@final
@dataclass(frozen=True, slots=True)
class Trigger:
    """A run that no slot asks for. Its id (``trigger_run_id``) is what makes a repeat of the request one."""

    run_id: str
    priority: str
    overlap: str
    force: bool = False
    """Run although the task is paused. Overlap is never passed."""

    kwargs: str = ""
    """JSON of the arguments; empty: the task's own."""


@final
@dataclass(frozen=True, slots=True)
class Accepted:
    """The run is in its stream, or was, if this is a repeat."""


@final
@dataclass(frozen=True, slots=True)
class Refused:
    """There is and will be no such run: ``paused``, ``overlap``, ``queue full``, or ``gone`` (no such dead run)."""

    reason: str


@final
@dataclass(frozen=True, slots=True)
class Defined:
    """The task is so now, under this revision."""

    revision: int


@final
@dataclass(frozen=True, slots=True)
class Unchanged:
    """The task was so already."""

    revision: int


@final
@dataclass(frozen=True, slots=True)
class Taken:
    """Another definition has that name, or it is being forgotten; nothing was written."""

    revision: int


@final
@dataclass(frozen=True, slots=True)
class Changed:
    """The definition is not the one that was to be replaced (0: there is none); nothing was written."""

    revision: int


@final
@dataclass(frozen=True, slots=True)
class Dynamic:
    """A task that was made at run time: opaque JSON, empty while it is being forgotten."""

    revision: int
    definition: str


@final
@dataclass(frozen=True, slots=True)
class DeadRun:
    """A run that was given up on, and what it was to do."""

    entry_id: str
    run_id: str
    task_id: str
    slot_ms: int | None
    reason: str
    at_ms: int
    attempt: int
    deliveries: int
    kwargs: str
    """JSON given with the run, empty when the task's own apply."""

    story: tuple[str, ...]
    """A line of JSON for each attempt, the newest last."""


TriggerReply: TypeAlias = Accepted | Refused | Broken
DefineReply: TypeAlias = Defined | Unchanged | Taken | Changed | Broken


@final
@dataclass(frozen=True, slots=True)
class OperationStore:
    """Operations that somebody (``who``) asked for, kept in the events with his name.

    All raise RedisUnavailable: repeat them with the same run id or operation id, and the answer is that of the first
    time, for ten minutes.
    """

    session: Session

    # -- runs -----------------------------------------------------------------------------------------------------

    async def trigger(self, triggers: Sequence[Trigger], *, who: str, queue_cap: int) -> list[TriggerReply]:
        """Queue runs now. Where runs do not overlap, each takes the place of its task's waiting retry."""
        replies: list[TriggerReply] = []
        for chunk in chunks(triggers):
            items = [
                (t.run_id, (t.run_id, task_of(t.run_id), t.priority, t.overlap, "1" if t.force else "", t.kwargs))
                for t in chunk
            ]
            names = tuple(self.session.keys.once(trigger.run_id) for trigger in chunk)
            raw = await self.session.on_runs(_TRIGGER, (who, queue_cap), items, tail=names)
            replies += [_trigger_reply(reply) for reply in raw]
        return replies

    async def cancel(self, run_ids: Sequence[str], operation_id: str, *, who: str) -> list[str | Broken]:
        """Stop runs: ``ended``, ``asked`` (it is running, and its worker will hear of it) or ``gone`` for each."""
        replies: list[str | Broken] = []
        for number, chunk in enumerate(chunks(run_ids)):
            items = [(run_id, (run_id,)) for run_id in chunk]
            raw = await self.session.on_runs(_CANCEL, (who,), items, tail=self._once(operation_id, number))
            replies += [_word(reply) for reply in raw]
        return replies

    async def reset_retry(self, task_ids: Sequence[str], operation_id: str, *, who: str) -> list[int | Broken]:
        """Have the waiting retries of these tasks become due now; how many did, for each task."""
        replies: dict[str, int | Broken] = dict.fromkeys(task_ids, 0)
        open_tasks, number = list(replies), 0
        while open_tasks:
            chunk, open_tasks = open_tasks[:MAX_ITEMS], open_tasks[MAX_ITEMS:]
            items = [(f"{task_id}@", (task_id,)) for task_id in chunk]
            once = self._once(operation_id, number)
            raw = await self.session.on_runs(_RESET_RETRY, (who, MAX_ITEMS), items, tail=once)
            for task_id, reply in zip(chunk, raw, strict=True):
                if reply[0] == "broken":
                    replies[task_id] = Broken(reply[1])
                    continue
                replies[task_id] = int(reply[0]) + _number(replies[task_id])
                if int(reply[1]):
                    open_tasks.append(task_id)
            number += 1
        return [replies[task_id] for task_id in task_ids]

    # -- runs that were given up on -------------------------------------------------------------------------------

    async def dead(self, *, count: int) -> list[DeadRun]:
        """The newest of the runs that were given up on, the newest first."""
        key, found = self.session.keys.dead, list[DeadRun]()
        for entry_id, fields in await self.session.query("XREVRANGE", key, "+", "-", "COUNT", count):
            try:
                found.append(_dead_run(entry_id, fields))
            except (KeyError, ValueError):
                self.session.oddities.tell(key, f"{entry_id} {fields}", "passed over")
        return found

    async def revive(self, entry_id: str, run_id: str, operation_id: str, *, who: str, queue_cap: int) -> TriggerReply:
        """Do what a dead run was to do, as a run of its own of this id; refused, it stays among the dead."""
        head = (who, queue_cap, entry_id, run_id, task_of(run_id))
        once = self._once(operation_id)
        [reply] = await self.session.on_runs(_REVIVE, head, [(run_id, ())], tail=once)
        return _trigger_reply(reply)

    async def discard(self, entry_ids: Sequence[str], operation_id: str, *, who: str) -> list[str | Broken]:
        """Give up dead runs for good: ``discarded`` or ``gone`` for each."""
        replies: list[str | Broken] = []
        for number, chunk in enumerate(chunks(entry_ids)):
            names = [*self.session.keys.run_scripts, *self._once(operation_id, number)]
            raw = await self.session.call(_DISCARD, names, self.session.ledger_length, who, *chunk)
            replies += [_word(reply) for reply in raw]
        return replies

    # -- tasks made at run time -----------------------------------------------------------------------------------

    async def dynamic(self, task_id: str) -> Dynamic | None:
        """A task that was made at run time, with the revision that an edit of it must show. None: there is none."""
        text = await self.session.query("HGET", self.session.keys.dynamic, task_id)
        if text is None:
            return None
        revision, _, definition = text.partition("|")
        if definition == "-" or not revision.isdecimal():
            return None  # withdrawn, or none of ours
        return Dynamic(int(revision), "" if definition == ">-" else definition)

    async def define(
        self, task_id: str, definition: str, operation_id: str, *, who: str, replaces: int | None = None
    ) -> DefineReply:
        """Make a task, or (``replaces``) give the one of this revision another definition."""
        keys = self.session.keys
        names = [keys.dynamic, keys.version, keys.events, keys.once(operation_id), keys.paused, keys.leader]
        expected = "" if replaces is None else replaces
        word, revision = await self.session.call(_DEFINE, names, task_id, definition, expected, who)
        kinds: dict[str, type[Defined | Unchanged | Taken | Changed]] = {
            "defined": Defined,
            "unchanged": Unchanged,
            "taken": Taken,
            "changed": Changed,
        }
        if word == "broken":
            return Broken(revision)
        if word not in kinds:
            raise WrongReply(word)
        return kinds[word](int(revision))

    async def forget(self, task_id: str, operation_id: str, *, who: str, declared: bool = False) -> int | Broken | None:
        """Remove a task that was made at run time, whatever it has; the runs that ended with it. None: no such task.

        Takes a call for every 500 runs. If it is not repeated after RedisUnavailable, the leader finishes it.

        Args:
            task_id: as in ``Task.id``.
            operation_id: the same for a repeat.
            who: for the event.
            declared: processes declare the task, kept in Redis or not: it is withdrawn, which hides it until one of
                them readmits it (``CatalogStore.declare``), it is defined anew, or no set names it. None then says
                that it was withdrawn already.
        """
        return await self._forget(task_id, operation_id, who, begun="", declared="1" if declared else "")

    async def finish_forgetting(self, task_id: str) -> int | Broken | None:
        """Go on where `forget` was interrupted; None if there is nothing to go on with, or another did."""
        return await self._forget(task_id, "forget", "", begun="1", declared="")

    async def _forget(
        self, task_id: str, operation_id: str, who: str, *, begun: str, declared: str
    ) -> int | Broken | None:
        keys, ended = self.session.keys, 0
        tail = (keys.dynamic, keys.cleared, keys.version, keys.once(operation_id))
        while True:
            head = (task_id, who, MAX_ITEMS, begun, declared)
            [reply] = await self.session.on_runs(_FORGET, head, [(f"{task_id}@", ())], tail=tail)
            match reply:
                case "unknown":
                    return ended or None
                case ["forgotten", total]:
                    return ended + int(total)
                case ["more", total]:
                    ended += int(total) if begun else 0  # the script adds up what belongs to an operation
                case ["broken", why]:
                    return Broken(why)
                case _:
                    raise WrongReply(reply)

    def _once(self, operation_id: str, number: int = 0) -> tuple[str, ...]:
        """Where the answer to the call of that number is kept."""
        return (self.session.keys.once_of(operation_id, number),)


def _number(reply: int | Broken) -> int:
    return 0 if isinstance(reply, Broken) else reply


def _word(raw: Any) -> str | Broken:
    return raw if isinstance(raw, str) else Broken(raw[1])


def _trigger_reply(raw: Any) -> TriggerReply:
    match raw:
        case "queued":
            return Accepted()
        case "paused" | "overlap" | "queue full" | "gone":
            return Refused(raw)
        case ["broken", why]:
            return Broken(why)
        case _:
            raise WrongReply(raw)


def _dead_run(entry_id: str, fields: dict[str, str]) -> DeadRun:
    slot = fields["slot"]
    return DeadRun(
        entry_id=entry_id,
        run_id=fields["run"],
        task_id=fields["task"],
        slot_ms=int(slot) if slot else None,
        reason=fields["reason"],
        at_ms=int(fields["at"]),
        attempt=int(fields["attempt"]),
        deliveries=int(fields["deliveries"]),
        kwargs=fields.get("kwargs", ""),
        story=tuple(line for line in fields["story"].split("\n") if line),
    )

"""Which tasks exist: what processes declare, what was made at run time, and what is paused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from engine.store.script import MAX_ITEMS, Script, WrongReply
from engine.store.session import Broken, Deposed
from engine.store.timetable import due_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine.store.session import Session
    from engine.store.timetable import Due

__all__ = ["CatalogStore", "Contents", "DeclaredSet", "Event", "Pause"]

_DECLARE = Script.load("declare")
_RETIRE = Script.load("retire")
_DISMISS = Script.load("dismiss")
_PAUSE = Script.load("pause")
_UNPAUSE = Script.load("unpause")


@final
@dataclass(frozen=True, slots=True)
class DeclaredSet:
    """What some process declared: its pages, opaque here, and when the set was first seen (Redis ms)."""

    digest: str
    first_seen_ms: int
    pages: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class Pause:
    """A task that does not run: until then (Redis ms; None: until resumed), with details as JSON (who, why, since)."""

    until_ms: int | None
    details: str


@final
@dataclass(frozen=True, slots=True)
class Contents:
    """The whole catalog at one version."""

    version: int
    sets: tuple[DeclaredSet, ...]
    dynamic: Mapping[str, str]
    """Task id -> definition, opaque JSON."""

    forgotten: tuple[str, ...]
    """Tasks whose removal is not finished: their names are taken, they have no definition."""

    paused: Mapping[str, Pause]


@final
@dataclass(frozen=True, slots=True)
class Event:
    """Something that changed, or a wake-up for the coordinator (``name`` is then ``wake``)."""

    name: str
    fields: Mapping[str, str]

    @property
    def due(self) -> Due | None:
        """What a wake-up is about; None for all other events."""
        return due_of(self.fields["due"], float(self.fields["at"])) if self.name == "wake" else None


@final
@dataclass(frozen=True, slots=True)
class CatalogStore:
    """Operations on the catalog. All raise RedisUnavailable and can be repeated."""

    session: Session

    async def declare(self, digest: str, pages: Sequence[str]) -> bool:
        """Enter a set, a page at a time; it counts from its last page on. True if it is new."""
        keys = self.session.keys
        names = [keys.declared(digest), keys.declarations, keys.version, keys.events, keys.unused]
        reply = ""
        for number, page in enumerate(pages):
            reply = await self.session.call(_DECLARE, names, digest, number, page, len(pages))
        return reply == "declared"

    async def version(self) -> int:
        """The version of the catalog and the pauses."""
        return int(await self.session.query("GET", self.session.keys.version) or 0)

    async def contents(self, known: Mapping[str, DeclaredSet] | None = None) -> Contents:
        """Read the catalog. Sets in ``known`` are not read again: a digest's content never changes.

        The version is read first, so a change while reading shows as a newer version afterwards.
        """
        query, keys = self.session.query, self.session.keys
        version = await self.version()
        sets = []
        for digest, first_seen in (await query("HGETALL", keys.declarations)).items():
            old = (known or {}).get(digest)
            pages = old.pages if old else await self._pages(digest)
            sets.append(DeclaredSet(digest=digest, first_seen_ms=int(first_seen), pages=pages))
        raw = await query("HGETALL", keys.dynamic)
        dynamic = {task_id: text.partition("|")[2] for task_id, text in raw.items()}
        paused = await query("HGETALL", keys.paused)
        return Contents(
            version=version,
            sets=tuple(sets),
            dynamic={task_id: definition for task_id, definition in dynamic.items() if definition},
            forgotten=tuple(task_id for task_id, definition in dynamic.items() if not definition),
            paused={task_id: _pause(text) for task_id, text in paused.items()},
        )

    async def retire(self, leader: str, digests: Sequence[str], *, after_ms: int) -> list[str]:
        """Forget sets that no worker has had for so long: ``retired``, ``used``, ``unused`` or ``gone`` for each.

        The clock of each set is in Redis: it runs on when the leader changes.

        Raises:
            Deposed: ``leader`` does not lead.
        """
        keys = self.session.keys
        names = [keys.leader, keys.declarations, keys.version, keys.events, keys.unused, keys.workers]
        replies: list[str] = []
        for start in range(0, len(digests), MAX_ITEMS):
            chunk = digests[start : start + MAX_ITEMS]
            sets = map(keys.declared, chunk)
            reply = await self.session.call(_RETIRE, [*names, *sets], leader, after_ms, *chunk)
            if reply == "deposed":
                raise Deposed(leader)
            replies += reply
        return replies

    async def dismiss(self, leader: str, version: int, task_ids: Sequence[str]) -> list[int | Broken | None]:
        """Stop scheduling tasks that the catalog of that version does not have, and end their runs; how many, for each.

        None: the catalog has changed since, so the task may be declared by now. Takes a call for every 500 runs.

        Raises:
            Deposed: ``leader`` does not lead.
        """
        ended: dict[str, int] = dict.fromkeys(task_ids, 0)
        refused: dict[str, Broken | None] = {}
        left = list(ended)
        while left:
            chunk, left = left[:MAX_ITEMS], left[MAX_ITEMS:]
            items = [(f"{task_id}@", (task_id,)) for task_id in chunk]
            head = (leader, version, MAX_ITEMS)
            raw = await self.session.on_runs(_DISMISS, head, items, tail=(self.session.keys.version,))
            for task_id, reply in zip(chunk, raw, strict=True):
                match reply:
                    case ["dismissed" | "more" as word, runs]:
                        ended[task_id] += int(runs)
                        left += [task_id] if word == "more" else []
                    case ["changed", _]:
                        refused[task_id] = None
                    case ["broken", why]:
                        refused[task_id] = Broken(why)
                    case _:
                        raise WrongReply(reply)
        return [refused.get(task_id, runs) for task_id, runs in ended.items()]

    async def pause(self, task_id: str, operation_id: str, *, until_ms: int | None, details: str) -> bool:
        """Pause a task until resumed, or until an instant of Redis time. False if it was paused in just this way."""
        return await self._set_pause(task_id, operation_id, f"{until_ms or 0}|{details}")

    async def resume(self, task_id: str, operation_id: str) -> bool:
        """End a pause. False if there was none."""
        return await self._set_pause(task_id, operation_id, "")

    async def drop_ended_pauses(self) -> int:
        """Remove pauses whose ``until`` has passed, which nobody obeys any longer; how many."""
        return int(await self.session.call(_UNPAUSE, [self.session.keys.paused]))

    async def news(self, last_ids: Mapping[str, str], *, block_ms: int) -> tuple[list[Event], dict[str, str]]:
        """Wait for events and wake-ups after the given ids; what came, and the ids to go on from.

        ``last_ids`` names the streams to read, see ``start``. Never cancel this: unblock the lane of events instead.
        """
        raw = await self.session.transport.events.execute_command(
            "XREAD", "COUNT", 500, "BLOCK", block_ms, "STREAMS", *last_ids, *last_ids.values()
        )
        ids, found = dict(last_ids), []
        for stream, entries in raw or []:
            for entry_id, fields in entries:
                ids[stream] = entry_id
                found.append(Event(name=fields.get("event", "wake"), fields=fields))
        return found, ids

    async def start(self, *, wake: bool) -> dict[str, str]:
        """Where to begin reading events (and, for a leader, wake-ups): after the newest there is."""
        keys = self.session.keys
        ids = {}
        for stream in (keys.events, keys.wake) if wake else (keys.events,):
            newest = await self.session.query("XREVRANGE", stream, "+", "-", "COUNT", 1)
            ids[stream] = newest[0][0] if newest else "0"
        return ids

    async def _pages(self, digest: str) -> tuple[str, ...]:
        raw = await self.session.query("HGETALL", self.session.keys.declared(digest))
        return tuple(raw[number] for number in sorted(raw, key=int))

    async def _set_pause(self, task_id: str, operation_id: str, value: str) -> bool:
        keys = self.session.keys
        names = [keys.paused, keys.version, keys.events, keys.once(operation_id)]
        return bool(await self.session.call(_PAUSE, names, task_id, value))


def _pause(text: str) -> Pause:
    until, _, details = text.partition("|")
    return Pause(until_ms=int(until) or None, details=details)

"""Which tasks exist: what processes declare, what was made at run time, and what is paused."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, final

from engine.errors import KeyMalformed
from engine.store.oddities import is_number
from engine.store.retelling import BEING_FORGOTTEN, WITHDRAWN, Tables
from engine.store.script import MAX_ITEMS, Script, WrongReply, chunks
from engine.store.session import Broken, Deposed
from engine.store.timetable import due_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from engine.store.session import Session
    from engine.store.timetable import Due

__all__ = ["CatalogStore", "Contents", "DeclaredSet", "Event", "Pause", "RecordedEvent"]

_DECLARE = Script.load("declare")
_RETIRE = Script.load("retire")
_DISMISS = Script.load("dismiss")
_PAUSE = Script.load("pause")
_UNPAUSE = Script.load("unpause")
_DROP_WITHDRAWN = Script.load("drop_withdrawn")

_EVENTS_LENGTH = 1_000
"""As the scripts have it."""


@final
@dataclass(frozen=True, slots=True)
class DeclaredSet:
    """What some process declared: its pages, opaque here, and when the set was first seen (Redis ms).

    No pages: whoever asked for it knows them.
    """

    digest: str
    first_seen_ms: int
    pages: tuple[str, ...]


@final
@dataclass(frozen=True, slots=True)
class Pause:
    """A task that does not run: until then (Redis ms; None: until resumed), with details as JSON (who, why, since)."""

    until_ms: int | None
    details: str

    def has_ended(self, now_ms: int) -> bool:
        """Nobody obeys it any longer, at this instant (Redis ms), although it is still there."""
        return self.until_ms is not None and self.until_ms <= now_ms


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

    withdrawn: tuple[str, ...] = ()
    """Tasks that were removed and that no declaration brings back: hidden, whatever set names them."""

    history: str = ""
    """The history of Redis in which this was read."""

    tables: Tables = field(default_factory=partial(Tables, 0))
    """Dynamic tasks and pauses as Redis holds them."""


@final
@dataclass(frozen=True, slots=True)
class Event:
    """Something that changed, or a wake-up for the coordinator (``name`` is then ``wake``)."""

    name: str
    fields: Mapping[str, str]

    @property
    def due(self) -> Due | None:
        """What a wake-up is about; None for all other events, and for one that does not say."""
        if self.name != "wake":
            return None
        try:
            return due_of(self.fields["due"], float(self.fields["at"]))
        except (KeyError, ValueError):
            return None


@final
@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """An event that is kept: when it was written (Redis ms), its name, and all of its fields (``what``, ``who``...)."""

    at_ms: int
    name: str
    fields: Mapping[str, str]


@final
@dataclass(frozen=True, slots=True)
class CatalogStore:
    """Operations on the catalog. All raise RedisUnavailable and can be repeated."""

    session: Session

    async def declare(
        self,
        digest: str,
        pages: Sequence[str],
        *,
        readmit: Sequence[str] = (),
        as_of: int | None = None,
        replaces: str = "",
        worker: str = "",
    ) -> bool:
        """Enter a set, a page at a time; it counts from its last page on. True if it is new, or brought a task back.

        Args:
            digest: of the content, which never changes.
            pages: opaque JSON, at least one.
            readmit: tasks that exist again although they were withdrawn, with the last page, also of a known set.
            as_of: the version of the catalog that the caller has seen: tasks that were withdrawn after it stay so,
                however late this is repeated. None: the version now.
            replaces: a set that ``worker`` declared in its place; it goes at once if no other worker has it.
            worker: who declares.
        """
        keys = self.session.keys
        names = [keys.declared(digest), keys.declarations, keys.version, keys.events, keys.unused, keys.dynamic]
        names += [keys.workers, keys.declared(replaces), keys.leader]
        latest = await self.version() if readmit and as_of is None else as_of or 0
        calls: list[tuple[int, str, Sequence[str]]] = [(number, page, ()) for number, page in enumerate(pages[:-1])]
        for chunk in chunks(readmit) or [()]:
            calls += [(len(pages) - 1, page, chunk) for page in pages[-1:]]
        changed = False
        for number, page, chunk in calls:
            head = (digest, number, page, len(pages), latest, replaces, worker)
            reply = await self.session.call(_DECLARE, names, *head, *chunk)
            changed |= reply == "declared"
        return changed

    async def version(self) -> int:
        """The version of the catalog and the pauses."""
        return await self.session.number(self.session.keys.version)

    async def contents(self, known: Collection[str] = ()) -> Contents:
        """Read the catalog. Sets with ``known`` digests come without pages: a digest's content never changes.

        The version is read first, so a change while reading shows as a newer version afterwards.
        """
        query, keys = self.session.query, self.session.keys
        version = await self.version()
        sets = []
        for digest, first_seen in (await query("HGETALL", keys.declarations)).items():
            pages = () if digest in known else await self._pages(digest)
            if not pages and digest not in known:
                continue  # retired between the two looks
            sets.append(DeclaredSet(digest=digest, first_seen_ms=self._first_seen_ms(digest, first_seen), pages=pages))
        # One without its revision goes whole to whoever reads definitions, as one that nobody understands.
        raw = await query("HGETALL", keys.dynamic)
        texts = {task_id: _definition(text) for task_id, text in raw.items()}
        paused = await query("HGETALL", keys.paused)
        history = await query("HGET", keys.generation, "id") or ""  # last: all of the above is of this one, or older
        return Contents(
            version=version,
            sets=tuple(sets),
            dynamic={task_id: text for task_id, text in texts.items() if text not in (*BEING_FORGOTTEN, WITHDRAWN)},
            forgotten=tuple(task_id for task_id, text in texts.items() if text in BEING_FORGOTTEN),
            paused={task_id: self._pause(task_id, text) for task_id, text in paused.items()},
            withdrawn=tuple(task_id for task_id, text in texts.items() if text == WITHDRAWN),
            history=history,
            tables=Tables(version, dynamic=raw, paused=paused),
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
        for chunk in chunks(digests):
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

    async def drop_withdrawn(self, leader: str, version: int, task_ids: Sequence[str]) -> list[str]:
        """Forget that tasks were withdrawn which no set of the catalog of that version names.

        ``dropped``, ``changed`` (a newer catalog may name it) or ``gone`` (it is not withdrawn) for each. The version
        stays, since nothing that exists changes by it.

        Raises:
            Deposed: ``leader`` does not lead.
        """
        keys, replies = self.session.keys, list[str]()
        names = [keys.leader, keys.version, keys.dynamic]
        for chunk in chunks(task_ids):
            reply = await self.session.call(_DROP_WITHDRAWN, names, leader, version, *chunk)
            if reply == "deposed":
                raise Deposed(leader)
            replies += reply
        return replies

    async def pause(
        self, task_ids: Sequence[str], operation_id: str, *, until_ms: int | None, details: str, who: str
    ) -> list[bool]:
        """Pause tasks until resumed, or until an instant of Redis time; False where one was paused in just this way.

        At most 500 in a call. Repeat it with the same arguments after RedisUnavailable: the answer is that of the
        first time, for ten minutes.
        """
        return await self._set_pause(task_ids, operation_id, who, until_ms or 0, details)

    async def resume(self, task_ids: Sequence[str], operation_id: str, *, who: str) -> list[bool]:
        """End pauses; False where there was none. As `pause` otherwise."""
        return await self._set_pause(task_ids, operation_id, who, "", "")

    async def drop_ended_pauses(self) -> int:
        """Remove pauses whose ``until`` has passed, which nobody obeys any longer; how many."""
        return int(await self.session.call(_UNPAUSE, [self.session.keys.paused]))

    async def news(self, last_ids: Mapping[str, str], *, block_ms: int) -> tuple[list[Event], dict[str, str]]:
        """Wait for events and wake-ups after the given ids; what came, and the ids to go on from.

        ``last_ids`` names the streams to read, see ``start``. Never cancel this: unblock the lane of events instead.
        """
        words = ("XREAD", "COUNT", 500, "BLOCK", block_ms, "STREAMS", *last_ids, *last_ids.values())
        redis, keys = self.session.transport.events, self.session.keys
        raw = await self.session.guarded(lambda: redis.execute_command(*words), *last_ids)
        ids, found = dict(last_ids), []
        for stream, entries in raw or []:
            for entry_id, fields in entries:
                ids[stream] = entry_id
                event = Event(name="wake" if stream == keys.wake else fields.get("event", ""), fields=fields)
                found.append(event)
                if event.name == "" or (event.name == "wake" and event.due is None):
                    self.session.oddities.tell(stream, f"{entry_id} {fields}", "passed over")
        return found, ids

    async def note(self, event: str, what: str, *, who: str) -> None:
        """Keep an event of something that changes nothing in Redis; there twice, perhaps, if it is repeated."""
        fields = ("event", event, "what", what, "who", who)
        await self.session.query("XADD", self.session.keys.events, "MAXLEN", "~", _EVENTS_LENGTH, "*", *fields)

    async def recent_events(self, *, count: int) -> list[RecordedEvent]:
        """What changed lately, and who changed it: at most so many events, the newest first."""
        raw = await self.session.query("XREVRANGE", self.session.keys.events, "+", "-", "COUNT", count)
        return [
            RecordedEvent(at_ms=int(entry_id.partition("-")[0]), name=fields.get("event", ""), fields=fields)
            for entry_id, fields in raw
        ]

    async def start(self, *, wake: bool) -> dict[str, str]:
        """Where to begin reading events (and, for a leader, wake-ups): after the newest there is."""
        keys = self.session.keys
        ids = {}
        for stream in (keys.events, keys.wake) if wake else (keys.events,):
            newest = await self.session.query("XREVRANGE", stream, "+", "-", "COUNT", 1)
            ids[stream] = newest[0][0] if newest else "0"
        return ids

    async def _pages(self, digest: str) -> tuple[str, ...]:
        key = self.session.keys.declared(digest)
        try:
            raw = await self.session.query("HGETALL", key)
        except KeyMalformed:  # the log was told; the other sets are read
            return ()
        for number in raw:
            if not is_number(number):
                self.session.oddities.tell(key, number, "passed over")
        return tuple(raw[number] for number in sorted(filter(is_number, raw), key=int))

    def _first_seen_ms(self, digest: str, text: str) -> int:
        if is_number(text):
            return int(text)
        self.session.oddities.tell(self.session.keys.declarations, f"{digest} {text}", "taken for the oldest set")
        return 0

    def _pause(self, task_id: str, text: str) -> Pause:
        until, _, details = text.partition("|")
        if is_number(until):
            return Pause(until_ms=int(until) or None, details=details)
        what = "the task stays paused until it is resumed"
        self.session.oddities.tell(self.session.keys.paused, f"{task_id} {text}", what)
        return Pause(until_ms=None, details="")

    async def _set_pause(
        self, task_ids: Sequence[str], operation_id: str, who: str, until: int | str, details: str
    ) -> list[bool]:
        keys, replies = self.session.keys, list[bool]()
        for number, chunk in enumerate(chunks(task_ids)):
            names = [keys.paused, keys.version, keys.events, keys.once_of(operation_id, number), keys.leader]
            replies += map(bool, await self.session.call(_PAUSE, names, who, until, details, *chunk))
        return replies


def _definition(text: str) -> str:
    """What stands behind the revision; text that is no JSON where there is none."""
    revision, bar, definition = text.partition("|")
    marked = not revision and definition in (*BEING_FORGOTTEN, WITHDRAWN)
    return definition if bar and (marked or is_number(revision)) else f"?{text}"

"""Reading verdicts, which the scripts that end runs and pass over slots write, and hiding them from statistics."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from engine.store.script import Script, WrongReply, chunks
from engine.store.session import Broken

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine.store.session import Session

__all__ = ["Cleared", "LedgerEntry", "LedgerStore"]

_CLEAR = Script.load("clear")

_CLEARED = re.compile(r"(?P<entry_id>[0-9]{1,20}-[0-9]{1,20})\|(?P<at_ms>[0-9]{1,15})")


@final
@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One verdict: about a run, or about ``count`` neighbouring slots that did not run."""

    entry_id: str
    verdict: str
    reason: str
    run_id: str | None
    from_ms: int | None
    """The slot, or the first of several. None for a run that was no slot."""

    to_ms: int | None
    count: int
    attempt: int
    story: tuple[str, ...]
    """A line of JSON for each attempt, the newest last."""


@final
@dataclass(frozen=True, slots=True)
class Cleared:
    """Up to where the statistics of a task are hidden."""

    entry_id: str
    """Of the verdict that was the newest then; ``0-0`` if there was none."""

    at_ms: int
    """The instant, Redis ms: hides attempts of runs that had no verdict then."""

    def hides(self, entry_id: str) -> bool:
        """Was this verdict there already?"""
        return _order(entry_id) <= _order(self.entry_id)


@final
@dataclass(frozen=True, slots=True)
class LedgerStore:
    """The verdicts of each task, kept for about ``ledger_length`` entries. Raises RedisUnavailable."""

    session: Session

    async def newest(self, task_id: str, *, count: int) -> list[LedgerEntry]:
        """The newest verdicts of a task, the newest first."""
        key = self.session.keys.ledger(task_id)
        return self._entries(key, await self.session.query("XREVRANGE", key, "+", "-", "COUNT", count))

    async def all(self, task_id: str) -> list[LedgerEntry]:
        """Every verdict that is kept of a task, the oldest first."""
        key = self.session.keys.ledger(task_id)
        return self._entries(key, await self.session.query("XRANGE", key, "-", "+"))

    async def clear(self, task_ids: Sequence[str], operation_id: str, *, who: str) -> list[Cleared | Broken]:
        """Hide the statistics of these tasks up to now, for each of them to where; the verdicts stay.

        At most 500 in a call. Repeat it with the same arguments after RedisUnavailable: the answer is that of the
        first time, for ten minutes.
        """
        keys, replies = self.session.keys, list[Cleared | Broken]()
        for number, chunk in enumerate(chunks(task_ids)):
            items = [(f"{task_id}@", (task_id,)) for task_id in chunk]
            tail = (keys.cleared, keys.once_of(operation_id, number))
            replies += map(_cleared_reply, await self.session.on_runs(_CLEAR, (who,), items, tail=tail))
        return replies

    async def cleared(self, task_id: str) -> Cleared | None:
        """Up to where the statistics of a task are hidden; None: nowhere."""
        text = await self.session.query("HGET", self.session.keys.cleared, task_id)
        if text is None:
            return None
        found = _CLEARED.fullmatch(text)
        if found is None:
            self.session.oddities.tell(self.session.keys.cleared, f"{task_id} {text}", "nothing is hidden")
            return None
        return Cleared(found["entry_id"], int(found["at_ms"]))

    def _entries(self, key: str, raw: Sequence[tuple[str, Mapping[str, str]]]) -> list[LedgerEntry]:
        found = []
        for entry_id, fields in raw:
            try:
                found.append(entry_of(entry_id, fields))
            except (KeyError, ValueError):
                self.session.oddities.tell(key, f"{entry_id} {fields}", "passed over")
        return found


def _order(entry_id: str) -> tuple[int, int]:
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number)


def _cleared_reply(raw: Any) -> Cleared | Broken:
    match raw:
        case ["broken", why]:
            return Broken(why)
        case [entry_id, at_ms]:
            return Cleared(entry_id, int(at_ms))
        case _:
            raise WrongReply(raw)


def entry_of(entry_id: str, fields: Mapping[str, str]) -> LedgerEntry:
    """A verdict as the stream has it."""
    slot = fields.get("slot") or None
    first = fields.get("from", slot)
    last = fields.get("to", slot)
    return LedgerEntry(
        entry_id=entry_id,
        verdict=fields["verdict"],
        reason=fields["reason"],
        run_id=fields.get("run"),
        from_ms=int(first) if first else None,
        to_ms=int(last) if last else None,
        count=int(fields.get("count", 1)),
        attempt=int(fields.get("attempt", 0)),
        story=tuple(line for line in fields.get("story", "").split("\n") if line),
    )

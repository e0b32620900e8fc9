"""Reading verdicts. They are written by the scripts that end runs and pass over slots, never from here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from engine.store.session import Session

__all__ = ["LedgerEntry", "LedgerStore"]


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
class LedgerStore:
    """The verdicts of each task, kept for about ``ledger_length`` entries. Raises RedisUnavailable."""

    session: Session

    async def newest(self, task_id: str, *, count: int) -> list[LedgerEntry]:
        """The newest verdicts of a task, the newest first."""
        raw = await self.session.query("XREVRANGE", self.session.keys.ledger(task_id), "+", "-", "COUNT", count)
        return [_entry(entry_id, fields) for entry_id, fields in raw]

    async def all(self, task_id: str) -> list[LedgerEntry]:
        """Every verdict that is kept of a task, the oldest first."""
        raw = await self.session.query("XRANGE", self.session.keys.ledger(task_id), "-", "+")
        return [_entry(entry_id, fields) for entry_id, fields in raw]


def _entry(entry_id: str, fields: dict[str, str]) -> LedgerEntry:
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

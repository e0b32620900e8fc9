"""What became of the runs of a task, as values and as text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, final

from engine.store.session import Broken
from engine.testing.instants import shown, shown_span, zone_of
from engine.views import CatalogCache, read_tasks

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from engine.domain.task import Definition
    from engine.store.ledger import LedgerEntry
    from engine.store.survey import LiveStory
    from engine.testing.cluster import Cluster

__all__ = ["Account", "Attempt", "Ledgers", "Run"]

MOST_LINES = 20
"""Of a report; older runs are counted."""


@final
@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a run, that has ended."""

    number: int
    outcome: str
    """``ran``, ``failed``, ``timed out``, ``cancelled`` or ``lost`` (with its worker)."""

    started_at: datetime | None
    """None when its worker was lost."""

    duration_s: float | None
    """In virtual time; None as above."""

    worker: str | None
    error: str | None


@final
@dataclass(frozen=True, slots=True)
class Run:
    """A run, or neighbouring slots that did not run and share a verdict. Times are in the task's zone."""

    task: str
    """``group/name``."""

    run_id: str | None
    """None for slots without a run."""

    slot: datetime | None
    """When it was due, or the first of several; None for a run that was triggered."""

    last_slot: datetime | None
    count: int
    """How many slots; 1 for a run."""

    verdict: str | None
    """``ran``, ``failed``, ``dead``, ``skipped`` or ``missed``; None: not yet."""

    state: str
    """``ended``, or ``queued``, ``parked``, ``running``, ``waiting`` (for a retry)."""

    reason: str
    """Why, in the words of the ledger; may be empty."""

    attempts: tuple[Attempt, ...]
    retry_at: datetime | None = None
    """When a run that waits is tried again."""

    @property
    def error(self) -> str | None:
        """What the last attempt that failed raised."""
        return next((attempt.error for attempt in reversed(self.attempts) if attempt.error), None)


@final
@dataclass(frozen=True, slots=True)
class Account:
    """All that is known of one task."""

    task: Definition
    now_ms: int
    next_ms: int | None
    """Its next slot; None where there is none."""

    paused: str | None
    """By whom, if it is."""

    runs: tuple[Run, ...]
    """The oldest first; those that have not ended come last."""

    @property
    def name(self) -> str:
        """``group/name``."""
        return f"{self.task.group}/{self.task.name}"

    def report(self) -> str:
        """Everything, for people."""
        zone, task = zone_of(self.task.timezone), self.task
        lines = [f"{self.name}  {task.expression}  {task.timezone}   now: {shown(self.now_ms, zone)}"]
        left_out = len(self.runs) - MOST_LINES
        if left_out > 0:
            lines.append(f"  … {left_out} older ones")
        rows = [_row(run) for run in self.runs[-MOST_LINES:]]
        width = max((len(first) for first, _ in rows), default=0)
        lines += [f"  {first:{width}}  {second}" for first, second in rows] or ["  nothing has run, or was due"]
        if self.next_ms is None:
            lines.append("  no slot is due")
        else:
            lines.append(f"  next: {shown(self.next_ms, zone)}, {shown_span(self.next_ms - self.now_ms)}")
        if self.paused is not None:
            lines.append(f"  paused by {self.paused}")
        return "\n".join(lines)


def _row(run: Run) -> tuple[str, str]:
    if run.slot is None:
        first = "triggered"
    else:
        first = _shown(run.slot)
        if run.count > 1 and run.last_slot is not None:
            first += f" to {_shown(run.last_slot)} ({run.count} slots)"
    second = run.verdict or run.state
    if run.reason:
        second += f" ({run.reason})"
    if run.retry_at is not None:
        second += f", tried again {_shown(run.retry_at)}"
    if len(run.attempts) > 1:
        second += f", {len(run.attempts)} attempts"
    return first, second + (f": {run.error}" if run.error else "")


def _shown(moment: datetime) -> str:
    return shown(round(moment.timestamp() * 1000), moment.tzinfo or UTC)


@final
class Ledgers:
    """Reads accounts; what it read of the catalog is kept."""

    def __init__(self) -> None:
        self._cache = CatalogCache()
        self._told: dict[str, tuple[int, ...]] = {}
        """Up to which verdict of each task ``news`` has told."""

    async def definitions(self, cluster: Cluster) -> dict[str, Definition]:
        """The tasks that exist, by ``group/name``."""
        catalog, _ = await self._cache.read(cluster.store)
        return {f"{task.group}/{task.name}": task for task in catalog.tasks.values()}

    async def news(self, cluster: Cluster) -> list[Run]:
        """The verdicts that were not there when this was called last, in their order."""
        tasks = list((await self.definitions(cluster)).values())
        surveys = await cluster.store.runs.survey([task.id for task in tasks])
        found: list[tuple[tuple[int, ...], Run]] = []
        for task, survey in zip(tasks, surveys, strict=True):
            if isinstance(survey, Broken) or survey.last is None:
                continue
            told = self._told.get(task.id, (0, 0))
            self._told[task.id] = newest = _position(survey.last.entry_id)
            if newest > told:
                entries = [(_position(entry.entry_id), entry) for entry in await cluster.store.ledger.all(task.id)]
                found += [(position, _ended(task, entry)) for position, entry in entries if position > told]
        return [run for _, run in sorted(found, key=lambda one: one[0])]

    async def account(self, cluster: Cluster, definition: Definition) -> Account:
        """All that is known of a task."""
        store = cluster.store
        [view] = await read_tasks(
            store, cluster.config, admits=lambda task: task.id == definition.id, cache=self._cache
        )
        entries = await store.ledger.all(definition.id)
        ended = {entry.run_id for entry in entries}
        live = [run for run in await store.runs.stories(definition.id) if run.run_id not in ended]
        due = {item.id: item.at_ms for item in await store.timetable.window(_FOREVER_MS) if item.is_run}
        return Account(
            task=view.definition,
            now_ms=cluster.now_ms(),
            next_ms=view.next_run_ms,
            paused=None if view.pause is None else view.pause.who or "somebody",
            runs=(
                *(_ended(view.definition, entry) for entry in entries),
                *sorted((_live(view.definition, run, due.get(run.run_id)) for run in live), key=_order),
            ),
        )


_FOREVER_MS = 2**53


def _position(entry_id: str) -> tuple[int, ...]:
    return tuple(map(int, entry_id.split("-")))


def _order(run: Run) -> tuple[float, str]:
    return (run.slot.timestamp() if run.slot else 0.0, run.run_id or "")


def _ended(task: Definition, entry: LedgerEntry) -> Run:
    return Run(
        task=f"{task.group}/{task.name}",
        run_id=entry.run_id,
        slot=_moment(task, entry.from_ms),
        last_slot=_moment(task, entry.to_ms),
        count=entry.count,
        verdict=entry.verdict,
        state="ended",
        reason=entry.reason,
        attempts=_attempts(task, entry.story),
    )


def _live(task: Definition, run: LiveStory, due_ms: int | None) -> Run:
    _, _, suffix = run.run_id.rpartition("@")
    slot = _moment(task, int(suffix)) if suffix.isdecimal() else None
    return Run(
        task=f"{task.group}/{task.name}",
        run_id=run.run_id,
        slot=slot,
        last_slot=slot,
        count=1,
        verdict=None,
        state=run.state,
        reason="",
        attempts=_attempts(task, run.story),
        retry_at=_moment(task, due_ms) if run.state == "waiting" else None,
    )


def _attempts(task: Definition, story: Iterable[str]) -> tuple[Attempt, ...]:
    lines: Sequence[dict[str, object]] = [json.loads(line) for line in story]
    return tuple(_attempt(task, line, number) for number, line in enumerate(lines, 1))


def _attempt(task: Definition, line: dict[str, object], position: int) -> Attempt:
    number, started_ms, duration_s = line.get("attempt"), line.get("started_ms"), line.get("duration_s")
    worker, error = line.get("worker"), line.get("error")
    return Attempt(
        number=number if isinstance(number, int) else position,
        outcome=str(line["outcome"]),
        started_at=_moment(task, started_ms) if isinstance(started_ms, int) else None,
        duration_s=float(duration_s) if isinstance(duration_s, int | float) else None,
        worker=worker if isinstance(worker, str) else None,
        error=error if isinstance(error, str) and error else None,
    )


def _moment(task: Definition, ms: int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, zone_of(task.timezone))

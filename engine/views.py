"""The cluster as Redis shows it, from any host: which workers there are, and which tasks."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, final

import trio

from actors.catalog import Reading
from engine.errors import RedisUnavailable, TreeFormatError
from engine.runtime import Node

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.config import Config
    from engine.domain.task import Definition
    from engine.store.catalog import Pause
    from engine.store.ledger import LedgerEntry
    from engine.store.store import Store

__all__ = ["AttemptView", "TaskView", "WorkerView", "read_statistics", "read_tasks", "read_workers"]

BATCH = 500
"""Tasks that are asked about at once."""


@final
@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker, as it last said. A worker of another version may say less than this one understands."""

    worker_id: str
    leader: bool
    draining: bool
    seen_s_ago: float
    running: int | None
    """None when it does not say."""

    tree: Node | None
    """None when it cannot be read; ``note`` then says why."""

    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "worker_id": self.worker_id,
            "leader": self.leader,
            "draining": self.draining,
            "seen_s_ago": round(self.seen_s_ago, 3),
            "running": self.running,
            "tree": self.tree.to_dict() if self.tree is not None else None,
            "note": self.note,
        }


@final
@dataclass(frozen=True, slots=True)
class TaskView:
    """One task: what it is, when it runs next, and how it ended last."""

    group: str
    name: str
    expression: str
    timezone: str
    dynamic: bool
    next_run: str | None
    """UTC, ISO 8601; None when it never runs again."""

    paused: bool
    queued: int
    running: int
    waiting: int
    last_verdict: str | None
    last_reason: str | None
    last_slot: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@final
@dataclass(frozen=True, slots=True)
class AttemptView:
    """One attempt of a run that has its verdict."""

    started_at: str | None
    """UTC, ISO 8601, with milliseconds; None when its worker was lost, and what it knew with it."""

    duration_s: float | None
    """None as above."""

    outcome: str
    """``ran``, ``failed``, ``timed out``, ``cancelled`` or ``lost``."""

    attempt: int
    worker: str | None
    """None as above."""

    error: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


async def read_workers(store: Store) -> list[WorkerView]:
    """Every worker that is present, the last seen first. Raises RedisUnavailable."""
    now_ms = await store.leases.redis_ms()
    leader = await store.election.leader()
    views = []
    for presence in await store.leases.workers():
        said = presence.account()
        tree = note = None
        try:
            tree = Node.from_dict(said.tree)
        except TreeFormatError as error:
            note = f"another version of Troupe may have written this: {error}"
        views.append(
            WorkerView(
                worker_id=said.worker_id or presence.worker,
                leader=presence.worker == leader,
                draining=presence.draining,
                seen_s_ago=max(0, now_ms - presence.seen_ms) / 1000,
                running=said.running,
                tree=tree,
                note=note,
            )
        )
    return views


async def read_tasks(store: Store) -> list[TaskView]:
    """Every task that exists, by group and name. Raises RedisUnavailable."""
    contents = await store.catalog.contents()
    now_ms = await store.leases.redis_ms()
    due = await store.timetable.tasks()
    tasks = sorted((await Reading().read(contents)).tasks.values(), key=lambda task: (task.group, task.name))
    views: dict[str, TaskView] = {}
    failure: RedisUnavailable | None = None

    async def read(task: Definition) -> None:
        nonlocal failure
        try:
            live = await store.runs.live(task.id)
            newest = await store.ledger.newest(task.id, count=1)
        except RedisUnavailable as error:  # out of here it would be in a group
            failure = error
            return
        pause = contents.paused.get(task.id)
        views[task.id] = _view(task, due.get(task.id), live, newest, is_paused=_in_force(pause, now_ms))

    for start in range(0, len(tasks), BATCH):
        async with trio.open_nursery() as nursery:
            for task in tasks[start : start + BATCH]:
                nursery.start_soon(read, task)
        if failure is not None:
            raise failure
    return [views[task.id] for task in tasks]


async def read_statistics(store: Store, task_id: str, config: Config) -> list[AttemptView]:
    """The attempts of a task that started, the newest first: a view of its ledger. Raises RedisUnavailable.

    Slots that did not run are no part of it, nor are attempts of runs that still have no verdict.

    Args:
        store: where to look.
        task_id: as in ``Task.id``.
        config: its ``statistics_history_runs`` is the most attempts that are shown, its
            ``statistics_redis_expiration`` how far back they reach; a lost attempt counts from when it was found lost.
    """
    oldest_ms = await store.leases.redis_ms() - config.statistics_redis_expiration * 1000
    history_runs = count = config.statistics_history_runs
    while True:
        entries = await store.ledger.newest(task_id, count=count)
        found = [told for entry in entries for told in _attempts(entry) if told[0] >= oldest_ms]
        # No attempt is younger than its verdict, so behind a verdict that is too old there is nothing.
        if len(found) >= history_runs or len(entries) < count or _written_ms(entries[-1]) < oldest_ms:
            break
        count *= 2  # slots that did not run took the place of some that did
    found.sort(key=lambda told: told[0], reverse=True)
    return [attempt for _, attempt in found[:history_runs]]


def _attempts(entry: LedgerEntry) -> list[tuple[int, AttemptView]]:
    """The attempts of one run, the newest first, each with its instant (ms) for the order."""
    found: list[tuple[int, AttemptView]] = []
    attempt = entry.attempt
    for line in map(json.loads, reversed(entry.story)):
        attempt = line.get("attempt", attempt)  # a lost attempt has the number of the one that followed it
        started_ms = line.get("started_ms")
        view = AttemptView(
            started_at=_instant(started_ms, timespec="milliseconds"),
            duration_s=line.get("duration_s"),
            outcome=line["outcome"],
            attempt=attempt,
            worker=line.get("worker"),
            error=line.get("error") or None,
        )
        found.append((line["seen_ms"] if started_ms is None else started_ms, view))
    return found


def _written_ms(entry: LedgerEntry) -> int:
    return int(entry.entry_id.partition("-")[0])


def _view(
    task: Definition, due_ms: int | None, live: Mapping[str, str], newest: list[LedgerEntry], *, is_paused: bool
) -> TaskView:
    states = list(live.values())
    last = newest[0] if newest else None
    return TaskView(
        group=task.group,
        name=task.name,
        expression=task.expression,
        timezone=task.timezone,
        dynamic=task.dynamic,
        next_run=_instant(due_ms),
        paused=is_paused,
        queued=states.count("queued") + states.count("parked"),
        running=states.count("running"),
        waiting=states.count("waiting"),
        last_verdict=last.verdict if last else None,
        last_reason=(last.reason or None) if last else None,
        last_slot=_instant(last.to_ms) if last else None,
    )


def _in_force(pause: Pause | None, now_ms: int) -> bool:
    return pause is not None and (pause.until_ms is None or pause.until_ms > now_ms)


def _instant(ms: int | None, *, timespec: str = "seconds") -> str | None:
    if ms is None:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).replace(tzinfo=None).isoformat(timespec=timespec) + "Z"

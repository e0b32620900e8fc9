"""The cluster as Redis shows it, from any host: which workers there are, and which tasks."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, final

import trio

from actors.ending import retry_policy
from actors.reading import Reading
from engine.domain.canonical import read_json
from engine.domain.names import task_id
from engine.domain.retry import retry_delay_s
from engine.errors import RedisUnavailable, TreeFormatError
from engine.runtime import Node
from engine.store.oddities import LONGEST_MS
from engine.store.session import Broken
from engine.store.survey import Survey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from actors.messages import CatalogRead
    from engine.config import Config
    from engine.domain.catalog import Declaration
    from engine.domain.task import Definition
    from engine.store.catalog import Contents, Pause
    from engine.store.leases import Presence
    from engine.store.ledger import Cleared, LedgerEntry
    from engine.store.presence import Account
    from engine.store.store import Store

__all__ = [
    "AttemptView",
    "CatalogCache",
    "PauseView",
    "TaskView",
    "WorkerView",
    "be_reached",
    "iso",
    "pause_details",
    "read_statistics",
    "read_tasks",
    "read_workers",
]


_LAST_MS: Final = 253_402_300_799_999

MOMENT_S: Final = 0.5
"""How long a connection that is down is waited for, where somebody waits for the answer."""


@final
@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker, as it last said. A worker of another version may say less than this one understands."""

    worker_id: str
    key: str
    """What Redis calls it."""

    host: str
    pid: int
    version: str
    """Of Troupe; empty when it does not say."""

    started_ms: int
    """By its own clock."""

    leader: bool
    draining: bool
    seen_s_ago: float
    concurrent_tasks: int
    running: int | None
    """None when it does not say."""

    runs: Sequence[str]
    """Ids of runs in progress; of very many the first."""

    functions: Sequence[str]
    """``group/function``, each percent-encoded, of those that dynamic tasks can use here."""

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
class PauseView:
    """Why a task does not run. Older pauses may not say who and why."""

    who: str | None
    why: str | None
    since_ms: int | None
    until_ms: int | None
    """None: until it is resumed."""


@final
@dataclass(frozen=True, slots=True)
class TaskView:
    """One task: what it is, when it runs next, and how it ended last. Instants are Redis time, ms."""

    definition: Definition
    next_run_ms: int | None
    """None when it never runs again."""

    pause: PauseView | None
    queued: int
    running: int
    waiting: int
    retry_after_ms: int | None
    """When the first of the retries that wait is due."""

    retry_delay_s: float | None
    """How long that one waits in all."""

    last: LedgerEntry | None
    orphan: bool
    """No live worker has the function that it runs."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        task, last = self.definition, self.last
        return {
            "group": task.group,
            "name": task.name,
            "expression": task.expression,
            "timezone": task.timezone,
            "dynamic": task.dynamic,
            "next_run": iso(self.next_run_ms),
            "paused": self.pause is not None,
            "queued": self.queued,
            "running": self.running,
            "waiting": self.waiting,
            "last_verdict": last.verdict if last else None,
            "last_reason": (last.reason or None) if last else None,
            "last_slot": iso(last.to_ms) if last else None,
        }


@final
@dataclass(frozen=True, slots=True)
class AttemptView:
    """One attempt that has ended."""

    started_at: str | None
    """UTC, ISO 8601, with milliseconds; None when its worker was lost, and what it knew with it."""

    at_ms: int
    """When it started, Redis time; of a lost attempt, when it was found lost."""

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


async def be_reached(store: Store) -> None:
    """Somebody waits for an answer: wait for a connection that is just being made anew, and not for Redis to come back.

    Raises:
        RedisUnavailable: there is no connection.
    """
    with trio.move_on_after(MOMENT_S):
        await store.transport.wait_up()
        return
    raise RedisUnavailable("there is no connection to it")


@final
class CatalogCache:
    """What was read of the catalog and is kept: a declaration never changes, so that reading again costs little."""

    def __init__(self, own: Mapping[str, Declaration] | None = None) -> None:
        """``own``: digest -> what this process declares, which need not be read."""
        self._reading = Reading(own)
        self._latest: CatalogRead | None = None

    async def read(self, store: Store) -> tuple[CatalogRead, Contents]:
        """The catalog as it is now. Raises RedisUnavailable, at once or nearly when there is no connection."""
        await be_reached(store)
        contents = await store.catalog.contents(self._reading.known)
        self._latest = await self._reading.read(contents)
        return self._latest, contents

    async def tasks(self, store: Store) -> Mapping[str, Definition]:
        """The tasks that exist now, by id, which costs one request unless they have changed. Raises as ``read``."""
        await be_reached(store)
        latest = self._latest
        if latest is None or await store.catalog.version() != latest.version:
            latest, _ = await self.read(store)
        return latest.tasks


async def read_workers(
    store: Store, cache: CatalogCache | None = None, *, seen_within_s: float = math.inf
) -> list[WorkerView]:
    """Every worker that was seen so lately, the last seen first. Raises RedisUnavailable.

    One that was lost stays present for some leases, until the leader has made sure that nothing of it is left.
    """
    catalog, _ = await (cache or CatalogCache()).read(store)
    now_ms = await store.leases.redis_ms()
    leader = await store.election.leader()
    return [
        _worker(presence, now_ms, catalog, leads=presence.worker == leader)
        for presence in await store.leases.workers()
        if now_ms - presence.seen_ms <= seen_within_s * 1000
    ]


def _worker(presence: Presence, now_ms: int, catalog: CatalogRead, *, leads: bool) -> WorkerView:
    said = presence.account()
    tree = note = None
    try:
        tree = Node.from_dict(said.tree)
    except TreeFormatError as error:
        note = f"another version of Troupe may have written this: {error}"
    return WorkerView(
        worker_id=said.worker_id or presence.worker,
        key=presence.worker,
        host=said.host,
        pid=said.pid,
        version=said.version,
        started_ms=said.started_ms,
        leader=leads,
        draining=presence.draining,
        seen_s_ago=max(0, now_ms - presence.seen_ms) / 1000,
        concurrent_tasks=said.concurrent_tasks,
        running=said.running,
        runs=said.runs,
        functions=sorted(catalog.functions.get(said.digest, ())),
        tree=tree,
        note=note,
    )


async def read_tasks(
    store: Store,
    config: Config,
    *,
    admits: Callable[[Definition], bool] = lambda _: True,
    cache: CatalogCache | None = None,
) -> list[TaskView]:
    """The tasks that exist and are admitted, by group and name. Raises RedisUnavailable.

    Args:
        store: where to look.
        config: for what tasks inherit.
        admits: which tasks are meant.
        cache: what was read of the catalog before.
    """
    catalog, contents = await (cache or CatalogCache()).read(store)
    tasks = sorted(filter(admits, catalog.tasks.values()), key=lambda task: (task.group, task.name))
    if not tasks:
        return []
    now_ms = await store.leases.redis_ms()
    due = await store.timetable.tasks()
    live = [one for one in await store.leases.workers() if now_ms - one.seen_ms <= config.run_lease_s * 1000]
    runnable = _Runnable.of(catalog, [presence.account() for presence in live])
    surveys = await store.runs.survey([task.id for task in tasks])
    return [
        _view(
            task,
            due.get(task.id),
            _pause(contents.paused.get(task.id), now_ms),
            Survey({}, (), None) if isinstance(survey, Broken) else survey,
            config,
            orphan=task not in runnable,
        )
        for task, survey in zip(tasks, surveys, strict=True)
    ]


@final
@dataclass(frozen=True, slots=True)
class _Runnable:
    """What live workers can run."""

    tasks: frozenset[str]
    functions: frozenset[str]

    @classmethod
    def of(cls, catalog: CatalogRead, live: Sequence[Account]) -> _Runnable:
        digests = {digest for said in live for digest in (said.digest, said.extras)}
        nothing: frozenset[str] = frozenset()
        return cls(
            nothing.union(*(catalog.sets.get(digest, nothing) for digest in digests)),
            nothing.union(*(catalog.functions.get(digest, nothing) for digest in digests)),
        )

    def __contains__(self, task: Definition) -> bool:
        """A task of code runs by its own function, registered or not; any other by the registered one."""
        if not task.dynamic and task.id in self.tasks:
            return True
        return task_id(task.group, task.function) in self.functions


async def read_statistics(store: Store, task_id: str, config: Config) -> list[AttemptView]:
    """The attempts of a task that have started and ended, the newest first. Raises RedisUnavailable.

    A view of its ledger, and of the runs that have no verdict yet. Slots that did not run are no part of it, nor is
    what was cleared.

    Args:
        store: where to look.
        task_id: as in ``Task.id``.
        config: its ``statistics_history_runs`` is the most attempts that are shown, its
            ``statistics_redis_expiration`` how far back they reach; a lost attempt counts from when it was found lost.
    """
    oldest_ms = await store.leases.redis_ms() - config.statistics_redis_expiration * 1000
    cleared = await store.ledger.cleared(task_id)
    stories = await store.runs.stories(task_id)
    history_runs = count = config.statistics_history_runs
    while True:
        entries = await store.ledger.newest(task_id, count=count)
        shown = [entry for entry in entries if cleared is None or not cleared.hides(entry.entry_id)]
        ended = {entry.run_id for entry in entries}  # between the two looks, some of the others too
        told = [(entry.story, entry.attempt) for entry in shown]
        told += [(run.story, run.attempt) for run in stories if run.run_id not in ended]
        found = [
            attempt
            for story, last in told
            for attempt in _attempts(story, last)
            if attempt.at_ms >= oldest_ms and not _ended_before(attempt, cleared)
        ]
        # No attempt is younger than its verdict, so behind a verdict that is too old there is nothing.
        over = len(shown) < count or _written_ms(entries[-1]) < oldest_ms
        if over or len(found) >= history_runs:
            break
        count *= 2  # slots that did not run took the place of some that did
    return sorted(found, key=lambda attempt: attempt.at_ms, reverse=True)[:history_runs]


def _attempts(story: Iterable[str], last: int) -> list[AttemptView]:
    """The attempts of one run, the newest first; ``last`` is the number of the last one."""
    found: list[AttemptView] = []
    attempt = last
    for line in map(_decoded, reversed(tuple(story))):
        attempt = _whole(line.get("attempt")) or attempt  # a lost attempt has the number of the one that followed it
        started_ms, outcome = _whole(line.get("started_ms")), _text(line.get("outcome"))
        at_ms = _whole(line.get("seen_ms")) if started_ms is None else started_ms
        if at_ms is None or outcome is None:
            continue  # Troupe did not write that
        found.append(
            AttemptView(
                started_at=iso(started_ms, timespec="milliseconds"),
                at_ms=at_ms,
                duration_s=_seconds(line.get("duration_s")),
                outcome=outcome,
                attempt=attempt,
                worker=_text(line.get("worker")),
                error=_text(line.get("error")) or None,
            )
        )
    return found


def _decoded(text: str) -> dict[str, Any]:
    """A JSON object from Redis; an empty one where there is none."""
    try:
        said = read_json(text)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _whole(said: object) -> int | None:
    return said if type(said) is int and 0 <= said <= LONGEST_MS else None


def _seconds(said: object) -> float | None:
    return said if isinstance(said, int | float) and type(said) is not bool and 0 <= said <= LONGEST_MS else None


def _text(said: object) -> str | None:
    return said if isinstance(said, str) else None


def _ended_before(attempt: AttemptView, cleared: Cleared | None) -> bool:
    return cleared is not None and attempt.at_ms + (attempt.duration_s or 0) * 1000 < cleared.at_ms


def _written_ms(entry: LedgerEntry) -> int:
    return int(entry.entry_id.partition("-")[0])


def _view(
    task: Definition, due_ms: int | None, pause: PauseView | None, survey: Survey, config: Config, *, orphan: bool
) -> TaskView:
    states = list(survey.live.values())
    retry = min(survey.waiting, key=lambda waiting: waiting.due_ms, default=None)
    return TaskView(
        definition=task,
        next_run_ms=due_ms,
        pause=pause,
        queued=states.count("queued") + states.count("parked"),
        running=states.count("running"),
        waiting=states.count("waiting"),
        retry_after_ms=retry.due_ms if retry else None,
        retry_delay_s=_delay_s(task, config, failures=retry.attempt - 1) if retry else None,
        last=survey.last,
        orphan=orphan,
    )


def _delay_s(task: Definition, config: Config, *, failures: int) -> float:
    policy = retry_policy(task, config)
    return retry_delay_s(failures, policy.backoff_s, policy.backoff_max_s, policy.multiplier)


def pause_details(who: str, why: str | None, *, since_ms: int) -> str:
    """What is kept with a pause and shown by ``PauseView``: JSON; ``since_ms`` is Redis time."""
    return json.dumps({"who": who, "why": why, "since_ms": since_ms})


def _pause(pause: Pause | None, now_ms: int) -> PauseView | None:
    if pause is None or pause.has_ended(now_ms):
        return None
    said = _decoded(pause.details)
    return PauseView(_text(said.get("who")), _text(said.get("why")), _whole(said.get("since_ms")), pause.until_ms)


def iso(ms: int | None, *, timespec: str = "seconds") -> str | None:
    """UTC, ISO 8601 with Z; None for what lies beyond the year 9999, too."""
    if ms is None or ms > _LAST_MS:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).replace(tzinfo=None).isoformat(timespec=timespec) + "Z"

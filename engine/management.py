"""What operators and applications ask of a cluster: which tasks there are, and to change them. Each change is an event.

Every operation is for the trio run of the engine (``Engine.perform`` gets there from elsewhere), works on the tasks of
the whole cluster and not only of this process, and raises RedisUnavailable when Redis does not answer. Then it may be
repeated; part of it may have been done.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from engine.domain.names import task_id, trigger_run_id
from engine.domain.policy import overlap_of
from engine.domain.task import check_inherited
from engine.errors import (
    NameTaken,
    NoSuchGroup,
    NoSuchTask,
    NothingTriggered,
    PayloadTooLarge,
    RedisKeyBroken,
    StaticTask,
)
from engine.store.operations import Accepted, Changed, Defined, Refused, Taken, Trigger, Unchanged
from engine.store.session import Broken
from engine.views import CatalogCache, be_reached, pause_details, read_statistics, read_tasks, read_workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from engine.config import Config
    from engine.domain.catalog import Declaration
    from engine.domain.group import TaskGroup
    from engine.domain.task import Definition, Task
    from engine.store.store import Store
    from engine.views import AttemptView, TaskView, WorkerView

__all__ = ["Affected", "Management", "Match", "SkippedTask", "TaskName", "Triggered", "check_dynamic"]

log = logging.getLogger("fastapi.task-manager.api")

TOLD: Final = 5
"""Tasks that a line of the log names."""

DISABLED: Final = "disabled"
"""Why nothing was done to a paused task, in the word of the HTTP API."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Which tasks are meant: those that have all that is given. Nothing given: all."""

    group: str | None = None
    name: str | None = None
    tag: str | None = None
    """One of the task's tags; a task without tags has none that matches."""

    def admits(self, task: Definition) -> bool:
        """Is this one of them?"""
        return (
            self.group in {None, task.group}
            and self.name in {None, task.name}
            and (self.tag is None or self.tag in task.tags)
        )

    def __str__(self) -> str:
        given = (("task_group_name", self.group), ("task_name", self.name), ("tag", self.tag))
        return ", ".join(f"{name}={value!r}" for name, value in given if value is not None) or "no filter"


@final
@dataclass(frozen=True, slots=True)
class TaskName:
    """A task, by the names that people know."""

    group: str
    name: str


@final
@dataclass(frozen=True, slots=True)
class SkippedTask:
    """A task that was meant and to which nothing was done."""

    group: str
    name: str
    reason: str


@final
@dataclass(frozen=True, slots=True)
class Affected:
    """To which tasks something was done, by group and name."""

    tasks: tuple[TaskName, ...]
    skipped: tuple[SkippedTask, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Triggered:
    """The runs that were queued: task and run id, by group and name."""

    runs: tuple[tuple[TaskName, str], ...]
    skipped: tuple[SkippedTask, ...] = ()


def check_dynamic(task: Task, config: Config) -> None:
    """Refuse a dynamic task that an engine of these settings cannot take.

    Raises:
        PayloadTooLarge: it is larger than ``max_payload_bytes``.
        TaskDeclarationError: it contradicts what it inherits from the Config.
    """
    definition = task.definition
    check_inherited(definition, retry_backoff_max=config.retry_backoff_max)
    if (size := len(definition.to_json().encode())) > config.max_payload_bytes:
        raise PayloadTooLarge(f"{definition.group}/{definition.name}", size, config.max_payload_bytes)


@final
class Management:
    """The operations, for one worker. What it read of the catalog is kept, so that reading again costs little.

    Args:
        store: where the cluster is.
        config: the settings of this process.
        groups: those of this process, whose functions new tasks can use.
        new_id: makes an id that no other process makes, for each operation and each run that is asked for.
        own: digest -> what this process declares by its code.
    """

    def __init__(
        self,
        store: Store,
        config: Config,
        groups: Callable[[], Sequence[TaskGroup]],
        *,
        new_id: Callable[[], str],
        own: Mapping[str, Declaration] | None = None,
    ) -> None:
        self._store, self._config, self._groups, self._new_id = store, config, groups, new_id
        self._cache = CatalogCache(own)

    # -- looking ------------------------------------------------------------------------------------------------------

    async def tasks(self, match: Match) -> list[TaskView]:
        """The tasks that match, by group and name; empty if none does."""
        return await read_tasks(self._store, self._config, admits=match.admits, cache=self._cache)

    async def statistics(self, group: str, name: str) -> list[AttemptView]:
        """The attempts of a task that started, the newest first.

        Raises:
            NoSuchTask: there is no such task.
        """
        [task] = await self._matching(Match(group=group, name=name))
        return await read_statistics(self._store, task.id, self._config)

    async def workers(self) -> list[WorkerView]:
        """Every worker that was seen within a lease, the last seen first."""
        return await read_workers(self._store, self._cache, seen_within_s=self._config.run_lease_s)

    # -- changing tasks, each as often as it is asked for -------------------------------------------------------------

    async def pause(self, match: Match, *, who: str, why: str | None = None) -> Affected:
        """Keep the tasks from running until they are resumed; runs that are queued already do not start either.

        Raises:
            NoSuchTask: none matches.
        """
        found = await self._matching(match)
        details = pause_details(who, why, since_ms=await self._store.leases.redis_ms())
        replies = await self._store.catalog.pause(_ids(found), self._new_id(), until_ms=None, details=details, who=who)
        return _told("disabled", _affected(found, replies), who, f": {why}" if why else "")

    async def resume(self, match: Match, *, who: str) -> Affected:
        """End the pauses of the tasks. Raises NoSuchTask as ``pause``."""
        found = await self._matching(match)
        replies = await self._store.catalog.resume(_ids(found), self._new_id(), who=who)
        return _told("enabled", _affected(found, replies), who)

    async def reset_retry(self, match: Match, *, who: str) -> Affected:
        """Have waiting retries of the tasks become due now. Raises NoSuchTask as ``pause``."""
        found = await self._matching(match)
        replies = await self._store.operations.reset_retry(_ids(found), self._new_id(), who=who)
        return _told("reset the retries of", _affected(found, replies), who)

    async def clear_statistics(self, match: Match, *, who: str) -> Affected:
        """Hide the attempts that have ended from the tasks' statistics; the ledger stays. Raises NoSuchTask."""
        found = await self._matching(match)
        replies = await self._store.ledger.clear(_ids(found), self._new_id(), who=who)
        return _told("cleared the statistics of", _affected(found, replies), who)

    async def trigger(self, match: Match, *, who: str, force: bool = False) -> Triggered:
        """Queue a run of each task now, beside its schedule. It takes the place of a retry that waits.

        Args:
            match: which tasks.
            who: for the events.
            force: also those that are paused. Overlap is never passed.

        Raises:
            NoSuchTask: none matches.
            NothingTriggered: every task that matches was refused, or the one that ``match`` names.
        """
        found = await self._matching(match)
        if match.name is not None and not force and len(found) > 1:
            await self._refuse_paused(found)
        triggers = [self._trigger(task, force=force) for task in found]
        replies = await self._store.operations.trigger(triggers, who=who, queue_cap=self._config.queue_cap)
        runs: list[tuple[TaskName, str]] = []
        skipped: list[SkippedTask] = []
        for task, trigger, reply in zip(found, triggers, replies, strict=True):
            if isinstance(reply, Accepted):
                runs.append((TaskName(task.group, task.name), trigger.run_id))
            else:
                skipped.append(SkippedTask(task.group, task.name, _why(reply)))
        if not runs:
            raise NothingTriggered([(one.group, one.name, one.reason) for one in skipped])
        triggered = Triggered(tuple(runs), tuple(skipped))
        _told("triggered", Affected(tuple(task for task, _ in runs), triggered.skipped), who)
        return triggered

    # -- tasks made at run time ---------------------------------------------------------------------------------------

    def group(self, name: str) -> TaskGroup:
        """A group of this process.

        Raises:
            NoSuchGroup: this process has none of that name.
        """
        groups = {group.name: group for group in self._groups()}
        if name not in groups:
            raise NoSuchGroup(name, tuple(groups))
        return groups[name]

    async def create(self, task: Task, *, who: str) -> None:
        """Keep a task in Redis, for every process: one of ``TaskGroup.prepare``, whose group has it then.

        Raises:
            NameTaken: there is a task of that name, be it the same.
            PayloadTooLarge, TaskDeclarationError: as ``check_dynamic``.
            RedisKeyBroken: what Redis holds under that name was not written by Troupe.
        """
        made = await self.define(task, self._new_id(), who=who)
        if not isinstance(made, Defined):
            raise NameTaken(task.definition.group, task.name)
        self.group(task.definition.group).note_made(task, made.revision)

    async def define(self, task: Task, operation_id: str, *, who: str) -> Defined | Unchanged | Taken:
        """As ``create``, for a caller who repeats it, and tells apart the same task and another of that name.

        A revision is the version of the catalog since which it is so; 0 where processes declare it.
        """
        check_dynamic(task, self._config)
        definition = task.definition
        catalog, contents = await self._cache.read(self._store)
        standing = catalog.tasks.get(task.id)
        if standing is not None and (not standing.dynamic or task.id not in contents.dynamic):
            return Unchanged(0) if standing == definition else Taken(0)  # processes declare it
        if task.id in contents.forgotten:  # acknowledged as removed: its name is free, and need not wait for the leader
            await self._store.operations.finish_forgetting(task.id)
        reply = await self._store.operations.define(task.id, definition.to_json(), operation_id, who=who)
        match reply:
            case Broken(why):
                raise RedisKeyBroken(f"task {definition.group}/{definition.name}", why)
            case Defined(revision):
                log.info("Dynamic task '%s' created in group '%s'", definition.name, definition.group)
                return Defined(revision)
            case Unchanged(revision):
                return Unchanged(revision)
            case Taken(revision) | Changed(revision):
                return Unchanged(revision) if standing == definition else Taken(revision)

    async def remove(self, group: str, name: str, *, who: str) -> Definition:
        """Remove a task that was made at run time, from everywhere, with all that is known of it; what it was.

        Runs in progress go on and leave no verdict. Processes that declare it, and do not keep it in Redis, go on
        without it, and so do those that start later, until somebody makes it again or no process declares it any more.

        Raises:
            NoSuchTask: there is no such task.
            StaticTask: code declares it.
            RedisKeyBroken: what Redis holds under that name was not written by Troupe.
        """
        [task] = await self._matching(Match(group=group, name=name))
        await self.forget(task, self._new_id(), who=who)
        return task

    async def forget(self, task: Definition, operation_id: str, *, who: str) -> None:
        """As ``remove``, for a caller who repeats it and means this very task; it need not be there.

        Raises:
            NameTaken: it is another one by now.
        """
        catalog, _ = await self._cache.read(self._store)
        standing = catalog.tasks.get(task.id, task)
        if not standing.dynamic:
            raise StaticTask(task.group, task.name)
        if standing != task:
            raise NameTaken(task.group, task.name)
        declared = any(task.id in ids for ids in catalog.sets.values())
        reply = await self._store.operations.forget(task.id, operation_id, who=who, declared=declared)
        if isinstance(reply, Broken):
            raise RedisKeyBroken(f"task {task.group}/{task.name}", reply.why)
        if reply is not None:
            log.info("Dynamic task '%s' deleted from group '%s'", task.name, task.group)
        version = await self._store.catalog.version()
        for group in self._groups():
            if group.name == task.group:
                group.note_removed(task.name, version)

    async def note(self, event: str, what: str, *, who: str) -> None:
        """Keep an event of something that changes nothing in Redis, such as the restart of an actor."""
        await be_reached(self._store)
        await self._store.catalog.note(event, what, who=who)

    async def _matching(self, match: Match) -> list[Definition]:
        tasks = await self._cache.tasks(self._store)
        if match.group is not None and match.name is not None:
            named = tasks.get(task_id(match.group, match.name))
            found = [] if named is None or not match.admits(named) else [named]
        else:
            found = [task for task in tasks.values() if match.admits(task)]
        if not found:
            raise NoSuchTask(str(match))
        return sorted(found, key=lambda task: (task.group, task.name))

    async def _refuse_paused(self, tasks: Sequence[Definition]) -> None:
        """Whoever names a task wants that one: nothing is done if it is paused, though others have its name."""
        views = await read_tasks(self._store, self._config, admits=tasks.__contains__, cache=self._cache)
        paused = [view.definition for view in views if view.pause is not None]
        if paused:
            raise NothingTriggered([(task.group, task.name, DISABLED) for task in paused])

    def _trigger(self, task: Definition, *, force: bool) -> Trigger:
        return Trigger(
            run_id=trigger_run_id(task.id, self._new_id()),
            priority="high" if task.high_priority else "low",
            overlap=overlap_of(allow_parallel=task.allow_parallel, default=self._config.allow_parallel).value,
            force=force,
        )


def _told(what: str, affected: Affected, who: str, why: str = "") -> Affected:
    """Say in the log of this process what somebody did; the events say it for all."""
    named = [f"{task.group}/{task.name}" for task in affected.tasks[:TOLD]]
    more = f" and {len(affected.tasks) - TOLD} more" if len(affected.tasks) > TOLD else ""
    if named:
        log.info("%s %s %s%s%s", who, what, ", ".join(named), more, why)
    return affected


def _ids(tasks: Iterable[Definition]) -> list[str]:
    return [task.id for task in tasks]


def _affected(tasks: Sequence[Definition], replies: Sequence[object]) -> Affected:
    """Tasks a key of which is broken were passed over, and stopped no other."""
    pairs = list(zip(tasks, replies, strict=True))
    return Affected(
        tuple(TaskName(task.group, task.name) for task, reply in pairs if not isinstance(reply, Broken)),
        tuple(SkippedTask(task.group, task.name, _why(reply)) for task, reply in pairs if isinstance(reply, Broken)),
    )


def _why(reply: Refused | Broken) -> str:
    match reply:
        case Refused(reason):
            return DISABLED if reason == "paused" else reason
        case Broken(why):
            return f"a key of it is broken: {why}"

"""What the management API says, in the shapes of the system that it replaces. Instants are UTC."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from engine.domain.group import TaskGroup
    from engine.domain.task import Definition
    from engine.management import Affected, SkippedTask, TaskName
    from engine.runtime import Node
    from engine.views import AttemptView, PauseView, TaskView, WorkerView

__all__ = [
    "ActionResponse",
    "ActorResponse",
    "ClusterResponse",
    "CreateTaskRequest",
    "DynamicTaskResponse",
    "FunctionResponse",
    "FunctionsResponse",
    "HealthResponse",
    "ProbeResponse",
    "RestartResponse",
    "RunResponse",
    "StatisticsResponse",
    "TaskGroupResponse",
    "TaskResponse",
    "TriggerResponse",
    "WorkerResponse",
]


class _Shape(BaseModel):
    """What is said of a field below it is its description in OpenAPI."""

    model_config = ConfigDict(use_attribute_docstrings=True)


# -- this worker ------------------------------------------------------------------------------------------------------


class HealthResponse(_Shape):
    """How this worker is."""

    status: Literal["healthy", "unhealthy"]
    redis_connected: bool
    worker_id: str | None = None
    worker_started_at: str | None = None
    """UTC, ISO 8601 with Z."""

    is_leader: bool | None = None
    store: str | None = None
    """Where Redis is, without a password; says so when it is the embedded one, which is for development."""

    detail: str | None = None
    """Why it is unhealthy."""


class ProbeResponse(_Shape):
    """The answer to a probe; its status says the same."""

    status: Literal["ok", "failing"]


# -- tasks ------------------------------------------------------------------------------------------------------------


class TaskGroupResponse(_Shape):
    """A group of this process."""

    name: str
    tags: list[str]
    allow_parallel: bool | None
    """None inherits the setting."""

    task_count: int
    """Those made at run time included."""

    @classmethod
    def of(cls, group: TaskGroup, task_count: int) -> TaskGroupResponse:
        """As it is declared."""
        return cls(name=group.name, tags=group.tags, allow_parallel=group.allow_parallel, task_count=task_count)


class PauseResponse(_Shape):
    """Who disabled a task, and why, as far as is known."""

    who: str | None
    reason: str | None
    since: datetime | None

    @classmethod
    def of(cls, pause: PauseView) -> PauseResponse:
        """As Redis shows it."""
        return cls(who=pause.who, reason=pause.why, since=_instant(pause.since_ms))


class TaskResponse(_Shape):
    """A task of the cluster: what it is, and how it is now."""

    name: str
    description: str | None
    tags: list[str] | None
    """Those of its group first; None when it has none."""

    expression: str
    timezone: str
    high_priority: bool
    retry_backoff: float | None
    """Seconds; None inherits the setting."""

    retry_backoff_max: float | None
    """Seconds; None inherits the setting."""

    dynamic: bool
    """Made at run time, not declared by code."""

    allow_parallel: bool | None
    """None inherits the setting."""

    task_group_name: str
    kwargs: dict[str, Any]
    function_name: str
    next_run: datetime | None
    """None when it never runs again, or nobody has scheduled it yet."""

    is_active: bool
    """False while it is disabled."""

    disabled: PauseResponse | None
    """While it is disabled: by whom, and why."""

    is_running: bool
    retry_after: datetime | None
    """When the first of the retries that wait is due; None when none waits."""

    retry_delay: float | None
    """Seconds that this retry waits in all."""

    orphan: bool
    """No live worker has its function."""

    @classmethod
    def of(cls, view: TaskView) -> TaskResponse:
        """As Redis shows it."""
        task = view.definition
        return cls(
            name=task.name,
            description=task.description,
            tags=list(task.tags) or None,
            expression=task.expression,
            timezone=task.timezone,
            high_priority=task.high_priority,
            retry_backoff=task.retry_backoff,
            retry_backoff_max=task.retry_backoff_max,
            dynamic=task.dynamic,
            allow_parallel=task.allow_parallel,
            task_group_name=task.group,
            kwargs=task.kwargs,
            function_name=task.function,
            next_run=_instant(view.next_run_ms),
            is_active=view.pause is None,
            disabled=None if view.pause is None else PauseResponse.of(view.pause),
            is_running=view.running > 0,
            retry_after=_instant(view.retry_after_ms),
            retry_delay=view.retry_delay_s,
            orphan=view.orphan,
        )


class RunResponse(_Shape):
    """One attempt that started and has ended."""

    run_date: datetime
    """When it started; of one whose worker was lost, when that was found out."""

    durations_second: float | None
    """None when its worker was lost."""

    outcome: str
    """``ran``, ``failed``, ``timed out``, ``cancelled`` or ``lost``."""

    attempt: int
    worker: str | None
    error: str | None

    @classmethod
    def of(cls, view: AttemptView) -> RunResponse:
        """As the ledger has it."""
        return cls(
            run_date=_at(view.at_ms),
            durations_second=view.duration_s,
            outcome=view.outcome,
            attempt=view.attempt,
            worker=view.worker,
            error=view.error,
        )


class StatisticsResponse(_Shape):
    """The attempts of one task, the oldest first."""

    task_group_name: str
    task_name: str
    runs: list[RunResponse]


class TaskNameResponse(_Shape):
    """A task to which something was done."""

    task_group: str
    task: str

    @classmethod
    def of(cls, name: TaskName) -> TaskNameResponse:
        """By the names that people know."""
        return cls(task_group=name.group, task=name.name)


class SkippedResponse(_Shape):
    """A task that was meant, and to which nothing was done."""

    task_group: str
    task: str
    reason: str

    @classmethod
    def of(cls, skipped: SkippedTask) -> SkippedResponse:
        """With the reason."""
        return cls(task_group=skipped.group, task=skipped.name, reason=skipped.reason)


class ActionResponse(_Shape):
    """To which tasks something was done."""

    affected_tasks: list[TaskNameResponse]
    count: int
    """Of the affected ones."""

    skipped: list[SkippedResponse]

    @classmethod
    def of(cls, affected: Affected) -> ActionResponse:
        """In the order given."""
        return cls(
            affected_tasks=[TaskNameResponse.of(name) for name in affected.tasks],
            count=len(affected.tasks),
            skipped=[SkippedResponse.of(one) for one in affected.skipped],
        )


class TriggerResponse(ActionResponse):
    """For which tasks a run was queued."""

    run_ids: list[str]
    """In the order of ``affected_tasks``."""


class CreateTaskRequest(_Shape):
    """A task to be made from a function that a group of this process has."""

    task_group_name: str
    function_name: str
    cron_expression: str
    """Five fields, or six with the seconds first."""

    kwargs: dict[str, Any] | None = None
    """Arguments, by name; they must fit the function's signature."""

    name: str | None = None
    """None makes one of the function, its arguments and the schedule."""

    description: str | None = None
    high_priority: bool = False
    tags: list[str] | None = None
    """Beside those of the group."""

    retry_backoff: float | None = None
    """Seconds; None inherits the setting."""

    retry_backoff_max: float | None = None
    """Seconds; None inherits the setting."""

    allow_parallel: bool | None = None
    """None inherits what the group says, or the setting."""

    max_retries: int | None = None
    """None inherits what the group says, or the setting."""

    timezone: str = "UTC"


class DynamicTaskResponse(_Shape):
    """A task that was made, or removed, at run time."""

    task_group_name: str
    task_name: str
    function_name: str
    cron_expression: str
    kwargs: dict[str, Any]
    dynamic: bool

    @classmethod
    def of(cls, task: Definition) -> DynamicTaskResponse:
        """As it is, or was."""
        return cls(
            task_group_name=task.group,
            task_name=task.name,
            function_name=task.function,
            cron_expression=task.expression,
            kwargs=task.kwargs,
            dynamic=task.dynamic,
        )


class FunctionResponse(_Shape):
    """A function of which tasks can be made."""

    task_group_name: str
    function_name: str
    arguments: dict[str, Any]
    """JSON schema of what can be given as ``kwargs``."""


class FunctionsResponse(_Shape):
    """The functions of this process, group by group."""

    functions: list[FunctionResponse]
    count: int


# -- actors and workers -----------------------------------------------------------------------------------------------


class FailureResponse(_Shape):
    """The last failure of an actor or supervisor."""

    error: str
    traceback: str
    age_s: float


class MailboxResponse(_Shape):
    """The figures of an actor's mailbox."""

    depth: int
    """Messages that wait."""

    capacity: int
    high_water: int
    """The greatest depth there has been."""

    oldest_age_s: float
    """How long the next message has waited."""

    received: int


class ActorResponse(_Shape):
    """An actor or supervisor, with everything below it."""

    name: str
    path: str
    kind: Literal["supervisor", "actor"]
    strategy: Literal["one_for_one", "one_for_all", "rest_for_one"] | None
    """None for an actor."""

    state: Literal["starting", "running", "backing_off", "stopping", "stopped", "failed"]
    uptime_s: float
    restarts: int
    last_failure: FailureResponse | None
    mailbox: MailboxResponse | None
    """None for a supervisor."""

    doing: str
    children: list[ActorResponse]

    @classmethod
    def of(cls, node: Node) -> ActorResponse:
        """As it is now."""
        return cls.model_validate(node.to_dict())


class WorkerTreeResponse(_Shape):
    """The supervision tree of one worker, as it last said."""

    worker_id: str
    leader: bool
    draining: bool
    seen_s_ago: float
    tree: ActorResponse | None
    """None when it cannot be read; ``note`` then says why."""

    note: str | None

    @classmethod
    def of(cls, view: WorkerView) -> WorkerTreeResponse:
        """As it last said."""
        return cls(
            worker_id=view.worker_id,
            leader=view.leader,
            draining=view.draining,
            seen_s_ago=round(view.seen_s_ago, 3),
            tree=ActorResponse.of(view.tree) if view.tree is not None else None,
            note=view.note,
        )


class ClusterResponse(_Shape):
    """The supervision trees of all workers."""

    workers: list[WorkerTreeResponse]


class RestartResponse(_Shape):
    """An actor that was asked to restart, as it was at that moment."""

    path: str
    state: str
    restarts: int


class WorkerResponse(_Shape):
    """A live worker."""

    worker_id: str
    """For people."""

    identity: str
    """What Redis calls it."""

    host: str
    pid: int
    version: str
    """Of Troupe."""

    started_at: datetime | None
    """None when it does not say."""

    leader: bool
    draining: bool
    """It stops: it takes no new runs."""

    seen_s_ago: float
    concurrent_tasks: int
    running: int | None
    """Runs in progress; None when it does not say."""

    runs: list[str]
    """Their ids; of very many the first."""

    functions: list[str]
    """``group/function`` of those that tasks made at run time can use there."""

    note: str | None

    @classmethod
    def of(cls, view: WorkerView) -> WorkerResponse:
        """As it last said."""
        return cls(
            worker_id=view.worker_id,
            identity=view.key,
            host=view.host,
            pid=view.pid,
            version=view.version,
            started_at=_instant(view.started_ms or None),
            leader=view.leader,
            draining=view.draining,
            seen_s_ago=round(view.seen_s_ago, 3),
            concurrent_tasks=view.concurrent_tasks,
            running=view.running,
            runs=list(view.runs),
            functions=list(view.functions),
            note=view.note,
        )


def _instant(ms: int | None) -> datetime | None:
    return None if ms is None else _at(ms)


def _at(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)

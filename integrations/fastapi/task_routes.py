"""Routes of the management API: the tasks of the cluster, to be looked at and to be changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Query

from engine.management import Affected, Match
from integrations.fastapi.functions import arguments_schema
from integrations.fastapi.parameters import GUARDED, GroupFilter, MatchFilters, TagFilter
from integrations.fastapi.problems import documented
from integrations.fastapi.schemas import (
    ActionResponse,
    FunctionResponse,
    FunctionsResponse,
    RunResponse,
    StatisticsResponse,
    TaskGroupResponse,
    TaskResponse,
    TriggerResponse,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from fastapi import APIRouter

    from engine.domain.group import TaskGroup
    from engine.domain.task import Definition
    from engine.management import Management, SkippedTask, TaskName, Triggered
    from engine.views import AttemptView, TaskView
    from integrations.fastapi.desk import Desk

__all__ = ["add_actions", "add_tasks"]


def add_tasks(router: APIRouter, desk: Desk) -> None:
    """Groups, tasks, statistics and functions."""
    schemas: dict[int, tuple[Callable[..., Any], dict[str, Any]]] = {}

    def schema(function: Callable[..., Any]) -> dict[str, Any]:
        """Made once for each function, which is kept so that no other gets its id."""
        if id(function) not in schemas:
            schemas[id(function)] = function, arguments_schema(function)
        return schemas[id(function)][1]

    @router.get("/task-groups", tags=["tasks"], responses=documented(422))
    async def list_task_groups(name: GroupFilter = None, tag: TagFilter = None) -> list[TaskGroupResponse]:
        """The groups of this process, in the order of their adding, with the dynamic tasks that it has heard of."""
        return [
            TaskGroupResponse.of(group, len(group.tasks))
            for group in desk.engine.groups
            if name in {None, group.name} and (tag is None or tag in group.tags)
        ]

    @router.get("/tasks", tags=["tasks"], responses=documented(422, 503))
    async def list_tasks(match: MatchFilters) -> list[TaskResponse]:
        """The tasks of the whole cluster: those of this process as it declares them, then the others by name."""
        tasks = await desk.perform(_tasks(match))
        place = _places(desk.engine.groups)
        tasks.sort(key=lambda view: place(view.definition))
        return [TaskResponse.of(view) for view in tasks]

    @router.get("/tasks/{task_group_name}/{task_name}/statistics", tags=["tasks"], responses=documented(404, 422, 503))
    async def get_statistics(task_group_name: str, task_name: str) -> StatisticsResponse:
        """The attempts of a task that started, failed ones too; the oldest first."""

        async def look(management: Management) -> list[AttemptView]:
            return await management.statistics(task_group_name, task_name)

        newest_first = await desk.perform(look)
        return StatisticsResponse(
            task_group_name=task_group_name,
            task_name=task_name,
            runs=[RunResponse.of(view) for view in reversed(newest_first)],
        )

    @router.get("/functions", tags=["tasks"], responses=documented(422))
    async def list_functions(task_group_name: GroupFilter = None) -> FunctionsResponse:
        """The functions of this process of which tasks can be made, with what they take."""
        found = [
            FunctionResponse(task_group_name=group.name, function_name=name, arguments=schema(function))
            for group in desk.engine.groups
            if task_group_name in {None, group.name}
            for name, function in group.function_registry.items()
        ]
        return FunctionsResponse(functions=found, count=len(found))


def _tasks(match: Match) -> Callable[[Management], Awaitable[list[TaskView]]]:
    async def look(management: Management) -> list[TaskView]:
        return await management.tasks(match)

    return look


def add_actions(router: APIRouter, desk: Desk, who: Any) -> None:
    """Disable, enable, trigger, reset and clear, each for the tasks that match; ``who`` is a dependency."""

    async def act(operation: Callable[[Management], Awaitable[Affected]]) -> ActionResponse:
        affected = await desk.perform(operation)
        place = _places(desk.engine.groups)
        return ActionResponse.of(
            Affected(
                tuple(sorted(affected.tasks, key=place)),
                tuple(sorted(affected.skipped, key=place)),
            )
        )

    options: dict[str, Any] = {
        "tags": ["tasks"],
        "responses": documented(404, 413, 415, 422, 503),
        "openapi_extra": GUARDED,
    }

    @router.post("/tasks/disable", **options)
    async def disable_tasks(
        match: MatchFilters,
        reason: Annotated[str | None, Query(max_length=1_000, description="For those who ask later.")] = None,
        who: str = who,
    ) -> ActionResponse:
        """Keep the tasks that match from running until they are enabled; runs that are queued do not start either."""
        return await act(lambda management: management.pause(match, who=who, why=reason))

    @router.post("/tasks/enable", **options)
    async def enable_tasks(match: MatchFilters, who: str = who) -> ActionResponse:
        """Let the tasks that match run again."""
        return await act(lambda management: management.resume(match, who=who))

    @router.post("/tasks/reset-retry", **options)
    async def reset_retry(match: MatchFilters, who: str = who) -> ActionResponse:
        """Have retries of the tasks that match, which wait, become due now."""
        return await act(lambda management: management.reset_retry(match, who=who))

    @router.delete("/tasks/statistics", **options)
    async def clear_statistics(match: MatchFilters, who: str = who) -> ActionResponse:
        """Forget the statistics of the tasks that match."""
        return await act(lambda management: management.clear_statistics(match, who=who))

    @router.post("/tasks/trigger", **options | {"responses": documented(404, 409, 413, 415, 422, 503)})
    async def trigger_tasks(
        match: MatchFilters,
        *,
        force: Annotated[bool, Query(description="Also tasks that are disabled.")] = False,
        who: str = who,
    ) -> TriggerResponse:
        """Queue a run of each task that matches, now; a retry that waits gives way to it.

        Disabled tasks are skipped. 409 when nothing was queued.
        """

        async def trigger(management: Management) -> Triggered:
            return await management.trigger(match, who=who, force=force)

        triggered = await desk.perform(trigger)
        place = _places(desk.engine.groups)
        runs = sorted(triggered.runs, key=lambda run: place(run[0]))
        skipped = tuple(sorted(triggered.skipped, key=place))
        return TriggerResponse(
            **dict(ActionResponse.of(Affected(tuple(task for task, _ in runs), skipped))),
            run_ids=[run_id for _, run_id in runs],
        )


def _places(groups: Iterable[TaskGroup]) -> Callable[[TaskName | SkippedTask | Definition], tuple[Any, ...]]:
    """The order of answers: groups and tasks as this process declares them, then the others by name.

    Tasks made at run time are others: each process hears of them in its own order.
    """
    of_group: dict[str, int] = {}
    of_task: dict[tuple[str, str], int] = {}
    for group in groups:
        of_group[group.name] = len(of_group)
        of_task |= {(group.name, task.name): place for place, task in enumerate(group.declared)}

    def place(named: TaskName | SkippedTask | Definition) -> tuple[Any, ...]:
        group, task = named.group, (named.group, named.name)
        return group not in of_group, of_group.get(group, 0), group, task not in of_task, of_task.get(task, 0), task

    return place

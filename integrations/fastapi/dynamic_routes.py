"""Routes of the management API: tasks that are made and removed at run time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from integrations.fastapi.parameters import GUARDED
from integrations.fastapi.problems import documented
from integrations.fastapi.schemas import CreateTaskRequest, DynamicTaskResponse

if TYPE_CHECKING:
    from fastapi import APIRouter

    from engine.domain.task import Definition
    from engine.management import Management
    from integrations.fastapi.desk import Desk

__all__ = ["add_dynamic_tasks"]


def add_dynamic_tasks(router: APIRouter, desk: Desk, who: Any) -> None:
    """Make and remove; ``who`` is a dependency."""
    options: dict[str, Any] = {
        "tags": ["tasks"],
        "openapi_extra": GUARDED,
    }

    @router.post("/tasks", responses=documented(400, 404, 409, 413, 415, 422, 503), **options)
    async def create_task(task: CreateTaskRequest, who: str = who) -> DynamicTaskResponse:
        """Make a task from a function of this process. Every process knows it from then on, and it survives restarts.

        The arguments must fit the function's signature; their types are not compared with its annotations.
        """

        async def create(management: Management) -> Definition:
            made = management.group(task.task_group_name).prepare(
                task.function_name,
                task.cron_expression,
                task.kwargs,
                name=task.name,
                description=task.description,
                high_priority=task.high_priority,
                tags=task.tags,
                retry_backoff=task.retry_backoff,
                retry_backoff_max=task.retry_backoff_max,
                allow_parallel=task.allow_parallel,
                max_retries=task.max_retries,
                timezone=task.timezone,
            )
            await management.create(made, who=who)
            return made.definition

        return DynamicTaskResponse.of(await desk.perform(create))

    @router.delete("/tasks", responses=documented(400, 404, 413, 415, 422, 503), **options)
    async def delete_task(task_group_name: str, task_name: str, who: str = who) -> DynamicTaskResponse:
        """Remove a task that was made at run time, from every process and with all that is known of it.

        A run in progress goes on. Also for a task whose function no worker has.
        """

        async def remove(management: Management) -> Definition:
            return await management.remove(task_group_name, task_name, who=who)

        return DynamicTaskResponse.of(await desk.perform(remove))

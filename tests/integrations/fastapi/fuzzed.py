"""The application that is sent arbitrary requests, for a server in a process of its own.

REDIS=PATH uvicorn --factory tests.integrations.fastapi.fuzzed:make_app
"""

from __future__ import annotations

import os

from fastapi import FastAPI

from integrations.fastapi import Config, TaskGroup, TaskManager
from tests.integrations.fastapi.managed import NEW_YEAR
from tests.system.cluster import QUICK

GROUPS = ("shop", "mail")
TASKS = ("report", "failing")
FUNCTIONS = ("report", "failing", "greet")


def make_app() -> FastAPI:
    """Two groups, each with a task that works, one that fails, and a function for more."""
    app = FastAPI()
    manager = TaskManager(app, Config(redis_url=f"unix://{os.environ['REDIS']}", redis_key_prefix="fuzzed", **QUICK))
    for name in GROUPS:
        manager.add_task_group(_group(name))
    app.include_router(manager.get_manager_router())
    return app


def _group(name: str) -> TaskGroup:
    group = TaskGroup(name, tags=[name])

    @group.add_task(NEW_YEAR, name="report", tags=["slow"])
    async def report() -> None: ...

    @group.add_task(NEW_YEAR, name="failing", retry_backoff=0.01)
    def failing() -> None:
        raise ValueError("it always does")

    @group.register_function("greet")
    async def greet(name: str = "you", times: int = 1) -> None: ...

    return group

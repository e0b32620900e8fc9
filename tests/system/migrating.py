"""One application, written as the guides of fastapi-task-manager say, for either system: its import line is the change.

SYSTEM=fastapi_task_manager CONFIG='{"redis_host": ...}' uvicorn tests.system.migrating:app
"""

from __future__ import annotations

import json
import logging
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")

if TYPE_CHECKING:
    from integrations.fastapi import Config, TaskGroup, TaskManager
else:
    system = import_module(os.environ["SYSTEM"])
    Config, TaskGroup, TaskManager = system.Config, system.TaskGroup, system.TaskManager

app = FastAPI()
manager = TaskManager(app, Config(**json.loads(os.environ["CONFIG"])))
app.include_router(manager.get_manager_router(), prefix="/task-manager")

reports = TaskGroup("reports", tags=["reports"])


@reports.add_task("0 3 1 1 *")
async def nightly() -> None:
    """No arguments."""


@reports.add_task(
    "0 4 1 1 *", kwargs={"days": 7, "to": ["board", "städte"], "ratio": 0.5, "draft": False}, name="weekly"
)
async def summary(**_: Any) -> None:
    """A name of its own, and arguments of every kind that JSON has."""


@reports.add_task(["0 5 1 1 *", "0 6 1 1 *"], kwargs=[{"shop": "Rome"}, {"shop": "Vienna"}])
async def of_shop(shop: str) -> None:
    """One of a list."""


@reports.add_task("0  7 1 1 *")
async def spaced() -> None:
    """With two blanks."""


@reports.add_task("0 8 1 1 *", kwargs={"filter": {"until": 2, "from": 1}})
async def nested(**_: Any) -> None:
    """With an order of its own."""


@reports.register_function()
async def send(to: str = "all") -> None:
    """For tasks made at run time."""


manager.add_task_group(reports)

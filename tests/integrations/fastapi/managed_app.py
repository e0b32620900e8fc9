"""An application with a management router, for a server in a process of its own.

MANAGED='{"config": {...}, "effects": PATH}' uvicorn tests.integrations.fastapi.managed_app:app
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import anyio.lowlevel
from fastapi import Depends, FastAPI, Header, Request

from engine import RunContext
from engine.testing import crash
from integrations.fastapi import Config, TaskGroup, TaskManager
from tests.system.worker import EffectLog

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")

spec = json.loads(os.environ["MANAGED"])
log = EffectLog(Path(spec["effects"]))
work = TaskGroup("work", tags=["all"])


@work.register_function
async def note(text: str = "") -> None:
    """Write down that it ran, and where."""
    log.write("ran", run=RunContext.current().run_id, text=text)
    await anyio.lowlevel.checkpoint()


@work.add_task("0 0 1 1 *", name="crash")
async def break_an_actor() -> None:
    """Have an actor of the process in which it runs fail."""
    crash("scheduling.leader")


async def whoever(x_user: str = Header("nobody")) -> None:
    """The application's own dependency: everybody may."""


def user(request: Request) -> str:
    """Who it is, for the events."""
    return request.headers.get("x-user", "nobody")


app = FastAPI()
manager = TaskManager(app, Config(**spec["config"]))
manager.add_task_group(work)
app.include_router(
    manager.get_manager_router(dependencies=[Depends(whoever)], actor=user), prefix="/tm", tags=["task-manager"]
)

"""An application of fastapi-task-manager 1.1.1, as its guides on configuration and deployment show one.

It is run as it is under that package, and with its import line changed under this one. The environment says where Redis
is and to which file the tasks write.
"""

# mypy: disable-error-code="attr-defined, untyped-decorator"
# The package does not say what it exports, nor what its decorators return.

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi_task_manager import Config, TaskGroup, TaskManager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

EFFECTS = Path(os.environ["EFFECTS"])

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
logging.getLogger("fastapi.task-manager.coordinator").setLevel(logging.WARNING)
logging.getLogger("fastapi.task-manager.reconciler").setLevel(logging.INFO)

config = Config(
    redis_key_prefix=__name__,
    concurrent_tasks=3,
    statistics_redis_expiration=604_800,
    statistics_history_runs=50,
    redis_host=os.environ.get("REDIS_HOST", "localhost"),
    redis_port=int(os.environ.get("REDIS_PORT", "6379")),
    redis_password=None,
    redis_db=0,
    poll_interval=0.1,
    worker_service_name="fastapi-task-manager",
    stream_block_ms=1000,
    leader_heartbeat_interval=3.0,
    leader_retry_interval=5.0,
    reconciliation_interval=30,
    retry_backoff=2.0,
    retry_backoff_max=120.0,
    retry_backoff_multiplier=2.0,
    running_heartbeat_interval=3.0,
)


def write(line: str) -> None:
    with EFFECTS.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.greeting = "hello"
    yield
    write("the application's own lifespan ends")


app = FastAPI(lifespan=lifespan)
task_manager = TaskManager(app, config=config)

reports = TaskGroup("reports", tags=["reporting"], allow_parallel=True)
mail = TaskGroup(name="mail", allow_parallel=False)


@reports.add_task("0 3 * * *", kwargs={"days": 7}, name="weekly", description="Figures of the week", high_priority=True)
async def weekly(days: int) -> None:
    await asyncio.sleep(0.05)
    write(f"weekly of {days} days")


@reports.add_task(["0 8 * * *", "0 20 * * *"], [{"city": "Rome"}, {"city": "Oslo"}], tags=["local"])
async def city(city: str) -> None:
    write(f"city {city}")


@mail.add_task("0 4 * * *", retry_backoff=60, retry_backoff_max=120)
def failing() -> None:
    raise RuntimeError("no mail server")


@mail.add_task("0 5 * * *")
async def slow() -> None:
    write("slow begins")
    await asyncio.sleep(2)
    write("slow ends")


@mail.register_function("send")
def send(to: str = "all") -> None:
    write(f"mail to {to}")


task_manager.add_task_group(reports)
task_manager.add_task_group(mail)
app.include_router(task_manager.get_manager_router(), prefix="/task-manager", tags=["task-manager"])


@app.get("/health")
async def health() -> dict[str, Any]:
    return {"app": "ok", "task_manager": await task_manager.is_healthy()}


@app.get("/hello")
async def hello(request: Request) -> dict[str, Any]:
    detail = await task_manager.health_check()
    return {"greeting": request.app.state.greeting, "running": task_manager.is_running, "worker": detail.worker_id}

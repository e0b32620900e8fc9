"""Record what the system that is replaced answers: python -m tests.integrations.fastapi.record [PORT [FILE]]

Runs its application in this process under asyncio, on a Redis of its own unless a port is given, and writes the answers
to ``RECORDING`` or the file given.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import fastapi_task_manager as replaced
import httpx
from fastapi import FastAPI

from tests.integrations.fastapi.recorded import PREFIX, Session, declare
from tests.store.servers import RedisServer, find_binary

RECORDING = Path(__file__).parent / "recordings" / "fastapi-task-manager-1.1.1.json"


async def record(port: int) -> list[dict[str, Any]]:
    """The answers of its application on this Redis, which must be empty."""
    app = FastAPI()
    manager: Any = replaced.TaskManager(  # type: ignore[attr-defined]  # the package exports it without saying so
        app,
        config=replaced.Config(redis_host="127.0.0.1", redis_port=port, redis_key_prefix=PREFIX),  # type: ignore[attr-defined]
    )
    for group in declare(replaced.TaskGroup):  # type: ignore[attr-defined]
        manager.add_task_group(group)
    app.include_router(manager.get_manager_router())
    real = {task.name.partition("__")[0]: task.name for group in manager.task_groups for task in group.tasks}
    declared = [(group.name, task.name.partition("__")[0]) for group in manager.task_groups for task in group.tasks]
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://recorded") as client,
    ):
        session = Session(client, lambda name: real.get(name, name))

        async def settled() -> bool:
            """It runs every task once when it sees it first."""
            ran = [await session.runs(*task) == 1 and await session.idle(*task) for task in declared]
            return all(ran) and bool((await session.get("/health"))["is_leader"])

        await session.until(settled, "the first runs")
        return await session.answers()


def main() -> None:
    """Record, and write."""
    port, file = sys.argv[1:2], Path(sys.argv[2]) if len(sys.argv) > 2 else RECORDING
    if port:
        answers = asyncio.run(record(int(port[0])))
    else:
        with tempfile.TemporaryDirectory(prefix="recording-") as directory:
            server = RedisServer(find_binary("6.2"), Path(directory)).start()
            try:
                answers = asyncio.run(record(server.port))
            finally:
                server.kill()
    file.write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

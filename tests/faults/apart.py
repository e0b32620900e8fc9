"""A scenario played in a process of its own: what two of them do at a time does not hold up each other's proxies."""

from __future__ import annotations

import json
import logging
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import trio

from tests.faults.scenario import Row, Scenario, play
from tests.system.cluster import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


async def play_apart(scenario: Scenario, directory: Path, times: int) -> Row:
    """Start the process, and wait for its row. Cancelled: it ends what it has started."""
    command = [sys.executable, "-m", "tests.faults", "--apart", scenario.name, str(directory), str(times)]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False, cwd=ROOT)
    if done.returncode != 0:
        text = f"its process ended with {done.returncode}: {done.stderr.decode()[-2000:]}"
        return Row(fault=scenario.name, violations=[text])
    return Row(**json.loads(done.stdout))


def play_here(scenario: Scenario, directory: Path, times: int) -> int:
    """What that process does: play, and print the row; nothing if it is told to end before."""
    logging.getLogger("fastapi.task-manager").addHandler(logging.NullHandler())  # of the onlooker's own link
    rows: list[Row] = []

    async def play_it() -> None:
        async with until_told():
            rows.append(await play(scenario, directory, range(times)))

    trio.run(play_it)
    for row in rows:
        sys.stdout.write(json.dumps(asdict(row)))
    return 0 if rows else 1


@asynccontextmanager
async def until_told() -> AsyncIterator[None]:
    """SIGINT and SIGTERM cancel the block: what it has started is ended in order."""
    async with trio.open_nursery() as nursery:

        async def listen(*, task_status: trio.TaskStatus[None]) -> None:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                task_status.started()
                async for _ in signals:
                    nursery.cancel_scope.cancel()

        await nursery.start(listen)
        yield
        nursery.cancel_scope.cancel()

"""The program of a task that forks and lets its child go on as if nothing had happened.

python -m tests.system.forker '{"config": {...}, "effects": PATH, "where": "loop" or "thread"}'
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import trio

from engine import Config, Engine, TaskGroup
from tests.system.cluster import EVERY_SECOND, YEARLY
from tests.system.worker import GROUP, EffectLog

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    spec = json.loads(sys.argv[1])
    log = EffectLog(Path(spec["effects"]))
    group = TaskGroup(GROUP)

    def fork_here() -> None:
        if child := os.fork():
            _, status = os.waitpid(child, 0)
            log.write("ended", code=os.waitstatus_to_exitcode(status))
        else:
            log.write("child")

    async def in_loop() -> None:
        fork_here()  # blocks the parent's loop, but the child does not take long
        await trio.lowlevel.checkpoint()
        log.write("went on")

    def tick() -> None:
        log.write("tick")

    group.add_task(YEARLY, name="fork", run_on_first_start=True)(in_loop if spec["where"] == "loop" else fork_here)
    group.add_task(EVERY_SECOND, name="tick")(tick)
    Engine(Config(**spec["config"]), [group]).run()

"""The program that system tests start: an engine made from JSON, whose tasks write down what they do.

    python -m tests.system.worker '{"config": {...}, "effects": PATH, "tasks": [...], "figures_every_s": 2}'

The effect log is appended to, one JSON object a line and one file a process: ``start`` and ``end`` (or ``cancelled``,
``failed``) of every body, and if asked for what the process has sent and used so far. Lines are whole even after
``kill -9``.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from engine import Config, Engine, RunContext, TaskGroup
from engine.testing import crash

if TYPE_CHECKING:
    from collections.abc import Callable

GROUP = "work"


class EffectLog:
    """A file that is written through at once, line by line."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)

    def write(self, event: str, **facts: Any) -> None:
        line = {"event": event, "pid": os.getpid(), "at_s": time.monotonic(), "wall_s": time.time(), **facts}
        os.write(self._file, json.dumps(line).encode() + b"\n")

    def write_of_run(self, event: str) -> None:
        run = RunContext.current()
        self.write(event, run=run.run_id, slot_ms=run.slot_ms, fence=run.fence, attempt=run.attempt)


class FirstAttempt(Exception):
    """What a flaky task raises."""


def body(
    log: EffectLog, seconds: float, *, thread: bool, flaky: bool, deadly: bool, crashes: str = ""
) -> Callable[[], Any]:
    """What a task does: for so long nothing, in the loop or in a thread of its own.

    A flaky one fails at its first attempt. As soon as it begins, a deadly one ends its process, and one that
    ``crashes`` an actor does that to its own engine.
    """

    def in_thread() -> None:
        log.write_of_run("start")
        threading.Event().wait(seconds)  # libfaketime breaks time.sleep
        log.write_of_run("end")

    async def in_loop() -> None:
        log.write_of_run("start")
        if deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if crashes:
            crash(crashes)
        outcome = "cancelled"
        try:
            await trio.sleep(seconds)
            outcome = "failed" if flaky and RunContext.current().attempt == 1 else "end"
            if outcome == "failed":
                raise FirstAttempt
        finally:
            log.write_of_run(outcome)

    return in_thread if thread else in_loop


def make_engine(spec: dict[str, Any], log: EffectLog) -> Engine:
    group = TaskGroup(spec.get("group", GROUP))
    for task in spec["tasks"]:
        options = dict(task)
        kind = {name: options.pop(name, False) for name in ("thread", "flaky", "deadly")}
        function = body(log, options.pop("seconds", 0), **kind, crashes=options.pop("crashes", ""))
        group.add_task(options.pop("expression"), **options)(function)
    return Engine(Config(**spec["config"]), [group])


def main(spec: dict[str, Any]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    log = EffectLog(Path(spec["effects"]))
    engine = make_engine(spec, log)

    def figures(_number: int, _frame: object) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        sent = engine.link_statistics().commands_sent
        log.write("figures", commands_sent=sent, cpu_s=used.ru_utime + used.ru_stime)

    if "figures_every_s" in spec:
        signal.signal(signal.SIGALRM, figures)
        signal.setitimer(signal.ITIMER_REAL, spec["figures_every_s"], spec["figures_every_s"])
    engine.run()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

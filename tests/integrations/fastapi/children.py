"""Children that a process forks while an engine runs in it."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from engine.app import running_engines

if TYPE_CHECKING:
    from integrations.fastapi import TaskManager
    from tests.system.worker import EffectLog


def fork_child(manager: TaskManager, log: EffectLog, gate: Path) -> int | None:
    """Start a child that writes down what it has of its parent's engine, and leaves when the gate is open."""
    if multiprocessing.current_process().daemon:  # as hypercorn's workers are; these must do it themselves
        pid = os.fork()
        if pid == 0:
            _live(manager, log, gate)
            os._exit(0)
        return pid
    child = multiprocessing.get_context("fork").Process(target=_live, args=(manager, log, gate), daemon=False)
    child.start()
    return child.pid


def _live(manager: TaskManager, log: EffectLog, gate: Path) -> None:
    began_s = time.monotonic()
    health = asyncio.run(manager.health_check())
    log.write(
        "child",
        health=health.status,
        health_took_s=time.monotonic() - began_s,
        manager=[manager.is_running, manager.is_leader, manager.worker_id],
        engine=[manager.engine.leads, manager.engine.worker_id, manager.engine in running_engines()],
        threads=threading.active_count(),
        connections=connections(),
    )
    while not gate.exists():
        time.sleep(0.02)
    log.write("child leaves")


def connections() -> list[str]:
    """Where this process has connections to."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            with socket.socket(fileno=os.dup(int(descriptor.name))) as copy:
                found.append(str(copy.getpeername()))
        except OSError:
            continue
    return found

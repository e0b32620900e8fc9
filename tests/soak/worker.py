"""The program of a soak's workers: many every-second tasks with short bodies, which write down starts and ends.

    python -m tests.soak.worker '{"config": {...}, "effects": DIRECTORY, "tasks": 500}'

An effect takes 15 bytes (`EFFECT`), written through at once. A process begins a new file each minute, named
``<pid>.<number>``, so that whoever reads them can remove those that are full.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import trio

from engine import Config, Engine, RunContext, TaskGroup

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

EFFECT: Final = struct.Struct("<cIHd")
"""What (`START`, `END`), second of the slot, number of the task, and when, by the machine's monotonic clock."""

START: Final = b"S"
END: Final = b"E"
GROUP: Final = "soak"
FILE_S: Final = 60.0
BODY_S: Final = 0.2


@final
class Effects:
    """The effect log of one process."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._number = 0
        self._open()

    def write(self, what: bytes, slot_ms: int, task: int) -> None:
        """One effect. Whole even after ``kill -9``: it is one write, and the kernel has it."""
        if time.monotonic() > self._until_s:
            os.close(self._file)
            self._number += 1
            self._open()
        os.write(self._file, EFFECT.pack(what, slot_ms // 1000, task, time.monotonic()))

    def _open(self) -> None:
        self._until_s = time.monotonic() + FILE_S
        path = self._directory / f"{os.getpid()}.{self._number}"
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)


def body(effects: Effects, task: int) -> Callable[[], Awaitable[None]]:
    """What a task does: wait for a moment, in which its worker may be killed."""

    async def run() -> None:
        slot_ms = RunContext.current().slot_ms
        assert slot_ms is not None
        effects.write(START, slot_ms, task)
        await trio.sleep(BODY_S)
        effects.write(END, slot_ms, task)

    return run


def main(spec: dict[str, Any]) -> None:
    """Run until SIGTERM."""
    logging.basicConfig(level=logging.ERROR, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    effects, group = Effects(Path(spec["effects"])), TaskGroup(GROUP)
    for number in range(spec["tasks"]):
        group.add_task("* * * * * *", name=f"t{number}")(body(effects, number))
    Engine(Config(**spec["config"]), [group]).run()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

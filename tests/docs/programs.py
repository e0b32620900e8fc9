"""Commands and programs of the docs, run as a reader would: in a folder, with a home of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PATIENCE_S = 60.0
"""Ten times what anything here takes on a busy machine."""

BIN = Path(sys.prefix) / "bin"
"""Where the command ``troupe`` of this environment is."""


def environment(home: Path, **more: str) -> dict[str, str]:
    """What a newcomer's shell has: none of the settings of whoever runs the tests."""
    ours = {"HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}
    dropped = ("TROUPE_", "PYTEST", "PYTHON", "XDG_", "MAKE", "MFLAGS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | ours | more


def shell(command: str, *, folder: Path, env: Mapping[str, str], typed: str = "") -> str:
    """Run a command line to its end, which must be a good one; what it printed."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=env,
        input=typed,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


@final
class Program:
    """A command that goes on until Ctrl-C, with what it has printed so far."""

    def __init__(self, process: subprocess.Popen[bytes], command: str, output: Path) -> None:
        self.process, self.command, self.output = process, command, output

    @property
    def printed(self) -> str:
        """Standard output and standard error together."""
        return self.output.read_text(encoding="utf-8")

    def wait_for(self, *texts: str) -> None:
        """Return when it has printed all of these."""
        deadline_s = time.monotonic() + PATIENCE_S
        while missing := [text for text in texts if text not in self.printed]:
            assert self.process.poll() is None, f"{self.command} ended by itself:\n{self.printed}"
            assert time.monotonic() < deadline_s, f"{self.command} did not print {missing}:\n{self.printed}"
            time.sleep(0.05)

    def interrupt(self) -> int:
        """Ctrl-C: a signal to all processes of this command; the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(PATIENCE_S)


@contextmanager
def started(command: str, *, folder: Path, env: Mapping[str, str]) -> Iterator[Program]:
    """Run a command line for the block. It has a process group of its own, which ends with the block."""
    output = folder / f"output-{time.monotonic_ns()}"
    with output.open("wb") as printed:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Program(process, command, output)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(PATIENCE_S)

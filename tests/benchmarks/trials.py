"""One measurement of one system: a process of its own, beside a Redis of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

from tests.store.servers import RedisServer, newest_binary

ROOT: Final = Path(__file__).resolve().parents[2]
PEERS: Final = ROOT / ".venv-peers" / "bin" / "python"
"""An environment apart: what the peers need and what the tests need do not go together."""

LIMIT_S: Final = 120.0


class TrialFailed(Exception):
    """A driver did not end well, or said nothing that is a measurement."""


@final
@dataclass(frozen=True, slots=True)
class Trial:
    """What is measured, and by which driver.

    A driver gets one JSON object as its argument, ``url`` and ``options`` in it, and prints as its last line another
    one: measure -> value.
    """

    case: str
    system: str
    driver: str
    """A module of ``tests/benchmarks``, or of ``tests/benchmarks/peers`` if the peers' interpreter runs it."""

    options: dict[str, Any] = field(default_factory=dict)
    peer: bool = False

    def measure(self, checkout: Path = ROOT) -> dict[str, float]:
        """Run the driver once. ``checkout``: whose engine is measured.

        Raises:
            TrialFailed: with what the driver said.
        """
        if self.peer:
            command = [str(PEERS), str(ROOT / "tests" / "benchmarks" / "peers" / f"{self.driver}.py")]
        else:
            command = [sys.executable, "-m", f"tests.benchmarks.{self.driver}"]
        with tempfile.TemporaryDirectory(prefix="troupe-bench-") as directory:
            server = RedisServer(newest_binary(), Path(directory)).start()
            try:
                told = json.dumps({"url": f"redis://127.0.0.1:{server.port}/0", **self.options})
                env = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONWARNINGS": "ignore"}
                done = subprocess.run(
                    [*command, told],
                    check=False,
                    capture_output=True,
                    text=True,
                    timeout=LIMIT_S,
                    cwd=directory if self.peer else checkout,
                    env=env,
                )
            except subprocess.TimeoutExpired as timeout:
                raise TrialFailed(f"{self.system}, {self.case}: not done after {LIMIT_S:g} s") from timeout
            finally:
                server.kill()
        lines = done.stdout.strip().splitlines()
        if done.returncode != 0 or not lines:
            raise TrialFailed(f"{self.system}, {self.case}: exit code {done.returncode}\n{done.stderr[-3_000:]}")
        measured: dict[str, float] = json.loads(lines[-1])
        return measured

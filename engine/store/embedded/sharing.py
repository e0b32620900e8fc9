"""Share one embedded Redis among the processes of a machine: the first starts it, the last to leave stops it.

Three file locks, all released by the kernel when their holder dies, however it dies:

- gate: held alone while joining or leaving, so that starting, stopping and counting are one step;
- participants: shared by everyone who uses the server; who can take it alone, under the gate, is the last;
- alive: held by the server (server.py).

So a killed participant neither keeps the server nor takes it from the others, and a server whose participants
were all killed goes on, until the next one finds it, uses it, and stops it on leaving.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Never, final
from urllib.parse import quote

import trio

from engine.errors import EmbeddedRedisDirectoryError, EmbeddedRedisFailed
from engine.store.embedded.file_lock import FileLock, holding
from engine.store.embedded.place import Place, place_at
from engine.store.embedded.server import start_or_find, stop, wait_closed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

log = logging.getLogger("fastapi.task-manager.redis")

_LEAVE_S: Final = 10.0
_RESTART_DELAY_S: Final = 0.5
"""Between the end of a server and its restart: one that keeps crashing must not use up the machine."""


@final
@dataclass(frozen=True, slots=True)
class EmbeddedRedis:
    """The shared server, as it was when this process joined it (``ensure`` tells how it is now)."""

    socket: Path
    directory: Path
    """Data, log and locks. Private to the user."""

    binary: Path
    """Of the running server: another process may have started it, with another binary than ours."""

    pid: int
    """As the server sees itself, not as another container sees it: to be shown, not signalled."""

    _participation: FileLock = field(repr=False, compare=False)
    _timeout_s: float = field(repr=False, compare=False)

    @property
    def url(self) -> str:
        """The address, as Redis clients take it."""
        return f"unix://{quote(str(self.socket))}"

    async def ensure(self) -> EmbeddedRedis:
        """Start the server again if it died, and tell how it is now. Every participant may call it.

        Raises:
            trio.ClosedResourceError: this process has left, or is a fork of the one that joined.
            EmbeddedRedisError: as when joining.
        """
        if self._participation.closed:
            raise trio.ClosedResourceError("this process no longer takes part in the embedded Redis")
        return await _join(Place(self.directory), self._participation, self._timeout_s)

    async def keep_alive(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> Never:
        """Watch the server over an idle connection and start it again whenever it dies, until cancelled.

        What it had acknowledged is there again: the append-only file is written before a reply is sent, and
        only a crash of the whole machine can cost the last second. Cancel it before leaving the ``async
        with``.

        Raises:
            EmbeddedRedisError: it died and did not start again.
        """
        task_status.started()
        while True:
            await wait_closed(self.socket)
            log.warning("The embedded Redis at %s ended; starting it again", self.socket)
            await trio.sleep(_RESTART_DELAY_S)
            await self.ensure()


@asynccontextmanager
async def embedded_redis(directory: Path | None = None, *, timeout_s: float = 60.0) -> AsyncIterator[EmbeddedRedis]:
    """Take part in the embedded Redis of ``directory``, by default of this user, starting it if needed.

    On leaving, the last process stops the server and its data stays. Leaving is shielded from cancellation
    for at most ten seconds; a server that could not be stopped by then is left to the next who joins, as
    after a kill. Cancelling while it starts is leaving.

    Raises:
        EmbeddedRedisMissing: no server binary.
        EmbeddedRedisOutdated: none that can read the data.
        EmbeddedRedisDirectoryError: the directory cannot be made, is not writable, or not private.
        EmbeddedRedisFailed: the server did not start, or does not answer within ``timeout_s`` seconds.
    """
    place = place_at(directory)
    participation = _open_participation(place)
    try:
        redis = await _join(place, participation, timeout_s)
        log.warning(
            "Using an embedded Redis: for development, on this machine only. Socket %s, data in %s. "
            "In production set TROUPE_REDIS_URL to a Redis of your own",
            redis.socket,
            redis.directory,
        )
        yield redis
    finally:
        await _leave(place, participation)


def _open_participation(place: Place) -> FileLock:
    try:
        return FileLock(place.participants)
    except OSError as exc:
        raise EmbeddedRedisDirectoryError(place.directory, str(exc)) from exc


async def _join(place: Place, participation: FileLock, timeout_s: float) -> EmbeddedRedis:
    obstacle = f"another process holds {place.gate}"
    try:
        with trio.fail_after(timeout_s):
            async with holding(place.gate):
                if not participation.names_its_path():
                    raise EmbeddedRedisDirectoryError(place.directory, "it was removed while in use")
                # Never refused: it is taken alone only under the gate. Harmless when we hold it already.
                participation.try_shared()
                obstacle = f"its server lives but does not answer at {place.socket} (process id in {place.pid_file})"
                server = await start_or_find(place)
    except trio.TooSlowError as exc:
        reason = f"{obstacle}, for {timeout_s:g} s now: end it and start again"
        raise EmbeddedRedisFailed(place.directory, reason, None, place.log_tail()) from exc
    except OSError as exc:
        raise EmbeddedRedisDirectoryError(place.directory, str(exc)) from exc
    return EmbeddedRedis(
        socket=place.socket,
        directory=place.directory,
        binary=server.binary,
        pid=server.pid,
        _participation=participation,
        _timeout_s=timeout_s,
    )


async def _leave(place: Place, participation: FileLock) -> None:
    try:
        if not participation.held:
            return  # it never came past the gate
        if not participation.names_its_path():
            # What lies at the path now may be a newer server, with participants of its own.
            log.warning(
                "The directory %s was removed in use. Its server may still run: end it by hand, "
                "its name is 'redis-server unixsocket:%s'",
                place.directory,
                place.socket,
            )
            return
        with trio.move_on_after(_LEAVE_S, shield=True) as scope:
            async with holding(place.gate):
                if participation.try_exclusive():
                    await stop(place)
        if scope.cancelled_caught:
            log.warning("The embedded Redis at %s did not stop; the next process will find it", place.socket)
    finally:
        participation.release()

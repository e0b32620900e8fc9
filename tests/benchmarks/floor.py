"""The least that a worker has to do: hiredis on a trio socket, and Troupe's own scripts on what it reads, in batches.

No actors, no supervision, no leases to renew, no statistics, no errors: what Troupe adds to this is what it costs.
Reads, claims, bodies and completions overlap as far as the order of a run allows.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, final
from urllib.parse import urlsplit

import hiredis
import redis
import trio
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

from engine.store.keys import CONSUMER_GROUP, Keys
from engine.store.script import MAX_ITEMS, Script

LEASE_MS: Final = 9_000
LEDGER_LENGTH: Final = 1_000
CLAIM, COMPLETE = Script.load("claim"), Script.load("complete")


@final
class Wire:
    """The least that auto-pipelining over trio costs: no deadlines, no errors, no statistics, no reconnect."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._out = bytearray()
        self._wake = trio.Event()
        self._waiting: deque[list[Any]] = deque()

    async def send(self) -> None:
        """Write what was asked for, all of a turn of the loop at once."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            data = bytes(self._out)
            self._out.clear()
            await self._stream.send_all(data)

    async def receive(self) -> None:
        """Give each reply to the task that waits for it."""
        reader = hiredis.Reader()
        while data := await self._stream.receive_some(65536):
            reader.feed(bytes(data))
            while (reply := reader.gets()) is not False:
                slot = self._waiting.popleft()
                slot[0] = reply
                task: Task | None = slot[1]
                if task is not None:
                    reschedule(task)

    async def command(self, *args: str | int) -> Any:
        """Ask, and wait for the reply."""
        self._out += hiredis.pack_command(args)  # type: ignore[arg-type] # its stub knows tuples of one only
        self._wake.set()
        slot: list[Any] = [None, current_task()]
        self._waiting.append(slot)

        def abort(_raise_cancel: object) -> Abort:
            slot[1] = None
            return Abort.SUCCEEDED

        await wait_task_rescheduled(abort)
        return slot[0]


async def connected(url: str, nursery: trio.Nursery) -> Wire:
    """A connection to that server."""
    address = urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    wire = Wire(await trio.open_tcp_stream(address.hostname, address.port))
    nursery.start_soon(wire.send)
    nursery.start_soon(wire.receive)
    return wire


@final
class FloorWorker:
    """Drains the low stream."""

    def __init__(self, keys: Keys, body: Callable[[], Awaitable[None]], *, runs: int, concurrency: int) -> None:
        self._keys, self._body, self._runs, self._concurrency = keys, body, runs, concurrency
        self._held = self._done = 0
        self._ended: list[tuple[str, int, str]] = []
        self._has_ended, self._has_room, self.all_done = trio.Event(), trio.Event(), trio.Event()

    async def drain(self, reads: Wire, commands: Wire) -> None:
        """Until Redis knows of the last end."""
        for script in (CLAIM, COMPLETE):
            await commands.command("SCRIPT", "LOAD", script.text)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._complete, commands)
            nursery.start_soon(self._read, reads, commands, nursery)
            await self.all_done.wait()
            nursery.cancel_scope.cancel()

    async def _read(self, reads: Wire, commands: Wire, nursery: trio.Nursery) -> None:
        stream = self._keys.stream_low
        while True:
            while self._held >= self._concurrency:
                self._has_room = trio.Event()
                await self._has_room.wait()
            room = self._concurrency - self._held
            head = ("XREADGROUP", "GROUP", CONSUMER_GROUP, "floor", "COUNT", room, "BLOCK", 1_000)
            reply = await reads.command(*head, "STREAMS", stream, ">")
            if not reply:
                continue
            found = [(fields[1].decode(), entry.decode()) for entry, fields in reply[0][1]]
            self._held += len(found)
            nursery.start_soon(self._claim, commands, found, nursery)

    async def _claim(self, commands: Wire, found: list[tuple[str, str]], nursery: trio.Nursery) -> None:
        items = [(run_id, (run_id, entry, "low")) for run_id, entry in found]
        for (run_id, _), reply in zip(
            found, await self._call(commands, CLAIM, ("token", LEASE_MS), items), strict=True
        ):
            nursery.start_soon(self._run, run_id, int(reply[1]))

    async def _run(self, run_id: str, fence: int) -> None:
        began_s = time.perf_counter()
        await self._body()
        story = json.dumps({"attempt": 1, "duration_s": time.perf_counter() - began_s, "outcome": "ran"})
        self._ended.append((run_id, fence, story))
        self._has_ended.set()

    async def _complete(self, commands: Wire) -> None:
        while True:
            await self._has_ended.wait()
            self._has_ended = trio.Event()
            while self._ended:
                batch, self._ended = self._ended[:MAX_ITEMS], self._ended[MAX_ITEMS:]
                items = [(run_id, (run_id, fence, "ran", "", story)) for run_id, fence, story in batch]
                await self._call(commands, COMPLETE, (), items)
                self._held -= len(batch)
                self._done += len(batch)
                self._has_room.set()
                if self._done == self._runs:
                    self.all_done.set()

    async def _call(self, wire: Wire, script: Script, head: tuple[str | int, ...], items: list[tuple[str, Any]]) -> Any:
        keys = list(self._keys.run_scripts)
        args: list[str | int] = [LEDGER_LENGTH, "floor", *head]
        for run_id, arguments in items:
            keys += self._keys.of_run(run_id)
            args += arguments
        return await wire.command("EVALSHA", script.sha, len(keys), *keys, *args)


def drain(url: str, prefix: str, *, runs: int, concurrency: int) -> dict[str, float]:
    """Runs a second from the first start of a body until Redis knows of the last end, and what Redis alone allows."""
    began_s = ended_s = cpu_s = 0.0
    keys = Keys(prefix)

    async def body() -> None:
        nonlocal began_s, cpu_s
        if not began_s:
            began_s, cpu_s = time.perf_counter(), time.process_time()

    async def main() -> None:
        nonlocal ended_s, cpu_s
        async with trio.open_nursery() as nursery:
            reads, commands = await connected(url, nursery), await connected(url, nursery)
            worker = FloorWorker(keys, body, runs=runs, concurrency=concurrency)
            await commands.command("XGROUP", "CREATE", keys.stream_low, CONSUMER_GROUP, "0")
            await commands.command("CONFIG", "RESETSTAT")
            await worker.drain(reads, commands)
            ended_s, cpu_s = time.perf_counter(), time.process_time() - cpu_s
            nursery.cancel_scope.cancel()

    trio.run(main)
    rate = runs / (ended_s - began_s)
    return {"runs_per_s": rate, "cpu_us": 1e6 * cpu_s / runs, "redis_alone_per_s": runs / busy_s(url)}


def busy_s(url: str) -> float:
    """The time that this server has spent on requests since its statistics began."""
    spent: Any = redis.Redis.from_url(url).info("commandstats")
    return float(sum(spent[name]["usec"] for name in ("cmdstat_evalsha", "cmdstat_xreadgroup"))) / 1e6

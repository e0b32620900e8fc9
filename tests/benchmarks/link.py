"""The link against the floor: bare hiredis on a trio socket, with nothing but what a reply needs to find its task.

Run it with ``python -m tests.benchmarks.link``. Prints, for each way of using a connection, the median of the rounds
and the ratio of the medians, and exits with 1 if a ratio is below the target. Rounds alternate, so that what the
machine does besides hits both alike.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from engine.store.link import Link
from tests.benchmarks.floor import Wire
from tests.store.servers import RedisServer, newest_binary

ROUNDS = 5
TARGET = 0.7
Set = Callable[[], Awaitable[Any]]


async def one_at_a_time(command: Set, count: int = 5_000) -> int:
    """One task that waits for each reply."""
    for _ in range(count):
        await command()
    return count


async def from_50_tasks(command: Set, count: int = 400) -> int:
    """Fifty tasks that each wait for their replies."""
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(one_at_a_time, command, count)
    return 50 * count


async def burst(command: Set, count: int = 10_000) -> int:
    """Ten thousand tasks with one command each, all at once."""
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(command)
    return count


async def per_second(load: Callable[[Set], Awaitable[int]], command: Set) -> float:
    """Commands a second under a load."""
    started_s = time.perf_counter()
    count = await load(command)
    return count / (time.perf_counter() - started_s)


async def measure(server: RedisServer) -> dict[str, float]:
    """Ratio of link to floor, by load; prints the figures."""
    ratios: dict[str, float] = {}
    async with trio.open_nursery() as nursery:
        floor = Wire(await trio.open_tcp_stream(server.tcp.host, server.tcp.port))
        nursery.start_soon(floor.send)
        nursery.start_soon(floor.receive)
        link = Link(server.tcp)
        await nursery.start(link.run)
        await link.wait_up()

        async def by_floor() -> None:
            await floor.command("SET", "key", "value")

        async def by_link() -> None:
            await link.commands.execute_command("SET", "key", "value")

        for load in (one_at_a_time, from_50_tasks, burst):
            await load(by_floor), await load(by_link)  # warm up
            pairs = [(await per_second(load, by_floor), await per_second(load, by_link)) for _ in range(ROUNDS)]
            floor_rate, link_rate = (statistics.median(rates) for rates in zip(*pairs, strict=True))
            ratios[load.__name__] = ratio = link_rate / floor_rate
            row = f"{load.__name__:15} floor {floor_rate:9,.0f}/s   link {link_rate:9,.0f}/s   {ratio:.2f}\n"
            sys.stdout.write(row)
        nursery.cancel_scope.cancel()
    return ratios


def main() -> int:
    """Measure on a server of our own. Exit code 1: below the target."""
    with tempfile.TemporaryDirectory() as directory:
        server = RedisServer(newest_binary(), Path(directory)).start()
        try:
            ratios = trio.run(measure, server)
        finally:
            server.kill()
    return 0 if min(ratios.values()) >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())

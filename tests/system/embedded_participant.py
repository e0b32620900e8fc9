"""A process that takes part in an embedded Redis, for test_embedded.py: told by stdin, telling by stdout.

    python -m tests.system.embedded_participant DIRECTORY [ROUNDS]

Without ROUNDS it joins, prints one JSON line, and leaves when its stdin ends. With ROUNDS it joins, counts
and leaves that many times as fast as it can.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import redis
import trio

from engine.store.embedded import embedded_redis


async def stay(directory: Path) -> None:
    async with embedded_redis(directory) as server:
        facts = {"pid": server.pid, "socket": str(server.socket), "binary": str(server.binary)}
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


async def come_and_go(directory: Path, rounds: int) -> None:
    for _ in range(rounds):
        async with embedded_redis(directory) as server:
            with redis.Redis(unix_socket_path=str(server.socket)) as client:
                client.incr("visits")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        trio.run(come_and_go, Path(sys.argv[1]), int(sys.argv[2]))
    else:
        trio.run(stay, Path(sys.argv[1]))

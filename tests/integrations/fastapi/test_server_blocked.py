"""A handler that blocks the application's loop, and lets the GIL go: leadership and leases stay where they are."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.integrations.fastapi.serving import serve
from tests.system.cluster import (
    EVERY_SECOND,
    ONCE,
    Cluster,
    assert_never_at_once,
    assert_one_verdict_each,
    look_at,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

BLOCKED_S = 20
LEASES: dict[str, Any] = {"leader_heartbeat_interval": 1, "running_heartbeat_interval": 1}
"""Of three seconds each."""

LINES = {"sleep": "BLOCKS[how](seconds)  # the line that blocks", "compute": "while time.monotonic() < end_s:"}


async def test_a_loop_that_is_blocked_for_many_leases_costs_neither_leadership_nor_leases(
    cluster: Cluster, tmp_path: Path
) -> None:
    """By a sleep and by plain Python, with another worker that would take over; the log names the line that blocks."""
    async with trio.open_nursery() as nursery:
        for how in LINES:
            (tmp_path / how).mkdir()
            nursery.start_soon(blocked, Cluster(cluster.server, tmp_path / how, how), how)


async def blocked(cluster: Cluster, how: str) -> None:
    tasks = [
        {"name": "loop", "kind": "loop", "seconds": BLOCKED_S / 2, **ONCE},
        {"name": "thread", "kind": "thread", "seconds": BLOCKED_S / 2, **ONCE},
        {"name": "tick", "kind": "thread", "expression": EVERY_SECOND},
    ]
    try:
        served = serve(cluster, "uvicorn asyncio", tasks=tasks, **LEASES)
        [loop] = await served.wait_for("start", task="loop")
        [thread] = await served.wait_for("start", task="thread")
        await served.leading()
        async with look_at(cluster) as view:
            epoch = await view.epoch()
            rival = serve(cluster, "uvicorn asyncio", name="rival", tasks=tasks, **LEASES)
            await rival.healthy()
            await served.get(f"/block?seconds={BLOCKED_S}&how={how}", timeout_s=4 * BLOCKED_S)
            assert await view.epoch() == epoch
            await served.wait_for("end", task="loop")
            [stall] = served.program.lines("has not answered for")
            assert "it is here" in stall
            assert LINES[how] in served.program.log()
            await served.program.logged("The application's loop is back after")
            await served.leading()
            for program in (served.program, rival.program):
                program.signal(signal.SIGTERM)
                await program.ended()
            entries = await view.verdicts("work/tick")
            assert len(assert_one_verdict_each(entries)) >= BLOCKED_S
            assert {entry.verdict for entry in entries} == {"ran"}
        assert_never_at_once([*served.runs(), *rival.runs()])
        for first in (loop, thread):
            assert len(served.effects("start", run=first["run"])) == len(served.effects("end", run=first["run"])) == 1
            assert rival.effects("start", run=first["run"]) == []
    finally:
        for program in cluster.programs:
            program.kill()


async def test_a_run_that_the_blocked_loop_did_not_begin_runs_elsewhere(cluster: Cluster) -> None:
    """Within a lease and a little: it goes back, and is no failure."""
    task = {"name": "tick", "kind": "loop", "expression": EVERY_SECOND}
    served = serve(cluster, "uvicorn asyncio", tasks=[task])
    await served.wait_for("start", task="tick")
    rival = serve(cluster, "uvicorn asyncio", name="rival", tasks=[task])
    await rival.healthy()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.get, "/block?seconds=6")
        await served.program.logged("has not answered for")
        so_far = len(rival.effects("end"))
        await rival.wait_for("end", count=so_far + 3)
    await served.program.logged("The application's loop is back after")
    assert_never_at_once([*served.runs(), *rival.runs()])
    async with look_at(cluster) as view:
        for program in (served.program, rival.program):
            program.signal(signal.SIGTERM)
            await program.ended()
        entries = await view.verdicts("work/tick")
    assert_one_verdict_each(entries)
    assert {entry.verdict for entry in entries} == {"ran"}

"""Several worker processes of one server: one leads, all execute, and a killed one is replaced."""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.integrations.fastapi.serving import serve
from tests.system.cluster import EVERY_SECOND, ONCE, assert_one_verdict_each, eventually, look_at

if TYPE_CHECKING:
    from tests.integrations.fastapi.serving import Served
    from tests.system.cluster import Cluster, View

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


async def present(view: View, count: int) -> None:
    async def there() -> bool:
        return len(await view.presences()) == count

    await eventually(there, f"{count} workers are present")


async def end(served: Served) -> None:
    served.program.signal(signal.SIGTERM)
    await served.program.ended()


@pytest.mark.parametrize("server", ["uvicorn asyncio", "gunicorn preload"])
async def test_workers_end_with_their_server_and_let_their_runs_end_first(server: str, cluster: Cluster) -> None:
    """Also where the application was made before the fork: each worker has an identity and connections of its own."""
    tasks = [{"name": f"long-{number}", "kind": "loop", "seconds": 2, **ONCE} for number in range(4)]
    served = serve(cluster, server, "--workers", "2", tasks=tasks, concurrent_tasks=2)
    async with look_at(cluster) as view:
        await present(view, 2)
        identities = {found.worker for found in (await view.presences()).values()}
        assert len({identity.rpartition("-")[2] for identity in identities}) == 2
        await served.wait_for("start", count=4)
        assert len(served.program.lines("became LEADER")) == 1
        await end(served)
        assert await view.presences() == {}
        assert await view.store.election.leader() is None
    assert len(served.effects("entered")) == len(served.effects("left")) == 2
    assert len(served.effects("start")) == len(served.effects("end")) == 4
    assert {effect["pid"] for effect in served.effects("left")} == {effect["pid"] for effect in served.effects("start")}
    assert "Traceback" not in served.program.log()


async def test_four_workers_of_two_runs_each_have_eight_in_progress(cluster: Cluster) -> None:
    """One of them leads, and the ninth run waits for the end of another."""
    tasks = [{"name": f"long-{number}", "kind": "gated", **ONCE} for number in range(9)]
    served = serve(cluster, "uvicorn asyncio", "--workers", "4", tasks=tasks, concurrent_tasks=2)
    async with look_at(cluster) as view:
        await present(view, 4)
        starts = await served.wait_for("start", count=8)
        assert Counter(effect["pid"] for effect in starts) == dict.fromkeys(await view.presences(), 2)
        assert len(served.program.lines("became LEADER")) == 1
        served.open_gate()
        await served.wait_for("end", count=9)
    events = [effect.event for effect in sorted(served.runs(), key=lambda effect: effect.at_s)]
    assert events[:9] == ["start"] * 8 + ["end"]
    assert Counter(events) == {"start": 9, "end": 9}
    await end(served)


async def test_a_killed_worker_loses_nothing(cluster: Cluster) -> None:
    """Its run starts again on another when its lease has ended; each slot of another task has exactly one verdict."""
    tasks = [
        {"name": "held", "kind": "gated", **ONCE},
        {"name": "tick", "kind": "thread", "seconds": 0.2, "expression": EVERY_SECOND},
    ]
    served = serve(cluster, "uvicorn asyncio", "--workers", "4", tasks=tasks, concurrent_tasks=2)
    async with look_at(cluster) as view:
        await present(view, 4)
        [first] = await served.wait_for("start", task="held")
        os.kill(first["pid"], signal.SIGKILL)
        _, second = await served.wait_for("start", task="held", count=2)
        assert second["pid"] != first["pid"]
        assert (second["run"], second["attempt"]) == (first["run"], first["attempt"])
        assert second["fence"] > first["fence"]
        lease_s = 0.9
        assert lease_s / 2 < second["at_s"] - first["at_s"]
        so_far = len(await view.verdicts("work/tick"))
        await view.settled("work/tick", count=so_far + 3)
        served.open_gate()
        [held] = await view.settled("work/held")
        await end(served)
        ticks = await view.verdicts("work/tick")
    assert held.verdict == "ran"
    assert len(served.effects("end", task="held")) == 1
    assert_one_verdict_each(ticks)
    assert {entry.verdict for entry in ticks} <= {"ran", "missed"}

"""A handler that holds the GIL for longer than a lease: the fence keeps order, and the log says what stood where."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest
import trio

from tests.integrations.fastapi.serving import serve
from tests.system.cluster import EVERY_SECOND, ONCE, assert_one_verdict_each, eventually, look_at, slots

if TYPE_CHECKING:
    from tests.system.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

HELD_S = 6
"""Some leases of 1.5 s, and time enough for another worker to notice on a busy machine."""


async def test_a_regular_expression_that_holds_the_gil_costs_the_leadership_and_doubles_nothing(
    cluster: Cluster,
) -> None:
    """The other worker leads and starts the runs again; what ends late here is refused; each slot has one verdict."""
    tasks = [
        {"name": "thread", "kind": "gated thread", **ONCE},
        {"name": "loop", "kind": "gated", **ONCE},
        {"name": "tick", "kind": "thread", "expression": EVERY_SECOND},
    ]
    served = serve(cluster, "uvicorn asyncio", tasks=tasks)
    [thread] = await served.wait_for("start", task="thread")
    [loop] = await served.wait_for("start", task="loop")
    await served.leading()
    async with look_at(cluster) as view:
        epoch = await view.epoch()
        rival = serve(cluster, "uvicorn asyncio", name="rival", tasks=tasks)
        name = (await rival.healthy())["worker_id"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.get, f"/block?how=regex&seconds={HELD_S}", 60)
            [again] = await rival.wait_for("start", task="thread")
            await rival.wait_for("start", task="loop")
            assert await view.epoch() > epoch
            await rival.leading()
        await served.wait_for("cancelled", task="loop")
        served.open_gate()
        await served.wait_for("end", task="thread")
        await served.program.logged(f"Run {thread['run']} was lost to another worker")
        rival.open_gate()
        await rival.wait_for("end", task="loop")
        await rival.wait_for("end", task="thread")

        async def enough() -> bool:
            return len(slots(await view.verdicts("work/tick"))) > HELD_S

        await eventually(enough, "the slots of that time have their verdicts")
        for program in (served.program, rival.program):
            program.signal(signal.SIGTERM)
            await program.ended()
        verdicts = {task: await view.verdicts(f"work/{task}") for task in ("thread", "loop", "tick")}

    assert again["run"] == thread["run"]
    assert again["fence"] > thread["fence"]
    assert served.effects("end", run=loop["run"]) == []
    for task in ("thread", "loop"):
        [entry] = verdicts[task]
        assert entry.verdict == "ran"
        assert json.loads(entry.story[-1])["worker"] == name
    assert_one_verdict_each(verdicts["tick"])
    assert served.program.lines("The whole process stood still for")
    assert 'pattern.match("a" * int(' in served.program.log()
    assert "BLOCKS[how](seconds)  # the line that blocks" in served.program.log()

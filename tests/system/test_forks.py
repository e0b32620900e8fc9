"""A task forks and its child does not leave: it must not become a second worker under the same name."""

from __future__ import annotations

import json
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.cluster import QUICK, assert_one_verdict_each, eventually

if TYPE_CHECKING:
    from tests.system.cluster import Cluster, View

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("where", "code"),
    [
        ("loop", 70),  # it is ended, since it would go on with its parent's loop
        ("thread", 0),  # its only thread is an idle one, which ends after ten seconds
    ],
)
async def test_a_child_that_does_not_leave_ends_and_its_parent_goes_on(
    where: str, code: int, cluster: Cluster, view: View
) -> None:
    """As the worker that it was, with every slot served once; the child has written nothing to Redis."""
    effects_path = cluster.directory / "effects"
    spec = {
        "config": {"redis_url": cluster.url, "redis_key_prefix": cluster.prefix, **QUICK},
        "effects": str(effects_path),
        "where": where,
    }
    program = cluster.program(sys.executable, "-m", "tests.system.forker", json.dumps(spec), name="forker")

    def effects(event: str) -> list[dict[str, Any]]:
        lines = effects_path.read_text().splitlines() if effects_path.exists() else []
        return [line for line in map(json.loads, lines) if line["event"] == event]

    async def ended() -> list[dict[str, Any]]:
        return effects("ended")

    [end] = await eventually(ended, "the child ends", limit_s=50)
    assert end["code"] == code
    assert len(effects("child")) == 1
    epoch = await view.epoch()
    so_far = len(await view.verdicts("work/tick"))
    await view.settled("work/tick", count=so_far + 3)
    [fork] = await view.settled("work/fork")
    program.signal(signal.SIGTERM)
    assert await program.ended() == 0
    assert fork.verdict == "ran"
    assert await view.epoch() == epoch
    entries = await view.verdicts("work/tick")
    assert_one_verdict_each(entries)
    assert {effect["pid"] for effect in effects("tick")} == {program.pid}
    assert len(program.lines("became LEADER")) == 1
    assert len(program.lines("connected to Redis")) == 3
    assert len(effects("went on")) == (where == "loop")
    assert bool(program.lines("came back into the engine's loop, and is ended")) == (where == "loop")

from __future__ import annotations
import trio
from tests.unit.actors.stage import *
async def test_a(stage: Stage) -> None:
    print("start", trio.current_time())
    g = group(); s = noting(g, "* * * * *")
    w = await stage.worker(g)
    print("w", trio.current_time())
    await stage.until(130)
    print(trio.current_time(), s)
    from engine.runtime import render
    print(render(w.supervision.snapshot()))
    assert 0

"""Looking at a cluster through a link that can break."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from engine.errors import RedisUnavailable
from engine.views import read_tasks
from tests.unit.actors.stage import Cable, config, group, noting

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.actors.stage import Stage


async def test_redis_that_goes_away_in_the_middle_is_one_error(autojump_clock: MockClock, stage: Stage) -> None:
    """Many tasks are asked about at once, and whoever looks catches RedisUnavailable, not a group of them."""
    tasks = group()
    for number in range(3):
        noting(tasks, "0 0 1 1 *", name=f"t{number}")
    await stage.worker(tasks)
    await stage.until(5)
    cable = Cable(stage.server)
    looking = stage.new_store(cable)
    assert len(await read_tasks(looking, config())) == 3
    whole = len(cable.sent)
    cable.sent.clear()

    async def cut_in_the_middle() -> None:
        while len(cable.sent) < whole - 3:
            await trio.lowlevel.checkpoint()
        cable.cut()

    stage.nursery.start_soon(cut_in_the_middle)
    with pytest.raises(RedisUnavailable):
        await read_tasks(looking, config())

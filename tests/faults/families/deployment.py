"""A new version is rolled out worker by worker, and back: its tasks are others, and no run of either is dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from tests.faults.ground import LIMIT_S, task
from tests.faults.scenario import Scenario
from tests.system.cluster import eventually

if TYPE_CHECKING:
    from tests.faults.ground import Ground

RETIRE_S: Final = 3.0
STAYS: Final = (task("stays"), task("stays-long", "*/2 * * * * *", seconds=3.0))
VERSIONS: Final = (
    (*STAYS, task("removed"), task("old-name", "*/2 * * * * *", seconds=1.0)),
    (*STAYS, task("added"), task("new-name", "*/2 * * * * *", seconds=1.0)),
)
EVER: Final = tuple({one["name"]: one for version in VERSIONS for one in version}.values())


async def roll_out(ground: Ground, number: int) -> None:
    """One worker after the other is replaced by one of the other version; there and back again."""
    tasks = VERSIONS[(number + 1) % 2]
    for member in list(ground.alive):
        await ground.workers(1, tasks=tasks)
        await trio.sleep(1.0)
        await ground.cluster.stop(member.worker)
        ground.note_deaths()
    gone = {f"work/{one['name']}" for one in EVER} - {f"work/{one['name']}" for one in tasks}

    async def retired() -> bool:
        return not gone & (await ground.view.store.timetable.tasks()).keys()

    await eventually(retired, "tasks that nobody declares any longer are scheduled no longer", limit_s=LIMIT_S)
    ground.gone = gone
    await ground.flowing()


async def nothing_was_dropped(ground: Ground) -> list[str]:
    """Both versions have run what only they know, and both names of what was renamed."""
    ran = {one.run.partition("@")[0] for one in ground.cluster.ends()}
    return [f"work/{one['name']} never ran" for one in EVER if f"work/{one['name']}" not in ran]


SCENARIOS = [
    Scenario(
        name="rolling deployment, tasks added, renamed, removed",
        inject=roll_out,
        times=2,
        tasks=EVER,
        first_tasks=VERSIONS[0],
        config={"retire_after": RETIRE_S, "shutdown_grace": 10},
        check=nothing_was_dropped,
    ),
]

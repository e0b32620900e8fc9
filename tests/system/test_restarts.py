"""Any part of an engine goes down while runs are in progress: no run is doubled, and no slot is lost."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, final

import pytest
import trio

from engine.testing import crash
from tests.system.cluster import EVERY_SECOND, QUICK, Effect, assert_never_at_once, eventually, slots
from tests.system.worker import GROUP, EffectLog, make_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from engine import Engine, Node
    from tests.system.cluster import Cluster, View

LOOP, THREAD = "loop", "thread"
TASKS: Final[tuple[dict[str, Any], ...]] = (
    {"name": LOOP, "expression": EVERY_SECOND, "seconds": 1.3},
    {"name": THREAD, "expression": EVERY_SECOND, "seconds": 2.4, "thread": True},
)
"""A thread goes on for longer than it would take to start its run elsewhere, were its lease forgotten: a lease of 0.9 s
and half of one in which it is watched."""

RESTART, CRASH = "restart", "crash"
ROUNDS: Final = ((RESTART, "start", LOOP), (CRASH, "end", LOOP), (CRASH, "end", THREAD), (RESTART, "start", THREAD))
"""What is done, and the moment: as soon as a body of that task has started or ended, which differs within a second."""

ACTORS: Final = (
    "link",
    "catalog",
    "stats",
    "heartbeat",
    "execution.consumer",
    "scheduling.leader",
    "scheduling.coordinator",
    "scheduling.reconciler",
)
SUPERVISORS: Final = ("execution", "scheduling")


@final
class Running:
    """An engine in the test's own loop, with an effect log."""

    def __init__(self, engine: Engine, effects: Path) -> None:
        self.engine, self._effects = engine, effects

    def effects(self, event: str | None = None, task: str | None = None) -> list[Effect]:
        """What the bodies did so far: all of it, or such events of one task."""
        found = [Effect(**json.loads(line)) for line in self._effects.read_text().splitlines()]
        return [e for e in found if event in {None, e.event} and (task is None or e.run.startswith(f"{GROUP}/{task}@"))]

    def node(self, path: str) -> Node:
        [found] = [node for node in self.engine.tree().walk() if node.path == f"engine.{path}"]
        return found

    def is_all(self, state: str) -> bool:
        return all(node.state.value == state for node in self.engine.tree().walk())

    async def next(self, event: str, task: str) -> None:
        """Wait until this has happened once more, and bodies of both tasks are in progress."""
        before = len(self.effects(event, task))

        async def happened() -> bool:
            return len(self.effects(event, task)) > before and all(self._going(name) for name in (LOOP, THREAD))

        await eventually(happened, f"the next {event} of {task}, with runs in progress")

    async def comes_back(self, path: str, *, restarts: int) -> None:
        """Wait until a part has been restarted so often, and all parts are up."""

        async def up() -> bool:
            return self.node(path).restarts == restarts and self.is_all("running")

        await eventually(up, f"{path} comes back ({restarts})")

    def _going(self, task: str) -> int:
        return sum(1 if effect.event == "start" else -1 for effect in self.effects(None, task))


@pytest.fixture
async def running(cluster: Cluster) -> AsyncIterator[Running]:
    """Under way, with room for all runs at once."""
    effects = cluster.directory / "effects"
    config = {"redis_url": cluster.url, "redis_key_prefix": cluster.prefix, **QUICK, "concurrent_tasks": 12}
    engine = make_engine({"config": config, "tasks": TASKS}, EffectLog(effects))
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.serve)
        yield Running(engine, effects)
        engine.stop()


async def check(view: View, running: Running) -> None:
    """Stop gracefully: every slot up to now has one verdict, and no body started while one of its run was going."""
    last_ms = {name: running.effects("start", name)[-1].slot_ms or 0 for name in (LOOP, THREAD)}

    async def missing(name: str) -> list[int]:
        found = slots(await view.verdicts(f"{GROUP}/{name}"))
        first_ms = running.effects("start", name)[0].slot_ms or 0
        return [slot for slot in range(first_ms, last_ms[name] + 1, 1000) if slot not in found]

    async def settled() -> bool:
        return not any([await missing(name) for name in last_ms])

    await eventually(settled, "every slot up to now has a verdict")
    running.engine.stop()

    async def stopped() -> bool:
        return running.is_all("stopped")

    await eventually(stopped, "the engine has stopped")
    for name in last_ms:
        found = slots(await view.verdicts(f"{GROUP}/{name}"))
        assert {slot: count for slot, count in found.items() if count != 1} == {}, f"{name}: several verdicts"
        assert await missing(name) == []
        unsettled = {effect.slot_ms for effect in running.effects("start", name)} - set(found)
        assert unsettled == set(), f"{name}: started, and no verdict"
    assert_never_at_once(running.effects())


@pytest.mark.parametrize("path", ACTORS)
async def test_an_actor_that_goes_down_doubles_no_run_and_loses_no_slot(
    running: Running, view: View, path: str
) -> None:
    """Restarted in order, or crashed without warning, again and again, while asynchronous runs and threads go on."""
    for number, (what, event, task) in enumerate(ROUNDS, 1):
        await running.next(event, task)
        if what == CRASH:
            crash(path)
        else:
            running.engine.restart(path)
        await running.comes_back(path, restarts=number)
        failure = running.node(path).last_failure
        assert (failure is None) == (number == 1)
        assert failure is None or failure.error == f"Crashed: {path!r} was made to crash"
    await running.next("start", LOOP)
    await check(view, running)
    if path == "execution.consumer":
        assert_started_again(running)


@pytest.mark.parametrize("path", SUPERVISORS)
async def test_a_supervisor_that_is_restarted_doubles_no_run_and_loses_no_slot(
    running: Running, view: View, path: str
) -> None:
    """All below it goes down in order, and comes back."""
    for number, (_, event, task) in enumerate(ROUNDS, 1):
        await running.next(event, task)
        running.engine.restart(path)
        await running.comes_back(path, restarts=number)
    await running.next("start", LOOP)
    await check(view, running)
    if path == "execution":
        assert_started_again(running)


def assert_started_again(running: Running) -> None:
    """Without its consumer no asynchronous body goes on: some were started again. Threads go on, and none was."""
    starts = Counter((LOOP if f"/{LOOP}@" in effect.run else THREAD, effect.run) for effect in running.effects("start"))
    assert {task for (task, _), count in starts.items() if count > 1} == {LOOP}

"""Long times: a day, a month and a year pass, every slot has its verdict, and nothing grows beyond its bound."""

from __future__ import annotations

import gc
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import trio

from engine.management import Match
from engine.store.keys import Keys
from tests.simulation.bounds import BOUNDS, Scope, broken
from tests.simulation.calm import CalmProcess, CalmWorld, Rhythm, Routine, live
from tests.unit.test_architecture import first_column, section

if TYPE_CHECKING:
    from engine.domain.group import TaskGroup

KEYS = Keys("troupe")
HOUR_S, DAY_S = 3_600.0, 86_400.0


def test_every_key_of_the_documentation_has_a_bound() -> None:
    """The table of bounds has a row for each row of the table of keys."""
    assert set(BOUNDS) == {
        name.partition("<")[0].removesuffix(":") for name in first_column(section("What Redis holds"))
    }


def objects_of_ours() -> int:
    """How many objects of the engine's own types there are in this process."""
    gc.collect()
    return sum(str(type(one).__module__).startswith(("engine.", "actors.")) for one in gc.get_objects())


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_a_day_of_three_engines_with_twenty_tasks_a_minute() -> None:
    """28,800 slots, each with one verdict; every two hours a worker dies or is replaced, and nothing is left of it.

    Takes about 65 s on a core that has nothing else to do.
    """
    settings = {
        "running_heartbeat_interval": 60,
        "leader_heartbeat_interval": 20,
        "leader_retry_interval": 60,
        "reconciliation_interval": 300,
        "stream_block_ms": 60_000,
        "concurrent_tasks": 4,
        "ledger_length": 2_000,
        "queue_cap": 100,
    }
    tasks = {f"t{n}": (f"{3 * n} * * * * *", Rhythm(60, 3 * n)) for n in range(20)}
    objects: list[int] = []

    async def plan(world: CalmWorld) -> None:
        for number in range(11):
            await trio.sleep_until(2 * HOUR_S * (number + 1))
            if number % 2:
                world.alive()[0].kill()
            else:
                await world.alive()[0].leave()
            await world.join()
            await trio.sleep(HOUR_S)  # a lease until the loss is seen, three until nothing is left
            scope = Scope(
                tasks=20,
                names=20,
                dynamic=0,
                workers=3,
                slots=12,
                sets=1,
                paused=0,
                operations=0,
                queue_cap=100,
                ledger_length=2_000,
            )
            assert broken(world.look, scope, KEYS) == []
            objects.append(objects_of_ours())

    world = live(Routine(tasks, settings, engines=3, lasts_s=DAY_S, body_s=2.5, plan=plan))
    assert world.oracle.found is None
    # A slot that came due while nobody led may be missed, in the hands of three leaders that were killed.
    assert sum(start.attempt == 1 for start in world.effects.starts) >= 28_700
    assert max(objects) < 1.05 * min(objects)  # what differs is how many runs are in progress, or have just ended


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_a_year_of_one_engine_with_ten_hourly_tasks() -> None:
    """87,600 slots, each with one verdict, and the engine is at the end as large as after a month.

    Takes about 100 s on a core that has nothing else to do.
    """
    settings = {
        "running_heartbeat_interval": 3_600,
        "leader_heartbeat_interval": 3_600,
        "leader_retry_interval": 3_600,
        "reconciliation_interval": 3_600,
        "stream_block_ms": 60_000,
        "concurrent_tasks": 10,
        "ledger_length": 10_000,
    }
    tasks = {f"t{n}": ("0 0 * * * *", Rhythm(3_600)) for n in range(10)}
    objects: list[int] = []

    async def plan(world: CalmWorld) -> None:
        for month in range(1, 13):
            await trio.sleep_until(month * 30 * DAY_S + 100)
            scope = Scope(
                tasks=10,
                names=10,
                dynamic=0,
                workers=1,
                slots=10,
                sets=1,
                paused=0,
                operations=0,
                queue_cap=1_000,
                ledger_length=10_000,
            )
            assert broken(world.look, scope, KEYS) == []
            objects.append(objects_of_ours())

    world = live(Routine(tasks, settings, engines=1, lasts_s=365 * DAY_S, body_s=0, plan=plan))
    assert world.oracle.found is None
    assert sum(start.attempt == 1 for start in world.effects.starts) >= 87_600
    assert max(objects) < 1.02 * objects[0]


class Month:
    """Thirty days of restarts, losses, rolling versions and operators, each followed by a look at all that is there."""

    CAP, LEDGER = 8, 100
    SETTINGS: ClassVar[dict[str, Any]] = {
        "running_heartbeat_interval": 300,
        "leader_heartbeat_interval": 200,
        "leader_retry_interval": 300,
        "reconciliation_interval": 300,
        "retire_after": 1_800,
        "stream_block_ms": 60_000,
        "concurrent_tasks": 3,
        "max_deliveries": 2,
        "queue_cap": CAP,
        "ledger_length": LEDGER,
    }
    VERSIONS = 4
    """So many versions come one after the other, again and again; each has a task that no other has."""

    def __init__(self) -> None:
        self.looks = 0
        self.full = self.lost = 0

    def declare(self, process: CalmProcess, group: TaskGroup) -> None:
        """What a process of its version does."""

        async def dies() -> None:
            with process.effect():
                await trio.sleep(1)
                raise RuntimeError

        async def outlasts() -> None:
            with process.effect():
                await trio.sleep(1_000)

        group.add_task("0 */15 * * * *", name="often", high_priority=True)(process.body)
        group.add_task("0 0 * * * *", name="dies", max_retries=1)(dies)
        group.add_task("0 30 * * * *", name="outlasts", allow_parallel=False)(outlasts)
        group.add_task("0 20 * * * *", name=f"of version {process.version}")(process.body)
        group.register_function(process.body, name="dynamic")

    async def plan(self, world: CalmWorld) -> None:
        """Each day has the same trouble."""
        for number in range(9_990):  # almost as many as are kept, from before
            world.look(("XADD", KEYS.dead, "*", "run", f"g/old@{number}", "reason", "max_retries"))
            if number < 990:
                world.look(("XADD", KEYS.events, "*", "event", "noted", "what", "old", "who", "test"))
        for day in range(30):
            version = day % self.VERSIONS
            await self._at(day, 1)
            for old in world.alive():  # a rolling update
                await old.leave()
                await world.join(version)
            await self._at(day, 4.55)  # while outlasts runs, somewhere
            for old in world.alive()[:2]:
                old.kill()
                await world.join(version)
            await self._at(day, 6)
            await self._operate(world, day)
            await self._at(day, 9)
            for old in world.alive():
                old.kill()
            await self._at(day, 11)  # nobody was there for two hours
            for _ in range(3):
                await world.join(version, concurrent_tasks=0)
            await self._at(day, 16)  # nobody has executed for seven
            self.full += self._verdicts(world, "g/often")["skipped", "queue full"]
            for old in world.alive():
                await old.leave()
                await world.join(version)
            await self._at(day, 23)
            self._look(world, day)
        world.nursery.cancel_scope.cancel()

    async def _at(self, day: int, hour: float) -> None:
        await trio.sleep_until(day * DAY_S + hour * HOUR_S)

    async def _operate(self, world: CalmWorld, day: int) -> None:
        [process, *_] = world.alive()
        management, group = process.management, process.group
        for number in range(12):
            name = f"d{day}-{number}"
            await management.create(group.prepare("dynamic", "0 */10 * * * *", name=name), who="op")
            await management.trigger(Match(name=name), who="op")
        await management.pause(Match(name="often"), who="op")
        await management.clear_statistics(Match(), who="op")
        await trio.sleep(HOUR_S)
        await management.resume(Match(name="often"), who="op")
        for number in range(12):
            await management.remove("g", f"d{day}-{number}", who="op")

    def _verdicts(self, world: CalmWorld, task_id: str) -> Counter[tuple[str, str]]:
        found: Counter[tuple[str, str]] = Counter()
        for _, flat in world.look(("XRANGE", KEYS.ledger(task_id), "-", "+")):
            facts = dict(zip(flat[::2], flat[1::2], strict=True))
            found[facts["verdict"], facts["reason"]] += int(facts.get("count", 1))
        return found

    def _look(self, world: CalmWorld, day: int) -> None:
        seen = min(day + 1, self.VERSIONS)
        scope = Scope(
            tasks=4,
            names=3 + seen + 1,
            dynamic=0,
            workers=3,
            slots=9,
            sets=1,
            paused=0,
            operations=0,
            queue_cap=self.CAP,
            ledger_length=self.LEDGER,
        )
        assert broken(world.look, scope, KEYS) == []
        self.lost += self._verdicts(world, "g/outlasts")["dead", "max_deliveries"]
        self.looks += 1


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_after_a_month_of_trouble_nothing_exceeds_its_bound() -> None:
    """New identities, losses, retries, gaps, pauses, triggers, dynamic tasks, dead runs, rolling versions.

    Presence and readers are those of the workers that there are, whatever there was before; a queue that nobody
    consumes is as long as its cap, and slots beyond it have a verdict that says so.
    """
    month = Month()
    world = live(
        Routine({}, month.SETTINGS, engines=3, lasts_s=31 * DAY_S, declare=month.declare, plan=month.plan),
    )
    assert world.oracle.found is None
    assert month.looks == 30
    assert month.full > 10
    assert len(world.processes) > 300
    outcomes = Counter(start.outcome for start in world.effects.starts)
    assert min(outcomes[word] for word in ("returned", "raised", "cancelled")) > 10

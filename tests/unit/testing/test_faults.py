"""The marker ``faults``: each crash point of a run, replayed against a user's task."""

from __future__ import annotations

import functools
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
import trio

from engine import RunContext, TaskGroup
from engine.errors import EngineStateError, NotSettled
from engine.testing import Fault, TroupeEngine
from engine.testing.bodies import code_of
from engine.testing.points import places_of, points_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from engine.testing.points import Point

ONCE = {
    "leader killed when it has published",
    "killed before its claim",
    "reply to its claim lost",
    "killed between claim and body",
    "Redis away when its end is told",
    "reply to its end lost",
    "killed when its end was told",
}
"""Where the function is started once all the same."""

POINTS = {point.name: point for point in points_for(None)}


@pytest.fixture
def engines() -> Iterator[Callable[[TaskGroup], TroupeEngine]]:
    """Makes engines for a group, and ends them."""
    made: list[TroupeEngine] = []

    def make(group: TaskGroup) -> TroupeEngine:
        made.append(TroupeEngine([group]))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.mark.parametrize("kind", ["async def", "def"])
@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_how_often_a_function_starts_at_each_point(
    engines: Callable[[TaskGroup], TroupeEngine], point: Point, kind: str
) -> None:
    """Twice where a worker was at work in it, once elsewhere; always with one verdict, and a growing fence."""
    shop, effects = TaskGroup("shop"), list[str]()

    @shop.add_task("0 3 * * *", name="async def")
    async def awaits() -> None:
        effects.append("begun")
        await trio.sleep(0.5)
        await trio.sleep(0.5)
        effects.append("done")

    @shop.add_task("0 3 * * *", name="def")
    def calls() -> None:
        effects.append("begun")
        sum(range(10))
        effects.append("done")

    engine = engines(shop)
    fault = Fault(engine, point)
    fault.replay(f"shop/{kind}")
    once = ONCE | ({"its actor fails in the body"} if kind == "def" else set())
    assert fault.name == point.name
    assert fault.starts == (1 if point.name in once else 2)
    assert effects.count("begun") == fault.starts
    assert fault.fences == sorted(set(fault.fences))
    assert len({start.run_id for start in fault.log}) == 1
    assert engine.verdicts(f"shop/{kind}") == ["ran"]
    assert fault.verdict == "ran"


@pytest.mark.parametrize("kind", ["async def", "def"])
def test_nothing_of_a_function_that_was_killed_is_executed_any_more(
    engines: Callable[[TaskGroup], TroupeEngine], kind: str
) -> None:
    """Neither the next line nor a ``finally``, for as long as the test looks."""
    shop, done = TaskGroup("shop"), list[int]()

    async def awaits() -> None:
        fence = RunContext.current().fence
        try:
            await trio.sleep(1)
            done.append(fence)
        finally:
            done.append(-fence)

    def calls() -> None:
        fence = RunContext.current().fence
        try:
            done.append(0)
            done.append(fence)
        finally:
            done.append(-fence)

    function: Callable[..., Any] = awaits if kind == "async def" else calls
    shop.add_task("0 3 * * *", name="t")(function)
    [point] = [p for p in points_for(function) if p.name.endswith(": await trio.sleep(1)")][:1] or [
        p for p in points_for(function) if p.name == "killed before: done.append(fence)"
    ]
    engine = engines(shop)
    fault = Fault(engine, point, function)
    fault.replay()
    assert [start.outcome for start in fault.log] == ["", "returned"]
    last = fault.fences[1]
    assert done == ([last, -last] if kind == "async def" else [0, 0, last, -last])
    engine.advance(hours=1)
    assert done[-1] == -last


def bills(path: Path, *, guarded: bool) -> TaskGroup:
    """A task that keeps one total for each run, by its fence."""
    shop = TaskGroup("shop")

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path)

    with connect() as db:
        db.execute("CREATE TABLE bill (run TEXT PRIMARY KEY, fence INTEGER)")

    if guarded:

        @shop.add_task("0 3 * * *")
        def bill() -> None:
            run = RunContext.current()
            with connect() as db:
                db.execute(
                    "INSERT INTO bill VALUES (?, ?) ON CONFLICT (run) DO UPDATE SET fence = excluded.fence "
                    "WHERE excluded.fence > bill.fence",
                    (run.run_id, run.fence),
                )

    else:

        @shop.add_task("0 3 * * *", name="bill")
        def careless() -> None:
            run = RunContext.current()
            with connect() as db:
                known = db.execute("SELECT max(fence) FROM bill WHERE run = ?", (run.run_id,)).fetchone()[0] or 0
            if run.fence > known:
                with connect() as db:
                    db.execute("INSERT OR REPLACE INTO bill VALUES (?, ?)", (run.run_id, run.fence))

    return shop


@pytest.mark.parametrize("guarded", [True, False], ids=["in one statement", "look, then write"])
def test_a_fence_guards_what_is_compared_and_written_in_one_step(
    engines: Callable[[TaskGroup], TroupeEngine], tmp_path: Path, *, guarded: bool
) -> None:
    """Of all the points one finds the difference: a worker that stands still between looking and writing."""
    wrong = []
    [task] = bills(tmp_path / "places", guarded=guarded).declared
    for number, point in enumerate(points_for(task.function)):
        path = tmp_path / f"{number}.db"
        fault = Fault(engines(bills(path, guarded=guarded)), point)
        fault.replay("shop/bill")
        with sqlite3.connect(path) as db:
            [(_, fence)] = db.execute("SELECT run, fence FROM bill").fetchall()
        if fence != max(fault.fences):
            wrong.append(point.name)
    assert wrong == ([] if guarded else ["stalled in the body, for longer than its lease"])


def test_only_the_task_that_is_replayed_is_there(engines: Callable[[TaskGroup], TroupeEngine]) -> None:
    """For one slot of its own schedule, so that whatever a test counts comes from this run."""
    shop, slots, others = TaskGroup("shop"), list[int | None](), list[str]()

    @shop.add_task("*/5 * * * * *", kwargs={"who": "Ada"}, timezone="Europe/Rome", max_retries=0)
    async def often(who: str) -> None:
        await trio.lowlevel.checkpoint()
        slots.append(RunContext.current().slot_ms)
        others.append(who)

    @shop.add_task("*/5 * * * * *")
    def neighbour() -> None:
        others.append("neighbour")

    engine = engines(shop)
    fault = Fault(engine, POINTS["killed between claim and body"])
    fault.replay("shop/often")
    assert slots == [1767225605000]
    assert others == ["Ada"]


def test_which_task_is_meant_must_be_clear(engines: Callable[[TaskGroup], TroupeEngine]) -> None:
    """By its name, or by the function that the marker was given, if one task alone has it."""
    shop, point = TaskGroup("shop"), POINTS["killed before its claim"]

    def work() -> None:
        pass

    shop.add_task(["0 3 * * *", "0 4 * * *"], name="twice")(work)
    engine = engines(shop)
    with pytest.raises(EngineStateError, match=r"name one task: .* are meant: shop/twice-1, shop/twice-2"):
        Fault(engine, point, work).replay()
    with pytest.raises(EngineStateError, match=r"those that are meant: none"):
        Fault(engine, point).replay("shop/once")
    fault = Fault(engine, point, work)
    assert (fault.starts, fault.fences, fault.verdict) == (0, [], None)
    fault.replay("shop/twice-2")
    assert (fault.starts, fault.verdict) == (1, "ran")
    with pytest.raises(EngineStateError, match=r"it runs already"):
        fault.replay("shop/twice-2")


def test_a_point_to_which_the_function_does_not_come_is_skipped(
    engines: Callable[[TaskGroup], TroupeEngine],
) -> None:
    """Rather than passed: nothing was tried."""
    shop = TaskGroup("shop")

    @shop.add_task("0 3 * * *")
    def work(*, rarely: bool = False) -> None:
        if rarely:
            sum(range(3))

    @shop.add_task("0 3 * * *")
    async def nothing() -> None:
        """Awaits nothing."""

    [point] = [point for point in points_for(work) if point.name == "killed before: sum(range(3))"]
    with pytest.raises(pytest.skip.Exception, match=r"shop/work did not come to this point"):
        Fault(engines(shop), point, work).replay()
    with pytest.raises(pytest.skip.Exception, match=r"shop/nothing did not come to this point"):
        Fault(engines(shop), POINTS["killed in the body, halfway"]).replay("shop/nothing")
    assert not any("body" in point.name for point in points_for(nothing) if "between" not in point.name)


def test_a_run_without_a_verdict_is_said_to_have_none(engines: Callable[[TaskGroup], TroupeEngine]) -> None:
    """After a day of virtual time."""
    shop = TaskGroup("shop")

    @shop.add_task("0 3 * * *")
    async def forever() -> None:
        await trio.sleep_forever()

    with pytest.raises(NotSettled, match=r"run shop/forever@1767236400000: it has no verdict after a day"):
        Fault(engines(shop), POINTS["killed before its claim"]).replay("shop/forever")


# -- places -----------------------------------------------------------------------------------------------------------


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def inner(*args: Any) -> Any:
        return function(*args)

    return inner


class Called:
    """A task's function can be an object."""

    async def __call__(self) -> None:
        await trio.sleep(1)


def test_the_places_of_a_function_are_its_awaits_or_its_lines() -> None:
    """But for the first line, before which nothing has happened; under decorators and partials."""

    async def awaits() -> None:
        async with trio.open_nursery():
            await trio.sleep(1)
        sum([1])
        async for _ in agen():
            pass

    async def agen() -> Any:
        yield 1

    @decorated
    def lines(_: int) -> None:
        first = 1
        if first:
            first = 2

    def texts(function: Callable[..., Any]) -> list[str]:
        return [place.text for place in places_of(function)]

    assert texts(awaits) == ["async with trio.open_nursery():", "await trio.sleep(1)", "async for _ in agen():"]
    assert texts(lines) == ["if first:", "first = 2"]
    assert texts(functools.partial(lines, 1)) == ["if first:", "first = 2"]
    assert texts(Called()) == ["await trio.sleep(1)"]
    assert code_of(print) is None
    assert texts(print) == []

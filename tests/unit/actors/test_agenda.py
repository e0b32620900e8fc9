"""What the coordinator decides, as plain functions of what is due, which tasks there are, and what time it is."""

from __future__ import annotations

from functools import partial
from typing import Any

from actors.agenda import Agenda, enrolments, plan, priority
from engine.domain.task import Definition
from engine.store.timetable import Due, Move
from tests.unit.actors.stage import at_ms


def definition(expression: str = "* * * * *", **settings: Any) -> Definition:
    return Definition(group="g", name="t", function="t", expression=expression, **settings)


def due(seconds: float, name: str = "g/t", *, is_run: bool = False) -> Due:
    return Due(name, at_ms(seconds), is_run=is_run)


def test_what_is_due_is_taken_in_the_order_of_its_instants() -> None:
    """What lies later stays."""
    agenda = Agenda()
    agenda.load([due(3, "c"), due(1, "a"), due(2, "b", is_run=True)], at_ms(10))
    assert agenda.first_ms == at_ms(1)
    assert agenda.take(at_ms(2)) == [due(1, "a"), due(2, "b", is_run=True)]
    assert agenda.first_ms == at_ms(3)
    assert agenda.take(at_ms(2)) == []


def test_an_empty_agenda_sleeps_until_its_horizon() -> None:
    """There Redis is asked again."""
    agenda = Agenda()
    agenda.load([], at_ms(10))
    assert agenda.first_ms == at_ms(10)


def test_nothing_beyond_the_horizon_is_kept() -> None:
    """So the agenda does not grow with the number of tasks."""
    agenda = Agenda()
    agenda.load([], at_ms(10))
    agenda.add(due(10))
    assert agenda.take(at_ms(100)) == []
    agenda.add(due(9.999))
    assert agenda.take(at_ms(100)) == [due(9.999)]


def test_a_forgotten_agenda_asks_at_once() -> None:
    """Its horizon is in the past."""
    agenda = Agenda()
    agenda.load([due(5)], at_ms(10))
    agenda.forget()
    assert agenda.first_ms == agenda.horizon_ms == 0


def test_loading_replaces_what_was_known() -> None:
    """Redis is the truth."""
    agenda = Agenda()
    agenda.load([due(5, "old")], at_ms(10))
    agenda.load([due(6, "new")], at_ms(11))
    assert agenda.take(at_ms(100)) == [due(6, "new")]


def test_a_due_slot_is_published_and_the_next_is_waited_for() -> None:
    """The common case: one slot, nothing missed."""
    planned = plan([due(60)], {"g/t": definition()}, at_ms(60.2), allow_parallel=True)
    [slot] = planned.slots
    assert (slot.due_ms, slot.next_ms, slot.overlap, slot.priority) == (at_ms(60), at_ms(120), "allow", "low")
    assert planned.moves == []


def test_after_a_gap_the_last_slot_runs_and_those_before_it_are_missed() -> None:
    """Catch-up latest; the missed range goes first, in one move."""
    planned = plan([due(60)], {"g/t": definition()}, at_ms(300.5), allow_parallel=True)
    assert planned.moves == [Move("g/t", at_ms(60), at_ms(300), count=4, last_ms=at_ms(240))]
    assert [slot.due_ms for slot in planned.slots] == [at_ms(300)]


def test_a_slot_that_the_schedule_no_longer_has_is_missed() -> None:
    """Its expression was edited and no later slot is due yet: nothing is published."""
    planned = plan([due(30)], {"g/t": definition()}, at_ms(31), allow_parallel=True)
    assert planned.moves == [Move("g/t", at_ms(30), at_ms(60), count=1, last_ms=at_ms(30))]
    assert planned.slots == []


def test_tasks_outside_the_catalog_and_runs_are_not_planned() -> None:
    """The first belong to a declaration that is not understood here; the second are requeued."""
    planned = plan([due(60, "x/y"), due(60, is_run=True)], {"g/t": definition()}, at_ms(60), allow_parallel=True)
    assert planned.slots == []
    assert planned.moves == []


def test_the_tasks_own_overlap_wins_over_the_configs() -> None:
    """``allow_parallel`` cascades, None inherits."""
    seen = []
    for own, default in ((None, True), (None, False), (True, False), (False, True)):
        planned = plan([due(60)], {"g/t": definition(allow_parallel=own)}, at_ms(60), allow_parallel=default)
        seen.append(planned.slots[0].overlap)
    assert seen == ["allow", "skip", "allow", "skip"]


def test_priority_names_the_stream() -> None:
    """Two streams, one for what goes first."""
    assert priority(definition()) == "low"
    assert priority(definition(high_priority=True)) == "high"


def test_a_new_task_first_runs_at_its_next_instant() -> None:
    """Never because it was never run, unless it asks for that."""
    new, moved = enrolments({"g/t": definition()}, {}, at_ms(61), passed_ms=0, allow_parallel=True)
    assert [(one.first_ms, one.first_run_id) for one in new] == [(at_ms(120), "")]
    assert moved == []
    new, _ = enrolments({"g/t": definition(run_on_first_start=True)}, {}, at_ms(61), passed_ms=0, allow_parallel=True)
    assert [one.first_run_id for one in new] == ["g/t@first"]


def test_a_task_whose_due_instant_stands_is_left_alone() -> None:
    """Open slots of the past too: they are published, or missed by the catch-up policy."""
    tasks = {"g/t": definition()}
    for seconds in (-600, 60, 120):
        assert enrolments(tasks, {"g/t": at_ms(seconds)}, at_ms(60), passed_ms=0, allow_parallel=True) == ([], [])


def test_a_changed_expression_moves_the_task() -> None:
    """To its next instant; a slot that was open is recorded as missed."""
    tasks = {"g/t": definition("0 * * * *")}
    _, moved = enrolments(tasks, {"g/t": at_ms(120)}, at_ms(61), passed_ms=0, allow_parallel=True)
    assert moved == [Move("g/t", at_ms(120), at_ms(3_600), count=0, last_ms=at_ms(120))]
    _, moved = enrolments(tasks, {"g/t": at_ms(60)}, at_ms(61), passed_ms=0, allow_parallel=True)
    assert moved == [Move("g/t", at_ms(60), at_ms(3_600), count=1, last_ms=at_ms(60))]


def test_a_task_that_became_more_frequent_does_not_wait_for_its_old_instant() -> None:
    """Midnight is an instant of every minute too, and yet the next minute comes first."""
    _, moved = enrolments(
        {"g/t": definition("* * * * *")}, {"g/t": at_ms(8 * 3_600)}, at_ms(61), passed_ms=0, allow_parallel=True
    )
    assert moved == [Move("g/t", at_ms(8 * 3_600), at_ms(120), count=0, last_ms=at_ms(8 * 3_600))]


def test_nothing_is_due_again_up_to_the_latest_slot_that_was_passed() -> None:
    """The clock of Redis stepped back, by 40 s: what it says now has been before."""
    align = partial(enrolments, now_ms=at_ms(20), passed_ms=at_ms(60), allow_parallel=True)
    assert align({"g/t": definition()}, {"g/t": at_ms(120)}) == ([], [])
    [new], _ = align({"g/t": definition()}, {})
    assert new.first_ms == at_ms(120)
    _, [moved] = align({"g/t": definition("*/10 * * * * *")}, {"g/t": at_ms(3_600)})
    assert moved.next_ms == at_ms(70)


def test_what_is_left_alone_is_no_news() -> None:
    """It stays the minimum of ``due`` until Redis is asked again; anything earlier is news."""
    agenda = Agenda()
    agenda.load([due(1), due(5)], at_ms(10))
    [taken] = agenda.take(at_ms(1))
    assert not agenda.knows(at_ms(1))
    agenda.leave(taken)
    assert agenda.knows(at_ms(1))
    assert not agenda.knows(at_ms(0.9))
    agenda.load([due(5)], at_ms(20))
    assert not agenda.knows(at_ms(1))

"""The judge of a soak sees what is lost, doubled or growing, and nothing else."""

from __future__ import annotations

import pytest

from tests.soak.judge import Growth, Judge, Limit, Memory


def second(number: int) -> int:
    """A slot, ms."""
    return 1_764_000_000_000 + number * 1_000


def ran(judge: Judge, number: int, *, pid: int = 1, task: int = 7) -> None:
    """One slot as it should be."""
    judge.started(task, second(number), pid, number + 0.5)
    judge.ended(task, second(number), pid)
    judge.verdict(task, second(number), second(number), "ran")


def judged(judge: Judge, before: int) -> list[str]:
    """What is wrong of all that was due before a second."""
    judge.settle(second(before))
    assert judge.violations == len(judge.told)
    return judge.told


def test_slots_that_ran_once_are_no_violation_and_are_forgotten() -> None:
    """In whatever order verdicts and effects come."""
    judge = Judge()
    for number in (0, 2, 1, 3):
        ran(judge, number)
    judge.verdict(7, second(4), second(4), "ran")
    judge.started(7, second(4), 1, 4.0)
    judge.ended(7, second(4), 1)
    assert judged(judge, 5) == []
    assert (judge.ran, judge.settled, judge.open_slots()) == (5, 5, 0)


def test_a_slot_without_a_verdict_is_lost() -> None:
    """Whether somebody started it or not; what is younger is not judged yet."""
    judge = Judge()
    for number in (0, 2, 4):
        ran(judge, number)
    judge.started(7, second(3), 5, 3.0)
    unseen, begun = judged(judge, 5)
    assert f"slot {second(1)}" in unseen
    assert "started by nobody" in unseen
    assert f"slot {second(3)}" in begun
    assert "started by [5]" in begun


def test_a_task_that_is_never_published_again_is_lost() -> None:
    """From its last verdict on."""
    judge = Judge()
    ran(judge, 0)
    assert len(judged(judge, 4)) == 3


def test_two_verdicts_of_one_slot_are_a_violation() -> None:
    """Also when the second one comes long after the slot was judged."""
    judge = Judge()
    ran(judge, 0)
    judge.verdict(7, second(0), second(0), "missed")
    assert "there is ran, missed" in judged(judge, 1)[0]
    judge.verdict(7, second(0), second(0), "ran")
    assert "long after" in judge.told[1]


def test_a_published_run_that_nobody_started_is_lost() -> None:
    """A verdict alone does not do the work; of slots that were skipped or missed it is all there is."""
    judge = Judge()
    judge.verdict(7, second(0), second(2), "missed")
    judge.verdict(7, second(3), second(3), "skipped")
    judge.verdict(7, second(4), second(4), "ran")
    judge.verdict(7, second(5), second(5), "failed")
    [not_run, not_failed] = judged(judge, 6)
    assert f"slot {second(4)}: ran, and nobody started it" in not_run
    assert f"slot {second(5)}: failed, and nobody started it" in not_failed
    assert judge.other_verdicts == 5


def test_a_run_that_is_said_to_have_run_came_to_its_end() -> None:
    """Its effect log says so."""
    judge = Judge()
    judge.started(7, second(0), 1, 0.0)
    judge.verdict(7, second(0), second(0), "ran")
    assert "no body of it came to its end" in judged(judge, 1)[0]


def test_a_run_is_started_again_only_where_its_worker_was_killed() -> None:
    """Whatever became of the first start."""
    judge = Judge()
    judge.killed(1)
    for number, first in ((0, 1), (1, 2)):
        ran(judge, number, pid=3)
        judge.started(7, second(number), first, number + 0.1)  # told later, and earlier
    [doubled] = judged(judge, 2)
    assert f"slot {second(1)}: started again by 3, although 2" in doubled
    assert judge.again == 2


def test_tasks_are_judged_apart() -> None:
    """What one has, the other lacks."""
    judge = Judge()
    ran(judge, 0, task=1)
    ran(judge, 1, task=1)
    ran(judge, 0, task=2)
    [lost] = judged(judge, 2)
    assert lost.startswith(f"task 2, slot {second(1)}")


def test_what_is_told_is_bounded_and_what_is_counted_is_not() -> None:
    """A soak that goes wrong does not print for ever."""
    judge = Judge()
    ran(judge, 0)
    judge.settle(second(1_000))
    assert judge.violations == 999
    assert len(judge.told) == 20


@pytest.mark.parametrize(
    ("minutes", "limit"),
    [(1, None), (5.9, None), (6, Limit(4, 10)), (19, Limit(4, 10)), (20, Limit(10, 2)), (30, Limit(10, 2))],
)
def test_how_much_memory_may_grow_depends_on_how_long_the_soak_is(minutes: float, limit: Limit | None) -> None:
    """Caches fill first."""
    assert Limit.of(minutes) == limit


def test_growth_is_from_the_minute_that_counts_to_the_last_one() -> None:
    """Means, so that a single sample decides nothing; of what came later nothing can be said."""
    memory = Memory()
    for sample in range(120):
        minute = sample / 4
        memory.note("steady", minute, 100 if minute < 10 else 200 if minute < 29 else 203)
        memory.note("growing", minute, 100 + minute)
        if minute > 12:
            memory.note("newcomer", minute, minute)
    growth = {one.what: one for one in memory.growth(10)}
    assert growth.keys() == {"steady", "growing"}
    assert growth["steady"].percent == pytest.approx(1.5, abs=0.5)
    assert growth["growing"].percent > 10
    assert memory.newest()["growing"] == pytest.approx(129.75)
    assert Growth("x", 200, 100).percent == -50

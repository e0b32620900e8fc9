"""The decisions of a supervisor, as functions of phases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.runtime import Restart, Strategy
from engine.runtime.intensity import Intensity
from engine.runtime.strategy import LEAVING, SETTLED, Phase, affected, next_to_start, next_to_stop, restarts

W, S, R, C, P, D = Phase.WAITING, Phase.STARTING, Phase.RUNNING, Phase.CONDEMNED, Phase.STOPPING, Phase.DONE
ONE, ALL, REST = Strategy.ONE_FOR_ONE, Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE

phases = st.lists(st.sampled_from(Phase), max_size=6)


@pytest.mark.parametrize(("strategy", "indexes"), [(ONE, [1]), (ALL, [0, 1, 2, 3]), (REST, [1, 2, 3])])
def test_strategy_says_who_is_affected(strategy: Strategy, indexes: list[int]) -> None:
    assert list(affected(strategy, 1, 4)) == indexes


@pytest.mark.parametrize(
    ("restart", "after_crash", "after_end"),
    [
        (Restart.PERMANENT, True, True),
        (Restart.TRANSIENT, True, False),
        (Restart.TEMPORARY, False, False),
    ],
)
def test_restart_kind_decides_on_crash_and_end(
    restart: Restart,
    after_crash: bool,  # noqa: FBT001  # a column of the table
    after_end: bool,  # noqa: FBT001
) -> None:
    assert restarts(restart, crashed=True) is after_crash
    assert restarts(restart, crashed=False) is after_end


@pytest.mark.parametrize(
    ("standing", "expected"),
    [
        ([R, R, R], ()),
        ([C, C, C], (2,)),
        ([C, C, P], ()),
        ([C, C, D], (1,)),
        ([C, P, C], (2,)),
        ([P, C, W], (1,)),
        ([R, C, R], (1,)),
    ],
)
def test_last_condemned_child_is_asked_once_nobody_after_it_is_stopping(
    standing: list[Phase], expected: tuple[int, ...]
) -> None:
    assert next_to_stop(standing, in_order=True) == expected


def test_children_without_order_are_asked_together() -> None:
    assert next_to_stop([C, P, C], in_order=False) == (0, 2)


@pytest.mark.parametrize(
    ("strategy", "standing", "fresh", "expected"),
    [
        (ONE, [W, W, W], "ynn", (0, 1, 2)),
        (ONE, [W, W, W], "yyy", (0,)),
        (ONE, [S, W, W], "yyn", (2,)),
        (ONE, [R, W, W], "nyy", (1,)),
        (ONE, [D, W, W], "nyy", (1,)),
        (ONE, [P, W, W], "nyn", (2,)),
        (REST, [R, W, W], "nnn", (1,)),
        (REST, [R, S, W], "nnn", ()),
        (REST, [R, W, P], "nnn", ()),
        (ALL, [C, W, D], "nnn", ()),
        (ALL, [W, W, W], "nnn", (0,)),
    ],
)
def test_waiting_child_starts_in_its_turn(
    strategy: Strategy, standing: list[Phase], fresh: str, expected: tuple[int, ...]
) -> None:
    """In order at first and in groups; under one_for_one a child that was up before comes back by itself."""
    assert next_to_start(strategy, standing, [letter == "y" for letter in fresh]) == expected


@given(standing=phases, strategy=st.sampled_from([ALL, REST]), data=st.data())
def test_group_starts_one_child_at_a_time_after_all_before_it(
    standing: list[Phase], strategy: Strategy, data: st.DataObject
) -> None:
    fresh = data.draw(st.lists(st.booleans(), min_size=len(standing), max_size=len(standing)))
    for index in next_to_start(strategy, standing, fresh):
        assert set(standing[:index]) <= SETTLED
        assert not LEAVING & set(standing)


@given(standing=phases)
def test_ordered_stop_makes_progress_and_keeps_the_order(standing: list[Phase]) -> None:
    """While somebody is condemned, somebody is asked or stopping; and never two in the wrong order."""
    asked = next_to_stop(standing, in_order=True)
    assert asked or C not in standing or P in standing
    for index in asked:
        assert not LEAVING & set(standing[index + 1 :])


def test_restart_at_the_very_edge_of_the_window_still_counts() -> None:
    assert Intensity(1, within_s=30.0).add(0.0).add(30.0).exceeded
    assert not Intensity(1, within_s=30.0).add(0.0).add(30.5).exceeded


@given(steps_s=st.lists(st.floats(0, 20), max_size=30), limit=st.integers(0, 5))
def test_intensity_is_exceeded_exactly_when_the_window_holds_more(steps_s: list[float], limit: int) -> None:
    """Compared with counting by hand at every restart."""
    intensity, now_s, all_s = Intensity(limit, within_s=30.0), 0.0, list[float]()
    for step_s in steps_s:
        now_s += step_s
        all_s.append(now_s)
        intensity = intensity.add(now_s)
        in_window = sum(now_s - at_s <= 30.0 for at_s in all_s)
        assert intensity.exceeded is (in_window > limit)
        assert intensity.left == max(0, limit - in_window)

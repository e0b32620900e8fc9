"""What to do with a slot that is due: publish it, or a later one and record those before as missed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never, final

from engine.domain.policy import CatchUp
from engine.domain.schedule import Schedule


@final
@dataclass(frozen=True, slots=True)
class Missed:
    """Neighbouring slots that will not run. All from ``from_ms`` to ``to_ms``, both included."""

    from_ms: int
    to_ms: int
    count: int


@final
@dataclass(frozen=True, slots=True)
class Due:
    """The decision about one task. Record ``missed`` first, then publish, then wait for ``next_ms``."""

    missed: Missed | None
    publish_ms: int | None
    next_ms: int | None
    """The first slot after all that; None where the schedule has no more."""


def catch_up(schedule: Schedule, expected_ms: int, now_ms: int, policy: CatchUp) -> Due:
    """Decide about a task whose next slot was to be ``expected_ms``, at ``now_ms`` by Redis time.

    An ``expected_ms`` that is no instant of the schedule (its expression was edited since) is never
    published: where it is past it counts as missed. The cost does not depend on how many slots were missed.
    """
    if expected_ms > now_ms:
        return Due(None, None, expected_ms)
    match policy:
        case CatchUp.LATEST:
            latest_ms = schedule.latest_at_or_before(now_ms)
        case _:
            assert_never(policy)
    following_ms = schedule.next_after(now_ms)
    if latest_ms is None or latest_ms < expected_ms:
        return Due(Missed(expected_ms, expected_ms, 1), None, following_ms)
    if latest_ms == expected_ms:
        return Due(None, expected_ms, following_ms)
    last_missed_ms = schedule.latest_at_or_before(latest_ms - 1)
    until_ms = expected_ms if last_missed_ms is None else max(expected_ms, last_missed_ms)
    return Due(Missed(expected_ms, until_ms, 1 + schedule.count(expected_ms, until_ms)), latest_ms, following_ms)

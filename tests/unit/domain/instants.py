"""The instants of a schedule, one after another."""

from __future__ import annotations

from itertools import islice, takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.domain.schedule import Schedule


def between(schedule: Schedule, after_ms: int, until_ms: int, limit: int) -> list[int]:
    """The first ``limit`` instants after ``after_ms`` and not after ``until_ms``, in order."""

    def instants() -> Iterator[int]:
        found = schedule.next_after(after_ms)
        while found is not None:
            yield found
            found = schedule.next_after(found)

    return list(islice(takewhile(lambda ms: ms <= until_ms, instants()), limit))

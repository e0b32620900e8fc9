"""What is done about runs that overlap, which a task may choose, and about slots that were missed."""

from __future__ import annotations

from enum import Enum
from typing import final


@final
class Overlap(Enum):
    """What becomes of a slot whose predecessor has not ended. Enforced at publication and at claim."""

    ALLOW = "allow"
    """It runs beside its predecessor; their retries are independent."""
    SKIP = "skip"
    """It does not run: its verdict is skipped (overlap)."""


@final
class CatchUp(Enum):
    """What becomes of slots that came due while nobody led. The same for all tasks; other policies go here."""

    LATEST = "latest"
    """The last one runs, those before it are missed."""


def overlap_of(*, allow_parallel: bool | None, default: bool) -> Overlap:
    """The policy of a task: its own ``allow_parallel``, or the Config's where it says nothing."""
    return Overlap.ALLOW if (default if allow_parallel is None else allow_parallel) else Overlap.SKIP

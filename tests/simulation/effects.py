"""What the bodies of tasks did: an append-only log outside of Redis."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Callable


@final
@dataclass(eq=False, slots=True)
class Start:
    """One start of a body."""

    run_id: str
    task_id: str
    fence: int
    slot_ms: int | None
    attempt: int
    process: int
    at_s: float
    ended_s: float | None = None
    outcome: str = ""
    """``returned``, ``raised`` or ``cancelled``; empty while it goes on, and for ever when its process died."""


@final
@dataclass(slots=True)
class EffectLog:
    """Every start, in order."""

    starts: list[Start] = field(default_factory=list)
    of_run: dict[str, list[Start]] = field(default_factory=dict)
    on_start: Callable[[Start], None] = lambda _start: None

    def started(self, start: Start) -> None:
        """A body begins."""
        self.on_start(start)
        self.starts.append(start)
        self.of_run.setdefault(start.run_id, []).append(start)

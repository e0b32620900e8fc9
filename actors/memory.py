"""What a worker remembers of its runs, for a Redis that forgot them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, TypeAlias, final

from actors.agenda import priority
from actors.running import Stop
from engine.domain.policy import overlap_of
from engine.store.retelling import Adoption, Retried
from engine.store.runs import Completion, Failure, Waiting

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from actors.ending import Report
    from actors.running import Running
    from actors.settlement import Reply
    from engine.config import Config
    from engine.domain.task import Definition
    from engine.store.runs import Claimed, Hold

__all__ = ["RECENT_S", "RecentEnds", "adoptions"]

RECENT_S: Final = 60.0
"""So long it is remembered how a run ended: longer than a replica lags, or an append-only file is not written."""

MOST: Final = 10_000
"""As many ends are remembered at most, the newest."""

Ended: TypeAlias = "tuple[Claimed, Definition, Hold, Completion | Retried]"
"""What makes an `Adoption`, if one is ever wanted."""


@final
class RecentEnds:
    """How runs ended lately, as Redis was told. Belongs to the Consumer's place in the tree, not to its instance."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._ends: deque[tuple[float, bool, Ended]] = deque(maxlen=MOST)
        """When, whether Redis refused it, and what it was."""

    def note(self, running: Running, report: Report, reply: Reply, *, refused: bool, now_s: float) -> None:
        """Redis was told, and answered so. A run that was handed back, or lost, is nobody's."""
        end = _end(running, report, reply)
        if end is not None:
            ended = (running.claimed, running.task.definition, running.hold, end)
            self._ends.append((now_s, refused, ended))
        while self._ends and self._ends[0][0] < now_s - RECENT_S:
            self._ends.popleft()

    def remembered(self, *, now_s: float, sure_until_s: float) -> list[Adoption]:
        """Those that Redis accepted, and those that it refused when it may have forgotten already whose they were."""
        return [
            _adoption(*ended, self._config)
            for at_s, refused, ended in self._ends
            if at_s >= now_s - RECENT_S and not (refused and at_s < sure_until_s)
        ]


def adoptions(
    in_flight: Iterable[Running], ended: Iterable[Adoption], *, exists: Container[str], config: Config
) -> list[Adoption]:
    """Runs in progress, and those that ended lately, of tasks that exist: each run once, as it was last."""
    newest = {end.hold.run_id: end for end in ended if end.task_id in exists}
    for run in in_flight:
        if run.asked is not Stop.LOST:
            newest[run.run_id] = _adoption(run.claimed, run.task.definition, run.hold, None, config)
    return list(newest.values())


def _end(running: Running, report: Report, reply: Reply) -> Completion | Retried | None:
    match report:
        case Completion():
            return report
        case Failure(story=story) if isinstance(reply, Waiting):
            return Retried(reply.due_ms, story)
        case Failure(delay_ms=delay_ms, story=story):
            return Retried(running.started_ms + delay_ms, story)
        case _:
            return None


def _adoption(
    claimed: Claimed, definition: Definition, hold: Hold, end: Completion | Retried | None, config: Config
) -> Adoption:
    return Adoption(
        hold=hold,
        task_id=claimed.task_id,
        slot_ms=claimed.slot_ms,
        attempt=claimed.attempt,
        deliveries=claimed.deliveries,
        priority=priority(definition),
        overlap=overlap_of(allow_parallel=definition.allow_parallel, default=config.allow_parallel).value,
        kwargs=claimed.kwargs,
        end=end,
    )

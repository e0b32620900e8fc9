"""How runs ended: told to Redis in batches, and repeated until Redis answers."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, assert_never, final

import trio

from actors.messages import RunEnd, RunsEnded
from actors.outage import PAUSE_S, insist
from engine.errors import RedisUnavailable
from engine.store.runs import Completion, Failure, Fenced, Gone, Hold, Waiting
from engine.store.script import MAX_ITEMS
from engine.store.session import Broken, Done

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from actors.ending import Report
    from actors.in_flight import InFlight
    from actors.intake import Intake
    from actors.memory import RecentEnds
    from actors.messages import StatsInbox
    from actors.pace import Pace
    from actors.running import Running
    from engine.runtime import Mailbox
    from engine.store.store import Store

log = logging.getLogger("fastapi.task-manager.consumer")

LAST_WORDS_S = 2.0
"""How long ends may still be told when the last body has ended."""

Reply: TypeAlias = Done | Waiting | Gone | Fenced | Broken


@final
@dataclass(slots=True, eq=False)
class _End:
    """How a run ended, until Redis knows."""

    running: Running
    report: Report
    duration_s: float
    told_before: bool = False
    """Redis may know already: that the run is gone is then no refusal."""


@final
class Settlement:
    """Collects the ends of runs and tells them together, once for each turn of the loop.

    A Redis error after the body succeeded never turns the run into a failure: what was not answered is told again.
    It outlives the bodies: one that ends while the Consumer is being cancelled is told too.
    """

    def __init__(
        self,
        *,
        store: Store,
        worker: str,
        stats: Mailbox[StatsInbox],
        recent: RecentEnds,
        in_flight: InFlight,
        intake: Intake,
        pace: Pace,
    ) -> None:
        self._store, self._worker, self._stats = store, worker, stats
        self._in_flight, self._look, self._pace = in_flight, intake.note_high, pace
        self._in_order = store.transport.replicated is store.transport.commands
        """What is asked for after an end was told goes out behind it, on the same connection."""

        self._recent = recent
        self._waiting: list[_End] = []
        self._filled = trio.Event()
        self._closed = False
        self._scope = trio.CancelScope(shield=True)

    def add(self, running: Running, report: Report, duration_s: float) -> None:
        """This is how it ended."""
        self._waiting.append(_End(running, report, duration_s))
        self._filled.set()

    async def abandon(self, end: Completion) -> None:
        """Its time was over: the verdict is written now, the rest when its thread has returned."""
        await insist(
            self._store.transport,
            lambda: self._store.runs.abandon(self._worker, end.hold, reason=end.reason, story=end.story),
        )

    async def run(self) -> None:
        """Tell until closed, whatever is cancelled around it."""
        with self._scope:
            while not self._closed:
                await self._filled.wait()
                self._filled = trio.Event()
                await self._settle()

    def close(self) -> None:
        """The last body has ended: tell what is left, for a moment."""
        self._closed = True
        self._filled.set()
        self._scope.deadline = trio.current_time() + LAST_WORDS_S

    async def _settle(self) -> None:
        while self._waiting:
            batch, history = list(self._waiting), self._store.history
            await history.certainty()
            told = history.told
            self._pace.note([end.duration_s for end in batch], now_s=trio.current_time())
            try:
                with self._in_flight.leaving(self._soon_gone(batch)):
                    replies = await self._tell([end.report for end in batch])
            except RedisUnavailable:
                for end in batch:
                    end.told_before = True
                await trio.sleep(PAUSE_S)
                await self._store.transport.wait_up()
                continue
            self._waiting = self._waiting[len(batch) :]
            if history.in_doubt or history.told != told:
                batch, replies = self._put_back_doubted(batch, replies)
            self._note(batch, replies)

    def _soon_gone(self, batch: list[_End]) -> list[Running]:
        """Those whose slots are claimed at once: all of a batch, which Redis hears of before, or none."""
        first = self._in_order and self._pace.ahead and all(type(end.report) is Completion for end in batch)
        return [end.running for end in batch] if first and len(batch) <= MAX_ITEMS else []

    def _put_back_doubted(self, batch: list[_End], replies: list[Reply]) -> tuple[list[_End], list[Reply]]:
        """Redis was told in the midst of it what it had forgotten: that, or these ends. They are told again.

        Who seemed not to hold his run may just have been forgotten, and what was accepted may be lost by now.
        """
        doubted = [end for end in batch if end.report is not None]
        for end, reply in zip(batch, replies, strict=True):
            if isinstance(reply, Done | Waiting):
                end.told_before = True
        self._waiting = doubted + self._waiting
        certain = [i for i, end in enumerate(batch) if end.report is None]
        return [batch[i] for i in certain], [replies[i] for i in certain]

    def _note(self, batch: list[_End], replies: list[Reply]) -> None:
        ends, now_s = [], trio.current_time()
        for end, reply in zip(batch, replies, strict=True):
            refused = isinstance(reply, Fenced) or (isinstance(reply, Gone) and not end.told_before)
            ends.append(RunEnd(end.running.run_id, _outcome(end, reply, refused=refused), end.duration_s))
            self._recent.note(end.running, end.report, reply, refused=refused, now_s=now_s)
        self._in_flight.remove([end.running for end in batch])
        self._stats.tell(RunsEnded(tuple(ends)))

    async def _tell(self, reports: list[Report]) -> list[Reply]:
        """One call for each kind of end; the replies in the order of the reports."""
        replies: list[Reply] = [Gone()] * len(reports)
        runs, worker = self._store.runs, self._worker
        kinds: tuple[tuple[type, Callable[[str, list[Any]], Awaitable[Sequence[Reply]]]], ...] = (
            (Completion, self._complete),
            (Failure, runs.fail),
            (Hold, runs.hand_back),
        )
        for kind, tell in kinds:
            places = [i for i, report in enumerate(reports) if type(report) is kind]
            if places:
                for i, reply in zip(places, await tell(worker, [reports[i] for i in places]), strict=True):
                    replies[i] = reply
        return replies

    async def _complete(self, worker: str, completions: Sequence[Completion]) -> Sequence[Reply]:
        asked_s = trio.current_time()
        replies, unread = await self._store.runs.complete_and_look(worker, completions)
        self._look(unread, asked_s=asked_s)
        return replies


def _outcome(end: _End, reply: Reply, *, refused: bool) -> str:
    running, report = end.running, end.report
    match reply:
        case _ if report is None:
            return "lost"
        case Fenced():
            log.warning("Run %s was lost to another worker; how it ended here is not recorded", running.run_id)
            return "refused"
        case Gone() if refused:
            log.warning("Run %s has ended elsewhere; how it ended here is not recorded", running.run_id)
            return "refused"
        case Broken(why):
            log.error("The end of run %s cannot be recorded: a key of it is broken: %s", running.run_id, why)
            return "refused"
        case Done() | Waiting() | Gone():
            pass
        case _:
            assert_never(reply)
    match report:
        case Completion():
            return report.verdict
        case Failure():
            return "retrying"
        case _:
            return "handed back"

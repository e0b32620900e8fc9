"""How runs ended: told to Redis in batches, and repeated until Redis answers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeAlias, assert_never, final

import trio

from actors.messages import RunEnd, RunsEnded
from actors.outage import PAUSE_S, insist
from engine.errors import RedisUnavailable
from engine.store.runs import Completion, Failure, Fenced, Gone, Hold, Waiting
from engine.store.session import Broken, Done

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from actors.ending import Report
    from actors.memory import RecentEnds
    from actors.messages import StatsInbox
    from actors.running import Running
    from engine.runtime import Mailbox
    from engine.store.store import Store

log = logging.getLogger("fastapi.task-manager.consumer")

LAST_WORDS_S = 2.0
"""How long ends may still be told when the last body has ended."""

Reply: TypeAlias = Done | Waiting | Gone | Fenced | Broken


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
        on_settled: Callable[[Sequence[Running]], None],
    ) -> None:
        self._store, self._worker, self._stats, self._on_settled = store, worker, stats, on_settled
        self._recent = recent
        self._waiting: list[tuple[Running, Report, float]] = []
        self._filled = trio.Event()
        self._closed = False
        self._scope = trio.CancelScope(shield=True)

    def add(self, running: Running, report: Report, duration_s: float) -> None:
        """This is how it ended."""
        self._waiting.append((running, report, duration_s))
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
        repeated = False
        while self._waiting:
            batch, history = list(self._waiting), self._store.history
            await history.certainty()
            told = history.told
            try:
                replies = await self._tell([report for _, report, _ in batch])
            except RedisUnavailable:
                repeated = True
                await trio.sleep(PAUSE_S)
                await self._store.transport.wait_up()
                continue
            self._waiting = self._waiting[len(batch) :]
            if history.in_doubt or history.told != told:
                # Told in the midst of it: who seemed not to hold his run may just have been forgotten.
                doubted = [i for i, reply in enumerate(replies) if isinstance(reply, Gone | Fenced)]
                self._waiting = [batch[i] for i in doubted if batch[i][1] is not None] + self._waiting
                certain = [i for i in range(len(batch)) if i not in doubted or batch[i][1] is None]
                batch, replies = [batch[i] for i in certain], [replies[i] for i in certain]
            ends, now_s = [], trio.current_time()
            for (running, report, duration_s), reply in zip(batch, replies, strict=True):
                outcome = _outcome(running, report, reply, repeated=repeated)
                ends.append(RunEnd(running.run_id, outcome, duration_s))
                self._recent.note(running, report, reply, now_s=now_s)
            self._on_settled([running for running, _, _ in batch])
            self._stats.tell(RunsEnded(tuple(ends)))

    async def _tell(self, reports: list[Report]) -> list[Reply]:
        """One call for each kind of end; the replies in the order of the reports."""
        replies: dict[int, Reply] = {}

        def of(kind: type[Completion | Failure | Hold]) -> list[int]:
            return [i for i, report in enumerate(reports) if isinstance(report, kind)]

        completions, failures, holds = of(Completion), of(Failure), of(Hold)
        runs, worker = self._store.runs, self._worker
        if completions:
            done = [d for d in reports if isinstance(d, Completion)]
            replies.update(zip(completions, await runs.complete(worker, done), strict=True))
        if failures:
            failed = [d for d in reports if isinstance(d, Failure)]
            replies.update(zip(failures, await runs.fail(worker, failed), strict=True))
        if holds:
            back = [d for d in reports if isinstance(d, Hold)]
            replies.update(zip(holds, await runs.hand_back(worker, back), strict=True))
        return [replies.get(i, Gone()) for i in range(len(reports))]


def _outcome(running: Running, report: Report, reply: Reply, *, repeated: bool) -> str:
    match reply:
        case _ if report is None:
            return "lost"
        case Fenced():
            log.warning("Run %s was lost to another worker; how it ended here is not recorded", running.run_id)
            return "refused"
        case Gone() if not repeated:
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

"""Telling Redis what it forgot: what this worker does when Redis goes on with another history than the one it knew."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, final

from actors.messages import CatalogRemembered, RunsRemembered, StopRuns
from engine.store.retelling import Tables
from engine.store.session import Broken

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from actors.identity import Identity
    from actors.messages import CatalogInbox, ConsumerInbox, Remembered
    from engine.domain.task import Definition
    from engine.runtime import Clock, Mailbox
    from engine.store.leases import Presence
    from engine.store.store import Store

__all__ = ["Known", "Reteller", "awaited"]

log = logging.getLogger("fastapi.task-manager")

DUE_AT_ONCE = 500
"""Due instants that are computed and told together."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a worker was sure of, last, in the history of before."""

    sure_until_s: float
    """Monotonic instant at which its last beat was sent that was answered."""

    seen_ms: int
    """Redis time of that beat; 0 if there was none."""

    beats: int = 0
    """How many beats of any worker were acknowledged up to that one."""

    passed_ms: int = 0
    """The latest slot that any task had been moved past by then (Redis ms), which may be later than ``seen_ms``."""

    workers: frozenset[str] = frozenset()
    """Who was present."""


@final
class Reteller:
    """Tells Redis again which runs this worker has and had, and which tasks, pauses and due instants there were.

    Until every worker has who was there before, for one lease at most, nobody leads and nobody claims a run.
    """

    def __init__(
        self,
        *,
        store: Store,
        identity: Identity,
        lease_s: float,
        consumer: Mailbox[ConsumerInbox],
        catalog: Mailbox[CatalogInbox],
    ) -> None:
        self._store, self._identity, self._lease_s = store, identity, lease_s
        self._consumer, self._catalog = consumer, catalog

    async def tell(self, history_id: str, known: Known, clock: Clock, *, patience_s: float) -> bool:
        """Tell all; False if Redis goes on with yet another history by now. Can be repeated.

        Raises:
            AskTimeout: consumer or catalog has not answered within ``patience_s``: it is being restarted, say.
            RedisUnavailable: repeat it.
        """
        retelling, history = self._store.retelling, self._store.history
        count = floor_ms = 0
        if history.told:
            floor_ms = clock.highest_redis_ms()
            remembered = await self._catalog.ask(CatalogRemembered, timeout_s=patience_s)
            if (
                remembered is not None
            ):  # before the runs: those of a task that is nowhere are taken to have gone with it
                count += await self._restore(history_id, remembered, known, clock)
            tables = Tables(-1) if remembered is None else remembered.tables
            count += await self._tell_of_runs(tables, known.sure_until_s, patience_s)
        others = awaited(await self._store.leases.workers(), round(self._lease_s * 1000)) | known.workers
        told = await retelling.told(
            history_id,
            self._identity.key,
            floor_ms=floor_ms,
            beats=known.beats,
            count=count,
            others=sorted(others - {self._identity.key}),
        )
        if told is None:
            return False
        if told.lost_from_ms is not None:
            log.warning(
                "Redis has lost what it acknowledged %s: %d thing(s) that this worker remembers are there again",
                f"after {told.lost_from_ms} ms" if told.lost_from_ms else "to this worker",
                count,
            )
        elif history.told:
            log.info("Redis was restarted, or another server took over; nothing of this worker's is lost")
        history.told = history_id
        return True

    async def _tell_of_runs(self, tables: Tables, sure_until_s: float, patience_s: float) -> int:
        adoptions = await self._consumer.ask(partial(RunsRemembered, sure_until_s), timeout_s=patience_s)
        replies = await self._store.retelling.adopt(
            self._identity.key, adoptions, lease_ms=round(self._lease_s * 1000), tables=tables
        )
        taken: set[tuple[str, int]] = set()
        count = 0
        for adoption, reply in zip(adoptions, replies, strict=True):
            match reply:
                case "told":
                    count += 1
                case "newer" | "ended" if adoption.end is None:
                    taken.add((adoption.hold.run_id, adoption.hold.fence))
                case Broken(why):
                    log.error("Redis cannot be told of run %s: a key of it is broken: %s", adoption.hold.run_id, why)
                case _:
                    pass
        if taken:
            self._consumer.tell(StopRuns(lost=frozenset(taken)))
        return count

    async def _restore(self, history_id: str, remembered: Remembered, known: Known, clock: Clock) -> int:
        retelling, tables = self._store.retelling, remembered.tables
        count = await retelling.restore(history_id, tables)
        if count is None:
            return 0
        if await retelling.has_lost_all():
            tasks = list(remembered.tasks.items())
            since_ms = max(known.seen_ms or clock.redis_ms(), known.passed_ms)  # its clock may have stepped back since
            for start in range(0, len(tasks), DUE_AT_ONCE):
                due = open_slots(tasks[start : start + DUE_AT_ONCE], since_ms)
                count += await retelling.restore_due(history_id, tables.version, due, passed_ms=known.passed_ms) or 0
        return count


def open_slots(tasks: Iterable[tuple[str, Definition]], since_ms: int) -> Mapping[str, int]:
    """The first instant of each task after one at which all before it had been dealt with."""
    found = ((task_id, task.schedule.next_after(since_ms)) for task_id, task in tasks)
    return {task_id: due_ms for task_id, due_ms in found if due_ms is not None}


def awaited(workers: Iterable[Presence], lease_ms: int) -> frozenset[str]:
    """Of those whom Redis has not forgotten, who may have something to tell: not those who had long been silent."""
    present = list(workers)
    newest_ms = max((worker.seen_ms for worker in present), default=0)
    return frozenset(worker.worker for worker in present if worker.seen_ms >= newest_ms - lease_ms)

"""What keeps a worker busy: it reads the streams, claims what it has read, and gives back what it cannot run."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, assert_never, final

import trio

from actors.outage import PAUSE_S
from actors.pace import PATIENCE_S
from actors.running import SAFE_SHARE
from engine.errors import RedisUnavailable
from engine.store.runs import Claimed, Parked, Stale
from engine.store.session import Broken
from engine.store.timetable import Ended
from engine.store.transport import Lane

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Protocol

    from actors.in_flight import InFlight
    from actors.intake import Intake
    from actors.pace import Pace
    from engine.config import Config
    from engine.domain.task import Task
    from engine.runtime import Clock
    from engine.store.runs import ClaimReply, Entry
    from engine.store.store import Store

    class Start(Protocol):
        """What begins a run."""

        def __call__(self, claimed: Claimed, task: Task, token: str, *, late: bool) -> None:
            """It was granted. ``late``: its lease may have ended by now."""


log = logging.getLogger("fastapi.task-manager.consumer")

READERS = 2
"""While one claims what it has read, the other reads. More would fetch more than a worker claims at once."""


@final
class Readers:
    """Two that take turns, until the intake is closed.

    Each reads as many entries as there is room for, and claims them. While bodies are swift, one reads ahead: what it
    has read waits for the next slots that are free, as long as the pace of the runs allows.
    """

    def __init__(
        self,
        *,
        config: Config,
        store: Store,
        worker: str,
        clock: Clock,
        new_id: Callable[[], str],
        tasks: Callable[[], Mapping[str, Task]],
        in_flight: InFlight,
        intake: Intake,
        pace: Pace,
        start: Start,
    ) -> None:
        self._config, self._store, self._worker = config, store, worker
        self._clock, self._new_id = clock, new_id
        self._tasks, self._start = tasks, start
        self._in_flight, self._intake, self._pace = in_flight, intake, pace
        self._turn = trio.Lock()
        """One of them reads."""

        self._taking = 0
        """How many of them have read something that is not yet claimed or given back."""

        self._waiting = 0
        """How many of them wait for slots for what they have read."""

        self._astray = False
        """Entries may be pending for this worker of which it does not know."""

    async def run(self) -> None:
        """Read until the intake is closed, and what was read is claimed or given back."""
        await self._reconnect()
        async with trio.open_nursery() as readers:
            for _ in range(READERS):
                readers.start_soon(self._take_turns)
        self._intake.finished.set()

    # -- reading --------------------------------------------------------------------------------------------------

    async def _take_turns(self) -> None:
        in_flight, intake = self._in_flight, self._intake
        while True:
            async with self._turn:
                await in_flight.wait_until(lambda: self._may_read or self._astray or intake.closed)
                if self._astray:
                    await self._find_back()
                if intake.closed:
                    return
                try:
                    with in_flight.reading():
                        entries = await self._read()
                except RedisUnavailable:
                    self._astray = True
                    continue
                reserved = in_flight.reserve(len(entries))
                until_s = trio.current_time() + PATIENCE_S if self._pace.ahead else -math.inf
                self._taking += 1
            try:
                await self._take(entries, reserved, until_s)
            except RedisUnavailable:
                self._astray = True
            finally:
                self._taking -= 1
                in_flight.note_change()
            if self._astray:
                await self._intake.hasten()

    @property
    def _may_read(self) -> bool:
        """Room is for those first that wait for it."""
        return (self._in_flight.room > 0 and not self._waiting) or self._ahead > 0

    @property
    def _ahead(self) -> int:
        """How many may be read for which there is no slot yet: none beside others, none where nothing is there."""
        return 0 if self._waiting or self._in_flight.lonely or self._intake.quiet else self._pace.ahead

    async def _read(self) -> list[Entry]:
        room = self._in_flight.room
        return await (self._intake.read(room) if room > 0 else self._intake.read_ahead(self._ahead))

    async def _take(self, entries: list[Entry], reserved: int, until_s: float) -> None:
        """Claim those for which slots are reserved, others as soon as there is room until then; the rest goes back."""
        reserved = reserved or await self._room_soon(len(entries), until_s)
        while reserved:
            try:
                if self._intake.closed:
                    break
                await self._place(entries[:reserved])
            finally:
                self._in_flight.free(reserved)
            entries = entries[reserved:]
            reserved = await self._room_soon(len(entries), until_s)
        if entries:
            await self._store.runs.release(entries)

    async def _room_soon(self, count: int, until_s: float) -> int:
        """Reserve slots for up to ``count`` runs when there are any, for none if there are none by that instant."""
        in_flight, intake = self._in_flight, self._intake
        if count and in_flight.room <= 0 and trio.current_time() < until_s:
            self._waiting += 1
            try:
                with trio.CancelScope(deadline=until_s):
                    await in_flight.wait_until(lambda: in_flight.room > 0 or in_flight.lonely or intake.closed)
            finally:
                self._waiting -= 1
                in_flight.note_change()
            if in_flight.room <= 0:
                self._pace.lag(now_s=trio.current_time())
        return in_flight.reserve(count)

    # -- claiming -------------------------------------------------------------------------------------------------

    async def _place(self, entries: list[Entry]) -> None:
        """Claim what can run here, and put aside what cannot."""
        with trio.move_on_after(PAUSE_S):  # of a run that this worker has just handed back, Redis knows before it does
            await self._in_flight.wait_until(lambda: not any(self._in_flight.ends(one.run_id) for one in entries))
        if self._in_flight.lonely:
            await self._store.runs.release(entries)
            return
        tasks = self._tasks()  # a task may go while Redis answers
        known: list[tuple[Entry, Task]] = []
        unknown: list[Entry] = []
        crowded: list[Entry] = []
        for entry in entries:
            if not self._in_flight.admits(entry.run_id):
                crowded.append(entry)
            elif (task := tasks.get(entry.task_id)) is None:
                unknown.append(entry)
            else:
                known.append((entry, task))
        if crowded:
            await self._put_aside(crowded, "busy worker", most=None)
        if unknown:
            await self._put_aside(unknown, "unknown function", most=self._config.queue_cap)
        if known:
            with self._in_flight.claiming([entry.run_id for entry, _ in known]):
                await self._claim(known)

    async def _put_aside(self, entries: list[Entry], why: str, *, most: int | None) -> None:
        replies = await self._store.runs.defer(self._worker, entries, why=why, most=most)
        for entry, reply in zip(entries, replies, strict=True):
            match reply:
                case Parked():
                    log.info("Run %s is put aside: %s", entry.run_id, why)
                case Ended(verdict, reason):
                    log.error("Run %s does not start: %s (%s)", entry.run_id, verdict, reason)
                case Stale():
                    log.debug("Run %s was taken back before it was put aside", entry.run_id)
                case Broken(broken):
                    log.error("Run %s cannot be put aside: a key of it is broken: %s", entry.run_id, broken)
                case _:
                    assert_never(reply)

    async def _claim(self, known: list[tuple[Entry, Task]]) -> None:
        """Claim, and start what is granted, unless the answer took so long that the lease may have ended by now.

        Repeated until Redis answers. From a drain on it is not: what was read is released, and what may have been
        granted unheard is handed back, rather than claimed when nobody is left to hear of it.

        Raises:
            RedisUnavailable: this worker drains, and it is not known what Redis has granted.
        """
        token, entries = self._new_id(), [entry for entry, _ in known]
        lease_s, clock, transport = self._config.run_lease_s, self._clock, self._store.transport
        while True:
            asked_s = clock.monotonic()  # anew each time: what is asked for again holds a whole lease again
            try:
                replies = await self._store.runs.claim(self._worker, token, entries, lease_ms=round(lease_s * 1000))
                break
            except RedisUnavailable:
                await trio.sleep(PAUSE_S)
                await transport.wait_up()
                # Of the ends that made room Redis is told first, again as before.
                await self._in_flight.wait_until(lambda: self._in_flight.room >= 0 or self._intake.closed)
                if self._intake.closed:
                    raise
        late = clock.monotonic() - asked_s >= lease_s * SAFE_SHARE
        for (entry, task), reply in zip(known, replies, strict=True):
            self._note(entry, reply, task, token, late=late)

    def _note(self, entry: Entry, reply: ClaimReply, task: Task, token: str, *, late: bool) -> None:
        match reply:
            case Claimed():
                self._start(reply, task, token, late=late)
            case Ended(verdict, reason):
                log.info("Run %s does not start: %s (%s)", entry.run_id, verdict, reason)
            case Stale():
                log.debug("Run %s was taken back before it was claimed", entry.run_id)
            case Broken(why):
                log.error("Run %s cannot be claimed: a key of it is broken: %s", entry.run_id, why)
            case _:
                assert_never(reply)

    # -- after an outage ------------------------------------------------------------------------------------------

    async def _find_back(self) -> None:
        """What was read and is not being claimed any more goes back."""
        await self._in_flight.wait_until(lambda: self._taking == 0)
        self._astray = False
        if self._store.transport.is_up():  # Redis refused something, and may refuse it again at once
            await trio.sleep(PAUSE_S)
        await self._reconnect()

    async def _reconnect(self) -> None:
        """Recover, and again until Redis answers or there is nothing more to read."""
        while True:
            await self._store.transport.wait_up()
            try:
                await self._recover()
            except RedisUnavailable:
                if not self._intake.closed:
                    await trio.sleep(PAUSE_S)
                    continue
            return

    async def _recover(self) -> None:
        """Release what an earlier connection or an earlier Consumer read and never claimed.

        What an earlier Consumer claimed and never heard of goes back too: the answer came after its crash.
        """
        runs, worker = self._store.runs, self._worker
        await self._store.transport.unblock(Lane.RUNS)
        await runs.make_groups()
        pending = await runs.unclaimed(worker)
        replies = await runs.release(pending)  # the entries of runs in progress are kept
        kept = [entry.run_id for entry, reply in zip(pending, replies, strict=True) if reply == "kept"]
        unknown = [run_id for run_id in kept if not self._in_flight.has(run_id)]
        if unknown:
            await runs.hand_back(worker, await runs.held(worker, unknown, self._new_id()))

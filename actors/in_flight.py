"""The runs that a worker holds, and whether it may take more."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, final

import trio

from actors.running import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from actors.running import Running


@final
class InFlight:
    """Claimed runs, each of which takes one of ``capacity`` slots until Redis knows how it ended, or is being told.

    A run on its last delivery may be what kills workers: it begins when no other run could be hurt, and while it is
    here there is no room for more.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._runs: dict[str, Running] = {}
        self._reserved = 0
        """Slots for runs that were read and are being claimed."""

        self._leaving = 0
        """Runs that have ended, of which Redis is being told."""

        self._claiming: set[str] = set()
        self._reading = False

        self._lone: list[Running] = []
        """Those on their last delivery, in the order in which they came."""

        self._kept_away: dict[str, frozenset[Running]] = {}
        """Run id -> those that stood in its way and still go on."""

        self._changed = trio.Event()

    def __iter__(self) -> Iterator[Running]:
        return iter(self._runs.values())

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def room(self) -> int:
        """How many more may be claimed. Below 0: slots of runs were given away of whose ends Redis did not hear."""
        return 0 if self._lone else self._capacity - len(self._runs) + self._leaving - self._reserved

    @property
    def lonely(self) -> bool:
        """Is a run here beside which no other may begin?"""
        return bool(self._lone)

    def reserve(self, count: int) -> int:
        """Keep slots for so many runs that were read, or for as many as there is room for, until ``free``."""
        reserved = max(0, min(count, self.room))
        self._reserved += reserved
        return reserved

    def free(self, reserved: int) -> None:
        """The runs for which these slots were kept are here, or do not come."""
        self._reserved -= reserved
        self.note_change()

    @contextmanager
    def leaving(self, runs: Sequence[Running]) -> Iterator[None]:
        """Redis is told of their ends: what is claimed from now on goes out behind that, and their slots are free."""
        self._leaving += len(runs)
        if runs:
            self.note_change()
        try:
            yield
        finally:
            self._leaving -= len(runs)

    def has(self, run_id: str) -> bool:
        """Is it here, under whatever fence?"""
        return run_id in self._runs

    def ends(self, run_id: str) -> bool:
        """Has its body ended here, and is Redis being told?"""
        return run_id in self._runs and self._runs[run_id].phase is Phase.ENDED

    def find(self, run_id: str, fence: int) -> Running | None:
        """The run, if it is here under this fence."""
        run = self._runs.get(run_id)
        return run if run is not None and run.claimed.fence == fence else None

    def admits(self, run_id: str) -> bool:
        """May this run be claimed here?

        Not while a former body of it goes on, or a former claim of it, or what it waited for in vain.
        """
        return run_id not in self._runs and run_id not in self._claiming and run_id not in self._kept_away

    @contextmanager
    def claiming(self, run_ids: Sequence[str]) -> Iterator[None]:
        """These may be granted meanwhile: they are added before the block ends."""
        self._claiming.update(run_ids)
        try:
            yield
        finally:
            self._claiming.difference_update(run_ids)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Redis may give this worker more meanwhile."""
        self._reading = True
        try:
            yield
        finally:
            self._reading = False
            if self._lone:
                self.note_change()

    def add(self, run: Running) -> None:
        """It takes a slot. It is here once at most: what still goes on under an old fence keeps it away."""
        self._runs[run.run_id] = run
        if run.last_delivery:
            self._lone.append(run)

    def remove(self, runs: Sequence[Running]) -> None:
        """They have ended, and Redis knows."""
        for run in runs:
            del self._runs[run.run_id]
            if run.last_delivery:
                self._lone.remove(run)
        if self._kept_away:
            gone = frozenset(runs)
            self._kept_away = {run_id: left for run_id, others in self._kept_away.items() if (left := others - gone)}
        self.note_change()

    def is_alone(self, run: Running) -> bool:
        """May this run, which is on its last delivery, begin? Of several the first goes first."""
        others = len(self._lone) < len(self._runs) or self._reserved or self._reading
        return self._lone[0] is run and not others

    def keep_away(self, run: Running) -> None:
        """Admit this run, which is given back, only when those that are here now have ended."""
        self._kept_away[run.run_id] = frozenset(self._runs.values()) - {run}

    def note_change(self) -> None:
        """Something was changed for which somebody may wait."""
        self._changed.set()
        self._changed = trio.Event()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when it holds: at once, or after a change."""
        while not condition():
            await self._changed.wait()

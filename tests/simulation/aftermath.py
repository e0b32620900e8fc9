"""What must be true two leases after a loss, where a worker saw it and nothing else disturbed the cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import trio

from engine.store.keys import Keys

if TYPE_CHECKING:
    from tests.simulation.losses import Image
    from tests.simulation.world import World

KEYS = Keys("troupe")
SETTLES_S = 1.0
"""Beside two leases: a reconnect, and the beat or renewal that notices that keys are gone."""


@final
class Aftermath:
    """One loss, from when Redis can be reached again."""

    def __init__(self, world: World, before: Image, left: Image, *, lag_s: float, lease_s: float) -> None:
        self.world, self.before, self.left, self.lag_s, self.lease_s = world, before, left, lag_s, lease_s
        self.began_s = trio.current_time()
        self.announced = self._announcements()

    async def judge(self) -> None:
        """Wait for two leases, and look, unless something else happened meanwhile."""
        if not self._seen():
            return
        await trio.sleep(2 * self.lease_s + SETTLES_S)
        world = self.world
        if world.disturbed_s > self.began_s or world.quiet:
            return
        world.aftermaths += 1
        if world.oracle.elected_s < self.began_s:
            self._violate("nobody leads two leases after the loss")
        if self.lag_s > self.lease_s / 3 + SETTLES_S and self._announcements() == self.announced:
            self._violate("nobody has announced the loss")
        for what, key, then in (
            ("paused", KEYS.paused, self.before.paused),
            ("dynamic", KEYS.dynamic, self.before.dynamic),
        ):
            now = world.look(("HKEYS", key))
            for task in sorted(set(then).difference(now)):
                if world.oracle.changed_s.get((what, task), 0.0) < self.began_s - self.lease_s - self.lag_of_restart():
                    self._violate(f"{task} is not {what} any more, and a worker knew that it was")

    def lag_of_restart(self) -> float:
        """How long before Redis came back it went away: changes until a lease before that were heard by all."""
        return self.began_s - self.world.lost_s

    def _seen(self) -> bool:
        """Is there a worker that was at work for a lease, undisturbed, and still is?"""
        since_s = self.world.lost_s - self.lease_s
        return self.world.disturbed_s < since_s and any(
            process.joined_s < since_s
            and process.stalled_until_s < since_s
            and process.wire.slow_until_s < since_s
            and process.wire.lossy_until_s < since_s
            and process.wire.cut_s < since_s
            and not process.wire.held_down
            and not process.frozen
            for process in self.world.alive()
        )

    def _announcements(self) -> int:
        entries = self.world.look(("XRANGE", KEYS.events, "-", "+"))
        return sum(fields[fields.index("event") + 1] == "history_lost" for _, fields in entries)

    def _violate(self, text: str) -> None:
        self.world.violation("G9", text)

"""Time that a cluster does not notice: whatever is renewed again and again ends so much later."""

from __future__ import annotations

import math

from engine.store.election import Elected
from engine.store.idle import IdleTime
from engine.store.inprocess import InProcess, InProcessServer
from engine.store.store import Store
from engine.store.timetable import Enrolment, Published, Slot

START_S = 1_764_000_000.0


async def test_leases_and_presence_are_as_old_afterwards_as_before() -> None:
    """The leader's, a worker's and a run's; what is due is due at its instant all the same."""
    passed_s = 0.0
    server = InProcessServer(wall=lambda: START_S + passed_s)
    store, idle = Store.over(InProcess(server), prefix="p"), IdleTime(server, prefix="p")
    assert idle.leader() == ""
    assert idle.next_due_ms([]) == math.inf
    won = await store.election.elect("w", "n", lease_ms=9_000, history="")
    assert isinstance(won, Elected)
    assert idle.leader() == "w"
    now_ms, due_ms = round(START_S * 1000), round(START_S * 1000) + 3_600_000
    await store.timetable.enroll(won.value, [Enrolment("g/t", now_ms), Enrolment("g/u", due_ms)], version=0)
    slot = Slot("g/t", now_ms, now_ms + 7_200_000, "low", "allow")
    assert await store.timetable.publish(won.value, [slot], queue_cap=10) == [Published()]
    assert idle.has_runs()
    await store.runs.make_groups()
    entries = await store.runs.read("w", priorities=("low",), count=1, block_ms=None)
    await store.runs.claim("w", "token", entries, lease_ms=9_000)
    await store.leases.beat("w", [], lease_ms=9_000, details="", draining=False)
    assert idle.next_due_ms(["w"]) == due_ms
    assert idle.next_due_ms(["w", "other"]) == idle.next_due_ms(["other"]) == 0, "somebody is to be found lost"

    idle.pass_unnoticed(3_000_000)
    passed_s = 3_000.0
    [lease] = await store.leases.expiring(round((START_S + passed_s) * 1000) + 9_000)
    assert lease.expiry_ms == now_ms + 3_009_000
    [presence] = await store.leases.workers()
    assert presence.seen_ms == now_ms + 3_000_000
    passed_s += 8.9
    assert idle.leader() == "w"
    assert idle.next_due_ms(["w"]) == due_ms
    passed_s += 0.2
    assert idle.next_due_ms(["w"]) == 0, "nobody leads"

"""A run belongs to one worker for as long as that worker renews its lease, and to another afterwards."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.system.cluster import ONCE, QUICK, eventually, say

if TYPE_CHECKING:
    from tests.system.cluster import Cluster, View, Worker

pytestmark = pytest.mark.timeout(120)

LEASE_S: Final = 3 * QUICK["running_heartbeat_interval"]
RUN: Final = "work/once@first"


def once(seconds: float, *, thread: bool = False) -> dict[str, Any]:
    """A task that runs once. Its declaration is the same however long its body takes here."""
    return {"name": "once", "seconds": seconds, "thread": thread, **ONCE}


async def scheduler(cluster: Cluster, view: View) -> Worker:
    """A leader that executes nothing, so that whatever happens to the others costs no election."""
    leader = cluster.worker(once(0), **{**QUICK, "concurrent_tasks": 0})
    await view.some_leader()
    return leader


@pytest.mark.slow
async def test_a_run_ten_times_longer_than_its_lease_is_started_once(cluster: Cluster, view: View) -> None:
    """Renewals keep it, whoever else looks for work meanwhile."""
    for _ in range(2):
        cluster.worker(once(10 * LEASE_S), **QUICK)
    (verdict,) = await view.settled("work/once")
    await cluster.stop()
    (start,), (end,) = cluster.starts(), cluster.ends()
    say(f"ran {end.at_s - start.at_s:.1f} s under a lease of {LEASE_S:.1f} s")
    assert end.at_s - start.at_s >= 10 * LEASE_S
    assert (verdict.verdict, verdict.run_id, len(verdict.story)) == ("ran", RUN, 1)


@pytest.mark.slow
async def test_the_run_of_a_killed_worker_starts_again_on_another_after_its_lease(cluster: Cluster, view: View) -> None:
    """The delivery is counted, the attempt is not; the fence grows; one verdict tells the whole story."""
    leader = await scheduler(cluster, view)
    victim = cluster.worker(once(60), **QUICK)
    first = await cluster.started(victim)
    heir = cluster.worker(once(1), **QUICK)
    await view.present()
    ends_ms = await view.query("ZSCORE", view.store.keys.leases, f"{RUN}#{first.fence}")
    victim.signal(signal.SIGKILL)

    second = await cluster.started(heir)
    assert await view.query("HGET", view.store.keys.run(RUN), "deliveries") == "1"
    (verdict,) = await view.settled("work/once")
    waited_s = second.wall_s - float(ends_ms) / 1000
    say(f"the second start came {waited_s:.2f} s after the lease had ended that the kill left behind")
    assert 0 <= waited_s < 10 * LEASE_S
    assert second.fence > first.fence
    assert (first.attempt, second.attempt) == (1, 1)
    assert (verdict.verdict, verdict.attempt) == ("ran", 1)
    lost, ran = verdict.story
    assert '"lost"' in lost
    assert '"ran"' in ran
    await cluster.stop(leader, heir)
    assert len(cluster.starts()) == 2
    assert [e.pid for e in cluster.ends()] == [heir.pid]


@pytest.mark.slow
@pytest.mark.parametrize("thread", [False, True], ids=["async", "thread"])
async def test_a_worker_that_was_stopped_for_longer_than_its_lease_cannot_end_its_run(
    cluster: Cluster, view: View, *, thread: bool
) -> None:
    """On waking it completes too late: refused by the fence, so that the verdict is that of the new owner."""
    await scheduler(cluster, view)
    sleeper = cluster.worker(once(0.5, thread=thread), **QUICK)
    first = await cluster.started(sleeper)
    sleeper.signal(signal.SIGSTOP)
    heir = cluster.worker(once(2), **QUICK)
    second = await cluster.started(heir)
    sleeper.signal(signal.SIGCONT)

    async def has_ended() -> bool:
        return sleeper.effects()[-1].event != "start"

    await eventually(has_ended, "the body that was stopped ends")
    if thread:  # a coroutine may be cancelled before it completes
        await sleeper.program.logged("was lost to another worker")
    (verdict,) = await view.settled("work/once")
    await cluster.stop()
    assert second.fence > first.fence
    assert verdict.verdict == "ran"
    assert f"-{heir.pid}-" in verdict.story[-1]
    assert len(await view.verdicts("work/once")) == 1
    assert [e.pid for e in cluster.starts()] == [sleeper.pid, heir.pid]

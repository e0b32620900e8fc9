"""Redis goes away, for all workers or for one of them, while runs are in progress."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import pytest
import trio

from engine.address import Address
from tests.store.proxy import Proxy
from tests.system.cluster import (
    EVERY_SECOND,
    ONCE,
    QUICK,
    assert_never_at_once,
    assert_one_verdict_each,
    eventually,
    say,
)

if TYPE_CHECKING:
    from tests.system.cluster import Cluster, View

pytestmark = pytest.mark.timeout(120)

LEASE_S: Final = 3 * QUICK["running_heartbeat_interval"]
TASKS = 5
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")
"""With these Redis itself forgets nothing that it has acknowledged."""


@pytest.mark.slow
@pytest.mark.parametrize("cluster", [DURABLE], indirect=True, ids=["append-only"])
async def test_redis_killed_and_restarted_under_load_loses_nothing(cluster: Cluster, view: View) -> None:
    """The engines resume by themselves; every slot has one verdict, and every run was started once."""
    tasks = [{"name": f"t{number}", "expression": EVERY_SECOND, "seconds": 0.3} for number in range(TASKS)]
    for _ in range(2):
        cluster.worker(*tasks, **{**QUICK, "running_heartbeat_interval": 2, "concurrent_tasks": 10})
    await view.present()
    await view.settled("work/t0", count=2)

    async def in_progress() -> bool:
        return len(cluster.starts()) - len(cluster.ends()) >= TASKS

    await eventually(in_progress, "runs of every task are in progress")
    cluster.server.kill()
    left = {e.run for e in cluster.starts()} - {e.run for e in cluster.ends()}
    cluster.server.start()
    back_ms = await eventually(view.store.leases.redis_ms, "Redis answers again")

    async def resumed() -> bool:
        ledgers = [await view.verdicts(f"work/t{number}") for number in range(TASKS)]
        return all((ledger[-1].to_ms or 0) >= back_ms + 2_000 for ledger in ledgers)

    await eventually(resumed, "slots after the outage have verdicts")
    await cluster.stop()

    ran: set[str | None] = set()
    for number in range(TASKS):
        entries = await view.verdicts(f"work/t{number}")
        assert_one_verdict_each(entries)
        assert {entry.verdict for entry in entries} <= {"ran", "missed"}
        ran |= {entry.run_id for entry in entries if entry.verdict == "ran"}
    starts = Counter(e.run for e in cluster.starts())
    say(f"{len(left)} runs were in progress when Redis was killed; {len(ran)} runs in all")
    assert left
    assert starts.keys() == ran
    assert set(starts.values()) == {1}


@pytest.mark.slow
async def test_redis_that_stands_still_for_longer_than_a_lease_doubles_no_run(cluster: Cluster, view: View) -> None:
    """Every lease has ended when it goes on, and none is taken for lost: the workers never stopped renewing.

    A thread goes on through it all and is started once. A coroutine is cancelled before its lease can have ended, since
    its worker cannot know who else reaches Redis; it is given back and starts again, never twice at the same time.
    """
    thread = {"name": "thread", "seconds": 4, "thread": True, **ONCE}
    coroutine = {"name": "coroutine", "seconds": 4, **ONCE}
    for _ in range(2):
        cluster.worker(thread, coroutine, **QUICK)

    async def both_started() -> bool:
        return len(cluster.starts()) == 2

    await view.present()
    await eventually(both_started, "both runs are in progress")
    cluster.server.pause()
    await trio.sleep(2.5 * LEASE_S)  # the outage itself
    cluster.server.resume()

    verdicts = [*await view.settled("work/thread"), *await view.settled("work/coroutine")]
    await cluster.stop()
    assert [entry.verdict for entry in verdicts] == ["ran", "ran"]
    assert_never_at_once(cluster.effects())
    assert len(cluster.starts("work/thread@first")) == 1
    story = [e.event for e in cluster.effects() if e.run == "work/coroutine@first"]
    assert story == ["start", "cancelled", "start", "end"]
    assert not any('"lost"' in line for entry in verdicts for line in entry.story)


@pytest.mark.slow
async def test_a_worker_that_is_cut_off_stops_its_run_before_another_starts_it(
    cluster: Cluster, view: View, nursery: trio.Nursery
) -> None:
    """Its connections still look open, but nothing comes through: it ends the body before the lease can have ended."""
    proxy = Proxy(Address(host="127.0.0.1", port=cluster.server.port))
    await nursery.start(proxy.run)
    task = {"name": "once", "seconds": 60, **ONCE}
    patient = {**QUICK, "running_heartbeat_interval": 0.6}  # what two processes do on a busy machine is compared
    cluster.worker(task, **{**patient, "concurrent_tasks": 0})
    await view.some_leader()
    cut_off = cluster.worker(task, **patient, redis_url=f"redis://127.0.0.1:{proxy.port}")
    await cluster.started(cut_off)
    heir = cluster.worker({**task, "seconds": 0}, **patient)
    await view.present()

    proxy.black_hole = True
    second = await cluster.started(heir)
    (verdict,) = await view.settled("work/once")
    first_story = [(e.event, e.at_s) for e in cut_off.effects()]
    assert [event for event, _ in first_story] == ["start", "cancelled"]
    say(f"the cut-off worker let go {second.at_s - first_story[-1][1]:.2f} s before the next start")
    assert first_story[-1][1] < second.at_s
    assert verdict.verdict == "ran"
    proxy.black_hole = False
    await proxy.cut()
    await cluster.stop()
    assert len(await view.verdicts("work/once")) == 1

"""Several processes share the work of one application, and no slot is lost or doubled between them."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import TYPE_CHECKING

import pytest
import trio

from tests.system.cluster import EVERY_SECOND, assert_one_verdict_each, say

if TYPE_CHECKING:
    from tests.system.cluster import Cluster, View

TASKS, WORKERS, SECONDS = 50, 3, 60


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.usefixtures("idlers")  # their minute passes during this one
async def test_three_processes_share_fifty_tasks_at_one_second_for_a_minute(cluster: Cluster, view: View) -> None:
    """Each slot has one verdict in the ledger and one run in the tasks' own log; each process runs its share."""
    tasks = [{"name": f"t{number}", "expression": EVERY_SECOND} for number in range(TASKS)]
    for _ in range(WORKERS):
        cluster.worker(*tasks, concurrent_tasks=20, ledger_length=1_000)
    await view.present()
    await view.settled("work/t0", count=1)
    await trio.sleep(SECONDS)  # what is measured is what happens in this time
    await cluster.stop()

    starts, ends = Counter(e.run for e in cluster.starts()), Counter(e.run for e in cluster.ends())
    ran: set[str] = set()
    passed_over = 0
    for number in range(TASKS):
        entries = await view.verdicts(f"work/t{number}")
        assert len(assert_one_verdict_each(entries)) >= SECONDS - 1
        ran |= {entry.run_id for entry in entries if entry.verdict == "ran" and entry.run_id}
        passed_over += sum(entry.count for entry in entries if entry.verdict != "ran")
    shares = Counter(e.pid for e in cluster.starts())
    late_s = [e.wall_s - e.slot_ms / 1000 for e in cluster.starts() if e.slot_ms is not None]
    say(
        f"{len(ran)} slots ran, {passed_over} did not; shares {sorted(shares.values())}; "
        f"late by {median(late_s) * 1000:.1f} ms (median), {max(late_s) * 1000:.0f} ms (most)"
    )
    assert starts.keys() == ends.keys() == ran, "the ledger and the effect log differ"
    assert set(starts.values()) == set(ends.values()) == {1}, "a run was doubled"
    assert passed_over <= len(ran) / 20, "slots are passed over only where the machine itself stands still"
    assert TASKS * (SECONDS - 1) <= len(ran) + passed_over <= TASKS * (SECONDS + 15)
    assert len(shares) == WORKERS
    assert min(shares.values()) >= len(ran) / 10

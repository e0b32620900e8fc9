"""What an engine costs that has nothing to do, whatever the number of its tasks."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio

from tests.system.cluster import eventually, say

if TYPE_CHECKING:
    from tests.system.cluster import Cluster, Figures, Worker

SETTLING_S = 5
"""From a worker's first figures until its start is surely over."""
MINUTE_S = 60


async def over_a_minute(worker: Worker) -> tuple[Figures, Figures]:
    """The figures at the ends of a minute of idleness."""

    async def found() -> tuple[Figures, Figures] | None:
        figures = worker.figures()
        if not figures:
            return None
        first = next((f for f in figures if f.at_s >= figures[0].at_s + SETTLING_S), None)
        last = first and next((f for f in figures if f.at_s >= first.at_s + MINUTE_S), None)
        return (first, last) if first and last else None

    pair = await eventually(found, f"{worker.name} was idle for a minute", limit_s=2 * MINUTE_S)
    assert pair is not None
    return pair


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_an_idle_engine_costs_next_to_nothing_whatever_it_has_declared(
    idlers: tuple[Cluster, Worker, Worker],
) -> None:
    """Under five requests a second and two percent of a core with 1,000 tasks, and as many requests with 10."""
    _, few, many = idlers
    rates = []
    for worker in (few, many):
        first, last = await over_a_minute(worker)
        span_s = last.at_s - first.at_s
        rates.append((last.commands_sent - first.commands_sent) / span_s)
        core = (last.cpu_s - first.cpu_s) / span_s
        say(f"{rates[-1]:.2f} requests a second and {100 * core:.2f} % of a core over {span_s:.0f} s")
        assert 0 < rates[-1] < 5
        assert core < 0.02
    assert rates[0] == pytest.approx(rates[1], rel=0.1)


@pytest.mark.slow
async def test_the_link_counts_what_redis_sees(idlers: tuple[Cluster, Worker, Worker]) -> None:
    """Between two readings of the counter MONITOR shows as many commands of this process; scripts' own do not count."""
    cluster, _, worker = idlers

    async def started() -> bool:
        return len(worker.figures()) >= SETTLING_S

    await eventually(started, "the worker has been idle for a while")
    async with await trio.open_tcp_stream("127.0.0.1", cluster.server.port) as monitor:
        before = len(worker.figures())
        names: dict[str, str] = {}
        seen: list[tuple[float, str]] = []
        pending = b""
        await monitor.send_all(b"CLIENT LIST\r\nMONITOR\r\n")

        async def read_until_measured() -> bool:
            nonlocal pending
            *lines, pending = (pending + await monitor.receive_some()).split(b"\n")
            for line in map(bytes.decode, lines):
                if " name=" in line:
                    fields = dict(word.partition("=")[::2] for word in line.split())
                    names[fields["addr"]] = fields["name"]
                elif line.startswith("+1"):
                    instant, _, address = line.partition("]")[0].split()
                    seen.append((float(instant[1:]), address))
            return len(worker.figures()) >= before + 6

        await eventually(read_until_measured, "figures are written while MONITOR runs")
    first, last = worker.figures()[before], worker.figures()[before + 5]
    mine = {address for address, name in names.items() if name.startswith(f"troupe-{worker.pid}-")}
    lanes = Counter(names[address] for at_s, address in seen if address in mine and first.wall_s < at_s <= last.wall_s)
    counted = last.commands_sent - first.commands_sent
    say(f"the link counted {counted}, MONITOR saw {lanes.total()}: {dict(lanes)}")
    assert len(mine) == 3
    assert counted >= 5
    assert abs(counted - lanes.total()) <= 1  # one may be on its way at either reading

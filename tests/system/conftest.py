"""Clusters for system tests: real processes and a real Redis, ended with the test that started them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.store.servers import NoSuchServer
from tests.system.cluster import YEARLY, Cluster, View, any_redis, look_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.system.cluster import Worker


@pytest.fixture
def series() -> str:
    """Of the Redis of the test's cluster; a test that is parametrized by it says which, others take any."""
    return ""


@pytest.fixture
def cluster(request: pytest.FixtureRequest, series: str, tmp_path: Path) -> Iterator[Cluster]:
    """A Redis that no other test uses, and no worker yet. Indirect parameters are options of redis-server."""
    try:
        server = any_redis(tmp_path / "redis", *getattr(request, "param", ()), series=series)
    except NoSuchServer as error:
        pytest.skip(str(error))
    found = Cluster(server, tmp_path)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
async def view(cluster: Cluster) -> AsyncIterator[View]:
    """What Redis knows about the test's cluster."""
    async with look_at(cluster) as found:
        yield found


@pytest.fixture(scope="session")
def idlers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Worker, Worker]]:
    """Two engines with nothing to do, with 10 and with 1,000 tasks, on one Redis under two prefixes.

    They live as long as the session, so that the minute over which they are measured can pass while other tests run.
    """
    directory = tmp_path_factory.mktemp("idle")
    cluster = Cluster(any_redis(directory / "redis"), directory)
    try:
        few, many = (
            cluster.worker(
                *({"name": f"yearly-{number}", "expression": YEARLY} for number in range(count)),
                figures_every_s=1,
                redis_url=f"redis://127.0.0.1:{cluster.server.port}",  # MONITOR tells TCP connections apart
                redis_key_prefix=f"idle-{count}",
            )
            for count in (10, 1_000)
        )
        yield cluster, few, many
    finally:
        cluster.close()

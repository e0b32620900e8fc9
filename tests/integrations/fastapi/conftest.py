"""Loops that an application can have, and a Redis for those that are processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integrations.fastapi.crossing import LOOPS
from tests.system.cluster import Cluster, any_redis

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integrations.fastapi.crossing import Loop


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Loop:
    """Each kind."""
    found: Loop = request.param
    return found


@pytest.fixture(params=LOOPS[:2])
def asyncio_loop(request: pytest.FixtureRequest) -> Loop:
    """Those of asyncio."""
    found: Loop = request.param
    return found


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A Redis of the test's own."""
    found = Cluster(any_redis(tmp_path / "redis"), tmp_path)
    try:
        yield found
    finally:
        found.close()

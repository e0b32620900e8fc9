from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.actors.stage import Stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import trio
    from trio.testing import MockClock


@pytest.fixture
async def stage(autojump_clock: MockClock, nursery: trio.Nursery) -> AsyncIterator[Stage]:
    """A stage that ends with the test, which fails if an actor crashed unexpectedly."""
    stage = Stage(autojump_clock, nursery)
    yield stage
    stage.check_for_crashes()

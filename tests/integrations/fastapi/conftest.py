"""Loops that an application can have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integrations.fastapi.crossing import LOOPS

if TYPE_CHECKING:
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

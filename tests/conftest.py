"""What all tests share."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, settings

from tests.store import redis_5

if TYPE_CHECKING:
    import pytest


# How long an example takes says something of the machine only; the tests themselves have a limit.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build Redis 5.0 where a test wants it and there is none yet: that takes longer than a test may."""
    wanted = any("5.0" in item.name for item in session.items)
    if wanted and not session.config.option.collectonly:
        with suppress(redis_5.CannotBuild):  # the tests that want it say why, and are skipped
            redis_5.program()

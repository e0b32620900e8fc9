from __future__ import annotations

import pytest

from tests.unit.runtime.scripted import Stage


@pytest.fixture
def stage() -> Stage:
    return Stage()

"""The most telling faults, once each, on real processes; ``make faults`` injects all of them, many times."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.campaign import ALL, markdown
from tests.faults.scenario import play
from tests.store.servers import NoSuchServer, find_binary

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.scenario import Scenario

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

SHORT = {
    "worker killed, at each step of a run": [2],  # in its body
    "leader stopped for more than a lease, at each step of a run": [1],  # claimed, not started
    "Redis killed and restarted (appendfsync always)": [0],
    "FLUSHALL": [0],
}
"""Faults, and which of their injections are tried here: half a minute of a quiet machine."""


@pytest.fixture(params=[scenario for scenario in ALL if scenario.name in SHORT], ids=lambda one: one.name)
def scenario(request: pytest.FixtureRequest) -> Scenario:
    try:
        find_binary("7.0")
    except NoSuchServer as error:
        pytest.skip(str(error))
    chosen: Scenario = request.param
    return chosen


def test_the_short_form_is_of_faults_that_there_are() -> None:
    """A fault that was renamed is not left out in silence."""
    assert set(SHORT) <= {scenario.name for scenario in ALL}
    assert len({scenario.name for scenario in ALL}) == len(ALL)


async def test_nothing_is_doubled_or_lost(scenario: Scenario, tmp_path: Path) -> None:
    """Every slot has one verdict, no leased run is doubled, and no write of a former holder is accepted."""
    row = await play(scenario, tmp_path, SHORT[scenario.name])
    assert not row.violations, "\n".join([*row.violations, *row.notes, markdown([row])])
    assert row.injected == len(SHORT[scenario.name])
    assert row.slots == row.verdicts or scenario.forgets

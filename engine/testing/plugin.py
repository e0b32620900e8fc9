"""The pytest plugin: fixtures for an engine in virtual time, and the marker ``faults``. See docs/testing.md.

Loaded by every pytest session of an environment in which Troupe is installed, so it imports nothing until a test asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine.testing import Fault, TroupeEngine
    from engine.testing.points import Point

MARKER = (
    "faults(of=function): run the test once for each crash point of a run; it takes the fixture `fault`. "
    "With the function of a task, a worker is killed at each of its awaits or lines (Troupe)"
)


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", MARKER)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each crash point."""
    marker = metafunc.definition.get_closest_marker("faults")
    if marker is None:
        return
    if "fault" not in metafunc.fixturenames:
        text = f"{metafunc.definition.nodeid} is marked with faults and does not take the fixture `fault`"
        pytest.fail(text, pytrace=False)
    function = marker.kwargs.get("of")
    if marker.args or marker.kwargs.keys() - {"of"} or not (function is None or callable(function)):
        text = f"{metafunc.definition.nodeid}: write @pytest.mark.faults, or @pytest.mark.faults(of=function)"
        pytest.fail(text, pytrace=False)
    from engine.testing.points import points_for

    points = points_for(function)
    metafunc.parametrize("fault", [(point, function) for point in points], ids=[p.name for p in points], indirect=True)


@pytest.fixture
def troupe_groups() -> object:
    """What `troupe_engine` runs: override it in a conftest.py, and return TaskGroups, an Engine or a TaskManager."""
    return ()


@pytest.fixture
def troupe_engine(troupe_groups: object) -> Iterator[TroupeEngine]:
    """Workers over a Redis in this process, in virtual time. They start when the test first uses them."""
    from engine.testing.harness import TroupeEngine

    engine = TroupeEngine(troupe_groups)
    yield engine
    engine.close()


@pytest.fixture
def advance(troupe_engine: TroupeEngine) -> Callable[..., object]:
    """`troupe_engine.advance`: move the clock, and let everything happen that is due meanwhile."""
    return troupe_engine.advance


@pytest.fixture
def run_due(troupe_engine: TroupeEngine) -> Callable[..., object]:
    """`troupe_engine.run_due`: run what is due at this instant."""
    return troupe_engine.run_due


@pytest.fixture
def assert_ran(troupe_engine: TroupeEngine) -> Callable[..., None]:
    """`troupe_engine.assert_ran`: fail unless a task got a verdict."""
    return troupe_engine.assert_ran


@pytest.fixture
def assert_scheduled(troupe_engine: TroupeEngine) -> Callable[..., None]:
    """`troupe_engine.assert_scheduled`: fail unless a task has a slot to come."""
    return troupe_engine.assert_scheduled


@pytest.fixture
def fault(request: pytest.FixtureRequest, troupe_engine: TroupeEngine) -> Fault:
    """One crash point, for a test with the marker `faults`."""
    if not hasattr(request, "param"):
        text = (
            "the fixture `fault` is for tests with the marker: @pytest.mark.faults or @pytest.mark.faults(of=function)"
        )
        pytest.fail(text, pytrace=False)
    from engine.testing.faults import Fault

    point: Point
    point, function = request.param
    return Fault(troupe_engine, point, function)

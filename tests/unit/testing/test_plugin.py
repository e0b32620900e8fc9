"""The pytest plugin, in test suites as users have them: each is a session of its own in a process of its own."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from engine import TaskGroup
from engine.errors import ExtraMissing
from engine.testing import TroupeEngine

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.timeout(180)

SHOP = """
import trio

from engine import RunContext, TaskGroup

shop = TaskGroup("shop")
sent = []


@shop.add_task("0 3 * * *", timezone="Europe/Rome", retry_backoff=60)
async def report():
    await trio.sleep(30)
    sent.append(RunContext.current().slot_ms)


@shop.add_task("0 * * * *")
def beat():
    pass
"""

CONFTEST = """
import pytest

import shop


@pytest.fixture
def troupe_groups():
    shop.sent.clear()
    return [shop.shop]
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A user's project: a module with tasks, and a conftest.py."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makepyfile(shop=SHOP, conftest=CONFTEST)
    return pytester


def run(project: pytest.Pytester, *args: str) -> pytest.RunResult:
    """The tests of the project, with warnings as errors, and no other plugin, since loading all takes seconds."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        return run_with_all_plugins(project, "-p", "engine.testing.plugin", *args)


def run_with_all_plugins(project: pytest.Pytester, *args: str) -> pytest.RunResult:
    """The same, with what this environment has."""
    has_asyncio = "PYTEST_DISABLE_PLUGIN_AUTOLOAD" not in os.environ and "no:asyncio" not in args
    quiet = ("-o", "asyncio_default_fixture_loop_scope=function") if has_asyncio else ()
    return project.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error", *quiet, *args)


def test_the_fixtures_are_there_without_an_import(project: pytest.Pytester) -> None:
    """In plain functions, with nothing set up but ``troupe_groups``."""
    project.makepyfile(
        """
        import shop

        def test_night(advance, run_due, assert_ran, assert_scheduled, troupe_engine):
            assert_scheduled("shop/report", next="2026-01-01 03:00", count=7, until="2026-01-07 12:00")
            advance(to="2026-01-01 02:00")
            assert shop.sent == []
            [run] = run_due()
            assert run.task == "shop/report"
            assert len(shop.sent) == 1
            assert_ran("shop/report", times=1, at="2026-01-01 03:00")

        def test_another_night_begins_afresh(advance, assert_ran):
            assert_ran("shop/report", times=0)
        """
    )
    run(project, "--strict-markers").assert_outcomes(passed=2)
    about = "@pytest.mark.faults(of=function): run the test once for each crash point of a run;*"
    run(project, "--markers").stdout.fnmatch_lines([about])


def test_a_failing_assertion_shows_the_ledger_and_the_line_of_the_test(project: pytest.Pytester) -> None:
    """And none of our own code."""
    project.makepyfile(
        """
        def test_night(advance, assert_ran):
            advance(days=1)
            assert_ran("shop/report", times=2)
        """
    )
    result = run(project)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            '>       assert_ran("shop/report", times=2)',
            "E       AssertionError: shop/report got the verdict 'ran' once, not twice",
            "E       shop/report  0 3 * * [*]  Europe/Rome   now: Fri 2026-01-02 01:00 CET",
            "E         Thu 2026-01-01 03:00 CET  ran",
            "E         next: Fri 2026-01-02 03:00 CET, in 2:00:00",
        ]
    )
    result.stdout.no_fnmatch_line("*harness.py*")


def test_a_project_that_does_not_use_it_pays_nothing(pytester: pytest.Pytester) -> None:
    """Not even the import of trio."""
    pytester.makepyfile(
        """
        import sys

        def test_imports():
            assert "engine.testing.plugin" in sys.modules
            heavy = {"trio", "redis", "pydantic", "fakeredis", "fastapi", "asyncio", "engine.app", "engine.errors"}
            assert heavy & sys.modules.keys() <= {"asyncio"}
        """
    )
    run(pytester).assert_outcomes(passed=1)


ASYNCHRONOUS = """
import asyncio

import anyio
import pytest
import trio

from engine import TaskGroup


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.trio
async def test_trio(troupe_engine, assert_ran):
    await trio.sleep(0)
    troupe_engine.advance(hours=3)
    assert_ran("shop/report", times=1)


def on_this_loop(threads):
    group = TaskGroup("loop")

    @group.add_task("0 3 * * *")
    async def where():
        await asyncio.sleep(0.01)
        threads.append(asyncio.get_running_loop())

    return group


@pytest.mark.asyncio
async def test_asyncio(troupe_engine):
    loops = []
    troupe_engine.start(on_this_loop(loops), bodies_on=asyncio.get_running_loop())
    await asyncio.to_thread(troupe_engine.advance, hours=3)
    assert loops == [asyncio.get_running_loop()]


@pytest.mark.anyio
async def test_anyio(troupe_engine):
    loops = []
    troupe_engine.start(on_this_loop(loops), bodies_on=asyncio.get_running_loop())
    await anyio.to_thread.run_sync(lambda: troupe_engine.advance(hours=3))
    assert loops == [asyncio.get_running_loop()]
"""


def test_it_goes_with_every_way_to_test_asynchronous_code(project: pytest.Pytester) -> None:
    """pytest-trio, pytest-asyncio and the plugin of anyio, side by side; also in the modes that take every test."""
    project.makepyfile(test_all=ASYNCHRONOUS)
    run_with_all_plugins(project).assert_outcomes(passed=3)
    project.makepyfile(
        test_all="""
        async def test_every_coroutine_is_a_test(advance, assert_ran):
            advance(hours=3)
            assert_ran("shop/report", times=1)

        def test_and_a_function_too(advance, assert_ran):
            advance(hours=3)
            assert_ran("shop/report", times=1)
        """
    )
    run_with_all_plugins(project, "-o", "trio_mode=true", "-p", "no:asyncio").assert_outcomes(passed=2)
    run_with_all_plugins(project, "-o", "asyncio_mode=auto", "-p", "no:trio").assert_outcomes(passed=2)


def test_a_test_is_run_for_each_crash_point(project: pytest.Pytester) -> None:
    """With names that can be read, and chosen with -k."""
    project.makepyfile(
        """
        import pytest
        import shop

        @pytest.mark.faults(of=shop.report)
        def test_sent_once(fault):
            fault.replay()
            assert fault.verdict == "ran"
            assert len(shop.sent) == 1

        @pytest.mark.faults
        def test_beat(fault, troupe_engine):
            fault.replay("shop/beat")
            troupe_engine.assert_ran("shop/beat", times=1)
        """
    )
    listed = run(project, "--collect-only", "-q").stdout
    listed.fnmatch_lines(
        [
            "*::test_sent_once[[]leader killed when it has published[]]",
            "*::test_sent_once[[]killed before its claim[]]",
            "*::test_sent_once[[]reply to its claim lost[]]",
            "*::test_sent_once[[]killed between claim and body[]]",
            "*::test_sent_once[[]killed at: await trio.sleep(30)[]]",
            "*::test_sent_once[[]stalled in the body, for longer than its lease[]]",
            "*::test_sent_once[[]cut off in the body, for longer than its lease[]]",
            "*::test_sent_once[[]stopped in the body[]]",
            "*::test_sent_once[[]its actor fails in the body[]]",
            "*::test_sent_once[[]killed before its end is told[]]",
            "*::test_sent_once[[]Redis away when its end is told[]]",
            "*::test_sent_once[[]reply to its end lost[]]",
            "*::test_sent_once[[]killed when its end was told[]]",
            "*::test_beat[[]leader killed when it has published[]]",
            "*::test_beat[[]killed in the body, halfway[]]",
        ]
    )
    result = run(project, "-k", "test_sent_once and end or test_beat and lost")
    result.assert_outcomes(passed=5, failed=1, skipped=0)
    result.stdout.fnmatch_lines(["FAILED *test_sent_once[[]killed before its end is told[]]*"])


@pytest.mark.parametrize(
    ("test", "said"),
    [
        (
            "@pytest.mark.faults\ndef test(): pass",
            "*::test is marked with faults and does not take the fixture `fault`",
        ),
        (
            "@pytest.mark.faults(at=3)\ndef test(fault): pass",
            "*write @pytest.mark.faults, or @pytest.mark.faults(of=f*",
        ),
        (
            "@pytest.mark.faults(of=3)\ndef test(fault): pass",
            "*write @pytest.mark.faults, or @pytest.mark.faults(of=f*",
        ),
        ("def test(fault): pass", "*the fixture `fault` is for tests with the marker: @pytest.mark.faults or @*"),
    ],
    ids=["no fixture", "no such word", "no function", "no marker"],
)
def test_a_wrong_marker_is_said(project: pytest.Pytester, test: str, said: str) -> None:
    """At once, and in one line."""
    project.makepyfile(f"import pytest\n\n{test}\n")
    result = run(project)
    assert result.ret != 0
    result.stdout.fnmatch_lines([said])


def test_two_sessions_give_the_same(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever depends on chance follows from the seed: who runs what, in which order, and all ids and fences."""
    project.makepyfile(
        """
        import random
        from pathlib import Path

        import trio
        from engine import TaskGroup

        group = TaskGroup("g", allow_parallel=True)
        order = []

        def body(name):
            async def run():
                await trio.sleep(0)
                order.append(name)
                await trio.sleep(7)
                order.append(name)
            return run

        for name in "abcdefgh":
            group.add_task("*/10 * * * *", name=name)(body(name))

        def test_chance(troupe_engine):
            troupe_engine.start(group, workers=3, concurrent_tasks=2, seed=7)
            troupe_engine.advance(minutes=15)
            troupe_engine.kill_worker(troupe_engine.leader)
            troupe_engine.advance(minutes=20)
            starts = [repr(start) for name in "abcdefgh" for start in troupe_engine.starts(f"g/{name}")]
            runs = [repr(run) for name in "abcdefgh" for run in troupe_engine.runs(f"g/{name}")]
            Path("trace").write_text("\\n".join([*order, *starts, *runs]))
        """
    )
    traces = []
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        run(project).assert_outcomes(passed=1)
        traces.append((project.path / "trace").read_text(encoding="utf-8"))
    assert traces[0] == traces[1]
    assert len(traces[0].splitlines()) > 8 * 3 * 3


APPLICATION = """
from contextlib import asynccontextmanager

import asyncio
from fastapi import FastAPI

from integrations.fastapi import Config, TaskGroup, TaskManager

reports, written = TaskGroup("reports"), []


@reports.add_task("0 3 * * *")
async def nightly():
    await asyncio.sleep(30)
    written.append(asyncio.get_running_loop())


app = FastAPI()
manager = TaskManager(app, Config())
manager.add_task_group(reports)
app.include_router(manager.get_manager_router(), prefix="/tasks")


@app.get("/written")
async def count():
    return len(written)
"""


def test_an_application_with_a_task_manager(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disabled where it is served; its tasks run on a loop of asyncio in virtual time all the same."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makepyfile(
        application=APPLICATION,
        conftest="""
        import os

        import pytest

        os.environ["TROUPE_ENABLED"] = "0"


        @pytest.fixture
        def troupe_groups():
            from application import manager
            return manager
        """,
        test_application="""
        import warnings

        import application
        import pytest

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from fastapi.testclient import TestClient

        def test_night(advance, assert_ran):
            with TestClient(application.app) as client:
                advance(hours=4)
                assert_ran("reports/nightly", times=1, at="2026-01-01 03:00")
                assert client.get("/written").json() == 1

        @pytest.mark.faults(of=application.nightly)
        def test_crashes(fault):
            fault.replay()
            assert fault.verdict == "ran"
        """,
    )
    run(pytester, "-k", "night or stalled or sleep").assert_outcomes(passed=3)


def test_without_fakeredis_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes with an extra."""
    for module in ("fakeredis", "lupa"):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, module, None)
            with pytest.raises(ExtraMissing, match=r"needs an optional part: pip install 'troupe-engine\[testing\]'"):
                TroupeEngine(TaskGroup("g")).start()


def test_the_fixtures_give_what_the_engine_has(
    troupe_engine: TroupeEngine, advance: Callable[..., object], run_due: Callable[..., object]
) -> None:
    """So that they can be told by their names in a signature."""
    assert advance == troupe_engine.advance
    assert run_due == troupe_engine.run_due

"""The log lines that people watch for, word for word, each provoked; and nothing of a user's own logging is touched."""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import pytest
import trio
from fastapi import FastAPI

from engine import Config, Engine, RunContext, TaskGroup
from engine.store.election import Elected
from engine.store.timetable import Enrolment
from integrations.fastapi import TaskManager
from tests.system.cluster import PATIENCE_S, QUICK, ROOT, YEARLY, environment, eventually

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Using `httpx` with `starlette.testclient` is deprecated")
    from fastapi.testclient import TestClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.system.cluster import Cluster, View

PACKAGES: Final = ("engine", "actors", "integrations")
TOP: Final = "fastapi.task-manager"
LEADER: Final = f"{TOP}.leader"
CONSUMER: Final = f"{TOP}.consumer"
RECONCILER: Final = f"{TOP}.reconciler"
STATISTICS: Final = f"{TOP}.statistics"
API: Final = f"{TOP}.api"
GROUP: Final = f"{TOP}.group"


class Log:
    """What was logged, on loggers as they are: only the root has a level, which a user would give it."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def said(self, pattern: str) -> list[logging.LogRecord]:
        """The lines that are just this, as a regular expression."""
        return [record for record in self._caplog.records if re.fullmatch(pattern, record.getMessage())]

    async def says(self, logger: str, level: int, pattern: str) -> logging.LogRecord:
        """Wait for such a line; it comes from that logger, with that level."""

        async def said() -> list[logging.LogRecord]:
            return self.said(pattern)

        found = await eventually(said, f"the log says {pattern}")
        assert {(record.name, record.levelno) for record in found} == {(logger, level)}
        return found[0]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    """Down to DEBUG."""
    caplog.set_level(logging.DEBUG)
    return Log(caplog)


class Nest:
    """Engines in the test's own loop."""

    def __init__(self, nursery: trio.Nursery, cluster: Cluster) -> None:
        self._nursery, self._cluster = nursery, cluster
        self.engines: list[Engine] = []

    async def engine(self, *groups: TaskGroup, **config: object) -> Engine:
        """Start one."""
        settings = {"redis_url": self._cluster.url, "redis_key_prefix": self._cluster.prefix, **QUICK, **config}
        engine = Engine(Config(**settings), groups)
        self.engines.append(engine)
        await self._nursery.start(engine.serve)
        return engine

    async def stop(self, engine: Engine) -> None:
        """Stop it, and wait until it has."""
        engine.stop()

        async def stopped() -> bool:
            return engine.tree().state.value == "stopped"

        await eventually(stopped, "the engine has stopped")


@pytest.fixture
async def nest(cluster: Cluster) -> AsyncIterator[Nest]:
    async with trio.open_nursery() as nursery:
        found = Nest(nursery, cluster)
        yield found
        for engine in found.engines:
            engine.stop()


# -- the key events ---------------------------------------------------------------------------------------------------


async def test_who_leads_and_who_does_no_longer_is_told(nest: Nest, log: Log) -> None:
    """By the name of the worker for people: service, host, process, and four hexadecimal digits."""
    engine = await nest.engine(worker_service_name="shop")
    host, pid = re.escape(socket.gethostname()), os.getpid()
    became = await log.says(LEADER, logging.INFO, rf"Worker shop-{host}-{pid}-[0-9a-f]{{4}} became LEADER")
    assert became.getMessage() == f"Worker {engine.worker_id} became LEADER"
    assert vars(became)["epoch"] > 0
    assert log.said(".* released leadership") == []
    await nest.stop(engine)
    await log.says(LEADER, logging.INFO, rf"Worker {re.escape(engine.worker_id or '')} released leadership")


def go_wrong() -> None:
    raise KeyError("no such column")


async def go_wrong_in_loop() -> None:
    go_wrong()


def failing(kind: str) -> tuple[TaskGroup, list[RunContext]]:
    """A group with a task that fails twice, in the loop or in a thread, and the runs that did."""
    group, runs = TaskGroup("reports"), list[RunContext]()

    async def in_loop() -> None:
        runs.append(RunContext.current())
        await go_wrong_in_loop()

    def in_thread() -> None:
        runs.append(RunContext.current())
        go_wrong()

    declare = group.add_task(YEARLY, name="nightly", run_on_first_start=True, max_retries=1, retry_backoff=0)
    declare(in_loop if kind == "loop" else in_thread)
    return group, runs


def check_failures(told: list[logging.LogRecord], kind: str, runs: list[RunContext]) -> None:
    for record in told:
        assert record.exc_info is not None
        _, error, trace = record.exc_info
        assert str(error) == "'no such column'"
        names = [frame.name for frame in traceback.extract_tb(trace)]
        assert names == {"loop": ["in_loop", "go_wrong_in_loop", "go_wrong"], "thread": ["in_thread", "go_wrong"]}[kind]
    assert [vars(record)["attempt"] for record in told] == [1, 2]
    assert [vars(record)["run_id"] for record in told] == [run.run_id for run in runs]
    assert {(record.name, record.levelno) for record in told} == {(CONSUMER, logging.ERROR)}


@pytest.mark.parametrize("kind", ["loop", "thread"])
async def test_a_task_that_fails_is_told_with_the_traceback(nest: Nest, log: Log, kind: str) -> None:
    """From its own function on; which run and which attempt it was are fields of the record."""
    group, runs = failing(kind)
    await nest.engine(group)

    async def twice() -> bool:
        return len(log.said("Task reports/nightly failed")) == 2

    await eventually(twice, "it failed twice")
    check_failures(log.said("Task reports/nightly failed"), kind, runs)


@pytest.mark.parametrize("kind", ["loop", "thread"])
def test_a_task_of_an_application_that_fails_is_told_alike(cluster: Cluster, log: Log, kind: str) -> None:
    """How its body came to the application's loop and back is nothing to its author."""
    group, runs = failing(kind)
    app = FastAPI()
    manager = TaskManager(app, Config(redis_url=cluster.url, redis_key_prefix=cluster.prefix, **QUICK))
    manager.add_task_group(group)
    with TestClient(app):
        limit_s = time.monotonic() + PATIENCE_S
        while len(log.said("Task reports/nightly failed")) < 2:
            assert time.monotonic() < limit_s
            time.sleep(0.02)
    check_failures(log.said("Task reports/nightly failed"), kind, runs)


async def test_a_run_that_is_taken_over_from_a_lost_worker_is_told(nest: Nest, log: Log, cluster: Cluster) -> None:
    """By the leader, with the run and the worker that had it."""
    task = {"name": "long", "expression": YEARLY, "run_on_first_start": True, "seconds": 300}
    worker = cluster.worker(task, can_lead=False, **QUICK)
    await nest.engine(concurrent_tasks=0)
    started = await cluster.started(worker)
    assert log.said("Reclaimed.*") == []
    worker.signal(signal.SIGKILL)
    lost = rf"fastapi-task-manager-.*-{worker.pid}-[0-9a-f]{{4}}"
    pattern = rf"Reclaimed pending message: run {re.escape(started.run)} of lost worker {lost}"
    await log.says(RECONCILER, logging.WARNING, pattern)


async def test_a_slot_that_is_published_late_is_told(nest: Nest, log: Log, view: View) -> None:
    """Nobody led when it was due: here since New Year."""
    group = TaskGroup("reports")

    @group.add_task(YEARLY, name="yearly", timezone="UTC")
    def yearly() -> None:
        pass

    store, due_ms = view.store, round(datetime(datetime.now(UTC).year, 1, 1, tzinfo=UTC).timestamp() * 1000)
    won = await store.election.elect("test", "nonce", lease_ms=60_000)
    assert isinstance(won, Elected)
    enrolment, version = Enrolment("reports/yearly", due_ms), await store.catalog.version()
    assert await store.timetable.enroll(won.value, [enrolment], version=version) == ["enrolled"]
    await store.election.resign(won.value)

    await nest.engine(group)
    await log.says(RECONCILER, logging.WARNING, r"Republished overdue task reports/yearly \(\d+\.\d s late\)")
    [verdict] = await view.settled("reports/yearly")
    assert (verdict.verdict, verdict.from_ms) == ("ran", due_ms)


async def test_dynamic_tasks_are_told_when_made_and_when_found(nest: Nest, log: Log) -> None:
    """Made by code on a running engine, and kept in Redis for the next one."""

    def measure(what: str) -> None:
        pass

    first, second = TaskGroup("reports"), TaskGroup("reports")
    for group in (first, second):
        group.register_function(measure)
    engine = await nest.engine(first)
    assert log.said("Loaded .*") == []
    await first.create_task("measure", YEARLY, {"what": "load"}, name="weekly")
    await log.says(API, logging.INFO, "Dynamic task 'weekly' created in group 'reports'")
    first.add_dynamic_task("measure", YEARLY, {"what": "load"}, name="monthly")
    await log.says(GROUP, logging.INFO, "Dynamic task 'monthly' added to group 'reports'")
    await log.says(API, logging.INFO, "Dynamic task 'monthly' created in group 'reports'")
    await nest.stop(engine)

    await nest.engine(second)
    await log.says(TOP, logging.INFO, r"Loaded 2 dynamic task\(s\) from Redis")
    await second.remove_task("weekly")
    await log.says(API, logging.INFO, "Dynamic task 'weekly' deleted from group 'reports'")
    second.remove_dynamic_task("monthly")
    await log.says(GROUP, logging.INFO, "Dynamic task 'monthly' removed from group 'reports'")


async def test_the_end_of_every_run_is_told_to_those_who_debug(nest: Nest, log: Log) -> None:
    """Nobody else hears of runs that went well."""
    group = TaskGroup("reports")

    @group.add_task(YEARLY, name="quick", run_on_first_start=True)
    def quick() -> None:
        pass

    await nest.engine(group)
    await log.says(STATISTICS, logging.DEBUG, r"Run reports/quick@first: ran after \d+\.\d{3} s")


# -- what belongs to the user -----------------------------------------------------------------------------------------


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Every module that is installed with the package, by its path."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def calls(module: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Every call of something by its last name."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            match node.func:
                case ast.Attribute(attr=name) | ast.Name(id=name):
                    yield name, node
                case _:
                    pass


def test_no_module_configures_logging_but_the_command() -> None:
    """`troupe run` is the program itself, and gives way to an application that has configured its logging."""
    configuring = {"basicConfig", "dictConfig", "fileConfig", "setLevel", "addHandler", "captureWarnings"}
    found = {path for path, module in sources() for name, _ in calls(module) if name in configuring}
    assert found == {"engine/cli.py"}


def test_every_logger_is_in_the_table_of_the_docs_and_no_other() -> None:
    """A logger that nobody can look up is one that nobody can turn down."""
    names = {
        call.args[0].value
        for path, module in sources()
        for name, call in calls(module)
        if name == "getLogger" and path != "engine/cli.py" and isinstance(call.args[0], ast.Constant)
    }
    page = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    table = page.split("\n## Logs\n", 1)[1].split("\n## ", 1)[0]
    assert set(re.findall(r"^\| `(fastapi\.[^`]*)` \|", table, flags=re.MULTILINE)) == names


def test_every_key_event_is_in_the_docs() -> None:
    """As the tests above expect them."""
    page = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    missing = [
        text
        for text in (
            "Worker <id> became LEADER",
            "Worker <id> released leadership",
            "Task <group>/<name> failed",
            "Reclaimed pending message",
            "Republished overdue task",
            "Dynamic task '<name>' created in group '<group>'",
            "Loaded N dynamic task(s) from Redis",
        )
        if f"`{text}" not in page
    ]
    assert missing == []


LOOK = """
import importlib, json, logging, pkgutil, sys, threading
import engine, actors, integrations

for package in (engine, actors, integrations):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

from fastapi import FastAPI
from integrations.fastapi import Config, TaskGroup, TaskManager

app, group, ran = FastAPI(), TaskGroup("g"), threading.Event()
group.add_task("0 0 1 1 *", name="t", run_on_first_start=True)(ran.set)
manager = TaskManager(app, Config(redis_url=sys.argv[1], redis_key_prefix="look"))
manager.add_task_group(group)

async def main():
    import asyncio
    async with app.router.lifespan_context(app):
        assert await asyncio.to_thread(ran.wait, 60)

import asyncio
asyncio.run(main())
ours = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith("fastapi.task-manager")]
print(json.dumps({
    "root": [logging.root.level, len(logging.root.handlers)],
    "touched": [o.name for o in ours if o.level or o.handlers or o.filters or o.disabled or not o.propagate],
    "count": len(ours),
    "disabled": logging.root.manager.disable,
}))
"""


async def test_a_process_that_imports_and_runs_everything_has_its_logging_untouched(cluster: Cluster) -> None:
    """No level, handler or filter is set on any logger, and the root is as Python made it."""

    def look() -> str:
        command = [sys.executable, "-c", LOOK, cluster.url]
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    seen = json.loads(await trio.to_thread.run_sync(look))
    assert seen["root"] == [logging.WARNING, 0]
    assert seen["touched"] == []
    assert seen["disabled"] == 0
    assert seen["count"] >= 10

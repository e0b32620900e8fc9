"""The tutorial's programs, and an application of fastapi-task-manager, on every server that is supported.

Each is a file in a folder of its own, served as a user would. The application of the other package changes one line.
"""

from __future__ import annotations

import json
import logging
import shutil
import signal
import sys
import time
import warnings
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest

from tests.integrations.fastapi.serving import APP, SERVERS
from tests.store.servers import free_port
from tests.system.cluster import PATIENCE_S, ROOT

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Using `httpx` with `starlette.testclient` is deprecated")
    from fastapi.testclient import TestClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.system.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SEED: Final = Path(__file__).parent / "seed_app.py"
OLD_IMPORT: Final = "from fastapi_task_manager import Config, TaskGroup, TaskManager"
NEW_IMPORT: Final = "from integrations.fastapi import Config, TaskGroup, TaskManager"
TUTORIAL: Final = ("tutorial_first", "tutorial_shop")

ON_ASYNCIO: Final = ("uvicorn asyncio", "uvicorn uvloop", "hypercorn asyncio")
ON_TRIO: Final = "hypercorn trio"
IN_PROCESS: Final = "TestClient"
GUARD: Final = {"X-Requested-With": "test"}


def until(condition: Callable[[], Any], what: str) -> Any:
    """The first answer that is true."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not (answer := condition()):
        assert time.monotonic() < deadline_s, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.05)
    return answer


def one_line_changed(text: str) -> str:
    """The import, and nothing else."""
    changed = text.replace(OLD_IMPORT, NEW_IMPORT)
    before, after = text.splitlines(), changed.splitlines()
    assert len(before) == len(after)
    assert [new for old, new in zip(before, after, strict=True) if old != new] == [NEW_IMPORT]
    return changed


def without_asyncio(text: str) -> str:
    """For a server that runs trio."""
    changed = text.replace("import asyncio", "import anyio").replace("asyncio.sleep", "anyio.sleep")
    assert changed.count("anyio.sleep") == 2
    return changed


class Life:
    """An application that is up, with what it has logged and what its tasks have written."""

    def __init__(self, client: httpx.Client, effects: Path, log: Callable[[], str]) -> None:
        self.client, self._effects, self.log = client, effects, log

    def effects(self) -> list[str]:
        return self._effects.read_text(encoding="utf-8").splitlines() if self._effects.exists() else []

    def get(self, path: str, **query: str) -> Any:
        answer = self.client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Any = None, **query: str) -> Any:
        answer = self.client.post(path, params=query, json=body, headers=GUARD)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def wait_for_effect(self, line: str, *, count: int = 1) -> None:
        until(lambda: self.effects().count(line) >= count, f"{count} of {line!r}")

    def wait_for_log(self, text: str) -> None:
        until(lambda: text in self.log(), f"the log says {text!r}")


@contextmanager
def served(cluster: Cluster, server: str, module: str, name: str, **env: str) -> Iterator[Life]:
    """The program ``module`` of the cluster's folder under a server, from its first answer on; SIGTERM at the end."""
    port = free_port()
    program_name, *options = SERVERS[server]
    words = [f"{module}:app" if word == APP else word.format(port=port) for word in options]
    program = cluster.program(*(sys.executable, "-m", program_name, *words), name=name, cwd=cluster.directory, **env)

    def answers() -> bool:
        assert program.process.poll() is None, program.log()
        try:
            return client.get("/openapi.json").status_code == 200
        except httpx.ConnectError:
            return False

    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        until(answers, f"{name} answers")
        yield Life(client, cluster.directory / "effects", program.log)
    program.process.send_signal(signal.SIGTERM)
    code = program.process.wait(PATIENCE_S)
    assert code in {0, -signal.SIGTERM}, code  # uvicorn ends by the signal itself


@contextmanager
def in_process(cluster: Cluster, module: str, caplog: pytest.LogCaptureFixture) -> Iterator[Life]:
    """The same in fastapi's TestClient."""
    before = len(caplog.text)
    program = ModuleType(module)
    code = compile((cluster.directory / f"{module}.py").read_text(encoding="utf-8"), f"{module}.py", "exec")
    exec(code, vars(program))  # noqa: S102  # as an import does, which would keep the module
    with TestClient(program.app) as client:
        yield Life(client, cluster.directory / "effects", lambda: caplog.text[before:])


@pytest.fixture
def quiet_logging(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The levels that a program in this process sets do not stay."""
    loggers = [logging.getLogger(f"fastapi.task-manager{name}") for name in ("", ".coordinator", ".reconciler")]
    levels = [logger.level for logger in loggers]
    with caplog.at_level(logging.INFO):
        yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


# -- an application of fastapi-task-manager ---------------------------------------------------------------------------


def name_of(task: dict[str, Any]) -> str:
    """As its function or ``name=`` says: the other package appends hashes, and numbers stand for a list's."""
    return str(task["name"]).partition("__")[0].partition("-")[0]


def first_life(life: Life) -> None:
    """All that the guides describe, of a running application."""
    until(lambda: life.get("/health") == {"app": "ok", "task_manager": True}, "it is healthy")
    until(lambda: life.get("/task-manager/health")["is_leader"], "it leads")
    health = life.get("/task-manager/health")
    assert (health["status"], health["redis_connected"]) == ("healthy", True)
    assert life.get("/hello") == {"greeting": "hello", "running": True, "worker": health["worker_id"]}
    assert f"Worker {health['worker_id']} became LEADER" in life.log()

    settings = life.get("/task-manager/config")
    given = {"concurrent_tasks": 3, "statistics_history_runs": 50, "statistics_redis_expiration": 604_800}
    assert given.items() <= settings.items()
    groups = {group["name"]: group for group in life.get("/task-manager/task-groups")}
    assert groups["reports"] == {"name": "reports", "tags": ["reporting"], "allow_parallel": True, "task_count": 3}
    tasks = life.get("/task-manager/tasks")
    assert [name_of(task) for task in tasks] == ["weekly", "city", "city", "failing", "slow"]
    assert [task["kwargs"] for task in tasks] == [{"days": 7}, {"city": "Rome"}, {"city": "Oslo"}, {}, {}]
    assert (tasks[0]["description"], tasks[0]["high_priority"]) == ("Figures of the week", True)
    functions = {
        one["function_name"] for one in life.get("/task-manager/functions", task_group_name="mail")["functions"]
    }
    assert functions == {"failing", "slow", "send"}

    names = {name_of(task): task["name"] for task in tasks}
    so_far = len(life.effects())
    assert life.post("/task-manager/tasks/trigger", task_group_name="reports")["count"] == 3
    expected = {"weekly of 7 days", "city Rome", "city Oslo"}
    until(lambda: expected <= set(life.effects()[so_far:]), "the reports have run")
    weekly = f"/task-manager/tasks/reports/{names['weekly']}/statistics"
    until(lambda: life.get(weekly)["runs"], "the statistics have the run")
    assert 0.05 <= life.get(weekly)["runs"][-1]["durations_second"] < 1

    life.post("/task-manager/tasks/trigger", task_name=names["failing"])
    life.wait_for_log(f"Task mail/{names['failing']} failed")
    waiting = until(
        lambda: [task for task in life.get("/task-manager/tasks") if task["retry_after"]], "the failed task waits"
    )
    assert [(name_of(task), task["retry_backoff"]) for task in waiting] == [("failing", 60)]
    assert life.post("/task-manager/tasks/reset-retry", task_group_name="mail")["count"] >= 1

    one = {"task_group_name": "mail", "function_name": "send", "cron_expression": "* * * * * *", "name": "often"}
    made = life.post("/task-manager/tasks", {**one, "kwargs": {"to": "Ada"}})
    assert made["dynamic"]
    assert "Dynamic task 'often' created in group 'mail'" in life.log()
    life.wait_for_effect("mail to Ada")

    assert life.post("/task-manager/tasks/disable", task_name=names["weekly"])["count"] == 1
    inactive = [task["name"] for task in life.get("/task-manager/tasks") if not task["is_active"]]
    assert inactive == [names["weekly"]]
    assert life.post("/task-manager/tasks/enable", task_name=names["weekly"])["count"] == 1

    begun = life.effects().count("slow begins")
    life.post("/task-manager/tasks/trigger", task_name=names["slow"])
    life.wait_for_effect("slow begins", count=begun + 1)  # and it goes on while the application is asked to stop


def after_it(life: Life) -> None:
    """What was in progress has ended, and then the application's own lifespan."""
    effects = life.effects()
    assert effects.count("slow begins") == effects.count("slow ends")
    assert "released leadership" in life.log()


def second_life(life: Life) -> None:
    """What was made at run time is there again, and can be removed."""
    so_far = life.effects().count("mail to Ada")
    life.wait_for_log("Loaded 1 dynamic task(s) from Redis")
    life.wait_for_effect("mail to Ada", count=so_far + 1)
    query = {"task_group_name": "mail", "task_name": "often"}
    assert life.client.delete("/task-manager/tasks", params=query, headers=GUARD).status_code == 200
    assert "often" not in [task["name"] for task in life.get("/task-manager/tasks")]


def live_twice(cluster: Cluster, server: str, module: str) -> list[str]:
    """Both lives under a server; what was written last in each."""
    where = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(cluster.server.port)}
    env = {**where, "EFFECTS": str(cluster.directory / "effects")}
    last_words = []
    for number, lives in enumerate((first_life, second_life), start=1):
        with served(cluster, server, module, f"life-{number}", **env) as life:
            lives(life)
        after_it(life)
        last_words.append(life.effects()[-1])
    return last_words


def test_the_seed_is_an_application_of_the_package_that_is_replaced(cluster: Cluster) -> None:
    """Else it would prove nothing that it runs here. There, the lifespan ended before a run that needed it."""
    shutil.copy(SEED, cluster.directory / "seed_app.py")
    assert live_twice(cluster, "uvicorn asyncio", "seed_app")[0] == "slow ends"


@pytest.mark.parametrize("server", [*ON_ASYNCIO, ON_TRIO])
def test_it_runs_with_one_line_changed(server: str, cluster: Cluster) -> None:
    """On a server that runs trio without its calls of asyncio. The lifespan, and what tasks use of it, ends last."""
    text = one_line_changed(SEED.read_text(encoding="utf-8"))
    text = without_asyncio(text) if server == ON_TRIO else text
    (cluster.directory / "seed_app.py").write_text(text, encoding="utf-8")
    assert live_twice(cluster, server, "seed_app") == ["the application's own lifespan ends"] * 2


@pytest.mark.usefixtures("quiet_logging")
def test_it_runs_in_the_test_client(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In the tests of its own, that is."""
    text = one_line_changed(SEED.read_text(encoding="utf-8"))
    (cluster.directory / "seed_app.py").write_text(text, encoding="utf-8")
    where = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(cluster.server.port)}
    for name, value in {**where, "EFFECTS": str(cluster.directory / "effects")}.items():
        monkeypatch.setenv(name, value)
    for lives in (first_life, second_life):
        with in_process(cluster, "seed_app", caplog) as life:
            lives(life)
        after_it(life)


def test_two_of_them_share_a_redis(cluster: Cluster) -> None:
    """Under prefixes of their own, here the names of their modules, neither sees anything of the other."""
    text = one_line_changed(SEED.read_text(encoding="utf-8"))
    where = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(cluster.server.port)}
    lives = []
    with ExitStack() as stack:
        for module in ("app_a", "app_b"):
            (cluster.directory / f"{module}.py").write_text(text, encoding="utf-8")
            env = {**where, "EFFECTS": str(cluster.directory / f"{module}.effects")}
            lives.append(stack.enter_context(served(cluster, "uvicorn asyncio", module, module, **env)))
        for life in lives:
            until(lambda life=life: life.get("/task-manager/health")["is_leader"], "it leads")  # type: ignore[misc]
        mine, other = lives
        mine.post("/task-manager/tasks/trigger", task_name="weekly")
        mine.post("/task-manager/tasks/disable", task_name="slow")
        weekly = "/task-manager/tasks/reports/weekly/statistics"
        until(lambda: mine.get(weekly)["runs"], "it has run")
        assert other.get(weekly)["runs"] == []
        assert all(task["is_active"] for task in other.get("/task-manager/tasks"))
        assert len(other.get("/task-manager/workers")) == 1


# -- the programs of the tutorial -------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", [*ON_ASYNCIO, ON_TRIO])
def test_the_programs_of_the_tutorial_run_under(server: str, cluster: Cluster) -> None:
    """Their tasks run, their routes answer, and they end without complaint. At once, each in a database of its own."""
    for module in TUTORIAL:
        shutil.copy(ROOT / "docs" / "examples" / f"{module}.py", cluster.directory)
    with (
        served(cluster, server, "tutorial_first", "first", TROUPE_REDIS_URL=cluster.url) as first,
        served(cluster, server, "tutorial_shop", "shop", TROUPE_REDIS_URL=f"{cluster.url}?db=1") as shop,
    ):
        visit(shop)
        first.wait_for_log("collecting orders")
        shop.wait_for_log("collected orders from the web")
    assert "Traceback" not in first.log()
    assert "Traceback" not in shop.log().replace(expected_failure(shop.log()), "")


def visit(life: Life) -> None:
    """The shop's own routes, and a task of each kind."""
    until(lambda: life.get("/health") == {"tasks": True}, "it is healthy")
    assert life.client.put("/reminders/ada").json() == {"task": "remind-ada"}
    assert life.client.put("/reminders/ada").status_code == 409
    for name in ("report", "pay"):
        life.post("/task-manager/tasks/trigger", task_name=name)
    life.wait_for_log("the report is written")
    life.wait_for_log("paid at attempt 2, once for orders/pay@")
    life.wait_for_log("a reminder for ada")
    assert life.client.delete("/reminders/ada").status_code == 200
    assert life.client.delete("/reminders/ada").status_code == 404
    assert "remind-ada" not in json.dumps(life.get("/task-manager/tasks"))


def expected_failure(log: str) -> str:
    """What the log says of a first attempt to pay."""
    start, failure, end = log.partition("Task orders/pay failed")
    return failure + end.partition("ConnectionError: the bank does not answer")[0] if failure and start else ""


def test_the_programs_of_the_tutorial_run_in_the_test_client(
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As a user's tests would run them."""
    monkeypatch.setenv("TROUPE_REDIS_URL", cluster.url)
    printed = ""

    def log() -> str:
        nonlocal printed
        printed += capfd.readouterr().out
        return printed

    for module, text in (("tutorial_first", "collecting orders"), ("tutorial_shop", "collected orders from the web")):
        shutil.copy(ROOT / "docs" / "examples" / f"{module}.py", cluster.directory)
        with in_process(cluster, module, caplog) as life:
            life.log = log
            if module == "tutorial_shop":
                visit(life)
            life.wait_for_log(text)

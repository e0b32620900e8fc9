"""How docs/coming-from-fastapi-task-manager.md is tried out: its application under both systems, on one Redis."""

from __future__ import annotations

import re
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, final

import httpx
import redis

from tests.docs.documents import ROOT, snippets
from tests.docs.programs import PATIENCE_S, environment, shell, started
from tests.store.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from re import Match

    from tests.docs.documents import Snippet
    from tests.docs.programs import Program
    from tests.docs.workshop import Workshop

PAGE = ROOT / "docs" / "coming-from-fastapi-task-manager.md"
HERE, THERE = "from integrations.fastapi import", "from fastapi_task_manager import"
NAMES_REDIS = 'redis_host="localhost",\n    redis_port=6379,'


@final
class Served:
    """An application under uvicorn."""

    def __init__(self, program: Program, port: int) -> None:
        self.program, self._address = program, f"http://127.0.0.1:{port}"

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Its answer, whatever it is, as soon as it listens."""
        until_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                return httpx.request(method, self._address + path, timeout=PATIENCE_S, **options)
            except httpx.ConnectError:
                assert self.program.process.poll() is None, self.program.printed
                assert time.monotonic() < until_s, self.program.printed
                time.sleep(0.1)

    def wait_healthy(self) -> None:
        """Return when its engine is at work."""
        until_s = time.monotonic() + PATIENCE_S
        while self.ask("GET", "/task-manager/health").json()["status"] != "healthy":
            assert time.monotonic() < until_s, self.program.printed
            time.sleep(0.1)


def application(workshop: Workshop, import_line: str = HERE) -> str:
    """The first block of the page, with the Redis that is there, under one of the systems."""
    text = next(snippets(PAGE)).text
    assert text.count(HERE) == 1
    assert text.count(NAMES_REDIS) == 1
    port = workshop.redis_url.rpartition(":")[2].partition("/")[0]
    return text.replace(HERE, import_line).replace(NAMES_REDIS, f'redis_host="127.0.0.1",\n    redis_port={port},')


@contextmanager
def served(
    text: str, workshop: Workshop, *, name: str = "main:app", folder: Path | None = None, **env: str
) -> Iterator[Served]:
    """Run it as ``main.py`` under uvicorn, until Ctrl-C; what Redis holds stays."""
    if folder is None:
        folder = workshop.folder("application")
        (folder / "main.py").write_text(text, encoding="utf-8")
    port = free_port()
    command = f"{sys.executable} -m uvicorn {name} --port {port}"
    with started(command, folder=folder, env=environment(workshop.folder("home"), **env)) as program:
        found = Served(program, port)
        found.wait_healthy()
        yield found
        program.interrupt()
        assert "Application shutdown complete" in program.printed


def empty(workshop: Workshop) -> None:
    """Nothing is left of what was tried out before."""
    with redis.Redis.from_url(workshop.redis_url) as client:
        client.flushall()


# -- blocks -----------------------------------------------------------------------------------------------------------


def one_changed_line(_: Snippet, workshop: Workshop) -> None:
    """The whole application, as it is there: under the old system with the old line, and under this one."""
    empty(workshop)
    names = []
    for line in (THERE, HERE):
        with served(application(workshop, line), workshop) as app:
            assert app.ask("GET", "/health").json() == {"app": "ok", "task_manager": True}
            [task] = app.ask("GET", "/task-manager/tasks").json()
            assert (task["expression"], task["kwargs"], task["tags"]) == ("0 3 * * *", {"days": 7}, ["reports"])
            names.append(task["name"])
    assert re.fullmatch(r"nightly__[0-9a-f]{64}__[0-9a-f]{64}__", names[0])
    assert names[1] == "nightly"


def probes(snippet: Snippet, workshop: Workshop) -> None:
    """The page's application answers each of them."""
    paths = re.findall(r"^ +path: (\S+)$", snippet.text, flags=re.MULTILINE)
    assert len(paths) == 2
    empty(workshop)
    with served(application(workshop), workshop) as app:
        assert [app.ask("GET", path).status_code for path in paths] == [200, 200]


def tasks_of_start_up_code(snippet: Snippet, workshop: Workshop) -> None:
    """What it creates stays; what it declares goes when no live process has declared it for a second."""
    empty(workshop)
    text = workshop.adapted(snippet.text)
    with served(text, workshop) as app:
        answer = app.ask("POST", "/subscribers/ada")
        assert (answer.status_code, answer.json()) == (200, {"task": "weekly-ada"}), app.program.printed
        assert app.ask("POST", "/subscribers/ada").status_code == 409
    text = "\n".join(line for line in text.splitlines() if "add_dynamic_task" not in line)
    with served(text, workshop, TROUPE_RETIRE_AFTER="1", TROUPE_RECONCILIATION_INTERVAL="0.5") as app:
        until_s = time.monotonic() + PATIENCE_S
        while (names := {task["name"] for task in app.ask("GET", "/task-manager/tasks").json()}) != {"weekly-ada"}:
            assert time.monotonic() < until_s, names
            time.sleep(0.1)


def conflict(snippet: Snippet, workshop: Workshop) -> None:
    """With an ``engine.py`` beside it the page's application does not start, and these are the words."""
    folder = workshop.folder("conflict")
    (folder / "main.py").write_text(application(workshop), encoding="utf-8")
    (folder / "engine.py").write_text("START = 1\n", encoding="utf-8")
    printed = shell(
        f"{sys.executable} -m uvicorn main:app --port {free_port()} || true",
        folder=folder,
        env=environment(workshop.folder("home")),
    )
    assert snippet.text in printed.splitlines()


def package(snippet: Snippet, workshop: Workshop) -> None:
    """The same application in a package of these files, one of which it imports, does start."""
    empty(workshop)
    folder = workshop.folder("above")
    paths = {line.split()[0]: " ".join(line.split()[1:]) for line in snippet.text.splitlines()}
    for path, text in paths.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(f"START = 1\n{text}\n", encoding="utf-8")
    [main] = [path for path, text in paths.items() if text]
    (folder / main).write_text(f"{paths[main]}\n{application(workshop)}\nassert START\n", encoding="utf-8")
    assert "shop.main:app" in PAGE.read_text(encoding="utf-8")
    with served("", workshop, name="shop.main:app", folder=folder):
        pass


# -- commands ---------------------------------------------------------------------------------------------------------


def take_over(command: Match[str], workshop: Workshop) -> None:
    """After a task was made, and all were disabled, through the old API; the new application has been started once."""
    empty(workshop)
    with served(application(workshop, THERE), workshop) as app:
        friday = {
            "task_group_name": "reports",
            "function_name": "send",
            "cron_expression": "0 8 * * 5",
            "name": "friday",
        }
        assert app.ask("POST", "/task-manager/tasks", json=friday).status_code == 200
        assert app.ask("POST", "/task-manager/tasks/disable").json()["count"] == 2
    home = workshop.folder("home")
    env = environment(home, TROUPE_REDIS_URL=workshop.redis_url, TROUPE_REDIS_KEY_PREFIX="myapp-tasks")
    with served(application(workshop), workshop):
        until_s = time.monotonic() + PATIENCE_S
        while "reports/nightly" not in shell("troupe tasks", folder=home, env=env):
            assert time.monotonic() < until_s
        printed = shell(workshop.adapted(command[0]), folder=home, env=environment(home))
        lines = [line for line in printed.splitlines() if " as reports/" in line]
        taken = "would be taken" if "--dry-run" in command[0] else "taken "
        assert len(lines) == 3, printed
        assert all(line.startswith(taken) for line in lines)

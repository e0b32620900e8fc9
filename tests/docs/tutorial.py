"""How docs/tutorial.md is tried out: its programs are served as it says, and asked what it asks them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, final

import httpx
from packaging.requirements import Requirement

from tests.docs.documents import ROOT, Snippet, snippets
from tests.docs.programs import PATIENCE_S, Program, environment, shell, started
from tests.docs.workshop import ADDRESS, Workshop
from tests.store.servers import RedisServer, find_binary, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["BLOCKS"]

PAGE = ROOT / "docs" / "tutorial.md"
NAME = PAGE.relative_to(ROOT).as_posix()
EXAMPLES = ROOT / "docs" / "examples"
GUARD = {"X-Requested-With": "test"}

STOCKTAKING = (
    "curl -X POST -H 'X-Requested-With: curl' 'localhost:8000/task-manager/tasks/trigger?task_name=stocktaking'"
)
CURL = 'set -e; curl() { command curl --silent --show-error --fail-with-body "$@"; }\n'
"""As a reader types it, but quiet, and failing where the answer is an error."""


def until(condition: Callable[[], Any], what: str) -> Any:
    """The first answer that is true."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not (answer := condition()):
        assert time.monotonic() < deadline_s, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.05)
    return answer


def install(snippet: Snippet, workshop: Workshop) -> None:
    """Up to the packages, for which there is no network here: they are those of this environment."""
    make, enter, packages = snippet.text.splitlines()
    folder = workshop.folder("beginning")
    printed = shell(f"{make} && {enter} && command -v pip", folder=folder, env=environment(folder))
    assert printed.strip() == str(folder / ".venv" / "bin" / "pip")
    assert packages.startswith("pip install ")
    for word in packages.removeprefix("pip install ").split():
        wanted = Requirement(word.strip("'"))
        assert version(wanted.name)
        assert wanted.extras <= {"embedded"}


def part(snippet: Snippet, workshop: Workshop) -> None:
    """A program, or a part of the next one: all parts in order are a file that is run."""
    first, *parts = [one.text for one in snippets(PAGE) if one.language == "python"]
    assert f"{first}\n" == (EXAMPLES / "tutorial_first.py").read_text(encoding="utf-8")
    assert "\n\n\n".join(parts) + "\n" == (EXAMPLES / "tutorial_shop.py").read_text(encoding="utf-8")
    assert snippet.text in {first, *parts}


def programs(workshop: Workshop) -> Path:
    """A folder with the programs, as the reader saved them, but for what takes long."""
    folder = workshop.folder("tutorial")
    for path in EXAMPLES.glob("tutorial_*.py"):
        text = path.read_text(encoding="utf-8").replace("anyio.sleep(20)", "anyio.sleep(3)")
        (folder / path.name).write_text(text, encoding="utf-8")
    return folder


def serve_embedded(snippet: Snippet, workshop: Workshop) -> None:
    """The first program prints what the page shows; without its variable it says what is missing."""
    folder = programs(workshop)
    [command] = [one.text for one in snippets(PAGE) if one.text.startswith("TROUPE_EMBEDDED=1")]
    [shown] = [one.text for one in snippets(PAGE) if one.language == "text"]
    assert snippet.text in {command, shown}
    with started(f"env {command} --port {free_port()}", folder=folder, env=environment(workshop.folder("home"))) as it:
        lines = shown.splitlines()
        it.wait_for(*lines)
        until(lambda: all(it.printed.count(line) >= lines.count(line) for line in lines), "it printed all of that")
        it.interrupt()
    assert "Application shutdown complete" in it.printed
    bare = command.removeprefix("TROUPE_EMBEDDED=1 ")
    refusal = shell(f"{bare} 2>&1 || true", folder=folder, env=environment(folder))
    assert "TROUPE_REDIS_URL" in refusal
    assert "TROUPE_EMBEDDED=1" in refusal


@final
@dataclass(frozen=True, slots=True)
class Shop:
    """The second program, served."""

    program: Program
    port: int

    @property
    def client(self) -> httpx.Client:
        """One for a request."""
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=GUARD, timeout=20)

    def get(self, path: str) -> Any:
        with self.client as client:
            return client.get(path).raise_for_status().json()

    def run(self, text: str) -> list[Any]:
        """The answers to the commands of a block."""
        there = text.replace("localhost:8000", f"127.0.0.1:{self.port}")
        printed = shell(CURL + there, folder=ROOT, env=environment(ROOT))
        answers, at = [], 0
        while at < len(printed):
            answer, at = json.JSONDecoder().raw_decode(printed, at)
            answers.append(answer)
        return answers

    def says(self, text: str, *, count: int = 1) -> None:
        until(lambda: self.program.printed.count(text) >= count, f"{count} of {text!r}")


@contextmanager
def shop(workshop: Workshop, command: str) -> Iterator[Shop]:
    """The command of the page, on a Redis of its own and with a short lease, until Ctrl-C."""
    server = RedisServer(find_binary("6.2"), workshop.folder("redis")).start()
    port = free_port()
    try:
        there = command.replace(ADDRESS, f"redis://127.0.0.1:{server.port}/0")
        assert there != command
        env = environment(workshop.folder("home"), TROUPE_RUNNING_HEARTBEAT_INTERVAL="1")
        with started(f"env {there} --port {port}", folder=programs(workshop), env=env) as program:
            program.wait_for("Application startup complete")
            found = Shop(program, port)
            until(lambda: found.get("/health") == {"tasks": True}, "it is healthy")
            yield found
            if program.process.poll() is None:
                program.interrupt()
            assert "Application shutdown complete" in program.printed
    finally:
        server.kill()


def served(workshop: Workshop) -> Shop:
    """The shop as section 4 starts it, for all that is asked of it."""
    [command] = [one.text for one in snippets(PAGE) if one.text.endswith("tutorial_shop:app")]
    return workshop.keep(f"{NAME}: {command}", lambda: shop(workshop, command))


def serve(snippet: Snippet, workshop: Workshop) -> None:
    """It runs, and warns of what the page says."""
    there = served(workshop)
    assert "Everybody who reaches this application can change its tasks" in there.program.printed
    there.says("collected orders from the web")
    there.says("ConnectionError: the bank does not answer")
    there.says("paid at attempt 2")


def health_answer(snippet: Snippet, workshop: Workshop) -> None:
    """The answer has these fields, with values of these types."""
    there, shown = served(workshop), json.loads(snippet.text)
    until(lambda: there.get("/task-manager/health")["is_leader"], "it leads")
    answer = there.get("/task-manager/health")
    assert list(answer) == list(shown)
    assert [type(value) for value in answer.values()] == [type(value) for value in shown.values()]
    assert (answer["status"], answer["is_leader"]) == (shown["status"], shown["is_leader"])


def curl(snippet: Snippet, workshop: Workshop) -> None:
    """What is asked is answered, and done."""
    [what] = [words for words in ANSWERS if re.search(words, snippet.text.splitlines()[0])]
    ANSWERS[what](served(workshop), snippet.text)


def ask_health(there: Shop, text: str) -> None:
    until(lambda: there.run(text)[0]["status"] == "healthy", "it is healthy")


def ask_tasks(there: Shop, text: str) -> None:
    every, often = there.run(text)
    assert [task["name"] for task in every][:4] == ["collect", "report", "pay", "stocktaking"]
    assert all(task["next_run"] for task in until(lambda: there.run(text)[0], "tasks are listed"))
    assert [task["name"] for task in often] == ["collect"]


def ask_statistics(there: Shop, text: str) -> None:
    """It fails, and works a second later."""

    def both() -> bool:
        [answer] = there.run(text)
        return {"failed", "ran"} <= {run["outcome"] for run in answer["runs"]}

    until(both, "an attempt has failed and one has not")
    [answer] = there.run(text)
    errors = [run["error"] for run in answer["runs"] if run["outcome"] == "failed"]
    assert all("ConnectionError: the bank does not answer" in error for error in errors)


def ask_supervisor(there: Shop, text: str) -> None:
    [tree] = there.run(text)
    assert tree["state"] == "running"
    assert {"link", "heartbeat", "execution", "scheduling"} <= {child["name"] for child in tree["children"]}


def trigger_report(there: Shop, text: str) -> None:
    [answer] = there.run(text)
    assert answer["affected_tasks"] == [{"task_group": "orders", "task": "report"}]
    there.says("the report is written")


def disable_and_enable(there: Shop, text: str) -> None:
    """Between the two it does not run."""
    disable, enable = text.splitlines()
    [disabled] = there.run(disable)
    assert disabled["count"] == 1
    [collect] = there.get("/task-manager/tasks?name=collect")
    assert not collect["is_active"]
    [enabled] = there.run(enable)
    assert enabled["count"] == 1
    there.says("collected orders from the web", count=there.program.printed.count("collected orders from the web") + 1)


def forget(there: Shop, customer: str) -> None:
    with there.client as client:
        client.delete(f"/reminders/{customer}")


def remind_ada(there: Shop, text: str) -> None:
    forget(there, "ada")
    assert there.run(text) == [{"task": "remind-ada"}]
    there.says("a reminder for ada")
    with there.client as client:
        assert client.put("/reminders/ada").status_code == 409


def remind_bob(there: Shop, text: str) -> None:
    forget(there, "bob")
    [made] = there.run(text)
    assert (made["task_name"], made["dynamic"]) == ("remind-bob", True)
    there.says("a reminder for bob")
    with there.client as client:
        body = {"task_group_name": "orders", "function_name": "remind", "cron_expression": "* * * * *"}
        assert client.post("/task-manager/tasks", json={**body, "kwargs": {"client": "bob"}}).status_code == 422


def remove_both(there: Shop, text: str) -> None:
    with there.client as client:
        for customer in ("ada", "bob"):
            client.put(f"/reminders/{customer}")
    removed = there.run(text)
    assert [one["task_name"] for one in removed if one] == ["remind-bob"]
    assert [task for task in there.get("/task-manager/tasks") if task["dynamic"]] == []


ANSWERS: dict[str, Callable[[Shop, str], None]] = {
    r"/task-manager/health$": ask_health,
    r"/task-manager/tasks$": ask_tasks,
    r"/task-manager/tasks -d": remind_bob,
    r"/pay/statistics$": ask_statistics,
    r"/task-manager/supervisor$": ask_supervisor,
    r"/trigger\?task_name=report": trigger_report,
    r"/disable\?task_name=collect": disable_and_enable,
    r" -X PUT ": remind_ada,
    r" -X DELETE ": remove_both,
}
"""By what their first line has, a regular expression."""


def four(snippet: Snippet, workshop: Workshop) -> None:
    """All of that section at once."""
    four_workers(workshop)


@cache
def four_workers(workshop: Workshop) -> None:
    """Stocktaking begins on one of four, which is killed; it ends on another. Then it ends before the application."""
    blocks = [one.text for one in snippets(PAGE)]
    [command] = [text for text in blocks if text.endswith("--workers 4")]
    [ask] = [text for text in blocks if text.startswith(STOCKTAKING)]
    [end] = [text for text in blocks if text.startswith("kill -9")]
    with shop(workshop, command) as there:
        until(lambda: len(there.get("/task-manager/workers")) == 4, "there are four workers")
        trigger, look = ask.splitlines()
        there.run(trigger)

        def at_work() -> list[dict[str, Any]]:
            [workers] = there.run(look)
            return [worker for worker in workers if any("stocktaking" in run for run in worker["runs"])]

        [busy] = until(at_work, "somebody is at work")
        shell(end.replace("4711", str(busy["pid"])), folder=ROOT, env=environment(ROOT))
        there.says("stocktaking begins", count=2)
        there.says("stocktaking has ended")
        until(
            lambda: there.program.printed.count("Application startup complete") == 5, "another process took its place"
        )
        there.run(trigger)
        there.says("stocktaking begins", count=3)
        there.program.interrupt()
        assert there.program.printed.count("stocktaking has ended") == 2


BLOCKS: list[tuple[str, str, Callable[[Snippet, Workshop], None]]] = [
    (NAME, "python3 -m venv", install),
    (NAME, "from fastapi", part),
    (NAME, "import time", part),
    (NAME, "@", part),
    (NAME, "app = FastAPI", part),
    (NAME, "TROUPE_EMBEDDED=1", serve_embedded),
    (NAME, "INFO:", serve_embedded),
    (NAME, f"TROUPE_REDIS_URL={ADDRESS} uvicorn tutorial_shop:app --workers 4", four),
    (NAME, f"TROUPE_REDIS_URL={ADDRESS} uvicorn tutorial_shop:app", serve),
    (NAME, STOCKTAKING, four),
    (NAME, "curl", curl),
    (NAME, "{", health_answer),
    (NAME, "kill -9", four),
]
"""How a block is tried out, by its beginning."""

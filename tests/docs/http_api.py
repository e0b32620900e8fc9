"""How docs/http-api.md is tried out: its program is served, and asked what the page asks it."""

from __future__ import annotations

import json
import re
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import httpx

from tests.docs.documents import ROOT, Snippet, snippets
from tests.docs.programs import environment, shell, started
from tests.docs.tutorial import CURL, until
from tests.docs.workshop import ADDRESS, Workshop
from tests.store.servers import RedisServer, find_binary, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["BLOCKS", "PAGE", "codes", "routes"]

PAGE = ROOT / "docs" / "http-api.md"
NAME = PAGE.relative_to(ROOT).as_posix()
LOGIN = ("ada", "sesame")


def routes() -> set[tuple[str, str]]:
    """Method and path of each route that the page lists."""
    text = PAGE.read_text(encoding="utf-8")
    return set(re.findall(r"^\| (GET|POST|DELETE) (/\S+) \|", text, flags=re.MULTILINE))


def codes() -> set[tuple[int, str]]:
    """Status and code of each error that the page lists."""
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d{3}) \| ((?:`\w+`(?:, )?)+) \|", text, flags=re.MULTILINE)
    return {(int(status), code) for status, listed in rows for code in re.findall(r"\w+", listed)}


@final
@dataclass(frozen=True, slots=True)
class Served:
    """The page's program under uvicorn."""

    port: int

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", auth=LOGIN, timeout=20)

    def run(self, text: str, *, fails: bool = False) -> list[Any]:
        """The answers to the commands of a block."""
        there = text.replace("localhost:8000", f"127.0.0.1:{self.port}")
        printed = shell((CURL if not fails else "") + there, folder=ROOT, env=environment(ROOT))
        answers, at = [], 0
        while at < len(printed):
            answer, at = json.JSONDecoder().raw_decode(printed, at)
            answers.append(answer)
        return answers


@contextmanager
def _program(workshop: Workshop) -> Iterator[Served]:
    [text] = [one.text for one in snippets(PAGE) if one.language == "python"]
    server = RedisServer(find_binary("6.2"), workshop.folder("redis")).start()
    folder, port = workshop.folder("http-api"), free_port()
    (folder / "app.py").write_text(text.replace(ADDRESS, f"redis://127.0.0.1:{server.port}/0"), encoding="utf-8")
    command = f"{sys.executable} -m uvicorn app:app --port {port}"
    try:
        with started(command, folder=folder, env=environment(workshop.folder("home"))) as program:
            program.wait_for("Application startup complete")
            served = Served(port)
            until(lambda: any(task["next_run"] for task in _tasks(served)), "its task is scheduled")
            yield served
            program.interrupt()
            assert "Application shutdown complete" in program.printed
            assert "Everybody who reaches this application" not in program.printed
    finally:
        server.kill()


def _tasks(served: Served) -> list[dict[str, Any]]:
    answer = served.get("/manage/tasks")
    return answer.json() if answer.status_code == 200 else []


def served(workshop: Workshop) -> Served:
    """For all that the page asks."""
    return workshop.keep(NAME, lambda: _program(workshop))


def serve(snippet: Snippet, workshop: Workshop) -> None:
    """It asks who is there, but for the probe."""
    there = served(workshop)
    anybody = httpx.get(f"http://127.0.0.1:{there.port}/manage/tasks", timeout=20)
    assert anybody.status_code == 401
    assert httpx.get(f"http://127.0.0.1:{there.port}/live", timeout=20).status_code == 200
    assert there.get("/manage/health").json()["status"] == "healthy"


def look(snippet: Snippet, workshop: Workshop) -> None:
    """Each answer is what the page says it is about."""
    every, nightly, statistics, cluster = served(workshop).run(snippet.text)
    assert [task["name"] for task in every] == [task["name"] for task in nightly] == ["figures"]
    assert statistics["task_name"] == "figures"
    [worker] = cluster["workers"]
    assert worker["tree"]["path"] == "engine"


def change(snippet: Snippet, workshop: Workshop) -> None:
    """Each is done, by the user who showed the password; and without what the page says it must show, it is not."""
    there = served(workshop)
    disabled, triggered, made, removed = there.run(snippet.text)
    assert disabled["affected_tasks"] == [{"task_group": "reports", "task": "figures"}]
    assert triggered["run_ids"][0].startswith("reports/figures@")
    assert made["task_name"] == removed["task_name"] == "to-ada"
    assert [task["is_active"] for task in _tasks(there)] == [False]
    bare = snippet.text.replace("-H 'X-Requested-With: curl'", "").replace("-H 'Content-Type: application/json'", "")
    assert {answer["code"] for answer in there.run(_quiet(bare), fails=True)} == {"csrf_guard"}


def refusal(snippet: Snippet, workshop: Workshop) -> None:
    """Word for word, for a task that is disabled."""
    there = served(workshop)
    post = "curl -u ada:sesame -X POST -H 'X-Requested-With: curl' 'localhost:8000/manage/tasks/{}?task_name=figures'\n"
    [_, answer] = there.run(_quiet(post.format("disable") + post.format("trigger")), fails=True)
    assert answer == json.loads(snippet.text)


def _quiet(text: str) -> str:
    return text.replace("curl -u", "curl --silent --show-error -u")


BLOCKS: list[tuple[str, str, Callable[[Snippet, Workshop], None]]] = [
    (NAME, "import secrets", serve),
    (NAME, "curl -u ada:sesame localhost:8000/manage/tasks\n", look),
    (NAME, "curl -u ada:sesame -X POST", change),
    (NAME, "{", refusal),
]
"""How a block is tried out, by its beginning."""

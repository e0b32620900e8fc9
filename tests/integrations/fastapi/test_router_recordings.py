"""The management API beside that of the system it replaces: the same requests, and every difference by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, final

import anyio
import httpx
import pytest
from fastapi import FastAPI

from integrations.fastapi import Config, TaskGroup, TaskManager
from integrations.fastapi.settings import SHOWN
from tests.integrations.fastapi.record import RECORDING
from tests.integrations.fastapi.recorded import PATIENCE_S, PREFIX, STEPS, Session, declare
from tests.store.servers import RedisServer, find_binary
from tests.system.cluster import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ABSENT: Final = "(absent)"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """An empty one."""
    server = RedisServer(find_binary("6.2"), tmp_path).start()
    try:
        yield server
    finally:
        server.kill()


def recording() -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = json.loads(RECORDING.read_text(encoding="utf-8"))
    return answers


# -- differences ------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Difference:
    """A place in an answer where the two systems say different things."""

    step: str
    at: str
    """``status``, or a path in the answer without the positions in lists."""

    theirs: Any
    ours: Any
    both_refuse: bool


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> list[Difference]:
    """Between two answers to the same step."""
    found: list[Difference] = []
    both_refuse = theirs["status"] == ours["status"] >= 400

    def compare(at: str, one: Any, other: Any) -> None:
        match one, other:
            case dict(), dict():
                for key in {**one, **other}:
                    compare(f"{at}.{key}", one.get(key, ABSENT), other.get(key, ABSENT))
            case list(), list() if len(one) == len(other):
                for left, right in zip(one, other, strict=True):
                    compare(at, left, right)
            case _ if one != other:
                found.append(Difference(theirs["step"], at, one, other, both_refuse))

    for part in ("status", "type", "answer"):
        compare(part, theirs[part], ours[part])
    return found


def _without_hashes(name: object) -> object:
    return name.partition("__")[0] if isinstance(name, str) else name


ADDED: Final = {
    *("timezone", "orphan", "disabled", "skipped", "run_ids", "outcome", "attempt", "worker", "error", "arguments"),
    *("store", "detail", *SHOWN),
}
TAG_STEPS: Final = {"tasks by tag", "disable by tag"}

EXCEPTIONS: Final[dict[str, tuple[str, Callable[[Difference], bool]]]] = {
    "errors": (
        "An error is {detail, code, field, hint}, under the same status.",
        lambda it: it.both_refuse and it.at.startswith("answer"),
    ),
    "more is said": (
        "Fields of our own come beside the others.",
        lambda it: it.theirs == ABSENT and it.at.rpartition(".")[2] in ADDED,
    ),
    "names": (
        "A task is called what its declaration says, without hashes behind it.",
        lambda it: isinstance(it.theirs, str) and it.theirs.count("__") >= 2 and _without_hashes(it.theirs) == it.ours,
    ),
    "names that are made": (
        "A task that was made without a name gets a shorter one.",
        lambda it: (it.step, it.at) == ("create, unnamed", "answer.task_name") and it.ours.startswith("ping-"),
    ),
    "functions of declared tasks": (
        "function_name is said of every task, not only of those made at run time.",
        lambda it: it.at == "answer.function_name" and it.theirs is None and it.ours is not None,
    ),
    "what a task inherits": (
        "allow_parallel of a task shows what its group says.",
        lambda it: it.at == "answer.allow_parallel" and it.theirs is None and it.ours is False,
    ),
    "tags of both": (
        "A task has the tags of its group and its own; there, the group's hide its own.",
        lambda it: it.at == "answer.tags" and (it.theirs, it.ours) == (["reporting"], ["reporting", "local"]),
    ),
    "tags are exact": (
        "A task without tags does not match a tag.",
        lambda it: it.step in TAG_STEPS and it.at in {"answer", "answer.affected_tasks", "answer.count"},
    ),
    "no arguments": (
        "A task without arguments has {}, in every answer.",
        lambda it: (it.step, it.at, it.theirs, it.ours) == ("create, lean", "answer.kwargs", None, {}),
    ),
    "disabled tasks": (
        "A disabled task is not triggered: 409.",
        lambda it: it.step == "trigger what is disabled" and (it.at != "status" or it.ours == 409),
    ),
    "the guard": (
        "What a page of another site could have sent is refused: 415.",
        lambda it: it.step == "without the guard" and (it.at != "status" or it.ours == 415),
    ),
    "arguments that do not fit": (
        "Arguments that the function does not take are refused: 422.",
        lambda it: it.step == "create, unfit" and (it.at != "status" or it.ours == 422),
    ),
}
"""Why an answer may differ from the recorded one, and which difference that explains. Whatever else differs fails."""


# -- tests ------------------------------------------------------------------------------------------------------------


def test_the_recording_is_what_the_replaced_system_answers(redis: RedisServer, tmp_path: Path) -> None:
    """Its package, in a process of its own, answers as recorded. To record again, run the module ``record``."""
    assert RECORDING.name == f"fastapi-task-manager-{version('fastapi-task-manager')}.json"
    again = tmp_path / "again.json"
    command = [sys.executable, "-m", "tests.integrations.fastapi.record", str(redis.port), str(again)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(again.read_text(encoding="utf-8")) == recording()
    assert [answer["step"] for answer in recording()] == [step.name for step in STEPS]


def test_answers_are_those_of_the_replaced_system(redis: RedisServer) -> None:
    """But for the differences that have a name, each of which still is one."""
    ours = anyio.run(_answers, redis)
    theirs = recording()
    assert [one["step"] for one in ours] == [one["step"] for one in theirs]
    explained = set()
    unexplained = []
    for difference in (each for pair in zip(theirs, ours, strict=True) for each in differences(*pair)):
        name = next((name for name, (_, covers) in EXCEPTIONS.items() if covers(difference)), None)
        if name is None:
            unexplained.append(difference)
        else:
            explained.add(name)
    assert unexplained == []
    assert EXCEPTIONS.keys() - explained == set()


async def _answers(redis: RedisServer) -> list[dict[str, Any]]:
    """What this system answers, once every task has been scheduled."""
    app = FastAPI()
    manager = TaskManager(app, Config(redis_host="127.0.0.1", redis_port=redis.port, redis_key_prefix=PREFIX))
    for group in declare(TaskGroup):
        manager.add_task_group(group)
    app.include_router(manager.get_manager_router())
    declared = sum(len(group.tasks) for group in manager.task_groups)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://recorded") as client,
    ):
        session = Session(client, lambda name: name)

        async def settled() -> bool:
            health = await session.get("/health")
            if health["status"] != "healthy" or not health["is_leader"]:
                return False
            tasks = await session.get("/tasks")
            return len(tasks) == declared and all(task["next_run"] for task in tasks)

        await session.until(settled, "every task is scheduled")
        return await session.answers()

"""One scenario for two systems: the groups and tasks of an application, and the requests that are sent to it.

``record`` sends them to the system that is replaced and keeps its answers; the tests send them to this one.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, final

import anyio
import httpx

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

PATIENCE_S: Final = 30.0
"""For what takes a second or two on an idle machine."""

NEW_YEAR: Final = "0 0 1 1 *"
PREFIX: Final = "recorded"

SHOWN_BY: Final = {"X-Requested-With": "recording"}
"""What every request carries that does not say otherwise."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One request. ``name`` is what the tables of differences call it."""

    name: str
    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    json: Any = None
    body: str | None = None
    """In place of ``json``: as it is."""

    headers: dict[str, str] = field(default_factory=lambda: dict(SHOWN_BY))
    unsteady: frozenset[str] = frozenset()
    """Fields of the answer that depend on what runs at that moment."""

    settles: tuple[str, str] | None = None
    """Group and task that has a run more, and none in progress, before the next step."""


def declare(group_class: Any) -> list[Any]:
    """The groups of the scenario, of either system's class."""
    reports = group_class("reports", tags=["reporting"])
    mail = group_class("mail", allow_parallel=False)
    quiet = group_class("quiet", tags=[])

    async def nothing() -> None: ...

    async def city(city: str, limit: int = 1) -> None: ...

    async def ping(host: str = "localhost") -> None: ...

    reports.add_task(NEW_YEAR, name="daily", description="Every figure.", high_priority=True)(nothing)
    reports.add_task(
        NEW_YEAR,
        name="city",
        kwargs={"city": "Rome", "limit": 3},
        tags=["local"],
        retry_backoff=2.0,
        retry_backoff_max=30.0,
        allow_parallel=True,
    )(city)
    mail.add_task(NEW_YEAR, name="send", tags=["outgoing"])(nothing)
    mail.add_task(NEW_YEAR, name="collect", register=False)(nothing)
    mail.register_function("ping")(ping)
    return [reports, mail, quiet]


def _pings(**more: Any) -> dict[str, Any]:
    made = {"task_group_name": "mail", "function_name": "ping", "cron_expression": NEW_YEAR, "name": "pings"}
    return {**made, **more}


_RUNS: Final = frozenset({"is_running", "next_run"})

_TASK: Final = {"task_group_name": "mail", "task_name": "send"}

STEPS: Final[Sequence[Step]] = (
    Step(name="health", method="GET", path="/health"),
    Step(name="config", method="GET", path="/config"),
    Step(name="groups", method="GET", path="/task-groups"),
    Step(name="groups by name", method="GET", path="/task-groups", query={"name": "mail"}),
    Step(name="groups by tag", method="GET", path="/task-groups", query={"tag": "reporting"}),
    Step(name="groups, none", method="GET", path="/task-groups", query={"name": "nobody"}),
    Step(name="tasks", method="GET", path="/tasks"),
    Step(name="tasks by group", method="GET", path="/tasks", query={"task_group_name": "mail"}),
    Step(name="tasks by name", method="GET", path="/tasks", query={"name": "daily"}),
    Step(name="tasks by tag", method="GET", path="/tasks", query={"tag": "reporting"}),
    Step(name="tasks by all", method="GET", path="/tasks", query={"task_group_name": "mail", "name": "send"}),
    Step(name="tasks, none", method="GET", path="/tasks", query={"name": "nobody"}),
    Step(name="functions", method="GET", path="/functions"),
    Step(name="functions by group", method="GET", path="/functions", query={"task_group_name": "mail"}),
    Step(name="functions, none", method="GET", path="/functions", query={"task_group_name": "nobody"}),
    Step(name="disable", method="POST", path="/tasks/disable", query=_TASK),
    Step(name="disabled", method="GET", path="/tasks", query={"name": "send"}),
    Step(name="trigger what is disabled", method="POST", path="/tasks/trigger", query=_TASK),
    Step(name="enable", method="POST", path="/tasks/enable", query=_TASK),
    Step(name="enabled", method="GET", path="/tasks", query={"name": "send"}, unsteady=_RUNS),
    Step(name="disable all", method="POST", path="/tasks/disable"),
    Step(name="enable all", method="POST", path="/tasks/enable"),
    Step(name="disable by tag", method="POST", path="/tasks/disable", query={"tag": "reporting"}),
    Step(name="enable by group", method="POST", path="/tasks/enable", query={"task_group_name": "reports"}),
    Step(name="enable all again", method="POST", path="/tasks/enable"),
    Step(name="disable, none", method="POST", path="/tasks/disable", query={"task_name": "nobody"}),
    Step(name="enable, none", method="POST", path="/tasks/enable", query={"task_name": "nobody"}),
    Step(name="reset", method="POST", path="/tasks/reset-retry", query={"task_group_name": "mail"}),
    Step(name="reset, none", method="POST", path="/tasks/reset-retry", query={"task_name": "nobody"}),
    Step(name="clear", method="DELETE", path="/tasks/statistics"),
    Step(name="clear, none", method="DELETE", path="/tasks/statistics", query={"task_name": "nobody"}),
    Step(name="no runs", method="GET", path="/tasks/reports/daily/statistics"),
    Step(
        name="trigger",
        method="POST",
        path="/tasks/trigger",
        query={"task_name": "daily"},
        settles=("reports", "daily"),
    ),
    Step(name="one run", method="GET", path="/tasks/reports/daily/statistics"),
    Step(name="runs of nobody", method="GET", path="/tasks/reports/nobody/statistics"),
    Step(name="trigger, none", method="POST", path="/tasks/trigger", query={"task_name": "nobody"}),
    Step(name="without the guard", method="POST", path="/tasks/enable", query=_TASK, headers={}),
    Step(name="create", method="POST", path="/tasks", json=_pings(kwargs={"host": "example.org"}, tags=["net"])),
    Step(name="created", method="GET", path="/tasks", query={"name": "pings"}, unsteady=_RUNS),
    Step(name="groups with it", method="GET", path="/task-groups"),
    Step(name="tasks with it", method="GET", path="/tasks", query={"task_group_name": "mail"}, unsteady=_RUNS),
    Step(name="create, taken", method="POST", path="/tasks", json=_pings()),
    Step(name="create, no group", method="POST", path="/tasks", json=_pings(task_group_name="nobody")),
    Step(name="create, no function", method="POST", path="/tasks", json=_pings(function_name="nothing")),
    Step(name="create, no cron", method="POST", path="/tasks", json=_pings(cron_expression="every day")),
    Step(name="create, a field short", method="POST", path="/tasks", json={"task_group_name": "mail"}),
    Step(name="create, wrong type", method="POST", path="/tasks", json=_pings(kwargs=["host"])),
    Step(
        name="create, no JSON",
        method="POST",
        path="/tasks",
        body="{",
        headers={**SHOWN_BY, "Content-Type": "application/json"},
    ),
    Step(name="create, no body", method="POST", path="/tasks"),
    Step(name="create, unfit", method="POST", path="/tasks", json=_pings(name="unfit", kwargs={"port": 1})),
    Step(name="create, unnamed", method="POST", path="/tasks", json=_pings(name=None, kwargs={"host": "a"})),
    Step(name="create, lean", method="POST", path="/tasks", json=_pings(name="lean")),
    Step(name="delete", method="DELETE", path="/tasks", query={"task_group_name": "mail", "task_name": "pings"}),
    Step(name="deleted", method="GET", path="/tasks", query={"name": "pings"}),
    Step(name="delete again", method="DELETE", path="/tasks", query={"task_group_name": "mail", "task_name": "pings"}),
    Step(name="delete, lean", method="DELETE", path="/tasks", query={"task_group_name": "mail", "task_name": "lean"}),
    Step(name="delete, static", method="DELETE", path="/tasks", query=_TASK),
    Step(name="delete, no group", method="DELETE", path="/tasks", query={**_TASK, "task_group_name": "nobody"}),
    Step(name="delete, half said", method="DELETE", path="/tasks", query={"task_group_name": "mail"}),
)


@final
class Session:
    """Sends the steps to one application, and tells its answers.

    Args:
        client: of the application.
        real_name: what a task of the scenario is called there.
    """

    def __init__(self, client: httpx.AsyncClient, real_name: Callable[[str], str]) -> None:
        self._client, self._real_name = client, real_name

    async def answers(self) -> list[dict[str, Any]]:
        """What it answers to each step, in order, without what differs from one time to the next."""
        return [await self._answer(step) for step in STEPS]

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        """Wait for it. Fails after ``PATIENCE_S``."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not await condition():
            assert time.monotonic() < deadline_s, f"not within {PATIENCE_S:g} s: {what}"
            await anyio.sleep(0.02)

    async def get(self, path: str, **query: str) -> Any:
        """The answer to a look."""
        return (await self._client.get(path, params=query)).json()

    async def runs(self, group: str, task: str) -> int:
        """How many attempts of a task have ended."""
        return len((await self.get(f"/tasks/{group}/{self._real_name(task)}/statistics"))["runs"])

    async def idle(self, group: str, task: str) -> bool:
        """Is no run of a task in progress?"""
        [found] = await self.get("/tasks", task_group_name=group, name=self._real_name(task))
        return not found["is_running"]

    async def _answer(self, step: Step) -> dict[str, Any]:
        before = await self.runs(*step.settles) if step.settles else 0
        request = self._client.build_request(
            step.method,
            "/".join(self._real_name(part) for part in step.path.split("/")),
            params={name: self._real_name(value) for name, value in step.query.items()},
            json=step.json,
            content=step.body,
            headers=step.headers,
        )
        response = await self._client.send(request)
        if step.settles is not None:
            group, task = step.settles

            async def settled() -> bool:
                return await self.runs(group, task) == before + 1 and await self.idle(group, task)

            await self.until(settled, f"a run of {task}")
        return {
            "step": step.name,
            "request": f"{step.method} {request.url.raw_path.decode()}",
            "status": response.status_code,
            "type": response.headers["content-type"],
            "answer": steady(response.json(), step.unsteady),
        }


_VOLATILE: Final = {
    "next_run": "instant",
    "run_date": "instant",
    "retry_after": "instant",
    "worker_started_at": "instant",
    "durations_second": "seconds",
    "worker_id": "worker",
    "worker": "worker",
    "store": "address",
}
_RUN_ID: Final = re.compile(r"@t-\w+")


def steady(answer: Any, unsteady: frozenset[str] = frozenset()) -> Any:
    """The answer with a word in place of each value that differs from one time to the next; None stays None.

    Of what FastAPI says about a request of another shape, only where and which kind; the rest differs by version.
    """
    match answer:
        case {"loc": loc, "type": kind, "msg": _}:
            return {"loc": loc, "type": kind}
        case dict():
            return {key: _word(key, value, unsteady) or steady(value, unsteady) for key, value in answer.items()}
        case list():
            return [steady(each, unsteady) for each in answer]
        case str():
            return _RUN_ID.sub("@t-<unique>", answer)
        case _:
            return answer


def _word(key: str, value: Any, unsteady: frozenset[str]) -> str | None:
    if key in unsteady:
        return "<unsteady>"
    return f"<{_VOLATILE[key]}>" if key in _VOLATILE and value is not None else None

"""How the API of a standalone engine is tried out: served by the README's application, on a port that is free."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from tests.docs.programs import environment, shell
from tests.docs.tutorial import CURL
from tests.store.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.docs.documents import Snippet
    from tests.docs.workshop import Workshop

__all__ = ["BLOCKS"]


def local(snippet: Snippet, workshop: Workshop) -> None:
    """The worker, and the question to it."""
    run, ask = snippet.text.splitlines()
    answer = answered(run, ask, workshop, {})
    assert (answer["redis_connected"], answer["worker_id"] is None) == (True, False)


def with_token(snippet: Snippet, workshop: Workshop) -> None:
    """The same with a token in the environment of both."""
    export, run, ask = snippet.text.splitlines()
    name, _, token = export.removeprefix("export ").partition("=")
    [worker] = answered(run, ask, workshop, {name: shlex.split(token)[0]})
    assert worker["leader"]


def answered(run: str, ask: str, workshop: Workshop, settings: Mapping[str, str]) -> Any:
    """What a command asks of the worker that another one runs."""
    port = str(free_port())
    env = environment(workshop.folder("home"), **settings)
    worker = " ".join(["env", *(f"{name}={shlex.quote(value)}" for name, value in settings.items()), run])
    with workshop.first(worker.replace(":8000", f":{port}"), folder=workshop.app) as program:
        program.wait_for("The management API listens at", "became LEADER", "Scheduled 1 new task(s)")
        printed = shell(CURL + ask.replace(":8000", f":{port}"), folder=workshop.app, env=env)
        assert program.interrupt() == 0, program.printed
    assert not [value for value in settings.values() if value in program.printed]
    return json.loads(printed)


BLOCKS: list[tuple[str, str, Callable[[Snippet, Workshop], None]]] = [
    ("docs/running.md", "troupe run app:engine --api", local),
    ("docs/running.md", "export TROUPE_API_TOKEN", with_token),
]

"""The tables of docs/http-api.md, compared with the API."""

from __future__ import annotations

import re

from fastapi import FastAPI

from integrations.fastapi import Config, TaskManager, problems
from tests.docs import http_api
from tests.docs.documents import ROOT


def test_every_route_is_in_the_table() -> None:
    """And no other."""
    app = FastAPI()
    app.include_router(TaskManager(app, Config(redis_host="localhost")).get_manager_router())
    paths = app.openapi()["paths"]
    assert http_api.routes() == {(method.upper(), path) for path, operations in paths.items() for method in operations}


def test_every_error_is_in_the_table() -> None:
    """And no other: those of the engine, of declarations, and those that the routes refuse themselves."""
    known = {(kind.status, kind.code) for kind in problems._KINDS.values()}
    here = ROOT / "integrations" / "fastapi"
    for name in ("problems.py", "guard.py", "supervisor_routes.py", "routes.py"):
        text = (here / name).read_text(encoding="utf-8")
        known |= {(int(status), code) for status, code in re.findall(r'(?:Refusal|_Kind)\(\s*(\d+),\s*"(\w+)"', text)}
    known.add((422, "invalid_request"))
    assert http_api.codes() == known

"""Who may use the API of a standalone engine: by a token, or by being a program of the same host."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from engine import Config, Engine
from integrations.fastapi.gate import OPEN
from integrations.fastapi.standalone import make_app

TOKEN = "sesame"  # noqa: S105  # of these tests
PATHS = ("/config", "/openapi.json", "/docs", "/nothing", "/health", "/health/live/")


def client_of(token: str | None) -> httpx.AsyncClient:
    """Of the API of an engine that has not started, and has this token."""
    engine = Engine(Config(redis_host="nowhere", api_token=token))
    transport = httpx.ASGITransport(make_app(engine))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000")


async def ask(path: str, *, token: str | None = None, **headers: str) -> httpx.Response:
    """One request to such an API."""
    async with client_of(token) as client:
        return await client.get(path, headers=headers)


@pytest.mark.parametrize(
    "shown",
    [
        *(None, "", "Bearer", "Bearer ", "Bearer sesam", "Bearer sesame2", "Bearer SESAME", "sesame", "Basic sesame"),
        *("Bearer sésame", "Bearer sesame sesame"),
    ],
)
async def test_without_the_token_every_path_is_refused(shown: str | None) -> None:
    """Also where there is nothing; in the shape of every error, and with the challenge of HTTP."""
    headers: Any = {} if shown is None else {"Authorization": shown.encode("latin-1")}
    async with client_of(TOKEN) as client:
        answers = [await client.get(path, headers=headers) for path in PATHS]
    for answer in answers:
        assert answer.status_code == 401, answer.url
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        problem = answer.json()
        assert problem.keys() == {"detail", "code", "field", "hint"}
        assert (problem["code"], problem["field"]) == ("token_needed", "Authorization")
        assert TOKEN not in answer.text


@pytest.mark.parametrize("shown", ["Bearer sesame", "bearer sesame", "BEARER  sesame "])
async def test_with_the_token_there_is_an_answer_whatever_the_host_is_called(shown: str) -> None:
    """The scheme has no case."""
    answer = await ask("/config", token=TOKEN, Authorization=shown, Host="troupe.internal")
    assert answer.status_code == 200
    assert TOKEN not in answer.text


@pytest.mark.parametrize("token", [None, TOKEN])
async def test_probes_need_neither_token_nor_name(token: str | None) -> None:
    """A kubelet has no secret, and asks by the address of the pod. The engine has not started, so one of them fails."""
    answers = {path: await ask(path, token=token, Host="10.1.2.3:8000") for path in OPEN}
    assert {path: answer.status_code for path, answer in answers.items()} == {"/health/live": 200, "/health/ready": 503}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("LOCALHOST:9", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("evil.example@127.0.0.1", 403),
        ("10.1.2.3", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
async def test_without_a_token_a_page_that_renamed_this_host_is_refused(host: str, status: int) -> None:
    """A browser says which name it resolved: one that is not of this host belongs to somebody else's page."""
    answer = await ask("/config", Host=host)
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["code"] == "host_not_local"


async def test_what_the_gate_asks_for_is_in_openapi() -> None:
    """Its refusals too; not for probes."""
    secured = (await ask("/openapi.json", token=TOKEN, Authorization="Bearer sesame")).json()
    local = (await ask("/openapi.json")).json()
    assert secured["components"]["securitySchemes"] == {"bearer": {"type": "http", "scheme": "bearer"}}
    assert secured["paths"].keys() == local["paths"].keys() >= OPEN
    for path in secured["paths"]:
        for method, operation in secured["paths"][path].items():
            assert ("401" in operation["responses"], "security" in operation) == ((path not in OPEN),) * 2
            assert ("403" in local["paths"][path][method]["responses"]) == (path not in OPEN)
    assert "Problem" in secured["components"]["schemas"]


@pytest.mark.parametrize(("path", "status", "code"), [("/nothing", 404, "not_found"), ("/tasks/trigger", 405, None)])
async def test_a_route_that_is_not_there_is_a_problem_like_any_other(path: str, status: int, code: str | None) -> None:
    """The application is ours, so its own errors have the shape of the router's."""
    answer = await ask(path)
    assert answer.status_code == status
    assert answer.json()["code"] == (code or "method_not_allowed")
    assert answer.json()["hint"] == "GET /openapi.json says which there are"


async def test_health_of_an_engine_that_has_not_started_is_told_not_raised() -> None:
    """As everywhere in this API."""
    answer = await ask("/health")
    assert answer.status_code == 503
    assert answer.json()["status"] == "unhealthy"
    assert "before the engine starts" in answer.json()["detail"]

"""Who may use the management API of a standalone engine, decided before anything of a request is read.

With a token, whoever shows it. Without one it listens on a loopback address, and answers programs of this host: a page
in a browser can have its own name resolve to that address, and would then be of the same site, but it cannot hide that
name.
"""

from __future__ import annotations

import re
import secrets
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, final

from starlette.datastructures import Headers

from integrations.fastapi.problems import Problem, Refusal, answer, of_refusal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["OPEN", "Gate", "describe"]

OPEN: Final = frozenset({"/health/live", "/health/ready"})
"""Probes ask without a token, by whatever name; they learn one word."""

SCHEME: Final = "bearer"

_HOST: Final = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[\w.-]+))(?::[0-9]*)?")


@final
class Gate:
    """An ASGI application around another one, which sees only what may pass."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or refuse it."""
        if scope["type"] == "http" and scope["path"] not in OPEN and (refused := self._refusal(Headers(scope=scope))):
            response = answer(of_refusal(refused))
            if refused.status == 401:
                response.headers["WWW-Authenticate"] = "Bearer"
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> Refusal | None:
        if self._token is not None:
            return None if _shows(headers.get("authorization", ""), self._token) else _NO_TOKEN
        return None if _is_local(headers.get("host")) else _ELSEWHERE


_NO_TOKEN: Final = Refusal(
    401,
    "token_needed",
    "this API answers only those who show its token, and the request shows none or another one",
    field="Authorization",
    hint="send 'Authorization: Bearer <token>' with the token of the engine: its TROUPE_API_TOKEN (Config.api_token)",
)
_ELSEWHERE: Final = Refusal(
    403,
    "host_not_local",
    "without a token this API answers only requests that name this host as localhost or by a loopback address",
    field="Host",
    hint="ask for http://127.0.0.1 or http://localhost, or set TROUPE_API_TOKEN (Config.api_token) and show that token",
)


def _shows(authorization: str, token: str) -> bool:
    scheme, _, shown = authorization.partition(" ")
    same = secrets.compare_digest(shown.strip().encode(), token.encode())
    return same and scheme.lower() == SCHEME


def _is_local(host: str | None) -> bool:
    """Only programs leave the header out."""
    if host is None:
        return True
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    name = found["v6"] or found["name"]
    try:
        return name.lower() == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def describe(schema: dict[str, Any], *, has_token: bool) -> None:
    """Add to an OpenAPI schema what the gate asks for, and how it refuses."""
    refused = _NO_TOKEN if has_token else _ELSEWHERE
    components = schema.setdefault("components", {})
    components.setdefault("schemas", {}).setdefault("Problem", Problem.model_json_schema())
    if has_token:
        components["securitySchemes"] = {SCHEME: {"type": "http", "scheme": SCHEME}}
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for path, operations in schema["paths"].items():
        for operation in operations.values() if path not in OPEN else ():
            operation["responses"][str(refused.status)] = {"description": refused.detail, "content": content}
            if has_token:
                operation["security"] = [{SCHEME: []}]

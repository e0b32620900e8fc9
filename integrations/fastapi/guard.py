"""What a request must show before the management API changes anything, and how much of it is read.

A page of another site can have a browser send a POST with the user's cookies, but neither a JSON content type nor a
header of its own without asking first, and nothing here answers that question with yes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, final

from starlette.requests import ClientDisconnect, Request

from integrations.fastapi.problems import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Message

__all__ = ["GUARD_HEADER", "SAFE_METHODS", "admit", "is_json", "read"]

GUARD_HEADER: Final = "X-Requested-With"
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def admit(method: str, headers: Mapping[str, str]) -> None:
    """Refuse what a page of another site could have sent. ``headers`` ignores case.

    Raises:
        Refusal: (415) neither a JSON content type nor the custom header.
    """
    if method in SAFE_METHODS or GUARD_HEADER in headers or is_json(headers.get("content-type", "")):
        return
    raise Refusal(
        415,
        "csrf_guard",
        f"this {method} could have been sent by a page of another site, so nothing was done",
        field=GUARD_HEADER,
        hint=f"send the header 'Content-Type: application/json', or '{GUARD_HEADER}' with any value",
    )


async def read(request: Request, *, limit_bytes: int) -> Request:
    """The request with its body read, and decoded if it says that it is JSON. Reads no more than the limit and a chunk.

    Raises:
        Refusal: (413) the body is larger; (422) it is no JSON; (400) the client left, and nobody reads this.
    """
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit_bytes:
                raise _too_large(limit_bytes)
    except ClientDisconnect:
        raise Refusal(400, "client_gone", "the client left before it had sent its request") from None
    decoded = _decode(bytes(body)) if body and is_json(request.headers.get("content-type", "")) else None
    return _Received(request, bytes(body), decoded)


def _too_large(limit_bytes: int) -> Refusal:
    return Refusal(
        413,
        "payload_too_large",
        f"the request's body is larger than {limit_bytes:,} bytes (max_payload_bytes)",
        field="body",
        hint="keep large data elsewhere, and pass where it is",
    )


def _decode(body: bytes) -> Any:
    try:
        decoded = json.loads(body)
        json.dumps(decoded, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        reason = "a text in the request's body holds half a surrogate pair; give whole characters"
        raise Refusal(422, "invalid_request", reason, field="body") from error
    except (ValueError, RecursionError) as error:  # also no UTF-8, numbers of thousands of digits, nested too deeply
        where = f" at character {error.pos}: {error.msg}" if isinstance(error, json.JSONDecodeError) else ""
        raise Refusal(422, "body_not_json", f"the request's body is no JSON{where}", field="body") from error
    return decoded


def is_json(content_type: str) -> bool:
    """``application/json``, or ``application/`` with what ends in ``+json``; parameters do not matter."""
    kind, _, subtype = content_type.partition(";")[0].strip().lower().partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


@final
class _Received(Request):
    """A request whose body has been read: FastAPI and dependencies read it again from here."""

    def __init__(self, request: Request, body: bytes, decoded: Any) -> None:
        told = False

        async def receive() -> Message:
            nonlocal told
            if told:
                return await request.receive()  # what comes after the body: that the client has left
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        super().__init__(request.scope, receive)
        self._decoded = decoded

    async def json(self) -> Any:
        """As decoded before; what is not said to be JSON is tried."""
        return self._decoded if self._decoded is not None else await super().json()

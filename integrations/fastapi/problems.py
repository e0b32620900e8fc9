"""How the management API says what is wrong: one shape for every error, made by its own routes.

The exception handlers of the application are neither used nor changed. What is not named here is a bug, and goes out as
it is; so does an HTTPException, which belongs to the application's dependencies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

from fastapi.responses import JSONResponse
from pydantic import BaseModel

from engine.errors import (
    DuplicateTask,
    EngineStateError,
    FunctionNotRegistered,
    InvalidName,
    KeyMalformed,
    NameTaken,
    NoSuchGroup,
    NoSuchTask,
    NothingTriggered,
    PayloadTooLarge,
    RedisKeyBroken,
    RedisUnavailable,
    StaticTask,
    TaskDeclarationError,
    TroupeError,
    UnknownActor,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastapi.exceptions import RequestValidationError

__all__ = ["Problem", "Refusal", "answer", "documented", "of_error", "of_validation"]

LONGEST: Final = 1_000
"""Characters of a text that repeats what was sent."""


class Problem(BaseModel):
    """What is wrong with a request, or with the world, and what to do instead."""

    detail: str
    """For people."""

    code: str
    """For programs: one word for each kind of error, which does not change."""

    field: str | None = None
    """The part of the request that is wrong."""

    hint: str | None = None
    """What to do instead, where ``detail`` does not say it."""


@final
class Refusal(Exception):
    """The API itself refuses a request."""

    def __init__(
        self, status: int, code: str, detail: str, *, field: str | None = None, hint: str | None = None
    ) -> None:
        self.status, self.code, self.detail, self.field, self.hint = status, code, detail, field, hint
        super().__init__(status, code, detail)

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.detail}"


class _Kind(NamedTuple):
    status: int
    code: str
    field: str | None = None
    hint: str | None = None


_KINDS: Final[Mapping[type[TroupeError], _Kind]] = {
    NoSuchTask: _Kind(404, "no_such_task"),
    NoSuchGroup: _Kind(404, "no_such_group", "task_group_name"),
    UnknownActor: _Kind(404, "no_such_actor", "path", "GET /supervisor shows the paths there are"),
    StaticTask: _Kind(400, "static_task", "task_name"),
    FunctionNotRegistered: _Kind(400, "no_such_function", "function_name", "GET /functions shows those there are"),
    NameTaken: _Kind(409, "name_taken", "name"),
    DuplicateTask: _Kind(409, "name_taken", "name"),
    NothingTriggered: _Kind(409, "nothing_triggered"),
    PayloadTooLarge: _Kind(413, "payload_too_large", "body"),
    InvalidName: _Kind(422, "invalid_task", "name"),
    RedisKeyBroken: _Kind(503, "redis_key_broken", None, "look at the key in Redis; nothing of Troupe writes there so"),
    KeyMalformed: _Kind(503, "redis_key_broken", None, "look at the key in Redis; nothing of Troupe writes there so"),
    RedisUnavailable: _Kind(503, "redis_unavailable", None, "repeat it; part of it may have been done"),
    EngineStateError: _Kind(503, "engine_not_running", None, "GET /health says how this worker is"),
}
_INVALID_TASK: Final = _Kind(422, "invalid_task")
_FIELDS: Final = {"expression": "cron_expression", "group": "task_group_name", "function": "function_name"}
"""Parameters of a request that are called otherwise than those of a declaration."""


def of_error(error: TroupeError) -> tuple[int, Problem] | None:
    """Status and text; None for what no request can be the reason of."""
    kind = next((_KINDS[each] for each in type(error).__mro__ if each in _KINDS), None)
    if kind is None and isinstance(error, TaskDeclarationError):
        kind = _declaration(error)
    if kind is None:
        return None
    text = error.reason if isinstance(error, EngineStateError) else str(error)  # without the name of a Python method
    return kind.status, Problem(detail=_text(text), code=kind.code, field=kind.field, hint=kind.hint)


def of_refusal(refusal: Refusal) -> tuple[int, Problem]:
    """Status and text."""
    problem = Problem(detail=_text(refusal.detail), code=refusal.code, field=refusal.field, hint=refusal.hint)
    return refusal.status, problem


def of_validation(error: RequestValidationError, *, is_json: bool = True) -> tuple[int, Problem]:
    """Status and text of a request that does not have the documented shape; of several faults, the first."""
    faults: Sequence[Any] = error.errors()
    fault = faults[0]
    field = ".".join(str(part) for part in fault["loc"][1:]) or str(fault["loc"][0])
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    hint = None if is_json or fault["loc"][0] != "body" else "send the body with 'Content-Type: application/json'"
    detail = _text(f"{field}: {fault['msg']}{more}")
    return 422, Problem(detail=detail, code="invalid_request", field=_text(field), hint=hint)


def answer(found: tuple[int, Problem]) -> JSONResponse:
    """The response that says it."""
    status, problem = found
    return JSONResponse(problem.model_dump(), status_code=status)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: the statuses with which an operation can be refused."""
    return {status: {"model": Problem, "description": _DESCRIPTIONS[status]} for status in statuses}


_DESCRIPTIONS: Final = {
    400: "Refused: a static task, or an unknown function, cron expression or zone",
    404: "No such task, group or actor",
    409: "Refused in the present state; nothing was changed",
    413: "Larger than max_payload_bytes",
    415: "Neither a JSON content type nor X-Requested-With: a page of another site could have sent it",
    422: "Not of the documented shape, or values that do not fit; nothing was changed",
    503: "Redis does not answer, or the engine does not run",
}


def _declaration(error: TaskDeclarationError) -> _Kind:
    match error.field:
        case "expression":
            return _Kind(400, "invalid_cron", "cron_expression")
        case "timezone":
            return _Kind(400, "invalid_timezone", "timezone")
        case field:
            return _INVALID_TASK._replace(field=_FIELDS.get(field, field))


def _text(text: str) -> str:
    """No longer than people read."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"

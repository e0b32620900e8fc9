"""What declarations have in common: names, tags and arguments, checked where they are given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, Final

from engine.domain.canonical import canonical_json
from engine.domain.functions import function_name, is_generator
from engine.domain.names import validate_name
from engine.domain.task import encode_kwargs
from engine.errors import InvalidName, TaskDeclarationError, TaskTypeError

_LAMBDA: Final = "<lambda>"


def runnable_name(group: str, given: str | None, function: Any) -> str:
    """The name of a function: the one given, or its own. Refuses a function that could not run.

    Raises:
        TaskTypeError: it cannot be called.
        TaskDeclarationError: its name is refused, or it is a generator.
    """
    if not callable(function):
        reason = f"{function!r} is of type {type(function).__name__}; give a function"
        raise TaskTypeError(f"{group}/{given}", "function", reason)
    name = function_name(function) if given is None else given
    label = f"{group}/{name}"
    if name == _LAMBDA:
        raise TaskDeclarationError(label, "name", "a lambda has no name; give name=")
    if is_generator(function):
        raise TaskDeclarationError(label, "function", "a generator's body would never run; remove the yield")
    try:
        return validate_name("function", name)
    except InvalidName as error:
        raise TaskDeclarationError(label, "name", str(error)) from error


def refuse_bare(group: str, expr: object) -> None:
    """Refuse ``@group.add_task`` without parentheses, which passes the function as the expression."""
    if callable(expr):
        reason = "is a function, as if by @group.add_task alone; write @group.add_task('0 6 * * *') above it"
        raise TaskTypeError(f"{group}/{function_name(expr)}", "expr", reason)


def refuse_arguments(label: str, function: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    """Refuse arguments that the function does not take, or lacks. The outermost wrapper decides."""
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except ValueError:  # built in C, without a signature: only the call can tell
        return
    try:
        signature.bind(**kwargs)
    except TypeError as error:
        raise TaskTypeError(label, "kwargs", f"{error}; the function takes {signature}") from error


def unique_tags(label: str, tags: Sequence[str] | None) -> tuple[str, ...]:
    """The tags in order, without repeats. Raises TaskTypeError."""
    given = () if tags is None else tags
    if isinstance(given, str) or not all(map(_is_tag, given)):
        raise TaskTypeError(label, "tags", f"{tags!r}; give a list of non-empty strings")
    return tuple(dict.fromkeys(given))


def _is_tag(value: object) -> bool:
    return isinstance(value, str) and value != ""


def pairs(label: str, expr: Any, kwargs: Any) -> list[tuple[str, dict[str, Any]]]:
    """One pair of expression and arguments for each task that lists of them declare. Raises TaskTypeError."""
    if isinstance(expr, list) and isinstance(kwargs, list) and len(expr) != len(kwargs):
        reason = f"expr has {len(expr)} entries and kwargs {len(kwargs)}; the lists must have the same length"
        raise TaskTypeError(label, "expr, kwargs", reason)
    count = len(expr) if isinstance(expr, list) else len(kwargs) if isinstance(kwargs, list) else 1
    if count == 0:
        raise TaskTypeError(label, "expr, kwargs", "an empty list declares no task; give at least one entry")
    expressions = expr if isinstance(expr, list) else [expr] * count
    arguments = kwargs if isinstance(kwargs, list) else [{} if kwargs is None else kwargs] * count
    return list(zip(expressions, arguments, strict=True))


def task_names(group: str, name: str, names: Sequence[str] | None, count: int, *, several: bool) -> list[str]:
    """What the tasks of one function are called: as ``names`` says, or by position. Raises TaskTypeError."""
    if names is None:
        return [f"{name}-{position}" for position in range(1, count + 1)] if several else [name]
    if isinstance(names, str) or len(names) != count:
        reason = f"{names!r}; give a list with one name for each of the {count} tasks"
        raise TaskTypeError(f"{group}/{name}", "names", reason)
    return list(names)


def dynamic_name(group: str, function: str, expression: str, timezone: str, kwargs: dict[str, Any]) -> str:
    """``<function>-<8 hex digits>`` of what tells it from others of that function: the same in every process."""
    arguments = encode_kwargs(f"{group}/{function}", kwargs)
    text = canonical_json([arguments, " ".join(str(expression).split()), timezone])
    return f"{function}-{sha256(text.encode()).hexdigest()[:8]}"

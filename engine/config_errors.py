"""What pydantic refuses, as a ConfigError: the value, the bound, its unit, and the variable it came from."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Final

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from engine.errors import ConfigError

_SECRET: Final = frozenset({"redis_password", "redis_url", "redis_host", "api_token"})
"""Fields whose value may hold a password, so that errors do not show it."""

_TYPES: Final = {
    "int": "a whole number",
    "float": "a number",
    "bool": "True or False",
    "string": "text",
    "finite": "a finite number",
}
_BOUNDS: Final = {
    "ge": "at least {}",
    "gt": "more than {}",
    "le": "at most {}",
    "min_length": "at least {} character",
    "max_length": "at most {} characters",
}


def refusal(problem: ErrorDetails, fields: Mapping[str, FieldInfo]) -> ConfigError:
    """One of pydantic's problems as our error, with the value, the bound and its unit."""
    context = problem.get("ctx", {})
    cause = context.get("error")
    if isinstance(cause, ConfigError):
        return cause
    name = str(problem["loc"][0]) if problem["loc"] else "settings"
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, fields, n=1)
        meant = f"; did you mean {close[0]}?" if close else ""
        return ConfigError(name, f"there is no such setting{meant}")
    unit, given = _unit(fields.get(name)), problem["input"]
    shown = f"{given!r}{unit if isinstance(given, int | float) else ''}"
    if name in _SECRET:
        shown = "this value is refused"
    for key, words in _BOUNDS.items():
        if key in context:
            return ConfigError(name, f"{shown}; give {words.format(f'{context[key]:,.10g}')}{unit}")
    wanted = _TYPES.get(problem["type"].split("_")[0])
    return ConfigError(name, f"{shown}; give {wanted}{unit and f', in{unit}'}" if wanted else problem["msg"])


def with_variables(
    error: ConfigError, fields: Collection[str], given: Collection[str], variables: Mapping[str, str]
) -> ConfigError:
    """The error with the environment's variables that had a part in it: settings it names that nobody gave.

    Args:
        error: what is refused.
        fields: the names of all settings.
        given: those that were given as arguments.
        variables: the environment's variables that are set, by setting.
    """
    named = set(re.findall(r"\w+", f"{error.field} {error.reason}"))
    if "redis_url" in named:
        named.add("redis_host")  # which may hold the URL
    found = [variables[name] for name in fields if name in named and name in variables and name not in given]
    return ConfigError(error.field, f"{error.reason} ({', '.join(found)} in the environment)") if found else error


def _unit(field: FieldInfo | None) -> str:
    extra = field.json_schema_extra if field is not None else None
    unit = extra.get("unit") if isinstance(extra, dict) else None
    return f" {unit}" if unit else ""

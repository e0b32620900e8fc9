"""Canonical JSON: one text per value, on every host, so that texts and their hashes can be compared."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_DEEPEST: Final = 64
"""Levels of nesting; a value that contains itself has more."""

_DEEPEST_READ: Final = 100
"""The same of a whole document, in which such a value may stand."""

_TOO_DEEP: Final = f"nested more than {_DEEPEST_READ} levels deep"


def canonical_json(value: Any) -> str:
    """Keys sorted, no spaces, no escapes but those JSON requires. For a value without ``json_problem``."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def read_json(text: str | bytes) -> Any:
    """Decode JSON of unknown origin: nothing in it is nested so deeply that looking at it could fail.

    Raises:
        ValueError: it is none, or one that is not decoded: nested too deeply, or a number of thousands of digits.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    level = [value]
    for _ in range(_DEEPEST_READ):
        level = [item for one in level for item in _items(one) if isinstance(item, dict | list)]
        if not level:
            return value
    raise ValueError(_TOO_DEEP)


def _items(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def json_problem(value: Any, path: str, depth: int = 0) -> str | None:
    """What keeps ``value`` from coming back from JSON as it went in, or None.

    Stricter than ``json.dumps``, which turns tuples into lists and numbers used as keys into strings.
    """
    if depth > _DEEPEST:
        return f"{path[:80]}… is nested more than {_DEEPEST} levels deep"
    if isinstance(value, dict):
        children = [(f"a key of {path}", key) for key in value]
        children += [(f"{path}.{key}", item) for key, item in value.items() if isinstance(key, str)]
        if any(not isinstance(key, str) for key in value):
            return f"{path} has a key that is not text; JSON has text as keys"
    elif isinstance(value, list):
        children = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    else:
        return _leaf_problem(value, path)
    found = (json_problem(item, at, depth + 1) for at, item in children)
    return next((problem for problem in found if problem is not None), None)


def _leaf_problem(value: Any, path: str) -> str | None:
    match value:
        case None | bool() | int():
            return None
        case float():
            return None if math.isfinite(value) else f"{path} is {value}; JSON has finite numbers only"
        case str():
            whole = value.encode("utf-8", "ignore").decode() == value
            return None if whole else f"{path} holds half a surrogate pair; give whole characters"
        case tuple():
            return f"{path} is a tuple, which would come back as a list; give a list"
        case _:
            what = "text, numbers, booleans, None, lists and dicts"
            return f"{path} is of type {type(value).__name__}; give {what}"

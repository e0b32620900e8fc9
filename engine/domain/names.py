"""Names of groups and tasks, and the ids made of them. Percent-encoding keeps names from sharing an id."""

from __future__ import annotations

import re
import unicodedata
from typing import Final
from urllib.parse import quote

from engine.errors import InvalidName

_LONGEST: Final = 200
"""Characters of one name."""
_UNPRINTABLE: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode categories: control characters, lone surrogates, line and paragraph separators."""
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.~-]+")
"""What percent-encoding leaves as it is: nearly every name."""
_UNIQUE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TASK_ID: Final = re.compile(r"[^/@]+/[^/@]+")
_RUN_ID: Final = re.compile(rf"{_TASK_ID.pattern}@[^/@]+")


def validate_name(kind: str, name: object) -> str:
    """The name itself; ``kind`` ("task", "group", "function") is for the error.

    Raises:
        InvalidName: not text of 1 to 200 characters without "/" or control characters, or "." or "..".
    """
    if not isinstance(name, str):
        raise InvalidName(kind, repr(name), f"is of type {type(name).__name__}; give a string")
    if not 1 <= len(name) <= _LONGEST:
        raise InvalidName(kind, name[:_LONGEST], f"has {len(name)} characters; give 1 to {_LONGEST}")
    if "/" in name:
        raise InvalidName(kind, name, "contains '/', which separates group and task; write '-' or ':' instead")
    if name in {".", ".."}:
        raise InvalidName(kind, name, "means a directory in a URL; give another name")
    if any(unicodedata.category(character) in _UNPRINTABLE for character in name):
        raise InvalidName(kind, name, "contains a control character; leave it out")
    return name


def quote_name(name: str) -> str:
    """The name as it stands in ids and keys. Different names never give the same text."""
    return name if _PLAIN.fullmatch(name) else quote(name, safe="")


def task_id(group: str, name: str) -> str:
    """``group/name``, each percent-encoded."""
    return f"{quote_name(group)}/{quote_name(name)}"


def slot_run_id(task: str, slot_ms: int) -> str:
    """The run of one slot. The same slot always gives the same id, so it cannot be published twice."""
    return f"{task}@{slot_ms}"


def trigger_run_id(task: str, unique: str) -> str:
    """A run that no slot asked for. ``unique`` is the caller's, who repeats it when it repeats the request.

    Raises:
        InvalidName: ``unique`` is not 1 to 64 letters, digits, "-" or "_".
    """
    if not _UNIQUE.fullmatch(unique):
        raise InvalidName("trigger", unique, "is not 1 to 64 of A-Z, a-z, 0-9, '-' and '_'")
    return f"{task}@t-{unique}"


def is_task_id(text: str) -> bool:
    """Has it the form of what ``task_id`` gives?"""
    return _TASK_ID.fullmatch(text) is not None


def is_run_id(text: str) -> bool:
    """Has it the form of a run's id: of a slot, a trigger, or the first start?"""
    return _RUN_ID.fullmatch(text) is not None


def task_of(run: str) -> str:
    """The task id in a run id: all before the last "@", which a task id never contains."""
    return run.rpartition("@")[0]

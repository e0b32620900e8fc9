"""Which tasks exist: what one process declares, as pages of JSON, and what all of them declare together."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, final

from engine.domain.canonical import canonical_json, read_json
from engine.domain.names import task_id
from engine.domain.task import Definition
from engine.errors import MalformedDefinition

PAGE_SIZE: Final = 500
"""Definitions and functions on one page, together: what one script call may carry."""


@final
@dataclass(frozen=True, slots=True)
class Declaration:
    """What a process declares: definitions, and the ids (``group/function``) of the functions it knows."""

    definitions: tuple[Definition, ...]
    functions: tuple[str, ...]


def digest(definitions: Iterable[Definition], functions: Iterable[str]) -> str:
    """SHA-256, in hex, of a declaration. The same in every process, in whatever order it was declared."""
    text = canonical_json([sorted(one.to_json() for one in definitions), sorted(set(functions))])
    return sha256(text.encode()).hexdigest()


def pages(definitions: Iterable[Definition], functions: Iterable[str]) -> list[str]:
    """The declaration as JSON pages of at most ``PAGE_SIZE`` entries; at least one, which may be empty."""
    entries: list[tuple[str, Any]] = [
        ("definitions", one.to_mapping()) for one in sorted(definitions, key=lambda one: one.id)
    ]
    entries += [("functions", function) for function in sorted(set(functions))]
    return [_page(entries[start : start + PAGE_SIZE]) for start in range(0, max(len(entries), 1), PAGE_SIZE)]


@final
@dataclass(frozen=True, slots=True)
class Page:
    """What this version understands of a page, each definition judged alone: another version may have written it."""

    definitions: Mapping[str, Definition]
    functions: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    """Task id → why its definition is not understood. The task exists all the same, for those who understand it."""

    nameless: str = ""
    """Why something on it does not even say which task it is; empty: everything does."""


def parse_page(text: str | bytes) -> Page:
    """A page that ``pages`` wrote, in this version or another. Nothing that may be in it raises."""
    try:
        page = read_json(text)
        declared, known = page["definitions"], page["functions"]
    except (ValueError, TypeError, KeyError) as error:
        return Page({}, nameless=f"not a page of a declaration ({error!r})")
    if not isinstance(declared, list) or not isinstance(known, list):
        return Page({}, nameless="not a page of a declaration (lists expected)")
    definitions: dict[str, Definition] = {}
    refused: dict[str, str] = {}
    nameless = ""
    for mapping in declared:
        try:
            definition = Definition.from_mapping(mapping)
            definitions[definition.id] = definition
        except MalformedDefinition as error:
            match mapping:
                case {"group": str(group), "name": str(name)}:
                    refused[task_id(group, name)] = str(error)
                case _:
                    nameless = str(error)
    return Page(definitions, tuple(map(str, known)), refused, nameless)


def merge(
    sets: Mapping[str, tuple[int, Mapping[str, Definition]]],
    dynamic: dict[str, Definition],
    withdrawn: Container[str] = (),
) -> dict[str, Definition]:
    """Every task by id, of ``sets`` (digest → first seen in ms, definitions by id) and of the tasks kept in Redis.

    A task in several sets is as the set first seen latest says, so a restart of an old version reverts
    nothing; of sets first seen in the same millisecond, the greater digest wins. Of the same name, code wins over a
    task kept in Redis, and that over one that processes declare as dynamic, which may be withdrawn, too.
    """
    code: dict[str, Definition] = {}
    extras: dict[str, Definition] = {}
    for _, (_, definitions) in sorted(sets.items(), key=lambda item: (item[1][0], item[0])):
        for name, task in definitions.items():
            (extras if task.dynamic else code)[name] = task
    return {name: task for name, task in extras.items() if name not in withdrawn} | dynamic | code


def _page(entries: Iterable[tuple[str, Any]]) -> str:
    page: dict[str, list[Any]] = {"definitions": [], "functions": []}
    for kind, entry in entries:
        page[kind].append(entry)
    return canonical_json(page)

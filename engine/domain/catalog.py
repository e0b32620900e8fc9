"""Which tasks exist: what one process declares, as pages of JSON, and what all of them declare together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, final

from engine.domain.canonical import canonical_json
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


def parse_pages(texts: Iterable[str | bytes]) -> Declaration:
    """The declaration that ``pages`` wrote, pages in any order.

    Raises:
        MalformedDefinition: a page is not one of ours, or holds a definition that this version refuses.
    """
    definitions: list[Definition] = []
    functions: list[str] = []
    for text in texts:
        try:
            page = json.loads(text)
            declared, known = page["definitions"], page["functions"]
        except (ValueError, TypeError, KeyError) as error:
            raise MalformedDefinition(f"not a page of a declaration ({error!r})") from error
        if not isinstance(declared, list) or not isinstance(known, list):
            raise MalformedDefinition("not a page of a declaration (lists expected)")
        definitions += map(Definition.from_mapping, declared)
        functions += map(str, known)
    return Declaration(tuple(definitions), tuple(functions))


def merge(
    sets: Mapping[str, tuple[int, Iterable[Definition]]], dynamic: Iterable[Definition] = ()
) -> dict[str, Definition]:
    """Every task by id, of ``sets`` (digest → first seen in ms, definitions) and of the dynamic tasks.

    A task in several sets is as the set first seen latest says, so a restart of an old version reverts
    nothing; of sets first seen in the same millisecond, the greater digest wins. Code wins over a dynamic
    task of the same name.
    """
    merged = {one.id: one for one in dynamic}
    for _, (_, definitions) in sorted(sets.items(), key=lambda item: (item[1][0], item[0])):
        merged.update({one.id: one for one in definitions})
    return merged


def _page(entries: Iterable[tuple[str, Any]]) -> str:
    page: dict[str, list[Any]] = {"definitions": [], "functions": []}
    for kind, entry in entries:
        page[kind].append(entry)
    return canonical_json(page)

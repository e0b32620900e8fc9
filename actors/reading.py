"""Reading the catalog: what Redis holds, parsed and merged."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

import trio

from actors.messages import CatalogRead
from engine.domain.catalog import PAGE_SIZE, merge, parse_page
from engine.domain.task import Definition
from engine.errors import MalformedDefinition

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.store.catalog import Contents, DeclaredSet

log = logging.getLogger("fastapi.task-manager")


@final
@dataclass(frozen=True, slots=True)
class _Set:
    """A declared set, parsed."""

    definitions: Mapping[str, Definition]
    ids: frozenset[str]
    """Of all its tasks, those that this version does not understand included."""

    functions: frozenset[str]
    nameless: bool
    """Something in it does not even say which task it is."""


@final
class Reading:
    """Makes a `CatalogRead` of what Redis holds. What was parsed is kept while it is there: it never changes.

    A definition that this version cannot read is left out, with one warning for its set: a newer version, which wrote
    it, or a host that knows its time zone, runs it. Its task exists all the same.
    """

    def __init__(self) -> None:
        self._sets: dict[str, _Set] = {}
        self._dynamic: dict[str, tuple[str, Definition | None]] = {}
        """Task id -> the text, and what it says if this version understands it."""

        self._latest: tuple[object, CatalogRead] | None = None

    async def read(self, contents: Contents) -> CatalogRead:
        """Parsed and merged: of a task in several sets, the set first seen latest wins."""
        first_seen_ms = {found.digest: found.first_seen_ms for found in contents.sets}
        shape = (first_seen_ms, contents.dynamic, contents.forgotten, contents.withdrawn)
        if self._latest is not None and self._latest[0] == shape:
            return replace(self._latest[1], version=contents.version)  # with the same tasks: nobody compares them
        self._sets = {found.digest: self._sets.get(found.digest) or await _parse(found) for found in contents.sets}
        self._dynamic = await self._kept(contents.dynamic)
        tasks = merge(
            {digest: (first_seen_ms[digest], one.definitions) for digest, one in self._sets.items()},
            {task_id: definition for task_id, (_, definition) in self._dynamic.items() if definition is not None},
            frozenset(contents.withdrawn + contents.forgotten),
        )
        news = CatalogRead(
            version=contents.version,
            tasks=tasks,
            sets={digest: one.ids for digest, one in self._sets.items()},
            functions={digest: one.functions for digest, one in self._sets.items()},
            forgotten=contents.forgotten,
            withdrawn=contents.withdrawn,
            others=self._not_understood() - tasks.keys(),
            complete=not any(one.nameless for one in self._sets.values()),
        )
        self._latest = shape, news
        return news

    async def _kept(self, texts: Mapping[str, str]) -> dict[str, tuple[str, Definition | None]]:
        kept = {}
        for number, (task_id, text) in enumerate(texts.items()):
            kept[task_id] = self._definition(task_id, text)
            if number % PAGE_SIZE == 0:
                await trio.lowlevel.checkpoint()  # as after each page of a set
        return kept

    def _not_understood(self) -> frozenset[str]:
        kept = {task_id for task_id, (_, definition) in self._dynamic.items() if definition is None}
        return frozenset(kept).union(*(one.ids.difference(one.definitions) for one in self._sets.values()))

    def _definition(self, task_id: str, text: str) -> tuple[str, Definition | None]:
        known = self._dynamic.get(task_id)
        if known is not None and known[0] == text:
            return known
        try:
            return text, Definition.from_json(text)
        except MalformedDefinition as error:
            log.warning("The dynamic task %s is not understood by this version: %s", task_id, error)
            return text, None


async def _parse(found: DeclaredSet) -> _Set:
    """Others have their turn after each page: the beats go on, however many tasks there are."""
    definitions: dict[str, Definition] = {}
    functions: set[str] = set()
    refused: dict[str, str] = {}
    nameless = ""
    for text in found.pages:
        page = parse_page(text)
        definitions.update(page.definitions)
        functions.update(page.functions)
        refused.update(page.refused)
        nameless = nameless or page.nameless
        await trio.lowlevel.checkpoint()
    if refused or nameless:
        log.warning(
            "The declaration %.8s is not understood by this version in part, left out are %s: %s",
            found.digest,
            f"{len(refused)} task(s), the first {min(refused)}" if refused else "tasks that it does not name",
            refused[min(refused)] if refused else nameless,
        )
    return _Set(definitions, frozenset(definitions) | frozenset(refused), frozenset(functions), bool(nameless))

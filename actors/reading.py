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
    from collections.abc import Collection, Iterable, Mapping
    from collections.abc import Set as AbstractSet

    from engine.domain.catalog import Declaration
    from engine.store.catalog import Contents, DeclaredSet

log = logging.getLogger("fastapi.task-manager")


@final
@dataclass(frozen=True, slots=True)
class _Set:
    """A declared set, parsed."""

    definitions: Mapping[str, Definition]
    ids: AbstractSet[str]
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

    def __init__(self, own: Mapping[str, Declaration] | None = None) -> None:
        """``own``: digest -> what this process declares, which need not be read."""
        self._sets = {digest: _own(declaration) for digest, declaration in (own or {}).items()}
        self._own = frozenset(self._sets)
        self._dynamic: dict[str, tuple[str, Definition | None]] = {}
        """Task id -> the text, and what it says if this version understands it."""

        self._latest: tuple[object, CatalogRead] | None = None

    @property
    def known(self) -> Collection[str]:
        """The digests of the sets whose pages it needs no more."""
        return self._sets.keys()

    async def read(self, contents: Contents) -> CatalogRead:
        """Parsed and merged: of a task in several sets, the set first seen latest wins."""
        first_seen_ms = {found.digest: found.first_seen_ms for found in contents.sets}
        shape = (first_seen_ms, contents.dynamic, contents.forgotten, contents.withdrawn)
        if self._latest is not None and self._latest[0] == shape:
            return replace(self._latest[1], version=contents.version)  # with the same tasks: nobody compares them
        there = {found.digest: self._sets.get(found.digest) or await _parse(found) for found in contents.sets}
        self._sets = {digest: one for digest, one in self._sets.items() if digest in self._own} | there
        self._dynamic = await self._kept(contents.dynamic)
        tasks = merge(
            {digest: (first_seen_ms[digest], one.definitions) for digest, one in there.items()},
            {task_id: definition for task_id, (_, definition) in self._dynamic.items() if definition is not None},
            frozenset(contents.withdrawn + contents.forgotten),
        )
        news = CatalogRead(
            version=contents.version,
            tasks=tasks,
            sets={digest: one.ids for digest, one in there.items()},
            functions={digest: one.functions for digest, one in there.items()},
            forgotten=contents.forgotten,
            withdrawn=contents.withdrawn,
            others=self._not_understood(there.values()) - tasks.keys(),
            complete=not any(one.nameless for one in there.values()),
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

    def _not_understood(self, sets: Iterable[_Set]) -> frozenset[str]:
        kept = {task_id for task_id, (_, definition) in self._dynamic.items() if definition is None}
        return frozenset(kept).union(*(one.ids - one.definitions.keys() for one in sets))

    def _definition(self, task_id: str, text: str) -> tuple[str, Definition | None]:
        known = self._dynamic.get(task_id)
        if known is not None and known[0] == text:
            return known
        try:
            definition = Definition.from_json(text)
        except MalformedDefinition as error:
            why = str(error)
        else:
            if definition.id == task_id:
                return text, definition
            why = f"its definition is that of {definition.id}"
        log.warning("The dynamic task %.200s is not understood by this version: %.500s", task_id, why)
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
            "The declaration %.8s is not understood by this version in part, left out are %.500s: %.500s",
            found.digest,
            f"{len(refused)} task(s), the first {min(refused)}" if refused else "tasks that it does not name",
            refused[min(refused)] if refused else nameless,
        )
    ids = definitions.keys() | refused.keys() if refused else definitions.keys()
    return _Set(definitions, ids, frozenset(functions), bool(nameless))


def _own(declaration: Declaration) -> _Set:
    """As it would be if it were read: the same objects, so that a large schedule is in memory once."""
    definitions = {definition.id: definition for definition in declaration.definitions}
    return _Set(definitions, definitions.keys(), frozenset(declaration.functions), nameless=False)

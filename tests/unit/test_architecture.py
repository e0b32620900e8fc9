"""docs/architecture.md says what the code says."""

from __future__ import annotations

import inspect
import re
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path

from actors import messages
from actors.declared import Declared, Outbox, Posted
from actors.identity import Identity
from engine.assembly import Parts, assemble
from engine.config import Config
from engine.runtime import Actor, Child, Supervisor
from engine.services import GROUP
from engine.store.inprocess import InProcess, InProcessServer
from engine.store.keys import Keys
from engine.store.store import Store

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    """The text below a heading, up to the next of the same level."""
    return TEXT.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def first_column(text: str) -> set[str]:
    """What stands in backquotes in the first column of the tables in ``text``."""
    rows = re.findall(r"^\| (`[^|]*) \|", text, flags=re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]*)`", row)}


def test_every_message_is_in_the_table_and_no_other() -> None:
    """A message type that nobody can look up is a protocol that nobody can change."""
    inboxes = [value for name, value in vars(messages).items() if name.endswith("Inbox")]
    sent = {kind.__name__ for inbox in inboxes for kind in inbox.__args__}
    assert first_column(section("Messages")) == sent


def test_every_script_is_in_the_table_and_no_other() -> None:
    """The table of scripts is the list of transitions that there are."""
    files = {path.stem for path in (ROOT / "engine" / "store" / "lua").glob("*.lua")} - {"lib"}
    assert first_column(section("Scripts")) == files


def test_every_key_is_in_the_table_and_no_other() -> None:
    """The table of keys is the data model."""
    keys = Keys("p")
    plain = [
        getattr(keys, name)
        for name, member in vars(Keys).items()
        if isinstance(member, cached_property) and name not in {"tag", "run_scripts", "runs"}
    ]
    made = [
        method("<argument>")
        for name, method in inspect.getmembers(keys, inspect.ismethod)
        if name in {"declared", "run", "live", "ledger", "once"}
    ]
    documented = {re.sub("<.*>", "", name) for name in first_column(section("What Redis holds"))}
    ours = {key.removeprefix(keys.tag).replace("<argument>", "").replace("%3Cargument%3E", "") for key in plain + made}
    assert ours == documented


def test_every_field_of_a_record_is_named() -> None:
    """Scripts read and write fields of run records by name; each is explained."""
    lua = (ROOT / "engine" / "store" / "lua" / "lib.lua").read_text(encoding="utf-8")
    listed = re.search(r"local FIELDS = \{(.*?)\}", lua, flags=re.DOTALL)
    assert listed is not None
    text = section("What Redis holds")
    missing = [field for field in re.findall(r"'(\w+)'", listed[1]) if f"`{field}`" not in text]
    assert not missing


async def never(_: Posted) -> None:
    """Nothing is posted here."""


def paths(node: Child | Supervisor, above: str = "") -> set[str]:
    """Of the node and of all below it."""
    path = f"{above}{node.name}"
    below = node.children if isinstance(node, Supervisor) else ()
    return {path}.union(*(paths(child, f"{path}.") for child in below))


async def test_every_role_has_its_row_and_no_other() -> None:
    """The tree on the page is the tree in the process, with all that can be asked for."""
    transport = InProcess(InProcessServer())
    parts = Parts(
        config=Config(redis_host="nowhere"),
        store=Store.over(transport, prefix="p"),
        identity=Identity("service", "host", 1, "0" * 16),
        groups=[],
        declared=Declared([]),
        services=[],
        redis_label="in process",
        snapshot=dict,
        started_ms=0,
        outbox=Outbox(),
        carry_out=never,
        on_leadership=lambda _leads: None,
        above=[Child(service.name, Actor) for service in entry_points(group=GROUP)],
    )
    assert first_column(section("The supervision tree")) == paths(assemble(parts).spec)

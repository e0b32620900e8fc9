"""Definitions on their way between processes, and declarations merged."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.catalog import PAGE_SIZE, digest, merge, pages, parse_page
from engine.domain.retry import retry_delay_s
from engine.domain.task import Definition, check_inherited, encode_kwargs
from engine.errors import MalformedDefinition, TaskDeclarationError, TaskTypeError

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
names = st.text(st.characters(categories=["L", "N", "P"], exclude_characters="/"), min_size=1).filter(
    lambda name: name not in {".", ".."}
)
definitions = st.builds(
    lambda kwargs, **fields: Definition(kwargs_json=encode_kwargs("t", kwargs), **fields),
    kwargs=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), json_values, max_size=3),
    group=names,
    name=names,
    function=names,
    expression=st.sampled_from(["@daily", "0 6 * * 1-5", "*/5 * * * * *"]),
    timezone=st.sampled_from(["UTC", "Europe/Rome"]),
    tags=st.lists(names, max_size=3).map(tuple),
    description=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    high_priority=st.booleans(),
    retry_backoff=st.none() | st.floats(0, 10),
    retry_backoff_max=st.none() | st.floats(10, 100),
    allow_parallel=st.none() | st.booleans(),
    max_retries=st.none() | st.integers(0, 10),
    timeout=st.none() | st.floats(1, 100),
    run_on_first_start=st.booleans(),
    dynamic=st.booleans(),
)


def define(name: str = "t", **fields: Any) -> Definition:
    return Definition(**{"group": "g", "name": name, "function": "f", "expression": "@daily"} | fields)


@given(definitions)
def test_a_definition_comes_back_from_json_as_it_went(definition: Definition) -> None:
    """And its text is the same again: equal definitions have one text."""
    text = definition.to_json()
    assert Definition.from_json(text) == definition
    assert Definition.from_json(text.encode()).to_json() == text


def test_a_definition_of_another_version_is_read() -> None:
    """Fields that we do not know are ignored, optional ones that are missing have their defaults."""
    newer = json.loads(define().to_json()) | {"colour": "blue"}
    assert Definition.from_json(json.dumps(newer)) == define()
    oldest = '{"group": "g", "name": "t", "function": "f", "expression": "@daily"}'
    assert Definition.from_json(oldest) == define()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"group": "g"}',
        '{"group": 1, "name": "t", "function": "f", "expression": "@daily"}',
        '{"group": "g", "name": "t", "function": "f", "expression": "nonsense"}',
        '{"group": "g", "name": "t", "function": "f", "expression": 5}',
        '{"group": "g", "name": "t", "function": "f", "expression": "@daily", "kwargs": []}',
        '{"group": "g", "name": "t", "function": "f", "expression": "@daily", "tags": "x"}',
        '{"group": "g", "name": "t", "function": "f", "expression": "@daily", "tags": [[]]}',
    ],
)
def test_what_is_no_definition_is_a_typed_error(text: str) -> None:
    """Bytes from outside never raise anything else."""
    with pytest.raises(MalformedDefinition):
        Definition.from_json(text)


def test_kwargs_that_contain_themselves_are_refused() -> None:
    """Rather than recursed into for ever."""
    endless: dict[str, Any] = {}
    endless["self"] = endless
    with pytest.raises(TaskTypeError, match="levels deep"):
        encode_kwargs("g/t", endless)


@given(st.lists(definitions, max_size=6, unique_by=lambda one: one.id), st.permutations(["g/a", "g/b", "g/c"]))
def test_a_digest_does_not_depend_on_order(declared: list[Definition], functions: list[str]) -> None:
    """Only on what is declared."""
    assert digest(declared, functions) == digest(reversed(declared), sorted(functions))
    assert digest(declared, functions) != digest(declared, functions[1:])
    assert digest([*declared, define("one-more")], functions) != digest(declared, functions)


def test_a_digest_is_the_same_in_another_process() -> None:
    """Whatever its hash seed is."""
    program = (
        "from engine.domain.catalog import digest; from engine.domain.task import Definition;"
        "print(digest([Definition(group='g', name=n, function='f', expression='@daily', tags=('b', 'a'))"
        " for n in {'x', 'y', 'z'}], {'g/f', 'g/h'}))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {digest([define(n, tags=("b", "a")) for n in "zyx"], ["g/h", "g/f"]) + "\n"}


@given(st.lists(definitions, max_size=6, unique_by=lambda one: one.id), st.sets(names, max_size=4))
def test_pages_give_back_the_declaration(declared: list[Definition], functions: set[str]) -> None:
    """In any order of pages, with the same digest."""
    parsed = [parse_page(text) for text in reversed(pages(declared, functions))]
    found = {task_id: one for page in parsed for task_id, one in page.definitions.items()}
    assert found == {one.id: one for one in declared}
    known = [function for page in parsed for function in page.functions]
    assert sorted(known) == sorted(functions)
    assert digest(found.values(), known) == digest(declared, functions)
    assert not any(page.refused or page.nameless for page in parsed)


def test_a_page_has_at_most_five_hundred_entries() -> None:
    """Definitions and functions together; an empty declaration is one empty page."""
    declared = [define(f"t{number}") for number in range(1_001)]
    texts = pages(declared, [f"g/f{number}" for number in range(498)])
    sizes = [len(page["definitions"]) + len(page["functions"]) for page in map(json.loads, texts)]
    assert sizes == [PAGE_SIZE, PAGE_SIZE, 499]
    assert len(pages([], [])) == 1
    assert parse_page(pages([], [])[0]).definitions == {}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"definitions": {}, "functions": []}', '{"definitions": [1], "functions": []}']
)
def test_what_is_no_page_names_no_task(text: str) -> None:
    """Bytes from outside never raise anything."""
    page = parse_page(text)
    assert (page.definitions, page.refused) == ({}, {})
    assert page.nameless


def test_each_definition_of_a_page_is_judged_alone() -> None:
    """One that another version wrote, or another host's time zones, does not drop its neighbours."""
    [text] = pages([define("a"), define("b"), define("d")], [])
    page = json.loads(text)
    page["definitions"][1]["timezone"] = "Europe/Newtown"
    parsed = parse_page(json.dumps(page))
    assert set(parsed.definitions) == {"g/a", "g/d"}
    assert list(parsed.refused) == [define("b").id]
    assert "Europe/Newtown" in parsed.refused[define("b").id]
    assert not parsed.nameless


def by_id(*definitions: Definition) -> dict[str, Definition]:
    return {one.id: one for one in definitions}


def test_the_set_first_seen_latest_wins() -> None:
    """A restart of the old version reverts nothing; what only it has stays."""
    old, new = define(expression="@hourly"), define(expression="@weekly")
    merged = merge({"aa": (1, by_id(old, define("only-old"))), "00": (2, by_id(new))}, {})
    assert merged == {"g/t": new, "g/only-old": define("only-old")}
    tied = merge({"aa": (1, by_id(old)), "bb": (1, by_id(new))}, {})
    assert tied == merge({"bb": (1, by_id(new)), "aa": (1, by_id(old))}, {}) == {"g/t": new}


def test_code_wins_over_a_dynamic_task_of_its_name() -> None:
    """And dynamic tasks of other names are there too."""
    extra, taken = define("extra", dynamic=True), define(dynamic=True)
    assert merge({"aa": (1, by_id(define()))}, by_id(extra, taken)) == {"g/t": define(), "g/extra": extra}


def test_a_backoff_above_the_longest_that_is_inherited_is_refused() -> None:
    """It would silently become the Config's: whoever wrote 300 s would get 60 s."""
    with pytest.raises(TaskDeclarationError) as caught:
        check_inherited(define(retry_backoff=300), retry_backoff_max=60)
    assert str(caught.value) == (
        "task 'g/t', retry_backoff: 300 s is above Config.retry_backoff_max, 60 s, which the task inherits; "
        "give the task a retry_backoff_max of its own, or raise that of the Config"
    )
    check_inherited(define(retry_backoff=300, retry_backoff_max=300), retry_backoff_max=60)
    check_inherited(define(retry_backoff=60), retry_backoff_max=60)


def test_a_longest_backoff_below_the_one_that_is_inherited_wins() -> None:
    """Who gives a task a small retry_backoff_max wants its first retry early, too."""
    quick = define(retry_backoff_max=5)
    check_inherited(quick, retry_backoff_max=60)
    assert quick.retry_backoff_max is not None
    assert retry_delay_s(1, 10, quick.retry_backoff_max, 2) == 5


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"expression": "* * *"}, "task 'g/t', expression: cron '* * *': has 3 fields; write five fields"),
        ({"expression": "61 * * * *"}, "task 'g/t', expression: cron '61 * * * *', minute: 61 is too large"),
        ({"timezone": "Europe/Roma"}, "task 'g/t', timezone: 'Europe/Roma' is no time zone; write 'Europe/Rome'"),
        ({"timeout": 1e9}, "task 'g/t', timeout: 1000000000.0 s; give 0.001 to 2,678,400 seconds"),
        ({"max_retries": -1}, "task 'g/t', max_retries: -1; give 0 (never retry) to 1,000,000"),
        (
            {"retry_backoff": 2_000_000, "retry_backoff_max": 1_000_000.5},
            "task 'g/t', retry_backoff: 2,000,000 s is above retry_backoff_max, 1,000,000.5 s; lower it or raise that",
        ),
    ],
)
def test_a_refusal_says_once_what_is_wrong_and_in_numbers_that_people_write(fields: dict[str, Any], text: str) -> None:
    """Task, field, value, and what to write instead."""
    with pytest.raises(TaskDeclarationError) as caught:
        define(**fields)
    assert str(caught.value).startswith(text)

"""What is to become of what fastapi-task-manager kept: old names, old definitions, old flags."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from fastapi_task_manager.task_group import TaskGroup as OldTaskGroup
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.group import TaskGroup
from engine.domain.task import Definition
from engine.errors import MalformedDefinition
from engine.migration import NO_SUCH_TASK, NOT_DECLARED, OF_NO_TASK, match_flags, names_there, old_name, read_definition
from engine.store.inprocess import InProcess
from engine.store.predecessor import PredecessorStore

OLD = PredecessorStore(InProcess(), "app")

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = leaves | st.lists(leaves, max_size=3)
kwargs_of_any_kind = st.dictionaries(st.from_regex(r"[a-z]\w{0,8}", fullmatch=True), values, max_size=4)


async def send(**_: Any) -> None:
    """Takes anything."""


def declared(expression: str, kwargs: dict[str, Any], **more: Any) -> tuple[str, Definition]:
    """The same task, declared in the same words in both systems: its name there, and what it is here."""
    there = OldTaskGroup("g")
    there.add_task(expression, kwargs=kwargs, **more)(send)
    here = TaskGroup("g")
    here.add_task(expression, kwargs=kwargs, **more)(send)
    return there.tasks[0].name, here.tasks[0].definition


@given(kwargs=kwargs_of_any_kind, name=st.none() | st.just("letters"))
def test_a_declared_task_is_known_by_its_old_name(kwargs: dict[str, Any], name: str | None) -> None:
    """As the real package makes it of function or name, kwargs and expression."""
    there, here = declared("0 3 * * *", kwargs, name=name)
    assert names_there(here) == {there}


@given(kwargs=kwargs_of_any_kind)
def test_a_task_made_without_a_name_is_known_by_its_old_name(kwargs: dict[str, Any]) -> None:
    """Start-up code that makes it has another name for it here."""
    there, here = OldTaskGroup("g"), TaskGroup("g")
    for group in (there, here):
        group.register_function()(send)
        group.add_dynamic_task("send", "0 3 * * *", kwargs=kwargs)
    [old], [new] = there.tasks, here.tasks
    assert names_there(new.definition) == {old.name, new.name}


def test_a_task_made_with_a_name_has_no_other() -> None:
    """Else it would be paused with a declared task of the same function, kwargs and expression."""
    group = TaskGroup("g")
    group.register_function()(send)
    task = group.add_dynamic_task("send", "0 3 * * *", name="letters")
    assert names_there(task.definition) == {"letters"}


def test_tasks_of_a_list_are_known_each_by_its_own_old_name() -> None:
    """Here they are numbered, there each has hashes."""
    lists: dict[str, Any] = {"expr": ["0 3 * * *", "0 4 * * *"], "kwargs": [{"to": "a"}, {"to": "b"}]}
    there, here = OldTaskGroup("g"), TaskGroup("g")
    there.add_task(**lists)(send)
    here.add_task(**lists)(send)
    assert [task.name for task in here.tasks] == ["send-1", "send-2"]
    assert [names_there(task.definition) for task in here.tasks] == [{task.name} for task in there.tasks]


@pytest.mark.parametrize(
    ("expression", "kwargs"),
    [
        ("0  3 * * *", {}),  # written as one space here
        ("0 3 * * *", {"filter": {"b": 1, "a": 2}}),  # JSON has no order
    ],
)
def test_what_is_written_in_another_way_here_has_another_name(expression: str, kwargs: dict[str, Any]) -> None:
    """Its flag is reported, rather than given to a guess."""
    there, here = declared(expression, kwargs)
    assert there not in names_there(here)


# -- definitions ------------------------------------------------------------------------------------------------------

WHOLE: dict[str, Any] = {
    "task_group_name": "reports",
    "function_name": "send",
    "cron_expression": "0 3 * * *",
    "kwargs": {"to": "ada"},
    "name": "letters",
    "description": "for Ada",
    "high_priority": True,
    "tags": ["mail", "night", "mail"],
    "retry_backoff": 2.5,
    "retry_backoff_max": 30,
    "allow_parallel": False,
}
"""As the real package writes one; the system tests read those that it has written itself."""


def test_an_old_definition_becomes_a_dynamic_task_with_all_that_it_says() -> None:
    """In Coordinated Universal Time, as there."""
    assert read_definition(json.dumps(WHOLE)) == Definition(
        group="reports",
        name="letters",
        function="send",
        expression="0 3 * * *",
        timezone="UTC",
        kwargs_json='{"to":"ada"}',
        tags=("mail", "night"),
        description="for Ada",
        high_priority=True,
        retry_backoff=2.5,
        retry_backoff_max=30,
        allow_parallel=False,
        dynamic=True,
    )


@pytest.mark.parametrize("nothing", [None, "absent"])
def test_what_an_old_definition_leaves_out_is_what_it_was_there(nothing: str | None) -> None:
    """Written as null, or not at all."""
    least = {key: WHOLE[key] for key in ("task_group_name", "function_name", "cron_expression")}
    rest = (
        {} if nothing else dict.fromkeys(("kwargs", "name", "description", "tags", "retry_backoff", "allow_parallel"))
    )
    task = read_definition(json.dumps(least | rest))
    assert task.name == old_name("send", {}, "0 3 * * *")
    assert (task.kwargs, task.tags, task.description, task.high_priority) == ({}, (), None, False)
    assert (task.retry_backoff, task.allow_parallel) == (None, None)


def without(key: str) -> str:
    return json.dumps({name: value for name, value in WHOLE.items() if name != key})


def with_(**changed: Any) -> str:
    return json.dumps(WHOLE | changed)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "a JSON object was expected, not list"),
        (without("cron_expression"), "cron_expression missing"),
        (with_(cron_expression="61 * * * *"), "61"),
        (with_(cron_expression="5-5 * * * *"), "'5'"),
        (with_(cron_expression=None), "expression"),
        (with_(cron_expression=None, name=None), "name"),
        (with_(name="a/b"), "contains '/'"),
        (with_(name="n" * 201), "has 201 characters"),
        (with_(task_group_name=7), "give a string"),
        (with_(kwargs=[1]), "give a dict"),
        (with_(kwargs={"x": float("nan")}), "finite"),
        (with_(tags="mail"), "give a list"),
        (with_(tags=[""]), "non-empty"),
        (with_(tags=[["x"]]), "give a list of non-empty strings"),
        (with_(retry_backoff=-1), "retry_backoff"),
        (with_(retry_backoff="1"), "retry_backoff"),
        (with_(high_priority=None), "high_priority"),
        (with_(description="\ud800"), "half a surrogate pair"),
        (with_(name=None, cron_expression="\ud800"), "half a surrogate pair"),
    ],
)
def test_a_definition_that_this_version_refuses_says_why(text: str, why: str) -> None:
    """Whatever stands in the hash, nothing else is raised."""
    with pytest.raises(MalformedDefinition) as caught:
        read_definition(text)
    assert why in caught.value.reason


@given(
    st.dictionaries(st.sampled_from(list(WHOLE)), st.recursive(leaves, lambda inner: st.lists(inner, max_size=2)))
    | st.text()
)
def test_no_definition_raises_anything_else(found: object) -> None:
    """Neither while it is read nor when it is written."""
    with suppress(MalformedDefinition):
        read_definition(json.dumps(WHOLE | found) if isinstance(found, dict) else str(found)).to_json().encode()


# -- flags ------------------------------------------------------------------------------------------------------------


def task(name: str, group: str = "g") -> Definition:
    return Definition(group=group, name=name, function="send", expression="0 3 * * *", dynamic=True)


def outcomes(flags: set[str], *tasks: Definition, **more: Any) -> list[tuple[str, str | None, str, str]]:
    found = match_flags(OLD, flags, tasks, **{"paused": ()} | more)
    return [(one.source, one.task, one.outcome, one.reason) for one in found]


def test_a_flag_belongs_to_the_task_of_its_name() -> None:
    """Those of no task come last, and say so."""
    flags = {"app_g_x_disabled", "app_g_y_disabled", "app_g_a_disabled"}
    assert outcomes(flags, task("x"), task("y"), task("z"), paused={"g/y"}) == [
        ("app_g_x_disabled", "g/x", "taken", ""),
        ("app_g_y_disabled", "g/y", "there already", ""),
        ("app_g_a_disabled", None, "not taken", NO_SUCH_TASK),
    ]


def test_a_flag_that_two_tasks_share_is_the_flag_of_both() -> None:
    """There it was so too: the key is the same."""
    assert outcomes({"app_a_b_c_disabled"}, task("b_c", "a"), task("c", "a_b")) == [
        ("app_a_b_c_disabled", "a/b_c", "taken", ""),
        ("app_a_b_c_disabled", "a_b/c", "taken", ""),
    ]


@pytest.mark.parametrize(
    ("more", "why"),
    [({"nothing_declared": True}, NOT_DECLARED), ({"lost": ["g:x"], "nothing_declared": True}, OF_NO_TASK)],
)
def test_a_flag_of_no_task_says_what_may_be_the_cause(more: dict[str, Any], why: str) -> None:
    """Nobody has declared anything, or its definition was refused."""
    assert outcomes({"app_g_x_disabled"}, **more) == [("app_g_x_disabled", None, "not taken", why)]

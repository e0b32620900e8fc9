"""Names and ids."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.names import (
    quote_name,
    slot_run_id,
    task_id,
    task_of,
    trigger_run_id,
    validate_name,
)
from engine.errors import InvalidName

names = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="/"),
    min_size=1,
    max_size=200,
).filter(lambda name: name not in {".", ".."})


@given(names, names)
def test_a_task_id_gives_back_its_names(group: str, name: str) -> None:
    """Every valid pair of names survives the round trip, so no two pairs share an id."""
    assert validate_name("group", group) == group
    assert [unquote(part) for part in task_id(group, name).split("/")] == [group, name]


@given(names, names)
def test_different_names_have_different_quotations(one: str, other: str) -> None:
    """Quoting never collides, and leaves nothing that separates: no slash, brace, at sign, colon or hash."""
    assert (quote_name(one) == quote_name(other)) is (one == other)
    assert not set("/{}@:# ") & set(quote_name(one))


def test_names_that_looked_alike_once_do_not_here() -> None:
    """Group a with task b_c, and group a_b with task c, are two tasks."""
    assert task_id("a", "b_c") != task_id("a_b", "c")


@given(names, names, st.integers(0, 10**15))
def test_a_run_id_names_its_task(group: str, name: str, slot_ms: int) -> None:
    """Whatever the names are, the task is found again in the run's id."""
    task = task_id(group, name)
    assert task_of(slot_run_id(task, slot_ms)) == task
    assert task_of(trigger_run_id(task, "0a-Z_")) == task
    assert trigger_run_id(task, str(slot_ms)) != slot_run_id(task, slot_ms)


@pytest.mark.parametrize("name", ["", "x" * 201, "a/b", "a\nb", "a\x7f", "\u2028", "\ud800", ".", "..", 7, None])
def test_a_name_that_is_refused_says_why(name: object) -> None:
    """Names are 1 to 200 characters without slash and control characters."""
    with pytest.raises(InvalidName) as caught:
        validate_name("task", name)
    assert caught.value.kind == "task"


@pytest.mark.parametrize("unique", ["", "a@b", "a/b", "x" * 65, "é"])
def test_a_trigger_is_told_apart_by_plain_characters_only(unique: str) -> None:
    """Anything else could be taken for another task's run."""
    with pytest.raises(InvalidName):
        trigger_run_id("g/t", unique)

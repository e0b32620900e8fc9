"""Declarations are checked when they are made, and say what is wrong and where."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import SupervisorSpecError
from engine.runtime import Actor, Backoff, Child, Environment, Mailbox, Supervision, Supervisor
from tests.unit.runtime.scripted import Stage, group


def child(name: str, **options: Any) -> Child:
    return Child(name=name, start=Actor, **options)


@pytest.mark.parametrize(
    ("declare", "complaint"),
    [
        (lambda: child(""), "child '': a name must not be empty"),
        (lambda: child("a.b"), "child 'a.b': a name must not contain a dot"),
        (lambda: child("a b"), "child 'a b': a name must not contain white space"),
        (lambda: child("a\n"), "white space or control characters"),
        (lambda: child("a", shutdown_s=-1.0), "child 'a': shutdown_s must not be negative: -1.0"),
        (lambda: child("a", shutdown_s=math.nan), "shutdown_s must not be negative: nan"),
        (lambda: group(name="a.b"), "supervisor 'a.b': a name must not contain a dot"),
        (lambda: group(child("a"), child("a")), "supervisor 'root': two children are named 'a'"),
        (lambda: group(child("a"), group(name="a")), "two children are named 'a'"),
        (lambda: group(max_restarts=-1), "max_restarts must not be negative: -1"),
        (lambda: group(within_s=0.0), "within_s must be greater than zero: 0.0"),
        (lambda: Backoff(first_s=-0.1), "backoff: first_s must not be negative: -0.1"),
        (lambda: Backoff(first_s=2.0, max_s=1.0), r"backoff: max_s \(1.0\) must be at least first_s \(2.0\)"),
    ],
)
def test_wrong_declaration_is_refused_with_its_place_and_reason(declare: Callable[[], object], complaint: str) -> None:
    """Nothing of it is found out later, while the tree runs."""
    with pytest.raises(SupervisorSpecError, match=complaint):
        declare()


def test_mailbox_has_one_reader() -> None:
    """Two children on one mailbox are refused, however far apart in the tree."""
    mailbox: Mailbox[Any] = Mailbox("shared")
    with pytest.raises(SupervisorSpecError, match="two children read the mailbox 'shared'"):
        group(child("a", mailbox=mailbox), group(child("b", mailbox=mailbox), name="inner"))


def test_mailbox_of_a_stopped_tree_is_refused(stage: Stage) -> None:
    """It is closed for good, so its actor could not live."""
    mailbox: Mailbox[Any] = Mailbox("m")
    mailbox.close()
    with pytest.raises(SupervisorSpecError, match="its mailbox was closed with a former tree; make a new one"):
        Supervision(group(child("a", mailbox=mailbox)), stage.environment)


def test_declarations_are_frozen_and_printable() -> None:
    spec = group(child("a"))
    with pytest.raises(AttributeError):
        spec.name = "other"  # type: ignore[misc]  # that is the point
    assert "name='root'" in repr(spec)
    assert "name='a'" in repr(spec)


@given(
    first_s=st.floats(0, 100),
    extra_s=st.floats(0, 1000),
    failures=st.integers(1, 5000),
    seed=st.integers(),
)
def test_delay_stays_within_its_bounds(first_s: float, extra_s: float, failures: int, seed: int) -> None:
    """Half to all of the doubled bound, never over ``max_s``, however long it fails. Zero is zero."""
    backoff = Backoff(first_s, first_s + extra_s)
    bound_s = min(first_s * 2.0 ** min(failures - 1, 1000), backoff.max_s)
    delay_s = backoff.delay_s(failures, random.Random(seed))

    assert bound_s / 2 <= delay_s <= bound_s


def test_environment_and_supervisor_are_plain_values(stage: Stage) -> None:
    """Two equal declarations are equal, so a tree can be compared with another."""
    start = child("a")
    assert group(start) == group(start)
    assert isinstance(group(start), Supervisor)
    assert isinstance(stage.environment, Environment)

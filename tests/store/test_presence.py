"""What a worker says of itself, and what is understood of it by another version."""

from __future__ import annotations

import json

import pytest

from engine.store.presence import Account

SAID = Account(
    worker_id="service-host-7-abcd",
    host="host",
    pid=7,
    started_ms=1_764_000_000_000,
    digest="d" * 64,
    draining=True,
    executes=True,
    can_lead=True,
    concurrent_tasks=2,
    running=1,
    runs=["g/t@1"],
    counts={"ran": 3},
    tree={"path": "engine"},
)


def test_what_one_worker_says_another_understands() -> None:
    """Every field."""
    assert Account.from_json(SAID.to_json()) == SAID


def test_what_a_newer_version_adds_is_passed_over() -> None:
    """The rest counts."""
    newer = {**json.loads(SAID.to_json()), "v": 2, "mood": "good"}
    assert Account.from_json(json.dumps(newer)) == SAID


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"pid":"7","running":true,"tree":[],"worker_id":null}'])
def test_what_is_not_understood_counts_as_not_said(text: str) -> None:
    """Whoever looks at all workers must not fail over one of them."""
    assert Account.from_json(text) == Account()

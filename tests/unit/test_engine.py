"""What an engine refuses before it reaches for Redis, and how it holds its groups while it runs."""

from __future__ import annotations

import pytest
import trio

from engine import Config, Engine, TaskGroup
from engine.errors import GroupInUse, TaskDeclarationError, TaskTypeError

IDLE = Config(redis_host="h", enabled=False)
"""Serves without Redis."""


def beat() -> None:
    """A task's function."""


def test_one_group_is_no_list_of_groups() -> None:
    """The message says what to write."""
    with pytest.raises(TaskTypeError, match=r"group 'g', groups: .*Engine\(config, \[group\]\)"):
        Engine(IDLE, TaskGroup("g"))  # type: ignore[arg-type] # the mistake


async def test_a_task_that_contradicts_the_config_is_refused_where_they_meet() -> None:
    """With the group, or at the start if it was declared after."""
    early, late = TaskGroup("early"), TaskGroup("late")
    early.add_task("@daily", retry_backoff=300)(beat)
    engine = Engine(IDLE, [late])
    with pytest.raises(TaskDeclarationError, match="task 'early/beat', retry_backoff: 300 s"):
        engine.add_task_group(early)
    assert engine.groups == [late]

    late.add_task("@daily", retry_backoff=300)(beat)
    with pytest.raises(TaskDeclarationError, match="task 'late/beat', retry_backoff: 300 s"):
        await engine.serve()
    late.add_dynamic_task("beat", "@daily")  # the engine let go of its groups


async def test_a_group_changes_before_the_start_and_after_the_end_only() -> None:
    """A running engine has read its groups, and would ignore what is added to them."""
    group = TaskGroup("g")
    engine = Engine(IDLE, [group])
    group.add_task("@daily")(beat)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.serve)
        with pytest.raises(GroupInUse):
            group.add_task("@daily", name="second")(beat)
        engine.stop()
    group.add_dynamic_task("beat", "@hourly", name="third")
    assert [task.name for task in group.tasks] == ["beat", "third"]

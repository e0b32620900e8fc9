"""Declaring tasks: names, lists, tags, inheritance, and every way to get it wrong."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, final

import pytest

from engine.domain.functions import is_async
from engine.domain.group import TaskGroup
from engine.errors import (
    DuplicateTask,
    FunctionAlreadyRegistered,
    FunctionNotRegistered,
    GroupInUse,
    TaskDeclarationError,
    TaskTypeError,
    UnknownTask,
)

if TYPE_CHECKING:
    from engine.domain.dynamic import Change
    from engine.domain.task import Definition, Task


async def report(region: str = "eu", *, days: int = 1) -> None:
    """A task's function."""


def clean() -> None:
    """Another."""


class Job:
    """A callable object with an async call."""

    async def __call__(self) -> None: ...

    def plain(self) -> None: ...

    async def bound(self) -> None: ...


async def async_items() -> AsyncIterator[int]:
    yield 1


def items() -> Iterator[int]:
    yield 1


def test_one_task_has_the_name_of_its_function() -> None:
    """The decorator declares the task, registers the function and gives it back unchanged."""
    group = TaskGroup("billing")
    assert group.add_task("0 6 * * *")(report) is report
    (task,) = group.tasks
    assert (task.id, task.name, task.function) == ("billing/report", "report", report)
    assert group.function_registry == {"report": report}


def test_lists_declare_one_task_for_each_pair() -> None:
    """Expressions and kwargs of the same length go together, named by position."""
    group = TaskGroup("g")
    group.add_task(["0 1 * * *", "0 2 * * *"], [{"region": "eu"}, {"region": "us"}])(report)
    found = [(task.name, task.expression, task.kwargs) for task in group.tasks]
    assert found == [
        ("report-1", "0 1 * * *", {"region": "eu"}),
        ("report-2", "0 2 * * *", {"region": "us"}),
    ]


def test_a_list_on_one_side_is_paired_with_the_same_value() -> None:
    """One expression with two kwargs, or one kwargs with two expressions."""
    group = TaskGroup("g")
    group.add_task("@daily", [{"days": 1}, {"days": 2}], name="a")(report)
    group.add_task(["@daily", "@hourly"], {"days": 3}, names=["b", "c"], register=False)(report)
    assert [(t.name, t.expression, t.kwargs) for t in group.tasks] == [
        ("a-1", "@daily", {"days": 1}),
        ("a-2", "@daily", {"days": 2}),
        ("b", "@daily", {"days": 3}),
        ("c", "@hourly", {"days": 3}),
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        {"expr": ["@daily", "@hourly"], "kwargs": [{}]},
        {"expr": []},
        {"expr": "@daily", "kwargs": []},
        {"expr": ["@daily", "@hourly"], "names": ["one"]},
        {"expr": "@daily", "names": "one"},
        {"expr": 5},
        {"expr": report},
        {"expr": "@daily", "kwargs": "x"},
        {"expr": "@daily", "kwargs": {"region": ("a",)}},
        {"expr": "@daily", "kwargs": {"region": {1}}},
        {"expr": "@daily", "kwargs": {"region": float("nan")}},
        {"expr": "@daily", "kwargs": {"region": {1: 2}}},
        {"expr": "@daily", "kwargs": {"region": "\ud800"}},
        {"expr": "@daily", "kwargs": {"nobody": 1}},
        {"expr": "@daily", "tags": "x"},
        {"expr": "@daily", "tags": [""]},
        {"expr": "@daily", "timeout": "5"},
        {"expr": "@daily", "max_retries": True},
        {"expr": "@daily", "max_retries": 1.5},
        {"expr": "@daily", "high_priority": 1},
        {"expr": "@daily", "allow_parallel": "yes"},
        {"expr": "@daily", "timezone": 2},
    ],
)
def test_a_wrong_type_or_shape_is_a_type_error_that_adds_nothing(arguments: dict[str, Any]) -> None:
    """TaskTypeError is a TypeError and names task and field; the group is as before."""
    group = TaskGroup("g")
    with pytest.raises(TaskTypeError) as caught:
        group.add_task(**arguments)(report)
    assert isinstance(caught.value, TypeError)
    assert caught.value.task.startswith("g/")
    assert caught.value.field
    assert group.tasks == []
    assert group.function_registry == {}


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"expr": "61 * * * *"}, "expression"),
        ({"expr": "0 0 31 2 *"}, "expression"),
        ({"expr": ["@daily", "x"]}, "expression"),
        ({"expr": "@daily", "timezone": "Mars/Olympus"}, "timezone"),
        ({"expr": "@daily", "name": "a/b"}, "name"),
        ({"expr": "@daily", "name": ""}, "name"),
        ({"expr": "@daily", "name": "", "names": ["a"]}, "name"),
        ({"expr": ["@daily"], "names": [""]}, "name"),
        ({"expr": "@daily", "retry_backoff": -1}, "retry_backoff"),
        ({"expr": "@daily", "retry_backoff_max": float("inf")}, "retry_backoff_max"),
        ({"expr": "@daily", "retry_backoff": 9, "retry_backoff_max": 5}, "retry_backoff"),
        ({"expr": "@daily", "timeout": 0}, "timeout"),
        ({"expr": "@daily", "max_retries": -1}, "max_retries"),
    ],
)
def test_a_bad_value_is_refused_where_it_is_declared(arguments: dict[str, Any], field: str) -> None:
    """A RuntimeError that names the task, the field and what to give; never at 03:00."""
    group = TaskGroup("g")
    with pytest.raises(TaskDeclarationError) as caught:
        group.add_task(**arguments)(report)
    assert isinstance(caught.value, RuntimeError)
    assert caught.value.field == field
    assert "g/" in str(caught.value)
    assert group.tasks == []
    assert group.function_registry == {}


def test_a_second_task_of_the_same_name_is_refused_whole() -> None:
    """Nothing of a declaration is kept when one of its tasks is refused."""
    group = TaskGroup("g")
    group.add_task("@daily", name="report-2")(clean)
    with pytest.raises(DuplicateTask, match="report-2"):
        group.add_task(["@daily", "@hourly"])(report)
    assert [task.name for task in group.tasks] == ["report-2"]


def test_one_function_can_have_several_tasks() -> None:
    """Stacked decorators need names of their own; the function is registered under each."""
    group = TaskGroup("g")
    group.add_task("@daily", name="a")(group.add_task("@hourly", name="b")(report))
    assert [task.name for task in group.tasks] == ["b", "a"]
    assert group.function_registry == {"a": report, "b": report}


def test_tags_are_the_groups_followed_by_the_tasks_without_repeats() -> None:
    """Order is kept, since people read it."""
    group = TaskGroup("g", tags=["x", "y", "x"])
    group.add_task("@daily", tags=["z", "y", "z"])(report)
    assert group.tasks[0].tags == ["x", "y", "z"]
    assert group.tags == ["x", "y"]


def test_a_task_inherits_from_its_group_what_it_does_not_say() -> None:
    """allow_parallel and max_retries go task, group, Config."""
    group = TaskGroup("g", allow_parallel=False, max_retries=2)
    group.add_task("@daily")(report)
    group.add_task("@daily", allow_parallel=True, max_retries=0)(clean)
    inherited, own = (task.definition for task in group.tasks)
    assert (inherited.allow_parallel, inherited.max_retries) == (False, 2)
    assert (own.allow_parallel, own.max_retries) == (True, 0)


def test_what_a_group_shows_are_copies() -> None:
    """Changing them changes nothing."""
    group = TaskGroup("g", tags=["x"])
    group.add_task("@daily", {"days": 1})(report)
    group.tasks.clear()
    group.tags.clear()
    group.function_registry.clear()
    group.tasks[0].kwargs["days"] = 2
    assert (len(group.tasks), group.tags, len(group.function_registry)) == (1, ["x"], 1)
    assert group.tasks[0].kwargs == {"days": 1}


def test_functions_are_registered_by_decorator_or_directly() -> None:
    """Bare, with a name, or called with the function; no task comes of it."""
    group = TaskGroup("g")
    assert group.register_function(report) is report
    assert group.register_function("named")(report) is report
    assert group.register_function(name="other")(clean) is clean
    assert group.register_function()(clean) is clean
    assert group.register_function(clean, name="direct") is clean
    assert group.function_registry == {
        "report": report,
        "named": report,
        "other": clean,
        "clean": clean,
        "direct": clean,
    }
    assert group.tasks == []
    with pytest.raises(FunctionAlreadyRegistered):
        group.register_function("named")(clean)


def test_a_name_is_not_taken_over_by_another_function() -> None:
    """A dynamic task must not run another function than it names."""
    group = TaskGroup("g")
    group.register_function("report")(clean)
    with pytest.raises(FunctionAlreadyRegistered):
        group.add_task("@daily")(report)


def test_a_dynamic_task_without_a_name_has_the_same_one_everywhere() -> None:
    """The name depends on function, kwargs (in any order), cron and zone, and on nothing of the process."""
    first, second = TaskGroup("g"), TaskGroup("g")
    for group in (first, second):
        group.register_function(report)
    one = first.add_dynamic_task("report", "0  6 * * *", {"region": "us", "days": 2})
    same = second.add_dynamic_task("report", "0 6 * * *", {"days": 2, "region": "us"})
    other = second.add_dynamic_task("report", "0 6 * * *", {"days": 3, "region": "us"})
    assert one.name == same.name == "report-fa1b60cf"
    assert one.name != other.name
    assert one.definition == same.definition
    assert one.dynamic


def test_dynamic_tasks_come_and_go_and_declared_ones_stay() -> None:
    """Each refusal is a RuntimeError."""
    group = TaskGroup("g")
    group.add_task("@daily")(report)
    task = group.add_dynamic_task("report", "@hourly", name="extra")
    assert group.add_dynamic_task("report", "@hourly", name="extra") is task
    with pytest.raises(DuplicateTask):
        group.add_dynamic_task("report", "@daily", name="extra")
    with pytest.raises(FunctionNotRegistered, match="it knows report"):
        group.add_dynamic_task("nobody", "@hourly")
    with pytest.raises(UnknownTask, match="declared by code"):
        group.remove_dynamic_task("report")
    assert group.remove_dynamic_task("extra") == task
    with pytest.raises(UnknownTask, match="not found"):
        group.remove_dynamic_task("extra")
    assert [left.name for left in group.tasks] == ["report"]


@pytest.mark.parametrize("name", ["", "a/b", "a\tb", 3])
def test_a_group_needs_a_valid_name(name: Any) -> None:
    """It is part of every id."""
    with pytest.raises(TaskDeclarationError):
        TaskGroup(name)


@pytest.mark.parametrize("function", [items, async_items, functools.partial(items), lambda: None])
def test_what_could_never_run_or_has_no_name_is_refused(function: Callable[..., Any]) -> None:
    """A generator's body would not run when called; a lambda has no name of its own."""
    group = TaskGroup("g")
    with pytest.raises(TaskDeclarationError):
        group.add_task("@daily")(function)
    with pytest.raises(TaskDeclarationError):
        group.register_function(function)


def test_a_wrapper_that_supplies_an_argument_is_believed() -> None:
    """The signature that counts is that of the outermost callable."""

    def with_session(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def wrapper(**kwargs: Any) -> Any:
            return await function("session", **kwargs)

        return wrapper

    @with_session
    async def store(session: str, row: int) -> None: ...

    group = TaskGroup("g")
    group.add_task("@daily", {"row": 1})(store)
    assert group.tasks[0].name == "store"


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (report, True),
        (clean, False),
        (functools.partial(report, "us"), True),
        (functools.partial(functools.partial(report), days=2), True),
        (functools.partial(clean), False),
        (Job(), True),
        (functools.partial(Job()), True),
        (Job().bound, True),
        (Job().plain, False),
        (Job, False),
        (print, False),
    ],
)
def test_async_callables_are_told_from_plain_ones(function: Callable[..., Any], expected: bool) -> None:  # noqa: FBT001 -- a parameter of the test
    """Partials and objects with an async call are awaited too, not recorded as success unawaited."""
    assert is_async(function) is expected


def test_the_decorator_without_parentheses_says_so() -> None:
    """Otherwise the function would be the cron expression of a task that nobody declared."""
    group = TaskGroup("g")
    with pytest.raises(TaskTypeError, match=r"task 'g/report', expr: .*write @group\.add_task\('") as caught:
        group.add_task(report)  # type: ignore[arg-type] # the mistake
    assert caught.value.field == "expr"


def test_an_empty_name_is_a_bad_name_and_not_none() -> None:
    """It came from somewhere, and the function's own name is not what was meant."""
    group = TaskGroup("g")
    with pytest.raises(TaskDeclarationError, match="0 characters"):
        group.register_function(report, name="")
    with pytest.raises(TaskDeclarationError, match="0 characters"):
        group.register_function("")(report)
    group.register_function(report)
    with pytest.raises(TaskDeclarationError, match="0 characters"):
        group.add_dynamic_task("report", "@daily", name="")
    assert (group.tasks, group.function_registry) == ([], {"report": report})


def test_a_function_is_registered_under_one_name() -> None:
    """Of two, none is dropped silently; and what cannot be called is no function."""
    group = TaskGroup("g")
    with pytest.raises(TaskTypeError, match="'abc' is given as well"):
        group.register_function("abc", name="def")
    with pytest.raises(TaskTypeError, match="5 is of type int"):
        group.register_function(5)  # type: ignore[call-overload] # the mistake
    assert group.function_registry == {}


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"allow_parallel": "yes"}, TaskTypeError),
        ({"allow_parallel": 1}, TaskTypeError),
        ({"max_retries": "yes"}, TaskTypeError),
        ({"max_retries": True}, TaskTypeError),
        ({"max_retries": -1}, TaskDeclarationError),
    ],
)
def test_what_tasks_inherit_is_checked_where_the_group_is_made(
    settings: dict[str, Any], error: type[TaskDeclarationError]
) -> None:
    """Not at the first task that inherits it, or never."""
    with pytest.raises(error) as caught:
        TaskGroup("g", **settings)
    assert [caught.value.field] == list(settings)
    assert str(caught.value).startswith("group 'g', ")


@final
class Keeping:
    """A running engine that notes what it is asked for."""

    def __init__(self) -> None:
        self.posted: list[Change] = []

    def check(self, task: Task) -> None:
        pass

    def post(self, change: Change) -> None:
        self.posted.append(change)

    async def create(self, task: Task) -> None:
        raise AssertionError(task)

    async def remove(self, group: str, name: str) -> Definition:
        raise AssertionError(f"{group}/{name}")


def test_the_code_of_a_group_in_use_does_not_change() -> None:
    """An engine has read it at its start, so that a later declaration would be silently ignored."""
    group = TaskGroup("g")
    group.add_task("@daily")(report)
    group.add_dynamic_task("report", "@daily", name="extra")
    prepared = group.add_task("@daily", register=False)
    changes: list[Callable[[], object]] = [lambda: prepared(clean), lambda: group.register_function(clean, name="c")]
    with group.in_use(Keeping()), group.in_use(Keeping()):
        pass
    with group.in_use(Keeping()):
        with group.in_use(Keeping()):
            pass
        for change in changes:
            with pytest.raises(GroupInUse, match=r"task 'g/.*declare before"):
                change()
        assert [task.name for task in group.tasks] == ["report", "extra"]
    for change in changes:
        change()
    assert [task.name for task in group.tasks] == ["report", "extra", "clean"]

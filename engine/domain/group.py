"""Tasks declared together, with the functions that tasks made at run time may use.

Flags may be given by position, as in fastapi-task-manager, whose signatures these are.
"""
# ruff: noqa: FBT001, FBT002, PLR0917

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, TypedDict, TypeVar, Unpack, final, overload

from engine.domain.declaring import (
    dynamic_name,
    pairs,
    refuse_arguments,
    refuse_bare,
    runnable_name,
    task_names,
    unique_tags,
)
from engine.domain.dynamic import DynamicTasks, Keeper, Made, Redeclared, Removed
from engine.domain.names import validate_name
from engine.domain.task import Definition, Task, check_setting, encode_kwargs
from engine.errors import (
    DuplicateTask,
    EngineStateError,
    FunctionAlreadyRegistered,
    FunctionNotRegistered,
    GroupInUse,
    InvalidName,
    TaskDeclarationError,
    TaskTypeError,
    UnknownTask,
)

log = logging.getLogger("fastapi.task-manager.group")

_Function = TypeVar("_Function", bound=Callable[..., Any])


class DynamicOptions(TypedDict, total=False):
    """What else can be said of a dynamic task, as in ``TaskGroup.add_dynamic_task``."""

    name: str | None
    description: str | None
    high_priority: bool
    tags: Sequence[str] | None
    retry_backoff: float | None
    retry_backoff_max: float | None
    allow_parallel: bool | None
    timezone: str
    max_retries: int | None
    timeout: float | None
    run_on_first_start: bool


@final
class TaskGroup:
    """A named set of tasks. Each has its ``tags``, and inherits ``allow_parallel`` and ``max_retries``.

    Declare before the engine starts: while it runs, only dynamic tasks come and go. Every error is raised by the
    declaration, which then adds nothing.
    """

    def __init__(
        self,
        name: str,
        tags: Sequence[str] | None = None,
        allow_parallel: bool | None = None,
        *,
        max_retries: int | None = None,
    ) -> None:
        try:
            self._name = validate_name("group", name)
        except InvalidName as error:
            raise TaskDeclarationError(str(name), "group", str(error)) from error
        self._tags = unique_tags(self._name, tags)
        check_setting(self._name, "allow_parallel", allow_parallel)
        check_setting(self._name, "max_retries", max_retries)
        self._allow_parallel = allow_parallel
        self._max_retries = max_retries
        self._tasks: dict[str, Task] = {}
        self._functions: dict[str, Callable[..., Any]] = {}
        self._dynamic = DynamicTasks()
        self._keepers: list[Keeper] = []
        self._lock = Lock()
        """While an engine runs, dynamic tasks come and go from any thread."""

    def __repr__(self) -> str:
        return f"<TaskGroup {self._name!r}: {len(self.tasks)} tasks, {len(self._functions)} functions>"

    @property
    def name(self) -> str:
        """The group's name."""
        return self._name

    @property
    def tags(self) -> list[str]:
        """A copy of the tags that every task of the group has."""
        return list(self._tags)

    @property
    def allow_parallel(self) -> bool | None:
        """What tasks inherit that do not say; None leaves it to the Config."""
        return self._allow_parallel

    @property
    def max_retries(self) -> int | None:
        """What tasks inherit that do not say; None leaves it to the Config."""
        return self._max_retries

    @property
    def tasks(self) -> list[Task]:
        """A copy, in the order of declaration; while an engine runs, with the dynamic tasks of the whole cluster."""
        with self._lock:
            return list(self._all().values())

    @property
    def declared(self) -> list[Task]:
        """A copy of those that this process declares, in the order of declaration."""
        with self._lock:
            return list(self._tasks.values())

    @property
    def function_registry(self) -> dict[str, Callable[..., Any]]:
        """A copy: the functions that dynamic tasks can use, by name."""
        return dict(self._functions)

    @contextmanager
    def in_use(self, keeper: Keeper) -> Iterator[None]:
        """Have dynamic tasks go to a running engine during the block, and refuse other changes. Several may at once."""
        with self._lock:
            self._keepers = [*self._keepers, keeper]
        try:
            yield
        finally:
            with self._lock:
                self._keepers = [one for one in self._keepers if one is not keeper]
                if not self._keepers:
                    self._dynamic = DynamicTasks()

    def forget_engines(self) -> None:
        """In the child of a fork, where none runs, and the lock may be held by a thread that is not there."""
        self._lock, self._keepers, self._dynamic = Lock(), [], DynamicTasks()

    def hear(self, version: int, dynamic: Iterable[Definition], withdrawn: Iterable[str]) -> None:
        """The dynamic tasks that the cluster has in this group, and the names of those that were removed from it."""
        known = self._functions
        kept = {one.name: Task(one, known[one.function]) for one in dynamic if one.function in known}
        with self._lock:
            self._dynamic.hear(version, kept, frozenset(withdrawn))

    def undeclare(self, names: Iterable[str]) -> None:
        """Declare these dynamic tasks no longer: they were removed from everywhere long ago."""
        with self._lock:
            for name in names:
                self._tasks.pop(name, None)

    def note_made(self, task: Task, version: int) -> None:
        """A dynamic task is kept in Redis, since that version of the catalog."""
        with self._lock:
            self._dynamic.made(task, version)

    def note_refused(self, task: Task) -> None:
        """A dynamic task that was asked for cannot be had."""
        with self._lock:
            self._dynamic.refused(task)

    def note_removed(self, task_name: str, version: int) -> None:
        """A dynamic task was removed from everywhere, at that version of the catalog."""
        with self._lock:
            self._dynamic.removed(task_name, version)

    @overload
    def register_function(self, function: _Function, *, name: str | None = None) -> _Function: ...

    @overload
    def register_function(
        self, function: str | None = None, *, name: str | None = None
    ) -> Callable[[_Function], _Function]: ...

    def register_function(self, function: str | Callable[..., Any] | None = None, *, name: str | None = None) -> Any:
        """Make a function known under ``name`` or its own, for dynamic tasks. Declares no task.

        As a decorator, bare or with a name (``@group.register_function("report")``), or called directly.

        Raises:
            FunctionAlreadyRegistered: the name belongs to another function.
            TaskDeclarationError: the name is refused, or the function is a generator.
            TaskTypeError: no function, or two names.
            GroupInUse: an engine with this group runs.
        """
        if function is not None and not isinstance(function, str):
            self._register(name, function)
            return function
        if function is not None and name is not None:
            raise TaskTypeError(f"{self._name}/{name}", "name", f"{function!r} is given as well; give one name")
        given = function if name is None else name

        def decorate(decorated: _Function) -> _Function:
            self._register(given, decorated)
            return decorated

        return decorate

    def add_task(
        self,
        expr: str | list[str],
        kwargs: dict[str, Any] | list[dict[str, Any]] | None = None,
        tags: Sequence[str] | None = None,
        name: str | None = None,
        description: str | None = None,
        high_priority: bool = False,
        retry_backoff: float | None = None,
        retry_backoff_max: float | None = None,
        register: bool = True,
        allow_parallel: bool | None = None,
        *,
        timezone: str = "UTC",
        max_retries: int | None = None,
        timeout: float | None = None,
        run_on_first_start: bool = False,
        names: Sequence[str] | None = None,
    ) -> Callable[[_Function], _Function]:
        """Decorate a function to run it on a schedule; with lists, once per pair of expression and kwargs.

        A task is called ``name``, or what its function is; from a list ``name-1``, ``name-2`` by position, or
        as ``names`` says. The function is registered too, under ``name`` or its own, unless
        ``register=False``.

        Raises:
            TaskTypeError: (a TypeError) lists of different lengths, a parameter of the wrong type, or kwargs
                that the function does not take.
            DuplicateTask: (a RuntimeError) the group has a task of that name.
            TaskDeclarationError: (a RuntimeError) invalid cron, unknown zone, number out of range.
            GroupInUse: (a RuntimeError) an engine with this group runs.
        """
        refuse_bare(self._name, expr)

        def decorate(function: _Function) -> _Function:
            own_name = runnable_name(self._name, name, function)
            self._refuse_change(own_name)
            declared = pairs(f"{self._name}/{own_name}", expr, kwargs)
            several = isinstance(expr, list) or isinstance(kwargs, list)
            tasks = [
                self._task(
                    function,
                    name=task_name,
                    function=own_name,
                    expression=expression,
                    kwargs=arguments,
                    tags=tags,
                    description=description,
                    high_priority=high_priority,
                    retry_backoff=retry_backoff,
                    retry_backoff_max=retry_backoff_max,
                    allow_parallel=allow_parallel,
                    timezone=timezone,
                    max_retries=max_retries,
                    timeout=timeout,
                    run_on_first_start=run_on_first_start,
                )
                for task_name, (expression, arguments) in zip(
                    task_names(self._name, own_name, names, len(declared), several=several), declared, strict=True
                )
            ]
            self._refuse_duplicates(tasks)
            if register and self._functions.get(own_name) is not function:
                self._register(own_name, function)
            self._tasks.update({task.name: task for task in tasks})
            return function

        return decorate

    def add_dynamic_task(
        self,
        function_name: str,
        cron_expression: str,
        kwargs: dict[str, Any] | None = None,
        name: str | None = None,
        description: str | None = None,
        high_priority: bool = False,
        tags: Sequence[str] | None = None,
        retry_backoff: float | None = None,
        retry_backoff_max: float | None = None,
        allow_parallel: bool | None = None,
        *,
        timezone: str = "UTC",
        max_retries: int | None = None,
        timeout: float | None = None,
        run_on_first_start: bool = False,
        persist: bool = True,
    ) -> Task:
        """Make a task from a registered function. Never waits for Redis; from any thread.

        Without a name it is ``<function>-<8 hex digits>`` of its kwargs, cron and zone: the same everywhere.
        Just the same task again is no error, and changes nothing.

        Before the engine starts it declares, as code does: the task lasts as long as a live worker declares it, and
        is kept nowhere. While the engine runs the task is kept in Redis for every process, until somebody removes it;
        with ``persist=False`` it is declared then too. If the name turns out to be taken, the log says so
        (ERROR), and the task is gone from here: ``create_task`` waits for the answer.

        Raises:
            FunctionNotRegistered: (a RuntimeError) the group does not know ``function_name``.
            DuplicateTask: (a RuntimeError) the group has another task of that name.
            TaskDeclarationError, TaskTypeError: as ``add_task``.
        """
        task = self.prepare(
            function_name,
            cron_expression,
            kwargs,
            name=name,
            description=description,
            high_priority=high_priority,
            tags=tags,
            retry_backoff=retry_backoff,
            retry_backoff_max=retry_backoff_max,
            allow_parallel=allow_parallel,
            timezone=timezone,
            max_retries=max_retries,
            timeout=timeout,
            run_on_first_start=run_on_first_start,
        )
        with self._lock:
            if (same := self._same(task)) is not None:
                return same
            for keeper in self._keepers:
                keeper.check(task)
            if persist and self._keepers:
                self._dynamic.ask(task)
            else:
                self._tasks[task.name] = task
            for keeper in self._keepers:
                keeper.post(Made(task) if persist else Redeclared(task))
        log.info("Dynamic task '%s' added to group '%s'", task.name, self._name)
        return task

    async def create_task(
        self,
        function_name: str,
        cron_expression: str,
        kwargs: dict[str, Any] | None = None,
        **options: Unpack[DynamicOptions],
    ) -> Task:
        """Make a task from a registered function, and keep it in Redis for every process, until somebody removes it.

        On the loop of the application around the running engine, or in the engine's own trio run. When it returns,
        Redis has the task; every process knows it moments later. Cancelled, it may have been made.

        Raises:
            NameTaken: (a RuntimeError) the cluster has a task of that name.
            PayloadTooLarge: it is larger than ``max_payload_bytes``.
            EngineStateError: (a RuntimeError) no engine with this group runs here.
            RedisUnavailable: no answer; it may have been made.
            FunctionNotRegistered, TaskDeclarationError, TaskTypeError: as ``add_dynamic_task``.
        """
        task = self.prepare(function_name, cron_expression, kwargs, **options)
        first, *others = self._running("create_task")
        await first.create(task)
        for keeper in others:
            keeper.post(Made(task))
        return task

    def remove_dynamic_task(self, task_name: str) -> Task:
        """Remove a dynamic task from here and, while an engine runs, from every process. Never waits for Redis.

        Raises:
            UnknownTask: (a RuntimeError) there is none of that name, or it is declared by code.
        """
        label = f"{self._name}/{task_name}"
        with self._lock:
            task = self._all().get(task_name)
            if task is None:
                raise UnknownTask(label, "name", "not found in its group")
            if not task.dynamic:
                raise UnknownTask(label, "name", "declared by code; remove it there, or pause it")
            self._tasks.pop(task_name, None)
            if self._keepers:
                self._dynamic.leave(task_name)
            for keeper in self._keepers:
                keeper.post(Removed(task.definition))
        log.info("Dynamic task '%s' removed from group '%s'", task_name, self._name)
        return task

    async def remove_task(self, task_name: str) -> None:
        """Remove a dynamic task from every process, with all that is known of it. Where: as ``create_task``.

        Also one that only other processes know. Runs in progress go on, and leave no verdict.

        Raises:
            NoSuchTask: the cluster has none of that name.
            StaticTask: (a RuntimeError) code declares it.
            EngineStateError: (a RuntimeError) no engine with this group runs here.
            RedisUnavailable: no answer; it may have been removed.
        """
        first, *others = self._running("remove_task")
        definition = await first.remove(self._name, task_name)
        for keeper in others:
            keeper.post(Removed(definition))

    def prepare(
        self,
        function_name: str,
        cron_expression: str,
        kwargs: dict[str, Any] | None = None,
        **options: Unpack[DynamicOptions],
    ) -> Task:
        """A dynamic task, checked and not added anywhere. Raises what ``add_dynamic_task`` raises but DuplicateTask."""
        settings: dict[str, Any] = {"timezone": "UTC", **options}
        given = settings.pop("name", None)
        registered = self._functions.get(function_name)
        if registered is None:
            known = ", ".join(sorted(self._functions)) or "none"
            label = f"{self._name}/{function_name if given is None else given}"
            reason = f"{function_name!r} is not registered in group {self._name!r}; it knows {known}"
            raise FunctionNotRegistered(label, "function_name", reason)
        arguments = {} if kwargs is None else kwargs
        zone = settings["timezone"]
        return self._task(
            registered,
            name=dynamic_name(self._name, function_name, cron_expression, zone, arguments) if given is None else given,
            function=function_name,
            expression=cron_expression,
            kwargs=arguments,
            dynamic=True,
            **settings,
        )

    def _all(self) -> dict[str, Task]:
        return self._dynamic.merged_with(self._tasks)

    def _same(self, task: Task) -> Task | None:
        """The very task, if the group has it. Raises DuplicateTask if it has another of that name."""
        standing = self._all().get(task.name)
        if standing is None or standing.definition == task.definition:
            return standing
        label = f"{self._name}/{task.name}"
        raise DuplicateTask(label, "name", "another task of its group has it; give another name=, or remove that one")

    def _running(self, operation: str) -> list[Keeper]:
        if not self._keepers:
            reason = f"no engine with group {self._name!r} runs here; before the start use add_dynamic_task"
            raise EngineStateError(operation, reason)
        return self._keepers

    def _task(
        self,
        function_object: Callable[..., Any],
        *,
        name: str,
        function: str,
        kwargs: dict[str, Any],
        tags: Sequence[str] | None = None,
        allow_parallel: bool | None = None,
        max_retries: int | None = None,
        **rest: Any,
    ) -> Task:
        label = f"{self._name}/{name}"
        definition = Definition(
            group=self._name,
            name=name,
            function=function,
            kwargs_json=encode_kwargs(label, kwargs),
            tags=tuple(dict.fromkeys((*self._tags, *unique_tags(label, tags)))),
            allow_parallel=self._allow_parallel if allow_parallel is None else allow_parallel,
            max_retries=self._max_retries if max_retries is None else max_retries,
            **rest,
        )
        refuse_arguments(label, function_object, definition.kwargs)
        return Task(definition, function_object)

    def _refuse_duplicates(self, tasks: Iterable[Task]) -> None:
        taken: set[str] = set()
        for task in tasks:
            if task.name in taken or task.name in self._tasks:
                label = f"{self._name}/{task.name}"
                raise DuplicateTask(label, "name", "already declared in its group; give another name= or names=")
            taken.add(task.name)

    def _refuse_change(self, name: str) -> None:
        if self._keepers:
            reason = "cannot change while an engine with it runs, which read it at its start; declare before that"
            raise GroupInUse(f"{self._name}/{name}", "group", reason)

    def _register(self, given: str | None, function: Callable[..., Any]) -> None:
        name = runnable_name(self._name, given, function)
        self._refuse_change(name)
        if name in self._functions:
            reason = f"function {name!r} is already registered in group {self._name!r}; give another name="
            raise FunctionAlreadyRegistered(f"{self._name}/{name}", "name", reason)
        self._functions[name] = function

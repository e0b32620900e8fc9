"""What kind of callable a task's function is."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def unwrap(function: Callable[..., Any]) -> Callable[..., Any]:
    """The callable under any number of ``functools.partial``."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a call gives a coroutine: ``async def``, a partial of it, an object with ``async __call__``.

    A plain function that returns an awaitable (a lambda around a coroutine function, say) cannot be told from
    outside; whoever calls it looks at what it returned.
    """
    return _is_any(function, inspect.iscoroutinefunction)


def is_generator(function: Callable[..., Any]) -> bool:
    """Whether calling it only makes a generator, so that its body would never run."""
    return _is_any(function, inspect.isgeneratorfunction) or _is_any(function, inspect.isasyncgenfunction)


def function_name(function: Callable[..., Any]) -> str:
    """The name it was defined with; that of the class for a callable object."""
    inner = unwrap(function)
    name: str = getattr(inner, "__name__", type(inner).__name__)
    return name


def _is_any(function: Callable[..., Any], kind: Callable[[Any], bool]) -> bool:
    inner = unwrap(function)
    # A class is called through its metaclass, so its own ``__call__`` says nothing of what the call gives.
    return kind(inner) or (not isinstance(inner, type) and kind(type(inner).__call__))

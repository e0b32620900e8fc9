"""What is kept of an exception: words, since the exception would keep all frames of its traceback alive."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import final

_TRACEBACK_CHARACTERS = 8_000  # the end tells most, and snapshots travel through Redis
_ERROR_CHARACTERS = 300


@final
@dataclass(frozen=True, slots=True)
class RecordedFailure:
    """The last failure of a child."""

    error: str
    """Type and text, on one line."""
    traceback: str
    """The end of the formatted traceback."""
    at_s: float
    """When, by the monotonic clock."""

    @classmethod
    def of(cls, error: Exception, *, at_s: float) -> RecordedFailure:
        """Put ``error`` into words."""
        text = "".join(traceback.format_exception(error))
        return cls(error=describe(error), traceback=text[-_TRACEBACK_CHARACTERS:], at_s=at_s)


def real_cause(error: Exception) -> Exception:
    """The exception itself, out of the groups that nurseries wrapped around it. Several stay a group."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def describe(error: Exception) -> str:
    """Type and text of each exception in ``error``, on one line."""
    text = "; ".join(" ".join(f"{type(leaf).__name__}: {leaf}".split()).removesuffix(":") for leaf in _leaves(error))
    return text if len(text) <= _ERROR_CHARACTERS else text[: _ERROR_CHARACTERS - 1] + "…"


def _leaves(error: Exception) -> list[Exception]:
    if isinstance(error, ExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]

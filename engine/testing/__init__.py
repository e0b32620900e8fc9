"""For tests of your own: an engine in virtual time, crash points for your tasks, and an actor that fails on request.

Most of it comes as pytest fixtures (``troupe_engine``, ``fault`` and their kind), without an import: see
docs/testing.md. Nothing here is for production. Names are resolved when first used, so that the pytest plugin costs
nothing where it is not used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.errors import Crashed
    from engine.testing.account import Attempt, Run
    from engine.testing.bodies import Start
    from engine.testing.crashing import crash
    from engine.testing.faults import Fault
    from engine.testing.harness import TroupeEngine

__all__ = ["Attempt", "Crashed", "Fault", "Run", "Start", "TroupeEngine", "crash"]

_HOMES = {
    "Attempt": "engine.testing.account",
    "Crashed": "engine.errors",
    "Fault": "engine.testing.faults",
    "Run": "engine.testing.account",
    "Start": "engine.testing.bodies",
    "TroupeEngine": "engine.testing.harness",
    "crash": "engine.testing.crashing",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

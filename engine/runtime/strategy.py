"""What a supervisor decides, apart from doing it: functions of the children's phases, in start order."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import final

from engine.runtime.spec import Restart, Strategy


@final
class Phase(Enum):
    """Where a child stands in its supervisor's plan."""

    WAITING = auto()
    """Down; to be started when its turn and its time have come."""
    STARTING = auto()
    RUNNING = auto()
    CONDEMNED = auto()
    """Up; to be asked to stop when those after it are down."""
    STOPPING = auto()
    """Asked to stop, perhaps cancelled; not yet down."""
    DONE = auto()
    """Down, and not to be started."""


UP = frozenset({Phase.STARTING, Phase.RUNNING})
LEAVING = frozenset({Phase.CONDEMNED, Phase.STOPPING})
SETTLED = frozenset({Phase.RUNNING, Phase.DONE})


def restarts(restart: Restart, *, crashed: bool) -> bool:
    """Whether a child that ended by itself is started again."""
    return restart is Restart.PERMANENT or (restart is Restart.TRANSIENT and crashed)


def affected(strategy: Strategy, index: int, count: int) -> range:
    """Which of ``count`` children are restarted when the one at ``index`` is."""
    match strategy:
        case Strategy.ONE_FOR_ONE:
            return range(index, index + 1)
        case Strategy.ONE_FOR_ALL:
            return range(count)
        case Strategy.REST_FOR_ONE:
            return range(index, count)


def next_to_stop(phases: Sequence[Phase], *, in_order: bool) -> tuple[int, ...]:
    """The condemned children to ask now: in order, the last one, once nobody after it is still stopping."""
    condemned = [index for index, phase in enumerate(phases) if phase is Phase.CONDEMNED]
    if not in_order:
        return tuple(condemned)
    if not condemned or Phase.STOPPING in phases[condemned[-1] :]:
        return ()
    return (condemned[-1],)


def next_to_start(strategy: Strategy, phases: Sequence[Phase], fresh: Sequence[bool]) -> tuple[int, ...]:
    """The waiting children whose turn it is, whether or not their backoff is over.

    A fresh child (one that was never up) follows the order: all before it must be settled. So does every
    child of a group strategy, and there nothing starts before everything condemned is down. Under one_for_one
    a child that was up before comes back by itself.
    """
    grouped = strategy is not Strategy.ONE_FOR_ONE
    if grouped and any(phase in LEAVING for phase in phases):
        return ()
    ready: list[int] = []
    in_order = True
    for index, phase in enumerate(phases):
        if phase is Phase.WAITING and (in_order or not (grouped or fresh[index])):
            ready.append(index)
        in_order = in_order and phase in SETTLED
    return tuple(ready)

"""Standing still: an application's loop that does not answer, and a whole process in which no thread gets to run.

The first is seen from the engine's thread, which goes on. The second stops that thread too, so it is told afterwards:
whoever held the GIL stands where it gave it up, which is the call that held it, until it gets it back.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias, final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FrameType

__all__ = ["Pulse", "Standstill", "watch_pulse"]

log = logging.getLogger("fastapi.task-manager.runner")

STANDSTILL_S = 1.0
"""A process that stood still for so long is reported."""

BUSY = 0.25
"""The share of that time for which a thread must have computed to be the cause; on a busy machine it gets no more."""

LOOKS = 4
"""How often the engine's thread looks at the clock in the time that the host has for an answer."""

FRAMES = 15
"""How many frames of a stack are shown, the innermost ones."""

Stack: TypeAlias = "list[tuple[FrameType, int]]"
"""Frames with the lines that they were at, the innermost first."""


@final
@dataclass(slots=True, eq=False)
class Pulse:
    """A sign of life for which the engine asks its host."""

    seen: trio.Event = field(default_factory=trio.Event)


async def watch_pulse(
    host_thread: int,
    *,
    send: Callable[[Pulse], None],
    knock: Callable[[], None],
    is_gone: Callable[[], bool],
    pulse_s: float,
) -> None:
    """Report a host that does not answer for ``pulse_s``, once each time, with the stack of what it is doing.

    Its time is counted in looks at the clock, so that a process that stood still is not taken for a host that did.
    ``knock`` wakes the host, and notices one that has ended: a loop may be closed with a wake-up under way.

    Returns when the host has ended, or at least its thread.
    """
    standstill = Standstill(host_thread)
    trio.lowlevel.add_instrument(standstill)
    try:
        while not is_gone():
            pulse, asked_s, looks = Pulse(), trio.current_time(), 0
            send(pulse)
            while not pulse.seen.is_set():
                standstill.note_clocks()
                with trio.move_on_after(pulse_s / LOOKS):
                    await pulse.seen.wait()
                    break
                looks += 1
                if looks == LOOKS and not _report_stall(host_thread, pulse_s):
                    return
                if looks % LOOKS == 0:
                    knock()
            if looks >= LOOKS and not is_gone():
                log.warning("The application's loop is back after %.1f s", trio.current_time() - asked_s)
            for _ in range(LOOKS):
                standstill.note_clocks()
                await trio.sleep(pulse_s / LOOKS)
    finally:
        with suppress(KeyError):  # trio removes one that fails
            trio.lowlevel.remove_instrument(standstill)


def _report_stall(host_thread: int, pulse_s: float) -> bool:
    """False: there is no such thread any more."""
    stack = _stacks().get(host_thread)
    if stack is None:
        log.warning("The thread of the application's loop has ended")
        return False
    log.warning("The application's loop has not answered for %.1f s; it is here:\n%s", pulse_s, _shown(stack))
    return True


@final
class Standstill(trio.abc.Instrument):
    """Reports, from inside the engine's thread, that the thread could not run while it wanted to.

    It looks at the clock in every turn of the engine's loop, before any other thread gets the GIL back: the hooks that
    trio calls first of all are the moment at which the thread that held it still stands there.
    """

    def __init__(self, host_thread: int) -> None:
        self._host_thread = host_thread
        self._due_s = math.inf
        """By when this thread should run again."""

        self._clocks_s: Mapping[int, float] = {}

    def note_clocks(self) -> None:
        """Remember how much each thread has computed so far; who computed during a standstill is told by this."""
        self._clocks_s = _thread_clocks_s()

    def before_io_wait(self, timeout: float) -> None:
        """The thread is going to wait, and wants to be back by then."""
        self._look()
        self._due_s = time.monotonic() + timeout

    def after_io_wait(self, timeout: float) -> None:  # noqa: ARG002  # trio's signature
        """The thread is back."""
        self._look()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002  # trio's signature
        """A step takes no time to speak of, unless the thread had to wait in the middle of it."""
        now_s = time.monotonic()  # as _look, without a call: this is what each step of the engine pays
        if now_s - self._due_s > STANDSTILL_S:
            self._look()
        else:
            self._due_s = now_s

    def _look(self) -> None:
        now_s = time.monotonic()
        late_s, self._due_s = now_s - self._due_s, now_s
        if late_s > STANDSTILL_S:
            stacks = _stacks()  # first of all: every other thread moves on when this one lets the GIL go
            self._report(late_s, stacks, _thread_clocks_s())

    def _report(self, late_s: float, stacks: Mapping[int, Stack], clocks_s: Mapping[int, float]) -> None:
        culprit = _computed(self._clocks_s, clocks_s, at_least_s=BUSY * late_s)
        if culprit == threading.get_ident():
            log.warning("The engine's own thread computed for %.1f s without a pause", late_s)
        elif culprit is not None and culprit in stacks:
            log.warning(
                "The whole process stood still for %.1f s: C code held the GIL, in thread %s; it was here:\n%s",
                *(late_s, _name(culprit), _shown(stacks[culprit])),
            )
        else:
            log.warning(
                "The whole process stood still for %.1f s: C code held the GIL without computing, or the process was "
                "stopped or starved. The application's loop was here:\n%sOther threads:\n%s",
                *(late_s, _shown(stacks.get(self._host_thread, [])), _places(stacks, other_than=self._host_thread)),
            )


def _computed(before_s: Mapping[int, float], after_s: Mapping[int, float], *, at_least_s: float) -> int | None:
    """The thread that computed most, if that was enough."""
    spent_s = {thread: at_s - before_s.get(thread, 0.0) for thread, at_s in after_s.items()}
    most = max(spent_s, key=spent_s.__getitem__, default=None)
    return most if most is not None and spent_s[most] >= at_least_s else None


def _thread_clocks_s() -> dict[int, float]:
    """How much processor time each thread has had, by its identity; nothing where only Linux could tell."""
    found: dict[int, float] = {}
    if sys.platform == "linux":
        for thread in threading.enumerate():
            if thread.ident is not None and thread.native_id is not None:
                # pthread_getcpuclockid would say the same of a living thread, and crash on one that has just ended.
                with suppress(OSError):
                    found[thread.ident] = time.clock_gettime(~thread.native_id << 3 | 6)
    return found


def _stacks() -> dict[int, Stack]:
    """Where every thread is. The lines are read from the sources later: that would let the GIL go."""
    frames = sys._current_frames()  # noqa: SLF001  # the documented way to see other threads
    return {thread: list(islice(traceback.walk_stack(frame), FRAMES)) for thread, frame in frames.items()}


def _shown(stack: Stack) -> str:
    return "".join(traceback.StackSummary.extract(reversed(stack)).format())


def _places(stacks: Mapping[int, Stack], *, other_than: int) -> str:
    """One line for each place in which threads are, but for that one and the one that asks."""
    unasked = {other_than, threading.get_ident()}
    tops = [stack[0] for thread, stack in stacks.items() if thread not in unasked]
    places = Counter(f"{frame.f_code.co_filename}:{line} in {frame.f_code.co_name}" for frame, line in tops)
    return "".join(f"  {count} at {place}\n" for place, count in places.items())


def _name(thread: int) -> str:
    return next((found.name for found in threading.enumerate() if found.ident == thread), str(thread))

"""An actor of the engine that fails on request: what an application does while it is down."""

from __future__ import annotations

from engine.app import running_engines
from engine.domain.run import RunContext
from engine.errors import Crashed, NoCurrentRun, WhichEngine

__all__ = ["Crashed", "crash"]


def crash(path: str) -> None:
    """Have one actor of the engine that runs in this process fail with ``Crashed``, and return at once.

    ``path`` is that of ``Engine.tree()``; the name of the root may be left out. Called in a run, it means the engine
    that executes the run, else the only one that runs. It may be called anywhere in the process: in a test, a handler,
    a task's function on any loop or in a worker thread.

    The actor fails a moment later, in the engine's own thread. Its supervisor restarts it with backoff and counts it,
    as after any crash: more than five in thirty seconds under one supervisor end that supervisor, and at last the
    engine. An actor that is not up at that moment is left alone, and a WARNING says so.

    Raises:
        UnknownActor: nothing has this path; names the nearest.
        CannotCrash: it is a supervisor.
        WhichEngine: no engine runs in this process, or several do and the caller is no run of one of them.
        EngineStateError: the engine has ended just now.
    """
    engines = running_engines()
    try:
        worker_id = RunContext.current().worker_id
    except NoCurrentRun:
        pass
    else:
        engines = [engine for engine in engines if engine.worker_id == worker_id]
    if len(engines) != 1:
        raise WhichEngine(len(engines))
    [engine] = engines
    engine.crash(path, Crashed(path))

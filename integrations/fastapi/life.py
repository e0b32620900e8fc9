"""One life of an engine inside a web application: a thread for the engine, the application's loop for its bodies."""

from __future__ import annotations

import contextvars
import logging
import threading
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, final

import anyio
import anyio.to_thread
import trio

from engine.errors import EngineStateError, TroupeError
from engine.runtime.fork import in_children
from integrations.fastapi.bridge import Bridge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.app import Engine
    from engine.worker import Health

__all__ = ["EngineLife", "running"]

log = logging.getLogger("fastapi.task-manager.runner")

ANSWER_S = 2.0
"""How long the engine's thread may take to say how it is."""


@final
class EngineLife:
    """An engine in a daemon thread, from its start to its end. No signal handler is installed there.

    Made on the application's loop, which runs ``bridge.serve`` for as long as the thread lives.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.bridge = Bridge(begin_within_s=engine.config.run_lease_s, on_host_gone=self.stop)
        self.failure: BaseException | None = None
        """Why the engine ended by itself, if it did. The application goes on, and its health says so."""

        self._token: trio.lowlevel.TrioToken | None = None
        self._stopped = False
        within = contextvars.copy_context()  # in which plain tasks see what the lifespan has set
        self._thread = threading.Thread(target=within.run, args=(self._run,), name="troupe-engine", daemon=True)

    @property
    def alive(self) -> bool:
        """Does the engine's thread run?"""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread, and return at once. Redis need not be there: the engine joins when it is."""
        self._thread.start()

    async def begun(self) -> None:
        """Wait until the engine has its groups and can be asked; or has failed already, as its health will say."""
        with suppress(EngineStateError):
            await self.bridge.ask(self.engine.wait_begun)

    def stop(self) -> None:
        """Ask the engine to stop gracefully, from any thread and at any time, and return at once."""
        self._stopped = True
        if self._token is not None:
            try:
                self._token.run_sync_soon(self.engine.stop)
            except trio.RunFinishedError:
                log.debug("The engine has ended already")

    async def health(self) -> Health | None:
        """How the worker is; None when its thread has ended, or does not answer within moments."""

        async def look() -> Health:
            await trio.lowlevel.checkpoint()
            return self.engine.health()

        with anyio.move_on_after(ANSWER_S):
            try:
                return await self.bridge.ask(look)
            except EngineStateError:
                return None
        return None

    async def answers(self) -> bool:
        """Does the engine's thread answer within moments? False also when it has ended."""
        with anyio.move_on_after(ANSWER_S):
            try:
                await self.bridge.ask(trio.lowlevel.checkpoint)
            except EngineStateError:
                return False
            return True
        return False

    async def wait_ended(self) -> None:
        """Wait for the thread's end, in a worker thread that does not compete with those of the application."""
        if self.alive:  # in the child of a fork it is not, and worker threads are neither
            await anyio.to_thread.run_sync(self._thread.join, limiter=anyio.CapacityLimiter(1))

    def forget(self) -> None:
        """In the child of a fork: the engine's thread stayed with the parent."""
        self._token = None
        self.bridge.forget()

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:  # the end of a thread: who else would tell?
            self.failure = error
            log.critical("The engine failed, and the application goes on without it: %s", error, exc_info=error)
        finally:
            self.bridge.hang_up()

    async def _main(self) -> None:
        failure: TroupeError | None = None
        async with trio.open_nursery() as nursery:
            await nursery.start(self.bridge.attend)
            # From here to serve() there is no checkpoint: a stop() that sees the token comes after its start.
            self._token = trio.lowlevel.current_trio_token()
            if not self._stopped:
                try:
                    await self.engine.serve(host=self.bridge, wait_for_redis=True)
                except TroupeError as error:  # out of here it would be in a group
                    failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure


@asynccontextmanager
async def running(engine: Engine) -> AsyncIterator[EngineLife]:
    """Run the engine beside the block, with its asynchronous bodies on this loop.

    At the end the engine drains, while bodies go on here; only when it has ended does this return, cancelled or not.
    """
    life = EngineLife(engine)
    with in_children(life.forget):
        async with anyio.create_task_group() as host:
            host.start_soon(life.bridge.serve)  # start() would wait for ever if cancelled: it is shielded
            try:
                life.start()
                await life.begun()
                yield life
            finally:
                life.stop()
                with anyio.CancelScope(shield=True):
                    await life.wait_ended()
                life.bridge.close()

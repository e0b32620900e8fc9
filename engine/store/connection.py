"""One connection to Redis: commands in, replies out, in order; reconnected whenever it is lost.

A command goes out at once where none is on its way. Else a sender writes everything queued since its last write, so
callers that do not know of each other share one write. A receiver hands each reply to the oldest command without one. A
watchdog looks at that oldest command alone. A command costs no task and no cancel scope.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from typing import TYPE_CHECKING, Any, Final, final

import hiredis
import trio
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

from engine.errors import RedisUnavailable
from engine.store.call import PENDING, Call, Failed, pack
from engine.store.dial import DialFailed, log_in, open_stream
from engine.store.patience import Telling
from engine.store.pipe import pipe_over
from engine.store.replies import DROPS_CONNECTION, RECOVERING, Refusals, failure_in, reply_error

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from engine.address import Address
    from engine.store.dial import Exchange
    from engine.store.patience import LinkSettings
    from engine.store.pipe import Pipe
    from engine.store.slow_replies import SlowReplies
    from engine.store.topology import Topology

logger = logging.getLogger("fastapi.task-manager.link")

_GRACE_S: Final = 0.05
"""Time for replies that arrived while this process was itself stopped, before their connection is given up."""

_CLOSED: Final = "the link was closed"
_NO_MORE: Final = object()


@final
class Connection:
    """Keeps one connection up while `run` runs, and carries commands over it.

    Args:
        address, context: where Redis is, and how to verify it.
        topology: tells which server that is, at each try.
        name: given to the server, as in CLIENT LIST.
        after: awaited before each try to connect.
        on_change: told whenever the connection came up or went down.
        chance: a number in [0, 1) at each call, to spread reconnects.
        greet: awaited on each new connection before its first command; `DialFailed` refuses the connection.
    """

    def __init__(
        self,
        address: Address,
        context: ssl.SSLContext | None,
        topology: Topology,
        *,
        name: str,
        settings: LinkSettings,
        slow_replies: SlowReplies,
        after: Callable[[], Awaitable[None]],
        on_change: Callable[[], None],
        chance: Callable[[], float],
        greet: Callable[[Exchange], Awaitable[None]] | None = None,
    ) -> None:
        self._topology, self._greet = topology, greet
        self.server: Address | None = None
        """The server of this connection while it is up."""

        self._address, self._context, self._name = address, context, name
        self._settings, self._slow_replies = settings, slow_replies
        self._after, self._on_change, self._chance = after, on_change, chance
        self._timeout_s = settings.command_timeout_s

        self.up_since_s: float | None = None
        self.client_id: int | None = None
        self.refused_at_s: float = -math.inf
        """When the last reply came that said "not now"."""

        self.last_error: str | None = None
        self.commands_sent = self.bytes_sent = self.bytes_received = self.connects = self.drops = 0

        self._running = False
        self._queue: dict[Call, None] = {}  # in order; a dict, so that a cancelled one leaves it at once
        self._queued_bytes = 0  # kept only while down
        self._waiting: deque[Call] = deque()
        self._newest: Call | None = None
        self._idle_sender: Task | None = None
        self._pipe: Pipe | None = None
        self._unsent = b""  # of a command in _waiting
        self._scope: trio.CancelScope | None = None
        self._lost: tuple[str, BaseException | None] | None = None
        self._refusals = Refusals()

    # Commands

    async def request(self, args: tuple[Any, ...], block_s: float) -> Any:
        """Send a command and return its reply as hiredis reads it. Cancelled: it may be done all the same.

        Raises:
            RedisUnavailable: no answer, or one that says so. It may or may not have been done.
            redis.exceptions.ResponseError: Redis refused it.
            redis.exceptions.DataError: an argument that is neither text, bytes nor number.
        """
        await trio.lowlevel.checkpoint_if_cancelled()  # or it would be sent all the same
        reply = await self._outcome(self._enqueue(pack(args), block_s, 1))
        if type(reply) is Failed:
            raise reply.error
        return reply

    async def request_together(self, commands: Sequence[tuple[Any, ...]], block_s: float) -> list[Any]:
        """Send commands over one connection, nobody else's between them. Replies in order, errors as `Failed`.

        ``block_s`` is how long they block together. Raises as `request` does, where there is no answer to all of them.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        call = self._enqueue(b"".join([pack(args) for args in commands]), block_s, len(commands))
        last = await self._outcome(call)
        if len(call.earlier) + 1 < call.count:
            raise last.error  # the connection was lost
        return [*call.earlier, last]

    def _enqueue(self, packed: bytes, block_s: float, count: int) -> Call:
        if self.up_since_s is None:
            self._admit(len(packed))
        now_s = trio.current_time()
        deadline_s = now_s + self._timeout_s + block_s
        newest = self._newest
        if newest is not None and newest.deadline_s > deadline_s - block_s and newest.reply is PENDING:
            # Behind one that blocks for longer: our turn begins when that one ends.
            deadline_s = max(deadline_s, newest.deadline_s + block_s)
        call = self._newest = Call(packed, current_task(), now_s, block_s, deadline_s, count=count)
        if self._waiting or self._queue or self._pipe is None:
            self._queue[call] = None
        else:
            self._send_at_once(call, self._pipe)
        if (self._queue or self._unsent) and self._idle_sender is not None:
            reschedule(self._idle_sender)
            self._idle_sender = None
        return call

    def _send_at_once(self, call: Call, pipe: Pipe) -> None:
        try:
            sent = pipe.write(call.packed)
        except trio.BrokenResourceError as error:
            self.drop("the connection broke", error)
            sent = 0
        if not sent:
            self._queue[call] = None
            return
        self._unsent = call.packed[sent:]
        self._note_sent([call], len(call.packed))

    def _note_sent(self, calls: Collection[Call], size_bytes: int) -> None:
        self._waiting.extend(calls)
        self.commands_sent += sum([call.count for call in calls])
        self.bytes_sent += size_bytes

    async def _outcome(self, call: Call) -> Any:
        """The last reply, an error as `Failed`."""
        try:
            await wait_task_rescheduled(call.abandon)
        except trio.Cancelled:
            self._withdraw(call)
            raise
        return call.reply

    def blocking_call(self) -> Call | None:
        """The blocking command that Redis is working on, or that is the next to reach it, if any."""
        call = self._oldest()
        return call if call is not None and call.block_s else None

    def waiting(self) -> int:
        """Commands without a reply."""
        return len(self._queue) + len(self._waiting)

    def overdue_s(self) -> float:
        """How long the oldest command has waited, beyond the time it asked Redis to block; 0 if none waits."""
        oldest = self._oldest()
        return 0.0 if oldest is None else max(0.0, trio.current_time() - oldest.at_s - oldest.block_s)

    def refusal(self) -> str | None:
        """Why Redis refuses what comes over this connection, while it does."""
        return self._refusals.reason

    def _admit(self, size_bytes: int) -> None:
        """Take a command into the queue of a connection that is down, or refuse it."""
        settings = self._settings
        if not self._running:
            raise RedisUnavailable(f"the link to {self._address.label} is not running")
        if len(self._queue) >= settings.queue_limit or (self._queued_bytes + size_bytes > settings.queue_limit_bytes):
            raise RedisUnavailable(
                f"{self._address.label} is down and {len(self._queue)} commands ({self._queued_bytes} bytes) wait"
            )
        self._queued_bytes += size_bytes

    def _withdraw(self, call: Call) -> None:
        """Take back a command, if it is not sent yet."""
        if call in self._queue:
            del self._queue[call]
            call.reply = None  # no later command waits for its turn behind it
            if self.up_since_s is None:
                self._queued_bytes -= len(call.packed)

    def _oldest(self) -> Call | None:
        return self._waiting[0] if self._waiting else next(iter(self._queue), None)

    # Life

    async def run(self) -> None:
        """Connect, reconnect after every loss, until cancelled. Then fail what still waits."""
        self._running = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                await self._keep_up()
        finally:
            self._running = False
            self._fail([*self._waiting, *self._queue], _CLOSED, None)
            self._waiting.clear()
            self._queue.clear()
            self._queued_bytes = 0

    async def _keep_up(self) -> None:
        failures, telling, connected = 0, Telling(), logging.INFO
        while True:
            await self._after()
            try:
                stream, client_id = await self._connect()
            except DialFailed as error:
                failures += 1
                delay_s = self._settings.backoff.delay_s(failures, self._chance())
                self.last_error = error.reason
                logger.log(
                    telling.level(error.reason, trio.current_time()),
                    "cannot connect to Redis at %s (%s): %s; next try in %.2f s",
                    self._address.label,
                    self._name,
                    error.reason,
                    delay_s,
                )
                connected = logging.INFO
                await trio.sleep(delay_s)
                continue
            connected_s = trio.current_time()
            logger.log(connected, "connected to Redis at %s (%s)", self._address.label, self._name)
            reason = await self._serve(stream, client_id)
            # A server that hangs up right after each login must not be dialled in a hot loop.
            lasted = trio.current_time() - connected_s > self._settings.backoff.ceiling_s
            failures = 1 if lasted else failures + 1
            delay_s = self._settings.backoff.delay_s(failures, self._chance())
            level = telling.level(reason, trio.current_time())
            connected = logging.INFO if level == logging.WARNING else level  # lost again and again: told as seldom
            logger.log(
                level,
                "lost Redis at %s (%s): %s; next try in %.2f s",
                self._address.label,
                self._name,
                reason,
                delay_s,
            )
            await trio.sleep(delay_s)

    async def _connect(self) -> tuple[trio.abc.Stream, int]:
        try:
            with trio.fail_after(self._settings.connect_timeout_s):
                former, self.server = self.server, await self._topology.locate()
                if self.server != former:
                    self._refusals = Refusals()
                try:
                    return await self._enter(self.server)
                except DialFailed as error:
                    if self.server is self._address:
                        raise
                    raise DialFailed(f"{self.server.label}: {error.reason}") from error
        except trio.TooSlowError as error:
            raise DialFailed(f"no answer within {self._settings.connect_timeout_s:g} s") from error

    async def _enter(self, server: Address) -> tuple[trio.abc.Stream, int]:
        stream = await open_stream(server, self._context)
        try:
            return stream, await log_in(stream, server, self._name, self._count, self._welcome)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise

    async def _welcome(self, exchange: Exchange) -> None:
        await self._topology.confirm(exchange)
        if self._greet is not None:
            await self._greet(exchange)

    def _count(self, requests: int, sent_bytes: int, received_bytes: int) -> None:
        self.commands_sent += requests
        self.bytes_sent += sent_bytes
        self.bytes_received += received_bytes

    async def _serve(self, stream: trio.abc.Stream, client_id: int) -> str:
        """Carry commands until the connection is lost; returns why it was."""
        self._lost, self._unsent, pipe = None, b"", pipe_over(stream)
        self.connects += 1
        self.client_id, self.up_since_s = client_id, trio.current_time()
        self._renew_deadlines()
        self._on_change()
        try:
            async with trio.open_nursery() as nursery:
                self._scope, self._pipe = nursery.cancel_scope, pipe
                nursery.start_soon(self._send, pipe)
                nursery.start_soon(self._receive, pipe)
        finally:
            reason = self._come_down()
            await trio.aclose_forcefully(stream)
        return reason

    def _come_down(self) -> str:
        """Fail what was sent and not answered; returns why the connection ended."""
        self._scope = self._pipe = self.client_id = self.up_since_s = None
        if self._lost is None:
            reason, cause = _CLOSED, None
        else:
            reason, cause = self._lost
            self.drops += 1
            self.last_error = reason
        self._fail(self._waiting, f"{reason}; sent to {self._address.label}, not answered", cause)
        self._waiting.clear()
        self._queued_bytes = sum(len(call.packed) for call in self._queue)
        self._on_change()
        return reason

    def _renew_deadlines(self) -> None:
        """Give commands that waited for this connection the time of any other, or they would end it for its youth."""
        deadline_s = trio.current_time() + self._timeout_s
        for call in self._queue:
            call.deadline_s = deadline_s = deadline_s + call.block_s

    def drop(self, reason: str, cause: BaseException | None = None) -> None:
        """Give up this connection. What was sent and not answered fails; what is only queued waits for the next."""
        if self._scope is not None and self._lost is None:
            self._lost, self._pipe = (reason, cause), None
            self._scope.cancel()

    def _fail(self, calls: Collection[Call], reason: str, cause: BaseException | None) -> None:
        for call in calls:
            error = RedisUnavailable(reason)  # one each: tasks add their own tracebacks
            error.__cause__ = cause
            call.answer(Failed(error))

    # The tasks of a connection

    async def _send(self, pipe: Pipe) -> None:
        def stop_waiting(_raise_cancel: object) -> Abort:
            self._idle_sender = None
            return Abort.SUCCEEDED

        try:
            while True:
                if not self._queue and not self._unsent:
                    self._idle_sender = current_task()
                    await wait_task_rescheduled(stop_waiting)
                    continue
                # One cancelled in this very turn of the loop may not have left the queue yet.
                batch = [call for call in self._queue if call.task is not None]
                self._queue, rest, self._unsent = {}, self._unsent, b""
                data = b"".join([call.packed for call in batch])
                self._note_sent(batch, len(data))
                await pipe.send_all(rest + data)
        except trio.BrokenResourceError as error:
            self.drop("the connection broke", error)

    async def _receive(self, pipe: Pipe) -> None:
        errors: list[Exception] = []

        def note_error(text: str) -> Exception:
            errors.append(error := reply_error(text))
            return error

        reader = hiredis.Reader(
            replyError=note_error, encoding="utf-8", errors="backslashreplace", notEnoughData=_NO_MORE
        )
        waiting = self._waiting
        try:
            while data := await pipe.receive():
                self.bytes_received += len(data)
                reader.feed(data)  # type: ignore[arg-type] # its stub forgets bytearray
                self._note_duration()
                while (reply := reader.gets()) is not _NO_MORE:
                    if not waiting:
                        self.drop(f"the server sent a reply to no command: {self._address.redact(repr(reply))[:500]}")
                        return
                    if errors:
                        reply = self._judge(reply, errors)
                        errors.clear()
                    if waiting[0].take(reply):
                        waiting.popleft()
            self.drop("the server closed the connection")
        except trio.BrokenResourceError as error:
            self.drop("the connection broke", error)
        except hiredis.ProtocolError as error:
            self.drop("the server sent what is no reply", error)

    def _judge(self, reply: object, errors: list[Exception]) -> object:
        """What to answer for a reply that is, or contains, ``errors``."""
        error = failure_in(reply, errors)
        if error is None:
            return reply
        if isinstance(error, RedisUnavailable):
            self.refused_at_s = trio.current_time()
            if isinstance(error.__cause__, DROPS_CONNECTION) or self._topology.has_left(error):
                self.drop(error.reason, error)
                self._refusals.began(trio.current_time(), error.reason)
            elif str(error.__cause__).startswith(RECOVERING):
                pass
            elif not self._topology.concerns_others(error) and self._refusals.began(trio.current_time(), error.reason):
                logger.warning(
                    "Redis at %s refuses commands (%s): %s; they are tried again",
                    self._address.label,
                    self._name,
                    error.reason,
                )
        return Failed(error)

    def _note_duration(self) -> None:
        """Remember how long the oldest command waited; those behind it waited less."""
        if self._waiting:
            oldest, now_s = self._waiting[0], trio.current_time()
            self._slow_replies.record(now_s, now_s - oldest.at_s - oldest.block_s)

    async def _watch(self) -> None:
        """Give up a connection, or a command that waits for one, past the deadline of the oldest command."""
        while True:
            oldest, now_s = self._oldest(), trio.current_time()
            if self._refusals.ended(now_s):
                logger.info("Redis at %s refuses commands no longer (%s)", self._address.label, self._name)
            if oldest is None:
                await trio.sleep(self._timeout_s)  # nothing sent meanwhile can be due earlier
            elif oldest.deadline_s > now_s:
                await trio.sleep_until(oldest.deadline_s)
            elif self.up_since_s is None:
                self._expire_queued(now_s)
            else:
                await trio.sleep(_GRACE_S)
                if self._oldest() is oldest:
                    self.drop(f"no reply within {self._timeout_s + oldest.block_s:g} s")

    def _expire_queued(self, now_s: float) -> None:
        expired = [call for call in self._queue if call.deadline_s <= now_s]
        for call in expired:
            self._withdraw(call)
        reason = f"no connection to {self._address.label} within {self._timeout_s:g} s"
        self._fail(expired, f"{reason}: {self.last_error}" if self.last_error else reason, None)

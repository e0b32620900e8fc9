"""``troupe tree`` and ``troupe tasks``: a running cluster, looked at by real commands from outside of it."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.store.servers import free_port
from tests.system.cluster import EVERY_SECOND, ONCE, QUICK, TROUPE, YEARLY, eventually

if TYPE_CHECKING:
    from tests.system.cluster import Cluster, View

TREE: Final = [
    "engine",
    "engine.link",
    "engine.catalog",
    "engine.stats",
    "engine.heartbeat",
    "engine.execution",
    "engine.execution.consumer",
    "engine.scheduling",
    "engine.scheduling.leader",
    "engine.scheduling.coordinator",
    "engine.scheduling.reconciler",
]
"""In start order."""

SUPERVISORS: Final = {"engine": "one_for_one", "engine.execution": "one_for_one", "engine.scheduling": "rest_for_one"}
TASKS: Final = (
    {"name": "tick", "expression": EVERY_SECOND},
    {"name": "long", "expression": YEARLY, "run_on_first_start": True, "seconds": 600, "timezone": "Europe/Vienna"},
)


async def look(cluster: Cluster, *arguments: str, **settings: object) -> str:
    """Run ``troupe`` against the cluster; what it prints. Fails unless it succeeds."""
    given = {"redis_url": cluster.url, "redis_key_prefix": cluster.prefix, **settings}
    env: dict[str, Any] = {f"TROUPE_{key.upper()}": str(value) for key, value in given.items()}
    program = cluster.program(TROUPE, *arguments, name=f"look-{len(cluster.programs)}", **env)
    assert await program.ended() == 0, program.log()
    return program.log()


def nodes(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """Every node of a tree in JSON, in start order."""
    return [tree, *(node for child in tree["children"] for node in nodes(child))]


async def settled_tree(cluster: Cluster) -> str:
    """What ``troupe tree`` prints when the presences tell that everybody is at work."""

    async def scheduling() -> str:
        printed = await look(cluster, "tree")
        return printed if "scheduling 2 tasks" in printed and "keeping 1 leases" in printed else ""

    return await eventually(scheduling, "presences tell what is done now")


async def test_tree_prints_the_supervision_tree_of_every_process(cluster: Cluster, view: View) -> None:
    """Each with its states, restarts and mailboxes; the leader is marked."""
    for _ in range(2):
        cluster.worker(*TASKS, **QUICK)
    only_executes = cluster.worker(*TASKS, **QUICK, can_lead=False)
    await view.present()
    leader = await view.some_leader()
    printed = await settled_tree(cluster)
    workers = {line: printed.index(line) for line in printed.splitlines() if line.startswith("fastapi-task-manager-")}
    assert len(workers) == 3
    assert [f"-{leader.pid}-" in line for line in workers if "LEADER" in line] == [True]
    for worker in cluster.workers:
        (heading,) = (line for line in workers if f"-{worker.pid}-" in line)
        drawn = printed[workers[heading] :].split("\n\n")[0].splitlines()[1:]
        assert [line.strip("│├└─ ").split()[0] for line in drawn] == [
            path.rpartition(".")[2] for path in TREE if worker is not only_executes or "scheduling" not in path
        ]
        assert all("running" in line and "restarts 0" in line for line in drawn)
        mailboxes = [line for line in drawn if re.search(r"mail \d+/\d+ \(peak \d+, received \d+", line)]
        assert len(mailboxes) == len(drawn) - (2 if worker is only_executes else 3)


async def test_tree_gives_the_same_as_json(cluster: Cluster, view: View) -> None:
    """For programs: every worker with its tree, and every node with all that is known of it."""
    for _ in range(2):
        cluster.worker(*TASKS, **QUICK)
    await view.present()
    leader = await view.some_leader()
    await settled_tree(cluster)
    found = json.loads(await look(cluster, "tree", "--json"))
    assert {worker["worker_id"].split("-")[-2] for worker in found} == {str(w.pid) for w in cluster.workers}
    assert [f"-{leader.pid}-" in w["worker_id"] for w in found if w["leader"]] == [True]
    assert sum(worker["running"] for worker in found) == 1
    for worker_said in found:
        assert not worker_said["draining"]
        assert worker_said["note"] is None
        assert 0 <= worker_said["seen_s_ago"] < 30
        for node in nodes(worker_said["tree"]):
            assert node["state"] == "running"
            assert node["restarts"] == 0
            assert node["uptime_s"] > 0
            assert node["strategy"] == SUPERVISORS.get(node["path"])
            assert (node["mailbox"] is None) == (node["path"] in SUPERVISORS)
            if node["mailbox"] is not None:
                assert node["mailbox"]["high_water"] >= node["mailbox"]["depth"] >= 0
                assert node["mailbox"]["capacity"] > 0
    (leading,) = (worker["tree"] for worker in found if worker["leader"])
    assert [node["path"] for node in nodes(leading)] == TREE
    received = {node["path"]: node["mailbox"]["received"] for node in nodes(leading) if node["mailbox"]}
    assert received["engine.heartbeat"] > 0
    assert received["engine.scheduling.coordinator"] > 0


async def test_tree_shows_a_crash_with_its_cause_and_its_restart(cluster: Cluster, view: View) -> None:
    """A role was made to crash, once: it came back by itself."""
    worker = cluster.worker(*TASKS, {"name": "crash", "crashes": "catalog", **ONCE}, **QUICK)
    await view.present()
    await worker.program.logged("engine.catalog failed")

    async def restarted() -> dict[str, Any]:
        (found,) = json.loads(await look(cluster, "tree", "--json"))
        catalog: dict[str, Any] = next(node for node in nodes(found["tree"]) if node["path"] == "engine.catalog")
        return catalog if catalog["restarts"] and catalog["state"] == "running" else {}

    catalog = await eventually(restarted, "the catalog was restarted and runs")
    assert "was made to crash" in catalog["last_failure"]["error"]
    assert "Traceback" in catalog["last_failure"]["traceback"]
    (line,) = (line for line in (await look(cluster, "tree")).splitlines() if "catalog" in line)
    assert re.search(r"running .* restarts [1-9].* failed \S+ ago: .*was made to crash", line)


async def test_tasks_shows_every_task_and_how_it_ended_last(cluster: Cluster, view: View) -> None:
    """Schedule, next run, state and last verdict, from Redis alone; the same as JSON."""
    cluster.worker(*TASKS, **QUICK)
    await view.settled("work/tick")

    async def both() -> str:
        printed = await look(cluster, "tasks")
        return printed if "1 running" in printed else ""

    heading, long, tick = (await eventually(both, "the long run is in progress")).splitlines()
    assert heading.split() == ["TASK", "SCHEDULE", "NEXT", "RUN", "STATE", "LAST"]
    assert re.fullmatch(r"work/long +0 0 1 1 \* Europe/Vienna +\d{4}-12-31T23:00:00Z +1 running +-", long)
    instant = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    assert re.fullmatch(rf"work/tick +\* \* \* \* \* \* +{instant} +\w[\w ]* +ran {instant}", tick)

    found = {task["name"]: task for task in json.loads(await look(cluster, "tasks", "--json"))}
    expected = {
        "group": "work",
        "expression": YEARLY,
        "timezone": "Europe/Vienna",
        "dynamic": False,
        "paused": False,
        "running": 1,
        "queued": 0,
        "last_verdict": None,
    }
    assert expected.items() <= found["long"].items()
    assert (found["tick"]["last_verdict"], found["tick"]["last_reason"]) == ("ran", None)
    assert found["tick"]["last_slot"] < found["tick"]["next_run"]


async def test_an_empty_prefix_is_said_to_be_empty(cluster: Cluster) -> None:
    """Nothing was declared and nobody is there; in JSON that is an empty array."""
    assert await look(cluster, "tree", "--prefix", "nobody") == "no worker is present\n"
    assert await look(cluster, "tasks", "--prefix", "nobody") == "no task is declared\n"
    assert json.loads(await look(cluster, "tasks", "--prefix", "nobody", "--json")) == []


@pytest.mark.slow
async def test_looking_at_a_redis_that_is_not_there_ends_with_69(cluster: Cluster) -> None:
    """After five seconds: the one line says it all, with the address and without the password."""
    url = f"redis://ada:sesame@127.0.0.1:{free_port()}"
    programs = [cluster.program(TROUPE, name, name=name, TROUPE_REDIS_URL=url) for name in ("tree", "tasks")]
    for program in programs:
        assert await program.ended() == 69
        (line,) = program.log().splitlines()
        assert line.startswith("error: no connection to Redis at redis://127.0.0.1:")
        assert "sesame" not in line


@pytest.mark.parametrize(
    ("options", "env", "line"),
    [
        ((), {}, "error: no Redis is named; give --redis-url or --embedded, or set TROUPE_REDIS_URL"),
        (("--redis-url", "http://there"), {}, "error: --redis-url: begins with 'http://'"),
        (("--redis-url", "redis://there", "--prefix", "a b"), {}, "error: --prefix: 'a b'"),
        ((), {"TROUPE_REDIS_URL": "http://there"}, "error: TROUPE_REDIS_URL: begins with 'http://'"),
        (("--redis-url", "rediss://there"), {"TROUPE_REDIS_CA_FILE": "/no"}, "error: TROUPE_REDIS_CA_FILE: /no is no"),
        (("--embedded",), {"XDG_STATE_HOME": "/dev/null"}, "error: the embedded Redis cannot use /dev/null/troupe"),
    ],
)
async def test_a_wrong_address_is_said_in_the_words_of_the_command_line(
    cluster: Cluster, options: tuple[str, ...], env: dict[str, Any], line: str
) -> None:
    """Exit code 78, and one line with the name under which the reader gave it: an option, or a variable."""
    program = cluster.program(TROUPE, "tree", *options, name="look", **env)
    assert await program.ended() == 78
    (said,) = program.log().splitlines()
    assert said.startswith(line)


async def test_two_addresses_at_once_are_bad_arguments(cluster: Cluster) -> None:
    """Exit code 2, as for every mistake on the command line itself."""
    program = cluster.program(TROUPE, "tree", "--embedded", "--redis-url", "redis://there", name="look")
    assert await program.ended() == 2
    assert "Invalid value for --embedded, --redis-url" in " ".join(program.log().replace("│", " ").split())


async def test_looking_into_the_embedded_redis_says_nothing_else(cluster: Cluster) -> None:
    """Whoever looks runs nothing that the warning about production could be for."""
    state = cluster.directory / "s"
    program = cluster.program(TROUPE, "tree", "--embedded", name="look", XDG_STATE_HOME=str(state))
    assert await program.ended() == 0
    assert program.log() == "no worker is present\n"


async def test_a_worker_of_another_version_is_shown_with_what_is_known(cluster: Cluster, view: View) -> None:
    """Its presence has no tree here, or one with a state that nobody here knows; the others are shown as ever."""
    beat = view.store.leases.beat
    told = {"old": '{"worker_id":"old-one"}', "new": '{"v":9,"running":2,"tree":{"path":"engine"}}', "odd": "[]"}
    for worker, details in told.items():
        await beat(worker, [], lease_ms=60_000, details=details, draining=False)
    printed = (await look(cluster, "tree")).split("\n\n")
    assert len(printed) == 3
    assert all("no tree: another version of Troupe may have written this: tree snapshot, " in one for one in printed)
    assert any(one.startswith("old-one (seen ") for one in printed)
    assert any(one.startswith("new (2 running, seen ") for one in printed)
    assert any(one.startswith("odd (seen ") for one in printed)
    found = json.loads(await look(cluster, "tree", "--json"))
    assert [worker["tree"] for worker in found] == [None, None, None]


async def test_the_version_is_that_of_the_distribution(cluster: Cluster) -> None:
    """For whoever reports what happened."""
    assert await look(cluster, "--version") == f"troupe {version('troupe-engine')}\n"


@pytest.mark.parametrize(
    ("command", "codes"),
    [
        ("", ["0", "2", "65", "69", "70", "78", "128"]),
        ("run", ["0", "2", "69", "70", "78", "128"]),
        ("import", ["0", "2", "65", "69", "78"]),
    ],
)
async def test_the_help_names_every_exit_code(cluster: Cluster, command: str, codes: list[str]) -> None:
    """A service manager is configured by them."""
    printed = await look(cluster, *command.split(), "--help")
    assert re.findall(r"^ (\d+) ", printed, flags=re.MULTILINE) == codes

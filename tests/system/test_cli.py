"""``troupe tree`` and ``troupe tasks``: a running cluster, looked at by real commands from outside of it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.store.servers import free_port
from tests.system.cluster import EVERY_SECOND, QUICK, TROUPE, YEARLY, eventually

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


async def test_tree_shows_the_supervision_tree_of_every_process(cluster: Cluster, view: View) -> None:
    """Each with its states, restarts and mailboxes; the leader is marked. Printed for people, or as JSON."""
    for _ in range(2):
        cluster.worker(*TASKS, **QUICK)
    only_executes = cluster.worker(*TASKS, **QUICK, can_lead=False)
    await view.present()
    leader = await view.some_leader()

    async def scheduling() -> str:
        printed = await look(cluster, "tree")
        return printed if "scheduling 2 tasks" in printed and "keeping 1 leases" in printed else ""

    printed = await eventually(scheduling, "presences tell what is done now")
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

    found = json.loads(await look(cluster, "tree", "--json"))
    assert {worker["worker_id"].split("-")[-2] for worker in found} == {str(w.pid) for w in cluster.workers}
    assert [f"-{leader.pid}-" in w["worker_id"] for w in found if w["leader"]] == [True]
    assert sum(worker["running"] for worker in found) == 1
    for worker_said in found:
        assert not worker_said["draining"]
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
    """Something that is no hash stood where the catalogue is kept, for a moment: the role came back by itself."""
    worker = cluster.worker(*TASKS, **QUICK)
    await view.present()
    await view.settled("work/tick")
    keys = view.store.keys
    await view.query("SET", keys.dynamic, "not ours")
    await view.query("INCR", keys.version)  # what makes workers read the catalogue

    await worker.program.logged("engine.catalog failed")
    await view.query("DEL", keys.dynamic)

    async def restarted() -> dict[str, Any]:
        (found,) = json.loads(await look(cluster, "tree", "--json"))
        catalog: dict[str, Any] = next(node for node in nodes(found["tree"]) if node["path"] == "engine.catalog")
        return catalog if catalog["restarts"] and catalog["state"] == "running" else {}

    catalog = await eventually(restarted, "the catalog was restarted and runs")
    assert "WRONGTYPE" in catalog["last_failure"]["error"]
    assert "Traceback" in catalog["last_failure"]["traceback"]
    (line,) = (line for line in (await look(cluster, "tree")).splitlines() if "catalog" in line)
    assert re.search(r"running .* restarts [1-9].* failed \S+ ago: .*WRONGTYPE", line)


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
    assert found["long"] == {
        **found["long"],
        "group": "work",
        "expression": YEARLY,
        "timezone": "Europe/Vienna",
        "dynamic": False,
        "paused": False,
        "running": 1,
        "queued": 0,
        "last_verdict": None,
    }
    assert (found["tick"]["last_verdict"], found["tick"]["last_reason"]) == ("ran", None)
    assert found["tick"]["last_slot"] < found["tick"]["next_run"]


async def test_an_empty_prefix_is_said_to_be_empty(cluster: Cluster) -> None:
    """Nothing was declared and nobody is there; in JSON that is an empty array."""
    assert await look(cluster, "tree", "--prefix", "nobody") == "no worker is present\n"
    assert await look(cluster, "tasks", "--prefix", "nobody") == "no task is declared\n"
    assert json.loads(await look(cluster, "tasks", "--prefix", "nobody", "--json")) == []


@pytest.mark.slow
async def test_looking_at_a_redis_that_is_not_there_ends_with_69(cluster: Cluster) -> None:
    """After five seconds: one line a try, with the address and without the password."""
    url = f"redis://ada:sesame@127.0.0.1:{free_port()}"
    programs = [cluster.program(TROUPE, name, name=name, TROUPE_REDIS_URL=url) for name in ("tree", "tasks")]
    for program in programs:
        assert await program.ended() == 69
        assert "error: no connection to Redis at redis://127.0.0.1:" in program.log().splitlines()[-1]
        assert "sesame" not in program.log()
        assert "Traceback" not in program.log()


async def test_looking_at_no_redis_at_all_ends_with_78(cluster: Cluster) -> None:
    """No address was given, neither as an option nor in the environment."""
    program = cluster.program(TROUPE, "tree", name="look")
    assert await program.ended() == 78
    assert program.log().startswith("error: Config.redis_host: no Redis is named")

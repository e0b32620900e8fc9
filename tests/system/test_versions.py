"""Redis holds what another version of Troupe wrote: refused with a sentence, by whoever comes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from engine.config import Config
from engine.connect import open_store
from engine.errors import OtherSchema
from engine.store.keys import SCHEMA
from tests.system.cluster import EVERY_SECOND, QUICK, eventually

if TYPE_CHECKING:
    from tests.system.cluster import Cluster, View

pytestmark = pytest.mark.timeout(120)

TASK = {"name": "t", "expression": EVERY_SECOND}
OTHERS = pytest.mark.parametrize(
    ("schema", "advice"),
    [
        (str(SCHEMA + 1), "upgrade this process"),
        (str(SCHEMA - 1), "run the version that wrote it"),
        ("nonsense", "run the version that wrote it"),
    ],
)


async def test_the_first_worker_writes_the_version_and_the_next_one_agrees(cluster: Cluster, view: View) -> None:
    """Nothing else needs to be prepared."""
    first = cluster.worker(TASK, **QUICK)
    await cluster.started(first)
    assert await view.query("HGETALL", view.store.keys.meta) == {"schema": str(SCHEMA)}
    second = cluster.worker(TASK, **QUICK)
    await view.present(first, second)
    await cluster.stop()


@OTHERS
async def test_a_worker_refuses_the_keys_of_another_version(
    cluster: Cluster, view: View, schema: str, advice: str
) -> None:
    """Newer or older: it ends with 78, says what to do, and writes nothing."""
    await view.query("HSET", view.store.keys.meta, "schema", schema)
    worker = cluster.worker(TASK, **QUICK)
    assert await worker.program.ended() == 78
    assert f"in schema {schema}, and this version of Troupe knows schema {SCHEMA}: {advice}" in worker.program.log()
    assert "Traceback" not in worker.program.log()
    assert await view.query("KEYS", "*") == [view.store.keys.meta]


@OTHERS
async def test_whoever_looks_is_told_too(cluster: Cluster, view: View, schema: str, advice: str) -> None:
    """As the commands do, at once and not after their timeout."""
    await view.query("HSET", view.store.keys.meta, "schema", schema)
    with pytest.raises(OtherSchema, match=advice) as caught:
        async with open_store(Config(redis_url=cluster.url, redis_key_prefix=cluster.prefix, startup_timeout=600)):
            pass
    assert (caught.value.found, caught.value.ours, caught.value.prefix) == (schema, SCHEMA, cluster.prefix)


async def test_whoever_looks_writes_no_version(cluster: Cluster, view: View) -> None:
    """Looking at an empty Redis leaves it empty."""
    async with open_store(Config(redis_url=cluster.url, redis_key_prefix=cluster.prefix)) as store:
        assert await store.leases.workers() == []
    assert await view.query("KEYS", "*") == []


async def test_a_worker_that_meets_another_history_compares_again(cluster: Cluster, view: View) -> None:
    """On each connection: it ends with 78 rather than write into what is not meant for it."""
    worker = cluster.worker(TASK, **QUICK)
    await cluster.started(worker)
    await view.query("HSET", view.store.keys.meta, "schema", SCHEMA + 1)
    await view.query("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert await worker.program.ended() == 78
    assert "upgrade this process" in worker.program.log()


async def test_a_worker_writes_the_version_into_a_history_that_has_none(cluster: Cluster, view: View) -> None:
    """After FLUSHALL, with whoever is elected then."""
    worker = cluster.worker(TASK, **QUICK)
    await cluster.started(worker)
    await view.query("FLUSHALL")

    async def written() -> bool:
        return bool(await view.query("HGET", view.store.keys.meta, "schema") == str(SCHEMA))

    await eventually(written, "the version is there again")
    assert "Traceback" not in worker.program.log()
    await cluster.stop()

"""A server that starts its application anew whenever a source changes."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.integrations.fastapi.serving import serve
from tests.system.cluster import look_at

if TYPE_CHECKING:
    from tests.system.cluster import Cluster

pytestmark = pytest.mark.slow


async def test_a_reload_ends_one_worker_and_starts_another(cluster: Cluster) -> None:
    """The run in progress may end first; then another process leads, at once, and ends with its server as well."""
    sources = cluster.directory / "sources"
    sources.mkdir()
    source = sources / "anything.py"
    source.touch()
    served = serve(cluster, "uvicorn asyncio", "--reload", "--reload-dir", str(sources), seconds=1.5)
    [first] = await served.wait_for("start", task="loop")
    await served.leading()

    later_s = time.time() + 10  # the server has long seen it as it was: it looks four times a second
    os.utime(source, (later_s, later_s))
    await served.wait_for("entered", count=2)
    health = await served.leading()
    served.program.signal(signal.SIGTERM)
    await served.program.ended()
    assert str(first["pid"]) not in health["worker_id"]
    assert len(served.effects("end", task="loop", pid=first["pid"])) == 1
    events = [effect["event"] for effect in served.effects() if effect["event"] in {"entered", "left"}]
    assert events == ["entered", "left", "entered", "left"]
    assert len(served.program.lines("became LEADER")) == len(served.program.lines("released leadership")) == 2
    assert "Traceback" not in served.program.log()
    async with look_at(cluster) as view:
        assert await view.presences() == {}

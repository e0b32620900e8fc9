"""Arbitrary requests, some as documented and some not: no answer that is not documented, and no failure."""

from __future__ import annotations

import sys
import time
from collections import Counter
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.integrations.fastapi.fuzzed import FUNCTIONS, GROUPS, TASKS
from tests.store.servers import RedisServer, find_binary, free_port
from tests.system.cluster import PATIENCE_S, Program, environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SEED: Final = 20_250_607
EXAMPLES: Final = 30

OLD: Final = tuple(f"old-{number}" for number in range(9))
"""Tasks that were made at run time."""

KNOWN: Final[dict[str, tuple[Any, ...]]] = {
    "task_group_name": GROUPS,
    "task_name": (*TASKS, *OLD),
    "name": (*TASKS, *(f"new-{number}" for number in range(9))),
    "tag": ("slow", *GROUPS),
    "function_name": FUNCTIONS,
    "cron_expression": ("0 0 1 1 *", "@yearly", "*/10 * * * * *"),
    "timezone": ("UTC", "Europe/Rome"),
    "kwargs": ({}, {"name": "Ada"}, {"unknown": 1}),
    "tags": (None, ["new"]),
    "max_retries": (0, 3),
    "retry_backoff": (1.0, 60.0),
    "retry_backoff_max": (60.0, 3_600.0),
    "path": ("link", "catalog", "scheduling.leader", "execution.consumer", "engine.stats", "engine"),
}
"""What chance would not find: names that the application knows, and values that fit together."""

CHECKS: Final = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of a real application under uvicorn, on a real Redis."""
    redis = RedisServer(find_binary("6.2"), tmp_path).start()
    port = free_port()
    factory = ("--factory", "tests.integrations.fastapi.fuzzed:make_app", "--port", str(port))
    server = Program([sys.executable, "-m", "uvicorn", *factory], tmp_path, "server", environment(REDIS=redis.path))
    url = f"http://127.0.0.1:{port}"

    def healthy() -> bool:
        try:
            return requests.get(f"{url}/health", timeout=PATIENCE_S).status_code == 200
        except requests.ConnectionError:
            return False

    try:
        deadline_s = time.monotonic() + PATIENCE_S
        while not healthy():
            assert time.monotonic() < deadline_s, server.log()
            time.sleep(0.05)
        yield url
    finally:
        server.kill()
        redis.kill()
        assert "Exception in ASGI application" not in server.log()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_arbitrary_requests_get_documented_answers(address: str) -> None:
    """Status, content type and shape, for each operation; 503 only as documented, and the exception."""
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    operations: list[Any] = [found.ok() for found in schema.get_all_operations()]  # type: ignore[union-attr]  # or fails
    assert len(operations) == 19
    seen: dict[str, Counter[int]] = {}
    with requests.Session() as session:
        for group, name in product(GROUPS, OLD):
            task = {"task_group_name": group, "function_name": "greet", "cron_expression": "@yearly", "name": name}
            assert session.post(f"{address}/tasks", json=task).status_code == 200
        for operation in operations:
            seen[operation.label] = _fuzz(operation, session)
    total = sum(seen.values(), Counter[int]())
    for label, statuses in seen.items():
        assert 200 in statuses, f"{label} was never tried with what it takes: {statuses}"
    assert total[503] < total.total() / 10, seen
    assert total[422] > 0


def _fuzz(operation: Any, session: requests.Session) -> Counter[int]:
    """The statuses of the answers to requests of all kinds."""
    statuses = Counter[int]()
    modes = [operation.as_strategy(generation_mode=mode) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)]
    known: st.SearchStrategy[dict[str, Any]] = st.just({}) | st.fixed_dictionaries(
        {name: st.sampled_from(values) for name, values in KNOWN.items()}
    )

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.one_of(modes), known=known, shown=st.sampled_from([{}, {"X-Requested-With": "fuzz"}]))
    def send(case: Any, known: dict[str, Any], shown: dict[str, str]) -> None:
        for part in (case.query, case.path_parameters, case.body):
            if isinstance(part, dict):
                part.update({name: value for name, value in known.items() if name in part})
        response = case.call(session=session, headers=shown)
        statuses[response.status_code] += 1
        assert response.status_code < 500 or response.status_code == 503, response.text
        case.validate_response(response, checks=CHECKS)

    send()
    return statuses

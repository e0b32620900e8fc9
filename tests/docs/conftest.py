"""A workshop in which the docs are tried out: a Redis, a home, a copy of the repository."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.docs.workshop import Workshop
from tests.store.servers import RedisServer, find_binary

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """One for all tests; its Redis is the bundled one, on a port of its own."""
    server = RedisServer(find_binary("6.2"), tmp_path_factory.mktemp("redis")).start()
    found = Workshop(f"redis://127.0.0.1:{server.port}/0", tmp_path_factory)
    try:
        yield found
    finally:
        try:
            found.close()
        finally:
            server.kill()

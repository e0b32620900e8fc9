"""Bodies on the application's loop: each is cancelled by itself, and none outlives the block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from integrations.fastapi.bodies import open_bodies
from tests.integrations.fastapi.crossing import LIMIT_S, LOOPS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.integrations.fastapi.crossing import Loop


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Loop:
    found: Loop = request.param
    return found


def on(loop: Loop, main: Callable[[], Awaitable[Any]]) -> None:
    backend, options = loop

    async def limited() -> None:
        with anyio.fail_after(LIMIT_S):
            await main()

    anyio.run(limited, backend=backend, backend_options=options)


def nothing() -> None:
    """Nobody needs to hear of it."""


def test_one_is_cancelled_and_the_others_go_on(loop: Loop) -> None:
    """What comes back from the start cancels that task, once or more often, and when it has ended nothing."""
    said: list[str] = []

    async def main() -> None:
        go_on = anyio.Event()

        async def body(name: str) -> None:
            try:
                await go_on.wait()
                said.append(f"{name} ended")
            except anyio.get_cancelled_exc_class():
                said.append(f"{name} cancelled")
                raise

        async with open_bodies() as started:
            first = started.start(lambda: body("first"), name="first", never_begun=nothing)
            started.start(lambda: body("second"), name="second", never_begun=nothing)
            await anyio.sleep(0.01)
            first()
            first()
            await anyio.sleep(0.01)
            go_on.set()
            await anyio.sleep(0.01)
            first()

    on(loop, main)
    assert said == ["first cancelled", "second ended"]


def test_at_the_end_of_the_block_all_are_cancelled_and_waited_for(loop: Loop) -> None:
    """With what they do to clean up."""
    said: list[str] = []

    async def main() -> None:
        async def body() -> None:
            try:
                await anyio.sleep(LIMIT_S)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.05)
                said.append("clean")

        async with open_bodies() as started:
            for number in range(3):
                started.start(body, name=str(number), never_begun=nothing)
            await anyio.sleep(0.01)
        said.append("over")

    on(loop, main)
    assert said == ["clean", "clean", "clean", "over"]


def test_who_cancels_the_block_waits_for_them_too(loop: Loop) -> None:
    """The cancellation goes on when the last of them has ended."""
    said: list[str] = []

    async def main() -> None:
        async def body() -> None:
            try:
                await anyio.sleep(LIMIT_S)
            finally:
                said.append("ended")

        with anyio.CancelScope() as scope:
            async with open_bodies() as started:
                started.start(body, name="body", never_begun=nothing)
                await anyio.sleep(0.01)
                scope.cancel()
                await anyio.sleep(LIMIT_S)
        assert scope.cancelled_caught
        said.append("over")

    on(loop, main)
    assert said == ["ended", "over"]


def test_one_that_is_cancelled_before_its_first_step_is_told_of_or_begins(loop: Loop) -> None:
    """It is never forgotten."""
    said: list[str] = []

    async def main() -> None:
        async def body() -> None:
            said.append("over")
            await anyio.lowlevel.checkpoint()

        async with open_bodies() as started:
            started.start(body, name="body", never_begun=lambda: said.append("over"))()
            await anyio.sleep(0.01)

    on(loop, main)
    assert said == ["over"]


def test_one_that_goes_on_after_its_cancellation_is_cancelled_again_at_the_end(loop: Loop) -> None:
    """Who swallows it keeps the block open until it has been told often enough."""
    swallowed: list[int] = []

    async def main() -> None:
        async def stubborn() -> None:
            while len(swallowed) < 3:
                try:
                    await anyio.sleep(LIMIT_S)
                except anyio.get_cancelled_exc_class():
                    swallowed.append(1)

        async with open_bodies() as started:
            started.start(stubborn, name="stubborn", never_begun=nothing)
            await anyio.sleep(0.01)

    on(loop, main)
    assert len(swallowed) == 3

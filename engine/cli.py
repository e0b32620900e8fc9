"""The command ``troupe``: run an engine, and look at a cluster from any host that reaches its Redis."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TypeVar

import trio
import typer

from engine.app import EX_UNAVAILABLE, Engine
from engine.config import Config
from engine.connect import open_store
from engine.errors import ConfigError, RedisUnavailable, RedisUnreachable, TroupeError
from engine.runtime import render
from engine.store.store import Store
from engine.views import TaskView, WorkerView, read_tasks, read_workers

__all__ = ["app", "main"]

EX_CONFIG = 78
"""sysexits.h: something is wrong with the configuration."""

V = TypeVar("V", WorkerView, TaskView)

app = typer.Typer(
    name="troupe",
    help="Run scheduled work across processes and hosts, and look at it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RedisUrl = Annotated[
    str | None, typer.Option("--redis-url", help="redis://…, rediss://… or unix://…; else TROUPE_REDIS_URL.")
]
Prefix = Annotated[str | None, typer.Option("--prefix", help="redis_key_prefix of the application.")]
Embedded = Annotated[bool, typer.Option("--embedded", help="Look into this user's embedded Redis.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON array on standard output.")]


@app.command("run")
def run(
    target: Annotated[str, typer.Argument(metavar="MODULE:ENGINE", help="Where the engine is, such as app:engine.")],
    log_level: Annotated[str, typer.Option(help="Of the log on standard error.")] = "INFO",
) -> None:
    """Run the engine until SIGINT or SIGTERM, then stop gracefully; a second signal stops at once.

    Exit codes: 0 after a graceful stop, 69 when Redis was not reached, 70 when the engine failed, 78 for a wrong
    configuration, 128 + the signal's number after a second signal.
    """
    level = logging.getLevelNamesMapping().get(log_level.upper())
    if level is None:
        raise typer.BadParameter(f"{log_level!r} is no level: give DEBUG, INFO, WARNING or ERROR")
    if not logging.getLogger().handlers:  # an application that configures logging when imported has the last word
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
        logging.getLogger().addHandler(handler)
        logging.getLogger().setLevel(level)
    try:
        engine = find_engine(target)
        engine.run()
    except TroupeError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EX_CONFIG) from None


@app.command("tree")
def tree(
    redis_url: RedisUrl = None, prefix: Prefix = None, *, embedded: Embedded = False, as_json: AsJson = False
) -> None:
    """Print the supervision tree of every worker. Exit 69 if Redis cannot be reached, 78 for wrong options."""
    show(read_workers, _config(redis_url, prefix, embedded=embedded), worker_lines, as_json=as_json)


@app.command("tasks")
def tasks(
    redis_url: RedisUrl = None, prefix: Prefix = None, *, embedded: Embedded = False, as_json: AsJson = False
) -> None:
    """Print every task: its schedule, its next run, how it ended last. Exit 69 or 78 as for tree."""
    show(read_tasks, _config(redis_url, prefix, embedded=embedded), task_lines, as_json=as_json)


def find_engine(target: str) -> Engine:
    """The engine that ``module:name`` names, with the current folder on the path as for ``python -m``."""
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise typer.BadParameter(f"{target!r} is not MODULE:ENGINE, such as app:engine")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module was found, and something that it imports was not
        raise typer.BadParameter(f"there is no module {module_name!r} in {folder} or on the path") from None
    if not hasattr(module, name):
        raise typer.BadParameter(f"module {module_name!r} has no {name!r}")
    found = getattr(module, name)
    if not isinstance(found, Engine):
        raise typer.BadParameter(f"{target} is of type {type(found).__name__}; give an engine.Engine")
    return found


def show(read: Callable[[Store], Any], config: Config, lines: Callable[[list[V]], list[str]], *, as_json: bool) -> None:
    """Read something from Redis and print it."""
    try:
        found: list[V] = trio.run(partial(_read, read, config))
    except (RedisUnreachable, RedisUnavailable) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EX_UNAVAILABLE) from None
    except TroupeError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EX_CONFIG) from None
    typer.echo(json.dumps([one.to_dict() for one in found]) if as_json else "\n".join(lines(found)))


async def _read(read: Callable[[Store], Any], config: Config) -> Any:
    async with open_store(config) as store:
        return await read(store)


def _config(redis_url: str | None, prefix: str | None, *, embedded: bool) -> Config:
    given = {"redis_url": redis_url, "redis_key_prefix": prefix, "embedded": embedded or None}
    try:
        return Config(**{"startup_timeout": 5.0} | {name: value for name, value in given.items() if value is not None})
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EX_CONFIG) from None


def worker_lines(workers: list[WorkerView]) -> list[str]:
    """A heading and a tree for each worker."""
    if not workers:
        return ["no worker is present"]
    lines = []
    for worker in workers:
        marks = [word for word, holds in (("LEADER", worker.leader), ("draining", worker.draining)) if holds]
        facts = ", ".join([*marks, f"{worker.running} running", f"seen {worker.seen_s_ago:.1f} s ago"])
        lines += [f"{worker.worker_id} ({facts})", render(worker.tree), ""]
    return lines[:-1]


def task_lines(found: list[TaskView]) -> list[str]:
    """A table."""
    if not found:
        return ["no task is declared"]
    rows = [("TASK", "SCHEDULE", "NEXT RUN", "STATE", "LAST")]
    for task in found:
        states = ((task.running, "running"), (task.queued, "queued"), (task.waiting, "waiting to retry"))
        state = [f"{count} {word}" for count, word in states if count]
        zone = "" if task.timezone == "UTC" else f" {task.timezone}"
        last = " ".join(filter(None, (task.last_verdict, task.last_reason and f"({task.last_reason})", task.last_slot)))
        rows.append(
            (
                f"{task.group}/{task.name}",
                task.expression + zone,
                task.next_run or "never",
                "paused" if task.paused else ", ".join(state) or "idle",
                last or "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def main() -> None:
    """The entry point of the command."""
    app()

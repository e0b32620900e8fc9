"""The command ``troupe``: run an engine, and look at a cluster from any host that reaches its Redis."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Annotated, Any, NoReturn, TypeVar

import trio
import typer

from engine.app import EX_CONFIG, Engine, exit_code
from engine.config import Config
from engine.connect import open_store
from engine.errors import ConfigError, TroupeError
from engine.migration import Finding, import_predecessor
from engine.runtime import render
from engine.store.store import Store
from engine.version import VERSION
from engine.views import PauseView, TaskView, WorkerView, iso, read_tasks, read_workers

__all__ = ["app", "main"]

STARTUP_TIMEOUT_S = 5.0
"""For commands that look: whoever typed one waits for it."""

OPTIONS = {"redis_url": "--redis-url", "redis_key_prefix": "--prefix", "embedded": "--embedded"}
"""The settings that have an option here; any other comes from the environment."""

EX_DATAERR = 65
"""Of sysexits.h: some of what was there to take could not be taken."""

V = TypeVar("V", WorkerView, TaskView, Finding)

app = typer.Typer(
    name="troupe",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def show_version(wanted: bool) -> None:  # noqa: FBT001 - typer passes it by position
    """Print the version, and nothing else."""
    if wanted:
        typer.echo(f"troupe {VERSION}")
        raise typer.Exit


RedisUrl = Annotated[
    str | None, typer.Option("--redis-url", help="redis://…, rediss://… or unix://…; else TROUPE_REDIS_URL.")
]
Prefix = Annotated[
    str | None, typer.Option("--prefix", help="redis_key_prefix of the application; else TROUPE_REDIS_KEY_PREFIX.")
]
Embedded = Annotated[bool, typer.Option("--embedded", help="Look into this user's embedded Redis.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON array on standard output.")]
Version = Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")]
Api = Annotated[
    str | None,
    typer.Option(
        "--api",
        metavar="ADDRESS:PORT",
        help="Serve the HTTP API there, such as 127.0.0.1:8000. An address that other hosts reach needs "
        "TROUPE_API_TOKEN.",
    ),
]
LogLevel = Annotated[
    str,
    typer.Option(
        help="The least level that is logged to standard error: DEBUG, INFO, WARNING, ERROR or CRITICAL. "
        "Without effect on an application that configures logging itself."
    ),
]


@app.callback()
def troupe(*, version: Version = False) -> None:
    """Run scheduled work across processes and hosts, and look at it.

    Exit codes:
    0    done, or stopped gracefully
    2    bad arguments
    65   something could not be taken over
    69   Redis was not reached
    70   the engine failed
    78   a person must act: on a setting, the module, the embedded Redis
    128  and the signal's number, after a second signal
    """


@app.command("run")
def run(
    target: Annotated[str, typer.Argument(metavar="MODULE:ENGINE", help="Where the engine is, such as app:engine.")],
    api: Api = None,
    log_level: LogLevel = "INFO",
) -> None:
    """Run the engine until SIGINT or SIGTERM, then stop gracefully; a second signal stops at once.

    Exit codes:
    0    stopped gracefully
    2    bad arguments
    69   Redis was not reached within startup_timeout, or the address of the API is taken
    70   the engine failed
    78   a person must act: on a setting, the module, the embedded Redis, the address of the API
    128  and the signal's number, after a second signal
    """
    level = logging.getLevelNamesMapping().get(log_level.upper())
    if level is None:
        raise typer.BadParameter(
            f"{log_level!r} is no level; give DEBUG, INFO, WARNING, ERROR or CRITICAL", param_hint="--log-level"
        )
    if not logging.getLogger().handlers:  # an application that configures logging when imported has the last word
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
        logging.getLogger().addHandler(handler)
        logging.getLogger().setLevel(level)
    find_engine(target).run(api=api)


@app.command("tree")
def tree(
    redis_url: RedisUrl = None, prefix: Prefix = None, *, embedded: Embedded = False, as_json: AsJson = False
) -> None:
    """Print the supervision tree of every worker.

    Exit codes:
    0    done
    2    bad arguments
    69   Redis was not reached within five seconds
    78   a person must act: on a setting or the embedded Redis
    """
    show(
        lambda store, _: read_workers(store), worker_lines, given(redis_url, prefix, embedded=embedded), as_json=as_json
    )


@app.command("tasks")
def tasks(
    redis_url: RedisUrl = None, prefix: Prefix = None, *, embedded: Embedded = False, as_json: AsJson = False
) -> None:
    """Print every task: its schedule, its next run, how it ended last.

    Exit codes:
    0    done
    2    bad arguments
    69   Redis was not reached within five seconds
    78   a person must act: on a setting or the embedded Redis
    """
    show(read_tasks, task_lines, given(redis_url, prefix, embedded=embedded), as_json=as_json)


@app.command("import")
def take_over(
    from_prefix: Annotated[str, typer.Option(help="redis_key_prefix of the application in fastapi-task-manager.")],
    redis_url: RedisUrl = None,
    prefix: Prefix = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would be done.")] = False,
    embedded: Embedded = False,
    as_json: AsJson = False,
) -> None:
    """Take over from fastapi-task-manager, in the same database: tasks made at run time, and which tasks are disabled.

    Start the application under Troupe once before this: whose flag it is, is known from what it declares.

    Prints a line for everything that is there: whether it was taken, or why not. Nothing of the old keys is changed.
    What is here already stays as it is, so this can be repeated. What was resumed or removed since comes back, though,
    as long as the old keys are there. A disabled task is paused until somebody resumes it.

    Exit codes:
    0    all that there is was taken, or is here already
    2    bad arguments
    65   something could not be taken; the rest was
    69   Redis was not reached within five seconds, or was lost; repeat it
    78   a person must act: on a setting, the embedded Redis, or rights that do not suffice
    """

    async def read(store: Store, _: Config) -> list[Finding]:
        return await import_predecessor(store, from_prefix, dry_run=dry_run)

    found = show(
        read,
        partial(finding_lines, old_prefix=from_prefix, dry_run=dry_run),
        given(redis_url, prefix, embedded=embedded),
        as_json=as_json,
    )
    if any(finding.outcome == "not taken" for finding in found):
        raise typer.Exit(EX_DATAERR)


def find_engine(target: str) -> Engine:
    """The engine that ``module:name`` names, with the current folder on the path as for ``python -m``."""
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise typer.BadParameter(f"{target!r} is not MODULE:ENGINE, such as app:engine")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = load(module_name)
    if not hasattr(module, name):
        raise typer.BadParameter(f"module {module_name!r} has no {name!r}")
    found = getattr(module, name)
    if not isinstance(found, Engine):
        raise typer.BadParameter(f"{target} is of type {type(found).__name__}; give an engine.Engine")
    return found


def load(module_name: str) -> ModuleType:
    """Import the application. What it raises is shown as ``python -m`` would, without the frames of this command."""
    try:
        return import_module(module_name)
    except TroupeError as error:
        fail(str(error), EX_CONFIG)
    except Exception as error:  # noqa: BLE001  # whatever a module raises, its author wants to see it and nothing else
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise typer.BadParameter(f"there is no module {module_name!r} in {Path.cwd()} or on the path") from None
        traceback.print_exception(error.with_traceback(behind_the_import(error.__traceback__)))
        raise typer.Exit(EX_CONFIG) from None


def behind_the_import(frames: TracebackType | None) -> TracebackType | None:
    """The frames of the module itself, none if it was not even compiled."""
    while frames is not None and (
        (name := frames.tb_frame.f_globals.get("__name__", "")) == __name__ or name.partition(".")[0] == "importlib"
    ):
        frames = frames.tb_next
    return frames


def given(redis_url: str | None, prefix: str | None, *, embedded: bool) -> dict[str, Any]:
    """The settings for which there was an option."""
    if embedded and redis_url is not None:
        raise typer.BadParameter(
            "the two name different places; give one of them", param_hint="--embedded, --redis-url"
        )
    options = {"redis_url": redis_url, "redis_key_prefix": prefix, "embedded": embedded or None}
    return {name: value for name, value in options.items() if value is not None}


def show(
    read: Callable[[Store, Config], Awaitable[list[V]]],
    lines: Callable[[list[V]], list[str]],
    settings: Mapping[str, Any],
    *,
    as_json: bool,
) -> list[V]:
    """Read something from Redis and print it."""
    # The one line that says why nothing can be shown says all; and whoever looks runs nothing that could go wrong.
    logging.getLogger("fastapi.task-manager").addHandler(logging.NullHandler())
    try:
        config = Config(**{"startup_timeout": STARTUP_TIMEOUT_S} | dict(settings))
        found = trio.run(partial(_read, read, config))
    except ConfigError as error:
        fail(about_settings(error, settings), EX_CONFIG)
    except TroupeError as error:
        fail(str(error), exit_code(error))
    typer.echo(json.dumps([one.to_dict() for one in found]) if as_json else "\n".join(lines(found)))
    return found


async def _read(read: Callable[[Store, Config], Awaitable[list[V]]], config: Config) -> list[V]:
    async with open_store(config) as store:
        try:
            return await read(store, config)
        except TroupeError as error:  # out of here it would be in a group
            failure = error
    raise failure


def about_settings(error: ConfigError, settings: Mapping[str, Any]) -> str:
    """What is wrong, by the names that a setting has on the command line and in the environment."""
    if error.field == "redis_host" and "TROUPE_REDIS_HOST" not in os.environ:
        return "no Redis is named; give --redis-url or --embedded, or set TROUPE_REDIS_URL"
    name = OPTIONS[error.field] if error.field in settings else f"TROUPE_{error.field.upper()}"
    return f"{name}: {error.reason.removesuffix(f' ({name} in the environment)')}"


def fail(message: str, code: int) -> NoReturn:
    """End with one line."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)


def worker_lines(workers: list[WorkerView]) -> list[str]:
    """A heading and a tree for each worker."""
    if not workers:
        return ["no worker is present"]
    lines = []
    for worker in workers:
        marks = [word for word, holds in (("LEADER", worker.leader), ("draining", worker.draining)) if holds]
        running = [] if worker.running is None else [f"{worker.running} running"]
        facts = ", ".join([*marks, *running, f"seen {worker.seen_s_ago:.1f} s ago"])
        body = f"no tree: {worker.note}" if worker.tree is None else render(worker.tree)
        lines += [f"{worker.worker_id} ({facts})", body, ""]
    return lines[:-1]


def task_lines(found: list[TaskView]) -> list[str]:
    """A table."""
    if not found:
        return ["no task is declared"]
    rows = [("TASK", "SCHEDULE", "NEXT RUN", "STATE", "LAST")]
    for view in found:
        task, ended = view.definition, view.last
        states = ((view.running, "running"), (view.queued, "queued"), (view.waiting, "waiting to retry"))
        state = [f"{count} {word}" for count, word in states if count]
        zone = "" if task.timezone == "UTC" else f" {task.timezone}"
        told = (ended.verdict, ended.reason and f"({ended.reason})", iso(ended.to_ms)) if ended else ()
        rows.append(
            (
                f"{task.group}/{task.name}",
                task.expression + zone,
                iso(view.next_run_ms) or "never",
                _paused(view.pause) if view.pause else ", ".join(state) or "idle",
                " ".join(filter(None, told)) or "-",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def finding_lines(found: list[Finding], *, old_prefix: str, dry_run: bool) -> list[str]:
    """A line for each, and what to know about all of them."""
    if not found:
        return [f"nothing is under the prefix {old_prefix!r} of fastapi-task-manager"]
    lines = []
    for finding in found:
        outcome = "would be taken" if dry_run and finding.outcome == "taken" else finding.outcome
        task = f" as {finding.task}" if finding.task is not None and finding.outcome != "not taken" else ""
        reason = f": {finding.reason}" if finding.reason else ""
        source = finding.source if finding.source.isprintable() else repr(finding.source)
        lines.append(f"{outcome:<14} {finding.kind:<10} {source}{task}{reason}")
    if any(finding.kind == "flag" and finding.outcome == "taken" for finding in found):
        lines.append("a flag ended by itself there, after five days unless set otherwise; a pause lasts until resumed")
    if dry_run:
        lines.append("nothing was changed: --dry-run")
    return lines


def _paused(pause: PauseView) -> str:
    by = f" by {pause.who}" if pause.who else ""
    return f"paused{by}: {pause.why}" if pause.why else f"paused{by}"


def main() -> None:
    """The entry point of the command."""
    app()

"""README, CONTRIBUTING and docs: every command and every code block is executed.

What a page shows is looked up in ``RULES``, which says how it is tried out. What no rule knows fails.
"""

from __future__ import annotations

import configparser
import os
import re
import shlex
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, final

import httpx
import pytest
import redis
from packaging.requirements import Requirement

from engine.app import EX_CONFIG
from engine.assembly import RESIGN_S
from engine.config import Config
from engine.worker import LAST_WORDS_S
from integrations.hypercorn import GRACE_S
from tests.docs import coming_from, deployment, http_api, standalone_api, testing, tutorial
from tests.docs.documents import PAGES, ROOT, Snippet, snippets
from tests.docs.programs import BIN, environment, shell, started
from tests.docs.workshop import ADDRESS, AT_NIGHT, Workshop
from tests.store import redis_5
from tests.store.servers import free_port

if TYPE_CHECKING:
    from re import Match

pytestmark = [pytest.mark.timeout(180), pytest.mark.slow]


# -- commands ---------------------------------------------------------------------------------------------------------


def make_run(command: Match[str], workshop: Workshop) -> None:
    """In a copy of the repository: the quickstart ticks until Ctrl-C; a second one gets some of the work."""
    folder, env = workshop.clone, environment(workshop.folder("home"))
    with started(command[0], folder=folder, env=env) as first:
        first.wait_for("tick    slot")
        with started(command[0], folder=folder, env=env) as second:
            second.wait_for("tick    slot")
            second.interrupt()
        first.interrupt()
    assert "Traceback" not in first.printed.partition("Signal SIGINT")[2]


def make_test(command: Match[str], workshop: Workshop) -> None:
    """In a copy whose tests are two small ones, since this is one of the tests that it would run here."""
    printed = shell(command[0], folder=workshop.clone, env=environment(workshop.folder("home")))
    assert f"{1 if '-k cron' in command[0] else 2} passed" in printed


def make_check(command: Match[str], workshop: Workshop) -> None:
    """In a copy, with all of the packages and two small tests."""
    printed = shell(command[0], folder=workshop.clone, env=environment(workshop.folder("home")))
    assert "Success: no issues found" in printed
    assert "0 broken" in printed


def make_format(command: Match[str], workshop: Workshop) -> None:
    """In a copy with a file that has another format."""
    untidy = workshop.clone / "tests" / "unit" / "untidy.py"
    untidy.write_text('"""Untidy."""\nNUMBERS = { "one":1 }\n', encoding="utf-8")
    shell(command[0], folder=workshop.clone, env=environment(workshop.folder("home")))
    assert untidy.read_text(encoding="utf-8") == '"""Untidy."""\n\nNUMBERS = {"one": 1}\n'
    untidy.unlink()


def would_execute(command: str, env: dict[str, str]) -> str:
    """The last line that make would execute for it, where everything is installed."""
    shown = shell(f"make -n -o .venv/.installed-dev {command.removeprefix('make ')}", folder=ROOT, env=env)
    return shown.splitlines()[-1].rstrip()


def make_simulate(command: Match[str], workshop: Workshop) -> None:
    """Hundreds of seeds take too long here, and the mutants too: what make would execute, and two seeds of it."""
    env = environment(workshop.folder("home"))
    would = would_execute(command[0], env)
    if command["mutants"]:
        assert "-m tests.simulation --mutants" in would
        return
    assert "-m tests.simulation --seeds " in would
    if command["resumed"] is None:
        return
    assert would.endswith("-m tests.simulation --seeds 10000  --resume passed.txt")
    kept = workshop.folder("simulation") / "passed.txt"
    for left in (2, 0):
        shown = shell(f"{sys.executable} -m tests.simulation --seeds 2 --resume {kept}", folder=ROOT, env=env)
        assert f"{left} seeds in" in shown
        assert "0 failed" in shown


def make_faults(command: Match[str], workshop: Workshop) -> None:
    """A quarter of an hour is too long here: what make would execute, and which faults that chooses."""
    env = environment(workshop.folder("home"))
    chosen = would_execute(command[0], env).rpartition("-m tests.faults")[2]
    listed = shell(f"{sys.executable} -m tests.faults{chosen} --list", folder=ROOT, env=env).splitlines()
    assert listed
    assert all("failover" in name for name in listed) == bool(command["chosen"])


def make_soak(command: Match[str], workshop: Workshop) -> None:
    """Half an hour is too long here: what make would execute, and a moment of it on fewer tasks."""
    env = environment(workshop.folder("home"))
    assert would_execute(command[0], env).endswith("-m tests.soak --minutes 30")
    shown = shell(f"{sys.executable} -m tests.soak --minutes 0.2 --tasks 20", folder=ROOT, env=env)
    assert "nothing lost, nothing doubled" in shown


def make_mutation(_: Match[str], workshop: Workshop) -> None:
    """A sample takes minutes: what make would execute, and that it can be told which."""
    env = environment(workshop.folder("home"))
    assert would_execute("make mutation", env).endswith("-m tests.mutation")
    shown = shell(f"{sys.executable} -m tests.mutation --help", folder=ROOT, env=env)
    assert "--each" in shown
    assert "--seed" in shown


def make_bench(command: Match[str], workshop: Workshop) -> None:
    """Half an hour is too long here, and the peers are not installed: what make would execute, and the floor alone."""
    env = environment(workshop.folder("home"))
    printed = shell(f"make -n -o .venv/.installed-dev -o .venv-peers/.installed {command[0][5:]}", folder=ROOT, env=env)
    would = printed.splitlines()[-1].rstrip()
    if command["chosen"] is None:
        assert would.endswith("-m tests.benchmarks --quick" if command["quick"] else "-m tests.benchmarks --write")
        return
    assert would.endswith(f"-m tests.benchmarks {command['chosen']}")
    shown = shell(f"{sys.executable} -m tests.benchmarks --quick {command['chosen']}", folder=ROOT, env=env)
    assert "drain: async, concurrency 50, floor: runs_per_s" in shown


def make_coverage(_: Match[str], workshop: Workshop) -> None:
    """All tests in a test are too many: what make would execute, and that its gate is the one that is named."""
    assert would_execute("make coverage", environment(workshop.folder("home"))).endswith("-m coverage report")
    report = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["coverage"]["report"]
    assert f"wants {report['fail_under']} %" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def ci(command: Match[str], workshop: Workshop) -> None:
    """It runs these tests among others, so here it is only read: it can be executed, and runs the two gates."""
    script = ROOT / command[0]
    assert os.access(script, os.X_OK)
    shell(f"bash -n {script}", folder=ROOT, env=environment(workshop.folder("home")))
    lines = [line.strip() for line in script.read_text(encoding="utf-8").splitlines()]
    assert "make check" in lines
    assert any(line.startswith("make test") for line in lines)


def pip_install(command: Match[str], workshop: Workshop) -> None:
    """Without a network nothing is installed here: distribution and extras are those of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = Requirement(command["what"])
    assert wanted.name == project["name"]
    assert wanted.extras <= project["optional-dependencies"].keys()


def troupe_run(command: Match[str], workshop: Workshop) -> None:
    """With the README's app.py in the folder, as it is there, and with a task that is due each second."""
    for folder, texts in ((workshop.app, ["Scheduled 1 new task(s)"]), (workshop.hurried_app, ["report for slot"])):
        with workshop.first(command[0], folder=folder) as program:
            program.wait_for("became LEADER", *texts)
            assert program.interrupt() == 0, program.printed


def troupe_look(command: Match[str], workshop: Workshop) -> None:
    """While the README's application runs. Where a sentence names no address, the environment does."""
    env = environment(workshop.folder("home"), TROUPE_REDIS_URL=workshop.redis_url, TROUPE_REDIS_KEY_PREFIX="shop")
    with workshop.first("troupe run app:engine", folder=workshop.app) as program:
        program.wait_for("became LEADER", "Scheduled 1 new task(s)")
        printed = shell(workshop.adapted(command[0]), folder=workshop.folder("anywhere"), env=env)
    expected = {
        "tree": ["LEADER", "scheduling", "consumer"],
        "tasks": ["reports", "nightly", "0 3 * * *", "Europe/Rome"],
    }
    assert [text for text in expected[command["what"]] if text not in printed] == []


def troupe_help(command: Match[str], workshop: Workshop) -> None:
    """A command that a sentence only names has at least a help text."""
    home = workshop.folder("home")
    assert "Usage: troupe" in shell(
        f"{command[0]} --help", folder=home, env=environment(home, TERM="dumb", COLUMNS="120")
    )


def troupe_version(command: Match[str], workshop: Workshop) -> None:
    """As it is installed."""
    home = workshop.folder("home")
    assert shell(command[0], folder=home, env=environment(home)).startswith("troupe ")


def redis_cli(command: Match[str], workshop: Workshop) -> None:
    """While an embedded Redis runs in this home, with a question typed into it."""
    home = workshop.folder("home")
    with workshop.quickstart(home):
        assert "PONG" in shell(command[0], folder=home, env=environment(home), typed="PING\n")


def remove(command: Match[str], workshop: Workshop) -> None:
    """In the home of an embedded Redis that has stopped, in either place: its directory is there, then gone."""
    home, state = workshop.folder("home"), workshop.folder("state")
    with workshop.quickstart(home):
        pass
    (state / "troupe").mkdir()
    for directory, env in (
        (home / ".local" / "state" / "troupe", environment(home)),
        (state / "troupe", environment(home, XDG_STATE_HOME=str(state))),
    ):
        assert directory.is_dir()
        shell(command[0], folder=home, env=env)
        assert not directory.exists()


def build_redis_5(command: Match[str], workshop: Workshop) -> None:
    """It says where the server is: built now, or before."""
    try:
        redis_5.program()
    except redis_5.CannotBuild as error:
        pytest.skip(str(error))
    kept = shell(command[0].replace("python", sys.executable, 1), folder=ROOT, env=dict(os.environ)).strip()
    assert f"v={redis_5.VERSION} " in shell(f"{kept} --version", folder=ROOT, env=dict(os.environ))


def write_reference(command: Match[str], workshop: Workshop) -> None:
    """In a copy, from which the page was removed."""
    page = workshop.clone / "docs" / "reference.md"
    page.unlink()
    shell(command[0], folder=workshop.clone, env=environment(workshop.folder("home")))
    assert page.read_bytes() == (ROOT / "docs" / "reference.md").read_bytes()


# -- code and pictures ------------------------------------------------------------------------------------------------


def python(snippet: Snippet, workshop: Workshop) -> None:
    """As a program in a folder of its own; one that runs an engine is stopped by Ctrl-C when it leads."""
    folder, text = workshop.folder("program"), workshop.adapted(snippet.text)
    (folder / "app.py").write_text(text, encoding="utf-8")
    with workshop.first(f"{sys.executable} app.py", folder=folder) as program:
        if ".run()" in text:
            workshop_env = environment(folder, TROUPE_REDIS_URL=workshop.redis_url, TROUPE_REDIS_KEY_PREFIX="shop")
            wait_for_worker(workshop_env, program.process)
            assert program.interrupt() == 0, program.printed
        else:
            assert program.process.wait(60) == 0, program.printed


def fastapi_application(snippet: Snippet, workshop: Workshop) -> None:
    """Served by uvicorn, as it is there, until Ctrl-C; its health becomes good."""
    prefix = "/task-manager" if "/task-manager" in snippet.text else ""
    folder, port = workshop.folder("application"), free_port()
    (folder / "app.py").write_text(workshop.adapted(snippet.text), encoding="utf-8")
    with workshop.first(f"{sys.executable} -m uvicorn app:app --port {port}", folder=folder) as program:
        program.wait_for("Application startup complete", "Uvicorn running")
        for _ in range(600):
            answer = httpx.get(f"http://127.0.0.1:{port}{prefix}/health", timeout=60).json()
            if answer["status"] == "healthy":
                break
            time.sleep(0.1)
        assert answer["status"] == "healthy", program.printed
        program.interrupt()
        assert "Application shutdown complete" in program.printed


def bill(snippet: Snippet, workshop: Workshop) -> None:
    """It runs once at its first start, and what it wrote is there."""
    folder = workshop.folder("bill")
    (folder / "app.py").write_text(workshop.adapted(snippet.text), encoding="utf-8")
    with workshop.first(f"{sys.executable} app.py", folder=folder) as program:
        program.wait_for("billed shop/bill@first")
        assert program.interrupt() == 0, program.printed
    with closing(sqlite3.connect(folder / "bills.db")) as db:
        [(run, total)] = db.execute("SELECT run, total FROM bill").fetchall()
    assert (run, total) == ("shop/bill@first", 42)


def wait_for_worker(env: dict[str, str], process: subprocess.Popen[bytes]) -> None:
    """A script does not say in which state it is, but its cluster does."""
    for _ in range(100):
        assert process.poll() is None
        if f"-{process.pid}-" in shell("troupe tree", folder=BIN, env=env):
            return
    pytest.fail("the program did not appear in troupe tree")


def folders(snippet: Snippet, workshop: Workshop) -> None:
    """A picture of folders: each line begins with a path that exists."""
    base = ROOT
    for line in snippet.text.splitlines():
        names = re.findall(r"(?:^|\s)([\w./-]+(?:/|\.py))(?=\s)", line)
        assert names, f"{snippet.where}: {line!r} names no path"
        base = ROOT if not line.startswith(" ") else base
        for name in names:
            assert (base / name).exists(), f"{snippet.where}: there is no {base / name}"
        base = ROOT / names[0] if not line.startswith(" ") else base


def systemd_unit(snippet: Snippet, workshop: Workshop) -> None:
    """Without a systemd: the command is one that is tried out, and codes and times are those of the engine."""
    unit = configparser.RawConfigParser()
    unit.read_string(snippet.text)
    service = unit["Service"]
    program, *arguments = service["ExecStart"].split()
    rule_for(replace(snippet, language="inline", text=" ".join([Path(program).name, *arguments])))(workshop)
    assert service["RestartPreventExitStatus"].split() == ["2", str(EX_CONFIG)]
    leave_s = 2 * RESIGN_S + GRACE_S + LAST_WORDS_S
    assert float(service["TimeoutStopSec"]) > Config(redis_host="any").shutdown_grace + leave_s
    name, _, value = service["Environment"].partition("=")
    assert (name, value) == ("TROUPE_REDIS_URL", ADDRESS)


def redis_settings(snippet: Snippet, workshop: Workshop) -> None:
    """A Redis takes them, and the engine's own use of it goes on."""
    with redis.Redis.from_url(workshop.redis_url, decode_responses=True) as client:
        for name, value in (line.split() for line in snippet.text.splitlines()):
            before = client.config_get(name)[name]
            client.config_set(name, value)
            assert client.config_get(name)[name] == value
            client.config_set(name, before)


def redis_url(snippet: Snippet, _: Workshop) -> None:
    """A Config takes it. That such servers are found and followed: see tests/system."""
    for line in snippet.text.split():
        assert Config(redis_url=line).redis_url == line


def acl_user(snippet: Snippet, workshop: Workshop) -> None:
    """Redis makes the user. That the rights suffice: see tests/system/test_acl.py."""
    words = shlex.split(snippet.text.replace("\\\n", " "))
    assert words[:4] == ["redis-cli", "ACL", "SETUSER", "troupe"]
    with redis.Redis.from_url(workshop.redis_url, decode_responses=True) as client:
        client.execute_command(*words[1:])
        client.acl_deluser("troupe")


def lost_history(snippet: Snippet, workshop: Workshop) -> None:
    """Redis understands it, and shows events as they are written. That it is written: see tests/store."""
    words = shlex.split(snippet.text)
    assert words[0] == "redis-cli"
    with redis.Redis.from_url(workshop.redis_url, decode_responses=True) as client:
        entry = client.xadd(words[2], {"event": "history_lost", "from": "1", "to": "2"})
        shown = client.execute_command(*words[1:])
        client.delete(words[2])
    assert shown[0][0] == entry


# -- the rules --------------------------------------------------------------------------------------------------------

COMMANDS: list[tuple[str, Callable[[Match[str], Workshop], None]]] = [
    (r"make run", make_run),
    (r'make test( ARGS="[^"]*")?', make_test),
    (r"make check", make_check),
    (r"make format", make_format),
    (r"make simulate((?P<resumed> SEEDS=10000 RESUME=passed\.txt)|(?P<mutants>-mutants( RECORD=1)?))?", make_simulate),
    (r'make faults( ARGS="(?P<chosen>-k failover)")?', make_faults),
    (r"make soak MINUTES=30", make_soak),
    (r'make bench((?P<quick> QUICK=1)| ARGS="(?P<chosen>[^"]+)")?', make_bench),
    (r"make coverage", make_coverage),
    (r"make mutation", make_mutation),
    (r"\.ci/run", ci),
    (r"pip install '?(?P<what>[\w\[\],-]+)'?", pip_install),
    (r"troupe run app:engine", troupe_run),
    (r"troupe (?P<what>tree|tasks)( --redis-url \S+)?( --prefix \S+)?( --json)?", troupe_look),
    (r"troupe import --from-prefix \S+ --redis-url \S+ --prefix \S+( --dry-run)?", coming_from.take_over),
    (r"troupe --version", troupe_version),
    (r"troupe( run| import)?", troupe_help),
    (r"redis-cli -s ~/\S+", redis_cli),
    (r'rm -r "\$\{XDG_STATE_HOME:-\$HOME/.local/state\}/troupe"', remove),
    (r"python -m tests\.docs\.reference", write_reference),
    (r"python -m tests\.store\.redis_5", build_redis_5),
]
"""How a command is tried out."""

COMING_FROM = coming_from.PAGE.relative_to(ROOT).as_posix()

BLOCKS: list[tuple[str, str, Callable[[Snippet, Workshop], None]]] = [
    ("README.md", "from engine import", python),
    ("README.md", "from fastapi import", fastapi_application),
    ("docs/embedded-redis.md", "from engine import", python),
    ("docs/tasks.md", "from engine import", python),
    ("docs/tasks.md", "import sqlite3", bill),
    ("docs/fastapi.md", "from contextlib import", fastapi_application),
    (COMING_FROM, "from fastapi import FastAPI\n", coming_from.one_changed_line),
    (COMING_FROM, "from fastapi import FastAPI, HTTPException", coming_from.tasks_of_start_up_code),
    (COMING_FROM, "livenessProbe", coming_from.probes),
    (COMING_FROM, "from integrations.fastapi import Config", python),
    (COMING_FROM, "ModuleNotFoundError", coming_from.conflict),
    (COMING_FROM, "shop/__init__.py", coming_from.package),
    *http_api.BLOCKS,
    *standalone_api.BLOCKS,
    *deployment.BLOCKS,
    *testing.BLOCKS,
    *tutorial.BLOCKS,
    ("docs/running.md", "import logging", python),
    ("docs/running.md", "[Unit]", systemd_unit),
    ("docs/running.md", "appendonly yes", redis_settings),
    ("docs/redis.md", "redis-cli ACL SETUSER", acl_user),
    ("docs/redis.md", "redis-cli XREVRANGE", lost_history),
    ("docs/redis.md", "redis+", redis_url),
    ("docs/architecture.md", "engine/ ", folders),
]
"""How a block that is no command is tried out, by its page and its beginning."""

UNKNOWN = (
    "{where}: no rule says how to try this out:\n\n{text}\n\n"
    "Everything that the docs show is executed. If it is a command like one of COMMANDS in "
    "tests/docs/test_documents.py, write it like that one; else add a line there, or to BLOCKS for a block, with a "
    "function that runs it as a reader would and looks at what comes of it."
)

AS_COMMANDS = frozenset({"indented", "inline", "sh", "bash", "console"})


@final
@dataclass(frozen=True, slots=True)
class Trial:
    """Something that a page shows, and the way to try it out."""

    snippet: Snippet
    run: Callable[[Workshop], None]


def pieces(snippet: Snippet) -> list[Snippet]:
    """Each command of a block by itself; a block that is a rule's own, or a program, as a whole."""
    own = any(snippet.page == page and snippet.text.startswith(start) for page, start, _ in BLOCKS)
    if own or snippet.language not in AS_COMMANDS:
        return [snippet]
    return [
        replace(snippet, text=line.strip())
        for line in snippet.text.splitlines()
        if line.strip() and not line.startswith("#")
    ]


def rule_for(piece: Snippet) -> Callable[[Workshop], None]:
    """How this is tried out. Fails if nothing says so."""
    for page, start, try_block in BLOCKS:
        if piece.page == page and piece.text.startswith(start):
            return lambda workshop: try_block(piece, workshop)
    for pattern, try_command in COMMANDS:
        if piece.language in AS_COMMANDS and (found := re.fullmatch(pattern, piece.text)):
            return lambda workshop: try_command(found, workshop)
    pytest.fail(UNKNOWN.format(where=piece.where, text=piece.text))


def shown() -> list[Snippet]:
    """Everything once: a command that several pages name in the same words is tried out for the first of them."""
    found: dict[str, Snippet] = {}
    for page in PAGES:
        for snippet in snippets(page):
            for piece in pieces(snippet):
                found.setdefault(piece.text, piece)
    return list(found.values())


@pytest.mark.parametrize("piece", [pytest.param(one, id=f"{one.where} {one.text[:40]!r}") for one in shown()])
def test_what_the_docs_show_works(piece: Snippet, workshop: Workshop) -> None:
    """As it stands there, but for the address of Redis."""
    rule_for(piece)(workshop)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Say:\n\n    troupe fly --high\n", "indented"),
        ("```python\nprint(1)\n```\n", "python"),
        ("```\n$ ls\n```\n", "unnamed"),
        ("Then `make love` and wait.\n", "inline"),
        ("```sh\nmake test\nmake war\n```\n", "sh"),
    ],
)
def test_what_no_rule_knows_fails_with_what_to_do(text: str, language: str) -> None:
    """So that nothing can be shown that is not executed."""
    found = [piece for snippet in snippets(ROOT / "README.md", text) for piece in pieces(snippet)]
    assert {piece.language for piece in found} == {language}
    with pytest.raises(pytest.fail.Exception, match=r"README\.md:\d+: no rule says how to try this out") as caught:
        rule_for(found[-1])
    assert "tests/docs/test_documents.py" in str(caught.value)


def test_no_rule_is_left_over() -> None:
    """A rule that no page needs any longer would be read as if one did."""
    found = shown()
    unused = [page for page, start, _ in BLOCKS if not any(p.page == page and p.text.startswith(start) for p in found)]
    unused += [pattern for pattern, _ in COMMANDS if not any(re.fullmatch(pattern, piece.text) for piece in found)]
    assert unused == []


def test_what_is_replaced_in_the_readme_is_there() -> None:
    """Else the tests would use a Redis that they did not start, or wait for the night."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert ADDRESS in readme
    assert AT_NIGHT in readme

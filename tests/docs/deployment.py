"""How docs/deployment.md is tried out: servers, settings of Redis, and what is said to containers and service managers.

There is no container runtime, no Kubernetes and no running systemd here. What is said to them is read as they would,
and every command, variable, probe and setting in it is tried out by itself.
"""

from __future__ import annotations

import configparser
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import httpx
import pytest
import redis
import yaml
from packaging.specifiers import SpecifierSet

from engine.app import EX_CONFIG
from engine.assembly import RESIGN_S
from engine.config import ENV_PREFIX, Config
from engine.worker import LAST_WORDS_S
from tests.docs.documents import ROOT, Snippet, snippets
from tests.docs.programs import BIN, PATIENCE_S, Program, environment, shell, started
from tests.docs.tutorial import CURL, until
from tests.docs.workshop import ADDRESS, Workshop
from tests.store.servers import RedisServer, find_binary, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["BLOCKS"]

PAGE = ROOT / "docs" / "deployment.md"
NAME = PAGE.relative_to(ROOT).as_posix()

WORKERS = "/task-manager/workers"
PORT = {"uvicorn": "--port {port}", "gunicorn": "--bind 127.0.0.1:{port}", "hypercorn": "--bind 127.0.0.1:{port}"}


def block(start: str) -> str:
    """The block that begins so."""
    [text] = [one.text for one in snippets(PAGE) if one.text.startswith(start)]
    return text


def main_program() -> str:
    """What the page calls app/main.py."""
    [text] = [
        one.text for one in snippets(PAGE) if one.text.startswith("from fastapi import") and "reports =" in one.text
    ]
    return text


def home(workshop: Workshop) -> Path:
    """A folder with the application."""
    folder = workshop.folder("app")
    (folder / "app").mkdir()
    (folder / "app" / "main.py").write_text(main_program(), encoding="utf-8")
    (folder / "app" / "worker.py").write_text(block("from app.main import"), encoding="utf-8")
    return folder


def empty_redis(workshop: Workshop) -> str:
    """The address of a Redis for this page, with nothing in it."""

    @contextmanager
    def running() -> Iterator[RedisServer]:
        server = RedisServer(find_binary("6.2"), workshop.folder("redis")).start()
        try:
            yield server
        finally:
            server.kill()

    server = workshop.keep("a Redis for deployment.md", running)
    with redis.Redis(port=server.port) as client:
        client.flushall()
    return f"redis://127.0.0.1:{server.port}/0"


@final
@dataclass(frozen=True, slots=True)
class Site:
    """An application that is served."""

    program: Program
    port: int

    def ask(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=20, **options)

    def answers(self, path: str, **options: Any) -> bool:
        """Does it say yes, as to a probe? Also while it starts."""
        assert self.program.process.poll() is None, self.program.printed
        try:
            return self.ask(path, **options).status_code == 200
        except httpx.ConnectError:
            return False


@contextmanager
def serving(command: str, folder: Path, port: int, env: Mapping[str, str]) -> Iterator[Site]:
    """A server's command, until SIGTERM to its first process, as a service manager stops it."""
    with started(command, folder=folder, env=env) as program:
        yield Site(program, port)
        program.process.send_signal(signal.SIGTERM)
        code = program.process.wait(PATIENCE_S)
        assert code in {0, -signal.SIGTERM}, f"{command} ended with {code}:\n{program.printed}"


def serve(snippet: Snippet, workshop: Workshop) -> None:
    """Each command: four workers, of which one leads; all have taken their leave at the end."""
    for command in snippet.text.splitlines():
        serve_four(command, workshop)


def serve_four(command: str, workshop: Workshop) -> None:
    """One of the commands."""
    url, port, folder = empty_redis(workshop), free_port(), home(workshop)
    env = environment(workshop.folder("home"), TROUPE_REDIS_URL=url)
    listen = PORT[command.partition(" ")[0]].format(port=port)
    with redis.Redis.from_url(url) as client:
        with serving(f"{command} {listen}", folder, port, env) as site:
            until(lambda: site.answers("/health"), f"{command} answers")
            until(lambda: client.hlen("{shop}:workers") == 4, "there are four workers")
            workers = until(lambda: some_leader(site.ask(WORKERS).json()), "one of them leads")
            assert len({worker["pid"] for worker in workers}) == 4
            until(lambda: site.ask("/health").json() == {"app": "ok", "task_manager": True}, "it is healthy")
        assert (client.hlen("{shop}:workers"), client.exists("{shop}:leader")) == (0, 0)


def some_leader(workers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return workers if [worker["leader"] for worker in workers].count(True) == 1 else []


def site(workshop: Workshop) -> Site:
    """The application under uvicorn with one process, for all that is asked of it."""

    @contextmanager
    def served() -> Iterator[Site]:
        port, server = free_port(), RedisServer(find_binary("6.2"), workshop.folder("redis")).start()
        env = environment(workshop.folder("home"), TROUPE_REDIS_URL=f"redis://127.0.0.1:{server.port}/0")
        try:
            with serving(f"uvicorn app.main:app --port {port}", home(workshop), port, env) as found:
                until(lambda: found.answers("/task-manager/health"), "it is healthy")
                yield found
        finally:
            server.kill()

    return workshop.keep("the application of deployment.md", served)


def program(snippet: Snippet, workshop: Workshop) -> None:
    """The application of the page: ``serve`` runs it. Its router only looks."""
    found = site(workshop)
    assert [task["name"] for task in found.ask("/task-manager/tasks").json()] == ["nightly"]
    trigger = httpx.post(
        f"http://127.0.0.1:{found.port}/task-manager/tasks/trigger", headers={"X-Requested-With": "test"}
    )
    assert trigger.status_code in {404, 405}


def curl(snippet: Snippet, workshop: Workshop) -> None:
    """It is healthy."""
    there = snippet.text.replace("localhost:8000", f"127.0.0.1:{site(workshop).port}")
    assert json.loads(shell(CURL + there, folder=ROOT, env=environment(ROOT)))["status"] == "healthy"


def health_answer(snippet: Snippet, workshop: Workshop) -> None:
    """The answer has these fields, with values of these types."""
    shown, answer = json.loads(snippet.text), site(workshop).ask("/task-manager/health").json()
    assert list(answer) == list(shown)
    assert [type(value) for value in answer.values()] == [type(value) for value in shown.values()]
    assert answer["worker_id"].startswith("shop-")


# -- containers -------------------------------------------------------------------------------------------------------


def stop_needs_s() -> float:
    """How long the application of the page may take to stop."""
    [grace] = re.findall(r"shutdown_grace=(\d+)", main_program())
    return float(grace) + 2 * RESIGN_S + LAST_WORDS_S


def settings_of(variables: Mapping[str, str]) -> Config:
    """What the engine makes of these variables, which are all its own."""
    assert all(name.startswith(ENV_PREFIX) for name in variables)
    fields = {name.removeprefix(ENV_PREFIX).lower() for name in variables}
    assert fields <= Config.model_fields.keys()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
            patch.delenv(name)
        for name, value in variables.items():
            patch.setenv(name, value)
        return Config(redis_key_prefix="shop")


def container_command() -> list[str]:
    """What the image runs."""
    [line] = [line for line in block("FROM ").splitlines() if line.startswith("CMD ")]
    found: list[str] = json.loads(line.removeprefix("CMD "))
    return found


def dockerfile(snippet: Snippet, workshop: Workshop) -> None:
    """Its Python is one that is supported, and its command serves the application."""
    instructions = [line.split(maxsplit=1) for line in snippet.text.splitlines()]
    assert [name for name, _ in instructions] == ["FROM", "WORKDIR", "COPY", "RUN", "COPY", "USER", "CMD"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [python] = re.findall(r"^FROM python:([\d.]+)-slim$", snippet.text, flags=re.MULTILINE)
    assert python in SpecifierSet(project["requires-python"])
    assert f"Programming Language :: Python :: {python}" in project["classifiers"]
    port = free_port()
    words = [str(port) if word == "8000" else word for word in container_command()]
    env = environment(workshop.folder("home"), TROUPE_REDIS_URL=empty_redis(workshop))
    with serving(" ".join(words), home(workshop), port, env) as found:
        until(lambda: found.answers("/task-manager/health"), "it is healthy")


def compose(snippet: Snippet, workshop: Workshop) -> None:
    """Redis takes its command, the application its variables, both their health checks, and there is time to stop."""
    read = yaml.safe_load(snippet.text)
    app, server = read["services"]["app"], read["services"]["redis"]
    assert settings_of(app["environment"]).redis_url == "redis://redis:6379/0"
    assert seconds(app["stop_grace_period"]) > stop_needs_s()
    assert app["depends_on"].keys() <= read["services"].keys()
    assert {volume.partition(":")[0] for volume in server["volumes"]} == read["volumes"].keys()
    assert seconds(app["healthcheck"]["timeout"]) > 5

    kind, *check = app["healthcheck"]["test"]
    assert (kind, check[0]) == ("CMD", "python")
    there = [word.replace("localhost:8000", f"127.0.0.1:{site(workshop).port}") for word in check[1:]]
    assert run(sys.executable, *there) == 0
    nobody = [word.replace("localhost:8000", f"127.0.0.1:{free_port()}") for word in check[1:]]
    assert run(sys.executable, *nobody) == 1

    name, *options = server["command"]
    assert name == "redis-server"
    redis_of_compose = RedisServer(find_binary("6.2"), workshop.folder("redis"), options).start()
    try:
        with redis.Redis(port=redis_of_compose.port, decode_responses=True) as client:
            for option, value in zip(options[::2], options[1::2], strict=True):
                found = client.config_get(option.removeprefix("--"))[option.removeprefix("--")]
                assert found == str(512 * 1024 * 1024) if value == "512mb" else found == value
        kind, *check = server["healthcheck"]["test"]
        if shutil.which(check[0]) is not None:
            assert run(check[0], "-p", str(redis_of_compose.port), *check[1:]) == 0
    finally:
        redis_of_compose.kill()


def seconds(text: str) -> float:
    """Of a duration as compose writes it."""
    return float(text.removesuffix("s"))


def run(*command: str) -> int:
    """Its exit code."""
    return subprocess.run(
        command, env=environment(ROOT), check=False, capture_output=True, timeout=PATIENCE_S
    ).returncode


def kubernetes(snippet: Snippet, workshop: Workshop) -> None:
    """Its probes are answered, its variables are known, and there is time to stop."""
    read = yaml.safe_load(snippet.text)
    assert (read["apiVersion"], read["kind"]) == ("apps/v1", "Deployment")
    spec = read["spec"]
    pod = spec["template"]["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    [container] = pod["containers"]
    given = {one["name"]: one.get("value", "from a secret") for one in container["env"]}
    assert settings_of(given).redis_password is not None
    [port] = [one["containerPort"] for one in container["ports"]]
    assert str(port) in container_command()
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] == port
        assert site(workshop).answers(asked["path"])
        assert container[probe]["timeoutSeconds"] > 2
    kind, pause = container["lifecycle"]["preStop"]["exec"]["command"]
    assert kind == "sleep"
    assert pod["terminationGracePeriodSeconds"] > float(pause) + stop_needs_s()


# -- systemd ----------------------------------------------------------------------------------------------------------


def worker(snippet: Snippet, workshop: Workshop) -> None:
    """The unit's command runs it, with what its environment file says."""
    [command] = re.findall(r"^ExecStart=(.*)$", block("[Unit]"), flags=re.MULTILINE)
    variables = environment_file()
    variables["TROUPE_REDIS_URL"] = variables["TROUPE_REDIS_URL"].replace(ADDRESS, empty_redis(workshop))
    del variables["TROUPE_REDIS_PASSWORD"]  # the server here has none, and refuses any
    env = environment(workshop.folder("home"), **variables)
    program_name, *words = command.split()
    with started(" ".join([Path(program_name).name, *words]), folder=home(workshop), env=env) as it:
        it.wait_for("became LEADER", "Scheduled 1 new task(s)")
        it.process.send_signal(signal.SIGTERM)
        assert it.process.wait(PATIENCE_S) == 0, it.printed


def environment_file() -> dict[str, str]:
    """What the page calls /etc/shop.env."""
    return dict(line.split("=", maxsplit=1) for line in block("TROUPE_REDIS_URL=").splitlines())


def variables(snippet: Snippet, workshop: Workshop) -> None:
    """The engine knows them."""
    config = settings_of(environment_file())
    assert (config.redis_url, config.redis_password is not None) == (ADDRESS, True)


def unit(snippet: Snippet, workshop: Workshop) -> None:
    """Nothing is wrong with it for systemd, where there is one; codes and times are those of the engine."""
    read = configparser.RawConfigParser()
    read.read_string(snippet.text)
    service = read["Service"]
    assert service["RestartPreventExitStatus"].split() == ["2", str(EX_CONFIG)]
    assert float(service["TimeoutStopSec"]) > stop_needs_s()
    if shutil.which("systemd-analyze") is None:
        return
    folder = workshop.folder("unit")
    text = snippet.text.replace("/srv/shop/.venv/bin", str(BIN)).replace("User=shop", "User=root")
    (folder / "shop-worker@1.service").write_text(text, encoding="utf-8")
    complaints = shell("systemd-analyze verify ./shop-worker@1.service 2>&1", folder=folder, env=environment(folder))
    assert "shop-worker" not in complaints, complaints


# -- Redis ------------------------------------------------------------------------------------------------------------


def redis_settings(snippet: Snippet, workshop: Workshop) -> None:
    """A Redis takes them."""
    with redis.Redis.from_url(empty_redis(workshop), decode_responses=True) as client:
        for name, value in (line.split() for line in snippet.text.splitlines()):
            before = client.config_get(name)[name]
            client.config_set(name, value)
            assert client.config_get(name)[name] == value
            client.config_set(name, before)


def memory(snippet: Snippet, workshop: Workshop) -> None:
    """The page's figures are those that this prints, give or take a quarter."""
    folder = workshop.folder("home")
    command = snippet.text.replace("python", sys.executable, 1)
    # the bundled server is in this environment's folder of programs, and would come first
    path = os.pathsep.join(one for one in os.environ["PATH"].split(os.pathsep) if Path(one) != BIN)
    printed = shell(command, folder=ROOT, env=environment(folder, PYTHONPATH=str(ROOT), PATH=path))
    if "Redis 7." not in printed:
        pytest.skip("the page's figures are those of Redis 7")
    measured = [int(number.replace(",", "")) for number in re.findall(r"([\d,]+)$", printed, flags=re.MULTILINE)]
    rows = re.findall(r"^\| (.*) \| ([\d,]+) \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    shown = [int(number.replace(",", "")) for _, number in rows]
    assert len(measured) == len(shown) == 4
    for (what, _), figure, bytes_each in zip(rows, shown, measured, strict=True):
        assert 0.75 <= figure / bytes_each <= 1.25, f"{what}: {bytes_each} bytes, and the page says {figure}"
    first, row = shown[2:]
    full, short = (1_000 * (shown[0] + first + length * row) / 1e6 for length in (1_000, 100))
    [(says_full, says_short)] = re.findall(
        r"full histories take\s+some (\d+) MB, and with\s+`ledger_length=100` some (\d+) MB", PAGE.read_text()
    )
    assert abs(full - float(says_full)) / full < 0.1
    assert abs(short - float(says_short)) / short < 0.1


# -- the rest ---------------------------------------------------------------------------------------------------------


def logs(snippet: Snippet, workshop: Workshop) -> None:
    """It runs, and each logger that it names is one of the engine's."""
    folder = workshop.folder("logs")
    (folder / "logs.py").write_text(snippet.text, encoding="utf-8")
    shell(f"{sys.executable} logs.py", folder=folder, env=environment(folder))
    sources = [path.read_text(encoding="utf-8") for top in ("engine", "actors") for path in (ROOT / top).rglob("*.py")]
    known = {name for text in sources for name in re.findall(r'getLogger\("([\w.-]+)"\)', text)}
    named = set(re.findall(r'getLogger\("([\w.-]+)"\)', snippet.text))
    assert named
    assert named <= known
    assert all(level in logging.getLevelNamesMapping() for level in re.findall(r"logging\.([A-Z]+)", snippet.text))


def two_applications(snippet: Snippet, workshop: Workshop) -> None:
    """Two prefixes of one Redis."""
    found: dict[str, Any] = {}
    exec(compile(snippet.text, NAME, "exec"), found)  # noqa: S102  # the page's own program
    shop, billing = found["shop"], found["billing"]
    assert shop.redis_key_prefix != billing.redis_key_prefix
    assert (shop.redis_host, shop.redis_db) == (billing.redis_host, billing.redis_db)


def guarded(snippet: Snippet, workshop: Workshop) -> None:
    """Nobody without the token; probes ask nobody who they are; who changes something is recorded."""
    folder, port, url = workshop.folder("guarded"), free_port(), empty_redis(workshop)
    (folder / "guarded.py").write_text(snippet.text, encoding="utf-8")
    env = environment(workshop.folder("home"), TROUPE_REDIS_URL=url, OPERATORS_TOKEN="open sesame")
    right = {"Authorization": "Bearer open sesame", "X-Operator": "Ada", "X-Requested-With": "test"}
    with serving(f"uvicorn guarded:app --port {port}", folder, port, env) as found:
        until(lambda: found.answers("/live") and found.answers("/ready"), "its probes are good")
        assert found.ask("/task-manager/tasks").status_code in {401, 403}
        wrong = {"Authorization": "Bearer please"}
        assert found.ask("/task-manager/tasks", headers=wrong).status_code == 403
        until(lambda: found.answers("/task-manager/health", headers=right), "it is healthy")
        restart = f"http://127.0.0.1:{port}/task-manager/supervisor/stats/restart"
        assert httpx.post(restart, headers=wrong | {"X-Requested-With": "test"}).status_code == 403
        assert httpx.post(restart, headers=right).status_code == 200
        with redis.Redis.from_url(url, decode_responses=True) as client:
            assert "Ada" in json.dumps(client.xrange("{shop}:events"))
    assert "Everybody who reaches this application" not in found.program.printed


BLOCKS: list[tuple[str, str, Callable[[Snippet, Workshop], None]]] = [
    (NAME, "from fastapi import FastAPI\n", program),
    (NAME, "uvicorn app.main:app --workers 4", serve),
    (NAME, "gunicorn app.main:app --workers 4", serve),
    (NAME, "FROM python", dockerfile),
    (NAME, "services:", compose),
    (NAME, "apiVersion", kubernetes),
    (NAME, "from app.main import", worker),
    (NAME, "[Unit]", unit),
    (NAME, "TROUPE_REDIS_URL=", variables),
    (NAME, "appendonly yes", redis_settings),
    (NAME, "maxmemory-policy noeviction", redis_settings),
    (NAME, "min-replicas-to-write 1", redis_settings),
    (NAME, "python -m tests.benchmarks.memory", memory),
    (NAME, "curl", curl),
    (NAME, "{", health_answer),
    (NAME, "import logging", logs),
    (NAME, "from integrations.fastapi import Config", two_applications),
    (NAME, "import os", guarded),
]
"""How a block is tried out, by its beginning."""

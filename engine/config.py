"""Every setting of an engine: one frozen object, checked when it is made, readable from the environment."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Mapping
from typing import Annotated, Any, Final, NoReturn, final

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from engine.address import Address, read_url, without_credentials
from engine.config_errors import refusal, with_variables
from engine.errors import ConfigError, ConfigWarning

ENV_PREFIX: Final = "TROUPE_"
_ADDRESS: Final = frozenset({"redis_host", "redis_url", "embedded"})
_EMPTY_IS_NONE: Final = (
    *("redis_host", "redis_url", "redis_password", "redis_username", "redis_ca_file"),
    *("redis_sentinel_username", "redis_sentinel_password"),
)
_SAID_BY_URL: Final = frozenset({"redis_port", "redis_db", "redis_tls"})
_NO_ADDRESS: Final = (
    "no Redis is named. Give redis_host or redis_url (or set TROUPE_REDIS_HOST or TROUPE_REDIS_URL), or ask "
    "for a Redis of its own, for development, with embedded=True (or TROUPE_EMBEDDED=1)"
)

_DAY: Final = 86_400
_Interval = Annotated[float, Field(ge=0.1, le=3_600, json_schema_extra={"unit": "s"})]
_Seconds = Annotated[float, Field(ge=0, le=_DAY, json_schema_extra={"unit": "s"})]


@final
class Config(BaseSettings):
    """The settings of an engine. Arguments win over the environment (``TROUPE_`` and the name in capitals).

    All processes of one application give the same ``redis_key_prefix`` and the same Redis. Durations are in
    seconds unless the name says otherwise.

    Raises:
        ConfigError: a setting is unknown, missing, out of bounds, or contradicts another.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        allow_inf_nan=False,
        validate_default=True,
    )

    redis_key_prefix: str = "troupe"
    """What the names of all keys begin with. One for each application that shares a Redis; no braces or white space."""
    concurrent_tasks: int = Field(default=2, ge=0, le=10_000)
    """How many runs this process executes at once. ``0`` never executes."""
    statistics_redis_expiration: int = Field(default=432_000, ge=1, le=3_660 * _DAY, json_schema_extra={"unit": "s"})
    """How far back the statistics of a task reach, which ``engine.views.read_statistics`` shows."""
    statistics_history_runs: int = Field(default=500, ge=1, le=100_000)
    """How many attempts of a task its statistics show at most."""
    allow_parallel: bool = True
    """Whether a task may run while an earlier run of it has not ended. Groups and tasks can say otherwise."""
    enabled: bool = True
    """``False`` starts nothing in this process: it neither schedules nor executes, and needs no Redis."""
    can_lead: bool = True
    """``False`` keeps this process from scheduling."""

    redis_host: str | None = None
    """Host name or address of Redis, or a URL as in ``redis_url``."""
    redis_port: int = Field(default=6379, ge=1, le=65_535)
    """TCP port of ``redis_host``."""
    redis_url: str | None = None
    """``redis://``, ``rediss://`` (TLS) or ``unix://``, in place of host, port and database; with Sentinel
    ``redis+sentinel://host:26379,host:26379/mymaster``, with a Cluster ``redis+cluster://host:6379,host:6379``, either
    with ``rediss`` for TLS. User and password in it move to fields of their own. Its query may say ``db``, and for TLS
    ``ssl_ca_certs``, ``ssl_certfile`` and ``ssl_keyfile``."""
    redis_username: str | None = None
    """User, from Redis 6 on; ``None`` is the default user. Given with a password."""
    redis_password: SecretStr | None = None
    """Password of Redis. No text made from a Config shows it."""
    redis_sentinel_username: str | None = None
    """User for the Sentinels themselves; ``None`` is the default user. Given with a password."""
    redis_sentinel_password: SecretStr | None = None
    """Password of the Sentinels themselves; ``None`` where they ask for none. No text made from a Config shows it."""
    redis_db: int = Field(default=0, ge=0, le=65_535)
    """Database number."""
    redis_tls: bool = False
    """Whether to speak TLS to ``redis_host``. A URL says it by ``rediss://``."""
    redis_ca_file: str | None = None
    """PEM file of the authorities that may sign the certificate of Redis; ``None`` trusts those of the system."""
    embedded: bool = False
    """Starts a Redis of its own, for development. No address is given then."""
    wait_replicas: int = Field(default=0, ge=0, le=100)
    """How many replicas must have a publication, and the end of a run, before it counts as done; each worker then has a
    fourth connection. ``0`` waits for none. The page on Redis says what it costs, and what it is good for."""
    startup_timeout: _Seconds = 30.0
    """How long the first connection to Redis may take before the engine gives up."""

    poll_interval: float = Field(default=0.1, gt=0, le=3_600, json_schema_extra={"unit": "s"})
    """Accepted without effect: the leader sleeps until the next slot and polls nothing."""
    worker_service_name: str = Field(default="fastapi-task-manager", min_length=1, max_length=200)
    """What this process is called in logs and lists of workers."""
    stream_block_ms: int = Field(default=1_000, ge=10, le=60_000, json_schema_extra={"unit": "ms"})
    """How long one blocking read of the streams waits."""
    queue_cap: int = Field(default=1_000, ge=1, le=1_000_000)
    """How many runs that no worker has read a stream may hold; more slots are skipped (queue full)."""
    ledger_length: int = Field(default=1_000, ge=1, le=1_000_000)
    """About how many verdicts are kept for each task; Redis trims in whole nodes."""
    retire_after: float = Field(default=600.0, ge=1, le=366 * _DAY, json_schema_extra={"unit": "s"})
    """How long a task that no live process declares stays scheduled."""

    max_payload_bytes: int = Field(default=65_536, ge=256, le=16 * 1024 * 1024, json_schema_extra={"unit": "bytes"})
    """How large a task made at run time may be, its arguments included, and a request of the HTTP API."""
    unhealthy_status: int = Field(default=503, ge=200, le=599)
    """The HTTP status of an unhealthy ``GET /health``. ``200`` is what fastapi-task-manager answers."""
    api_token: SecretStr | None = None
    """What requests to the HTTP API of a standalone engine must show (``Authorization: Bearer …``). No text made from a
    Config shows it."""

    leader_heartbeat_interval: _Interval = 3.0
    """Between two renewals of the leader's lease, which lasts three of them."""
    leader_retry_interval: _Interval = 5.0
    """Between two attempts of a follower to lead, unless the lease it saw ends or the leader resigns before."""
    wait_for_predecessor: bool = False
    """``True`` schedules only when no worker of fastapi-task-manager leads under the same prefix any longer. Without
    it, such a worker is reported, and both systems schedule."""
    reconciliation_interval: _Interval = 30.0
    """Between two searches for entries that a lost worker left behind."""
    running_heartbeat_interval: _Interval = 3.0
    """Between two renewals of a run's lease, which lasts three of them."""
    max_deliveries: int = Field(default=3, ge=1, le=1_000)
    """How many times a run whose workers were lost is started before it is set aside."""

    retry_backoff: _Seconds = 1.0
    """Before the first retry, and at most ``retry_backoff_max``. Tasks can say otherwise."""
    retry_backoff_max: _Seconds = 60.0
    """The longest delay before a retry, the first one included. Tasks can say otherwise, and where one gives only a
    ``retry_backoff`` it may not be above this."""
    retry_backoff_multiplier: float = Field(default=2.0, ge=1, le=1_000)
    """What the delay is multiplied by after each failure."""
    max_retries: int | None = Field(default=None, ge=0, le=1_000_000)
    """``None`` is 10 where a task's slots are over an hour apart, else until its next slot; ``0`` never retries. Groups
    and tasks can say otherwise."""
    shutdown_grace: float = Field(default=25.0, ge=0, le=_DAY, json_schema_extra={"unit": "s"})
    """How long runs in progress may go on after the engine was asked to stop."""

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            fields = type(self).model_fields
            refused = refusal(error.errors(include_url=False)[0], fields)
            refused = with_variables(refused, fields, settings, _variables(os.environ))
        else:
            return
        raise refused  # outside of the handler: pydantic's own text shows values, passwords among them

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise ConfigError(name, "a Config does not change; make another one")

    @property
    def leader_lease_s(self) -> float:
        """Seconds that leadership lasts without renewal."""
        return 3 * self.leader_heartbeat_interval

    @property
    def run_lease_s(self) -> float:
        """Seconds that a worker may be silent before its runs are taken for lost."""
        return 3 * self.running_heartbeat_interval

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- pydantic passes it by name
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- the same
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- the same
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then the environment; no files."""
        return init_settings, _Environment(settings_cls, init_settings())

    @model_validator(mode="before")
    @classmethod
    def _settle_address(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """One way to Redis, with the credentials of a URL moved to the fields that hide them."""
        settings = dict(settings)
        for name in _EMPTY_IS_NONE:
            if settings.get(name) == "":
                settings[name] = None
        host, url = settings.get("redis_host"), settings.get("redis_url")
        if host is not None and url is not None:
            raise ConfigError("redis_url", "redis_host is given as well; give one of the two")
        given_as = "redis_url"
        if isinstance(host, str) and "://" in host:
            given_as, settings["redis_host"], url = "redis_host", None, host
        if url is not None:
            parts = read_url(url, field_name=given_as)
            for name in sorted(_SAID_BY_URL & settings.keys()):
                raise ConfigError(name, f"{given_as} is a URL, which says it; leave one of the two out")
            for part in ("username", "password", "ca_file"):
                name = f"redis_{part}"
                if part in parts and settings.get(name) not in (None, parts[part]):
                    raise ConfigError(name, f"the URL in {given_as} gives another one; leave one of the two out")
                settings[name] = parts.get(part, settings.get(name))
            settings["redis_url"] = without_credentials(url)
        return settings

    @model_validator(mode="after")
    def _check_together(self) -> Config:
        address = "redis_url" if self.redis_url else "redis_host" if self.redis_host else None
        if self.embedded and address:
            raise ConfigError("embedded", f"{address} is given as well; give an address or embedded=True")
        if self.enabled and not self.embedded and not address:
            raise ConfigError("redis_host", _NO_ADDRESS)
        if self.embedded and self.wait_replicas:
            raise ConfigError("wait_replicas", "the embedded Redis has no replicas; leave one of the two out")
        speaks_tls = self.redis_tls or (self.redis_url or "").startswith("rediss")
        if self.redis_ca_file is not None and not speaks_tls:
            raise ConfigError("redis_ca_file", "no TLS is asked for; set redis_tls=True or give a rediss:// URL")
        if address:
            found = address_of(self)
            if found.ca_file or found.cert_file:
                found.ssl_context()
        if self.retry_backoff > self.retry_backoff_max:
            backoff, longest = f"{self.retry_backoff:,.10g} s", f"{self.retry_backoff_max:,.10g} s"
            reason = f"{backoff} is above retry_backoff_max, {longest}"
            raise ConfigError("retry_backoff", f"{reason}; lower it or raise that")
        return self

    @field_validator("redis_key_prefix")
    @classmethod
    def _check_prefix(cls, prefix: str) -> str:
        if not 1 <= len(prefix) <= 200 or any(c in "{}" or c.isspace() or not c.isprintable() for c in prefix):
            reason = f"{prefix!r}; give 1 to 200 characters without braces and white space, such as 'my-app'"
            raise ConfigError("redis_key_prefix", reason)
        if prefix == "__main__":
            text = (
                "redis_key_prefix is '__main__', which every script has as __name__: two applications on one "
                "Redis would take each other's runs. Give the application's own name"
            )
            warnings.warn(text, ConfigWarning, stacklevel=2)
        return prefix

    @field_validator("redis_host")
    @classmethod
    def _check_host(cls, host: str | None) -> str | None:
        if host is not None and ("@" in host or "/" in host or any(c.isspace() for c in host)):
            raise ConfigError("redis_host", "give a host name or an address alone, or a whole URL (redis://…)")
        return host


def address_of(config: Config) -> Address:
    """Where a Config that is not ``embedded`` says that Redis is, and how to get in."""
    if config.redis_url:
        parts = read_url(config.redis_url)
    else:
        parts = {"host": config.redis_host or "", "port": config.redis_port}
        parts |= {"db": config.redis_db, "tls": config.redis_tls}
    parts["username"] = config.redis_username
    parts["password"] = config.redis_password.get_secret_value() if config.redis_password else None
    parts["sentinel_username"] = config.redis_sentinel_username
    sentinel_password = config.redis_sentinel_password
    parts["sentinel_password"] = sentinel_password.get_secret_value() if sentinel_password else None
    parts["ca_file"] = config.redis_ca_file
    return Address(**parts)


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that set something, by the setting's name. Their case does not matter, and empty is unset."""
    names = {f"{ENV_PREFIX}{name.upper()}": name for name in Config.model_fields}
    return {names[found.upper()]: found for found, value in environment.items() if value and found.upper() in names}


@final
class _Environment(EnvSettingsSource):
    """``TROUPE_*``, without an address where the arguments give one: arguments win as a whole."""

    def __init__(self, settings_cls: type[BaseSettings], given: Mapping[str, Any]) -> None:
        super().__init__(settings_cls)
        self._given = given

    def __call__(self) -> dict[str, Any]:
        found = super().__call__()
        _refuse_misspelt(os.environ)
        given = {name for name in _ADDRESS if self._given.get(name)}
        ignored = _ADDRESS if given else frozenset()
        if "redis_url" in given or "://" in str(self._given.get("redis_host")):
            ignored |= _SAID_BY_URL
        return {name: value for name, value in found.items() if name not in ignored}


def _refuse_misspelt(environment: Mapping[str, str]) -> None:
    """Refuse a variable that is almost one of ours. Others with our prefix may be another program's."""
    known = {f"{ENV_PREFIX}{name.upper()}": name for name in Config.model_fields}
    for variable in environment:
        if not variable.upper().startswith(ENV_PREFIX) or variable.upper() in known:
            continue
        if close := difflib.get_close_matches(variable.upper(), known, n=1, cutoff=0.9):
            raise ConfigError(known[close[0]], f"the environment has {variable}; did you mean {close[0]}?")

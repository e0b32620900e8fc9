"""Where Redis is and how to get in: what a URL or its separate parts say."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any, Self, final
from urllib.parse import urlsplit

from redis.asyncio.connection import SSLConnection, parse_url

from engine.errors import ConfigError

_QUERY = {"db": "db", "ssl_ca_certs": "ca_file", "ssl_certfile": "cert_file", "ssl_keyfile": "key_file"}
"""URL parameters that mean something here, by redis-py's names."""

_PARTS = frozenset({"host", "port", "path", "username", "password"})
"""What redis-py finds elsewhere in a URL. It takes them from parameters too."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One Redis server. The password is in no text made from this: repr, `label`, `redact`.

    Raises:
        ConfigError: a part is out of bounds or contradicts another.
    """

    host: str = "localhost"
    port: int = 6379
    path: str | None = None
    """Unix socket; host and port are then unused."""

    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca_file: str | None = None
    """PEM file of the authorities to trust instead of the system's."""

    cert_file: str | None = None
    """PEM file of the client's certificate, for servers that ask for one."""

    key_file: str | None = None

    def __post_init__(self) -> None:
        if not self.path and not self.host:
            raise ConfigError("redis_host", "is empty: give a host name, an IP address or a redis:// URL")
        if not 0 < self.port < 65536:
            raise ConfigError("redis_port", f"{self.port} is no TCP port: give 1 to 65535")
        if self.db < 0:
            raise ConfigError("redis_db", f"{self.db} is no database: give 0 or more")
        if self.username and not self.password:
            raise ConfigError("redis_username", "is given without redis_password: give both")
        if self.tls and self.path:
            raise ConfigError("redis_url", "a unix socket carries no TLS: give a host, or leave TLS out")
        if (self.ca_file or self.cert_file) and not self.tls:
            raise ConfigError("redis_url", "a certificate is given without TLS: use rediss://")
        if self.key_file and not self.cert_file:
            raise ConfigError("redis_key_file", "is given without redis_cert_file: give both")

    @classmethod
    def parse(cls, url: str, *, field_name: str = "redis_url") -> Self:
        """Read a ``redis://``, ``rediss://`` or ``unix://`` URL, percent-encoding by redis-py's rules.

        Args:
            url: as in ``rediss://user:secret@redis.internal:6380/2?ssl_ca_certs=/etc/ca.pem``.
            field_name: the setting to blame when the URL is bad.

        Raises:
            ConfigError: names ``field_name``, and never quotes the URL, which may hold a password.
        """
        # Raised from None: the cause quotes parts of the URL, and a part can be a password that was cut in two.
        try:
            parts: dict[str, Any] = dict(parse_url(url))
            split = urlsplit(url)
            port = split.port
        except ValueError:
            raise ConfigError(
                field_name,
                "is no Redis URL: give redis://host:port/db, rediss://host:port/db or unix:///path?db=0, "
                "with special characters in the password percent-encoded",
            ) from None
        tls = parts.pop("connection_class", None) is SSLConnection
        # redis-py passes over each of these and takes its default.
        if port == 0:
            raise ConfigError(field_name, "has port 0: give 1 to 65535")
        if split.scheme == "unix" and "path" not in parts:
            raise ConfigError(field_name, "has no path: give unix:///path/of/the/socket")
        if split.scheme != "unix" and split.path.strip("/") and "db" not in parts:
            raise ConfigError(field_name, "has a path that is no database number: give redis://host:port/0")
        unknown = parts.keys() - _PARTS - _QUERY.keys()
        if unknown:
            raise ConfigError(
                field_name, f"has the parameter {min(unknown)!r}: only {', '.join(_QUERY)} are understood"
            )
        try:
            return cls(tls=tls, **{_QUERY.get(name, name): value for name, value in parts.items()})
        except ConfigError as error:
            raise ConfigError(field_name, f"({error.field}) {error.reason}") from None

    @property
    def label(self) -> str:
        """The address for logs and people, without user and password."""
        if self.path:
            return f"unix://{self.path}?db={self.db}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.db}"

    def redact(self, text: str) -> str:
        """``text`` without the password, which a server can echo (it does when AUTH is renamed)."""
        return text.replace(self.password, "***") if self.password else text

    def ssl_context(self) -> ssl.SSLContext | None:
        """How to verify the server and to present ourselves; None without TLS. Reads the files anew.

        Raises:
            ConfigError: a file is missing, unreadable or not what it should be.
        """
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                "redis_ca_file", f"{self.ca_file} is no readable PEM file of certificates: {error}"
            ) from error
        if self.cert_file:
            try:
                context.load_cert_chain(self.cert_file, self.key_file)
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(
                    "redis_cert_file",
                    f"{self.cert_file} and its key ({self.key_file or 'in the same file'}) are no PEM pair: {error}",
                ) from error
        return context

"""Where Redis is and how to get in: the one reading of its URL, for the Config and for the link."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from typing import Any, Final, Self, final
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from engine.errors import ConfigError

_SCHEMES: Final = ("redis", "rediss", "unix")
_CREDENTIALS: Final = ("username", "password")
_FILES: Final = {"ssl_ca_certs": "ca_file", "ssl_certfile": "cert_file", "ssl_keyfile": "key_file"}
"""URL parameters by redis-py's names, and the parts that they say."""
_PARAMETERS: Final = ("db", *_CREDENTIALS, *_FILES)
_ENCODING: Final = "special characters in the password must be percent-encoded, as in %40 for '@'"
_HOST_AND_PORT: Final = re.compile(r"[\w.-]+:\d{2,5}(/\d+)?", re.ASCII)


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
        if not 0 <= self.db < 65536:
            raise ConfigError("redis_db", f"{self.db} is no database: give 0 to 65535")
        if self.username and not self.password:
            raise ConfigError("redis_username", "is given without redis_password: give both")
        if self.tls and self.path:
            raise ConfigError("redis_url", "a unix socket carries no TLS: give a host, or leave TLS out")
        if (self.ca_file or self.cert_file or self.key_file) and not self.tls:
            raise ConfigError("redis_url", "a certificate is given without TLS: use rediss://")
        if self.key_file and not self.cert_file:
            raise ConfigError("redis_url", "has ssl_keyfile without ssl_certfile: give both")

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a ``redis://``, ``rediss://`` or ``unix://`` URL.

        Raises:
            ConfigError: see ``read_url``; or its parts contradict each other.
        """
        return cls(**read_url(url))

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
                    "redis_url",
                    f"{self.cert_file} and its key ({self.key_file or 'in the same file'}) are no PEM pair: {error}",
                ) from error
        return context


def read_url(url: object, *, field_name: str = "redis_url") -> dict[str, Any]:
    """The parts of an ``Address`` that a URL says, decoded. Its user and password go before those of its query.

    Args:
        url: as in ``rediss://user:secret@redis.internal:6380/2?ssl_ca_certs=/etc/ca.pem``.
        field_name: the setting to blame when the URL is bad.

    Raises:
        ConfigError: names ``field_name``, and never quotes what may be part of a password.
    """
    try:
        split = _split(url)
        parameters = _parameters(split.query)
        parts: dict[str, Any] = {name: parameters[name] for name in _CREDENTIALS if parameters.get(name)}
        parts |= {part: parameters[name] for name, part in _FILES.items() if parameters.get(name)}
        parts |= {name: unquote(text) for name in _CREDENTIALS if (text := getattr(split, name))}
        in_path = "" if split.scheme == "unix" else split.path.strip("/")
        parts |= _socket(split) if split.scheme == "unix" else _server(split)
        parts |= _database({text for text in (in_path, parameters.get("db")) if text})
    except _Refused as refused:
        raise ConfigError(field_name, str(refused)) from None
    return parts


def without_credentials(url: str) -> str:
    """A URL that ``read_url`` has read, without its user and password."""
    split = urlsplit(url)
    query = urlencode([one for one in parse_qsl(split.query) if one[0] not in _CREDENTIALS], safe="/")
    where = split.netloc.rpartition("@")[2] + split.path
    return f"{split.scheme}://{where}{'?' * bool(query)}{query}"


@final
class _Refused(Exception):
    """What is wrong with a URL, and what to give instead."""


def _split(url: object) -> SplitResult:
    if not isinstance(url, str):
        raise _Refused(f"is of type {type(url).__name__}; give text such as redis://localhost:6379/0")
    if "://" not in url:
        raise _Refused(f"has no scheme; write redis://{url if _HOST_AND_PORT.fullmatch(url) else 'HOST:PORT/DB'}")
    try:
        split = urlsplit(url)
        _ = split.port  # read only now
    except ValueError:  # from None: the cause quotes parts of the URL, perhaps of a password that was cut in two
        raise _Refused(f"is no URL; give redis://HOST:PORT/DB or unix:///PATH; {_ENCODING}") from None
    if split.scheme not in _SCHEMES:
        schemes = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
        raise _Refused(f"begins with '{split.scheme}://'; give one of {schemes}")
    if "#" in url or "@" in split.path + split.query or any(character.isspace() for character in url):
        raise _Refused(f"has a '#', an '@' or white space where none can be; {_ENCODING}")
    return split


def _parameters(query: str) -> dict[str, str]:
    found = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := found.keys() - set(_PARAMETERS):
        raise _Refused(f"has the parameter {min(unknown)!r}; only {', '.join(_PARAMETERS)} are understood")
    return found


def _socket(split: SplitResult) -> dict[str, Any]:
    if split.hostname or split.port is not None or not split.path.strip("/"):
        raise _Refused("has no path of a socket; give unix:///PATH, with three slashes")
    return {"path": unquote(split.path)}


def _server(split: SplitResult) -> dict[str, Any]:
    if not split.hostname:
        raise _Refused(f"lacks a host; give redis://HOST:PORT/DB; {_ENCODING}")
    if split.port == 0:
        raise _Refused("has port 0; give 1 to 65535")
    port = {} if split.port is None else {"port": split.port}
    return {"host": unquote(split.hostname), "tls": split.scheme == "rediss", **port}


def _database(texts: set[str]) -> dict[str, int]:
    if len(texts) > 1:
        raise _Refused("names two databases; leave one of them out")
    if not all(re.fullmatch("[0-9]{1,5}", text) for text in texts):
        raise _Refused("has a path or a db that is no database number; give redis://HOST:PORT/0")
    return {"db": int(texts.pop())} if texts else {}

"""Where Redis is and how to get in: the one reading of its URL, for the Config and for the link."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self, final
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from engine.errors import ConfigError

_SENTINEL: Final = ("redis+sentinel", "rediss+sentinel")
_CLUSTER: Final = ("redis+cluster", "rediss+cluster")
_SCHEMES: Final = ("redis", "rediss", "unix", *_SENTINEL, *_CLUSTER)
_CREDENTIALS: Final = ("username", "password")
_FILES: Final = {"ssl_ca_certs": "ca_file", "ssl_certfile": "cert_file", "ssl_keyfile": "key_file"}
"""URL parameters by redis-py's names, and the parts that they say."""
_PARAMETERS: Final = ("db", *_CREDENTIALS, *_FILES)
_ENCODING: Final = "special characters in the password must be percent-encoded, as in %40 for '@'"
_NODE: Final = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\s:,\[\]]+))(?::(?P<port>\d{1,5}))?")
_HOST_AND_PORT: Final = re.compile(r"[\w.-]+:\d{2,5}(/\d+)?", re.ASCII)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where Redis is: a server, or those who know which one. No text made from this has a password: repr, `label`.

    Raises:
        ConfigError: a part is out of bounds or contradicts another.
    """

    host: str = "localhost"
    port: int = 6379
    path: str | None = None
    """Unix socket; host and port are then unused."""

    nodes: tuple[tuple[str, int], ...] = ()
    """Hosts and ports of Sentinels or of nodes of a Cluster, to be asked; host, port and path are then unused."""

    sentinel_master: str | None = None
    """The name that ``nodes``, then Sentinels, know the primary by."""

    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    """For the Sentinels themselves, if they ask for one."""

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

        self._check_nodes()

    def _check_nodes(self) -> None:
        if self.is_cluster and self.db:
            raise ConfigError("redis_url", f"names database {self.db}, and a Cluster has only 0; leave it out")
        if self.sentinel_username and not self.sentinel_password:
            raise ConfigError("redis_sentinel_username", "is given without redis_sentinel_password: give both")
        if self.sentinel_password and not self.is_sentinel:
            raise ConfigError("redis_sentinel_password", "no Sentinel is named; give a redis+sentinel:// URL")

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a URL: ``redis://``, ``unix://``, ``redis+sentinel://`` or ``redis+cluster://``, ``rediss`` for TLS.

        Raises:
            ConfigError: see ``read_url``; or its parts contradict each other.
        """
        return cls(**read_url(url))

    @property
    def is_sentinel(self) -> bool:
        """Whether Sentinels are to be asked for the server."""
        return bool(self.sentinel_master)

    @property
    def is_cluster(self) -> bool:
        """Whether nodes of a Cluster are to be asked for the server."""
        return bool(self.nodes) and not self.sentinel_master

    def at(self, host: str, port: int) -> Address:
        """That one server of these, entered as all of them are."""
        return replace(
            self, host=host, port=port, nodes=(), sentinel_master=None, sentinel_username=None, sentinel_password=None
        )

    @property
    def label(self) -> str:
        """The address for logs and people, without user and password."""
        if self.path:
            return f"unix://{self.path}?db={self.db}"
        scheme = "rediss" if self.tls else "redis"
        if self.nodes:
            hosts = ",".join(_host_and_port(host, port) for host, port in self.nodes)
            master = f"/{self.sentinel_master}/{self.db}"
            return f"{scheme}+sentinel://{hosts}{master}" if self.sentinel_master else f"{scheme}+cluster://{hosts}"
        return f"{scheme}://{_host_and_port(self.host, self.port)}/{self.db}"

    def redact(self, text: str) -> str:
        """``text`` without the password, which a server can echo (it does when AUTH is renamed)."""
        for secret in (self.password, self.sentinel_password):
            text = text.replace(secret, "***") if secret else text
        return text

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
        if split.scheme in _SENTINEL:
            master, _, in_path = in_path.partition("/")
            parts |= _nodes(split, default_port=26379) | _master(unquote(master))
        elif split.scheme in _CLUSTER:
            parts |= _nodes(split, default_port=6379)
        else:
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
        if split.scheme not in _SENTINEL + _CLUSTER:
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


def _nodes(split: SplitResult, *, default_port: int) -> dict[str, Any]:
    such_as = f"give them as in {split.scheme}://HOST:PORT,HOST:PORT"
    hosts = split.netloc.rpartition("@")[2]
    if not hosts:
        raise _Refused(f"lacks hosts; {such_as}; {_ENCODING}")
    nodes = []
    for text in hosts.split(","):
        found = _NODE.fullmatch(text)
        port = int((found and found["port"]) or default_port)
        if found is None or not 0 < port < 65536:
            raise _Refused(f"has hosts that cannot be read; {such_as}; {_ENCODING}")
        nodes.append((found["v6"] or unquote(found["host"]), port))
    return {"nodes": tuple(nodes), "tls": split.scheme.startswith("rediss")}


def _master(name: str) -> dict[str, Any]:
    if not name:
        raise _Refused("lacks the name that the Sentinels give the primary; write it behind the hosts, as in /mymaster")
    return {"sentinel_master": name}


def _host_and_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _database(texts: set[str]) -> dict[str, int]:
    if len(texts) > 1:
        raise _Refused("names two databases; leave one of them out")
    if not all(re.fullmatch("[0-9]{1,5}", text) for text in texts):
        raise _Refused("has a path or a db that is no database number; give redis://HOST:PORT/0")
    return {"db": int(texts.pop())} if texts else {}

"""What the engine starts from above itself: found by an entry point of ``troupe.services``, and never imported."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final, Protocol, cast, final

from engine.errors import ApiRefused, ConfigError, ServiceNotFound

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from engine.app import Engine
    from engine.config import Config
    from engine.runtime import Child

__all__ = ["GROUP", "ApiAddress", "Service", "find_service", "opened", "read_address", "token_of"]

GROUP: Final = "troupe.services"

_ADDRESS: Final = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<v4>[^:\[\]/@]+)):(?P<port>[0-9]{1,5})")
_SUCH_AS: Final = "give an IP address of this host and a port, such as 127.0.0.1:8000 or [::1]:8000"


@final
@dataclass(frozen=True, slots=True)
class ApiAddress:
    """Where the HTTP API listens."""

    ip: IPv4Address | IPv6Address
    port: int
    """0: one that is free."""

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"


class Service(Protocol):
    """What the entry point ``api`` names."""

    def __call__(self, engine: Engine, address: ApiAddress) -> AbstractContextManager[Child]:
        """Take the address for the block, which lasts as long as the engine runs; a child of its root serves there.

        Raises:
            ApiRefused: this process may not have the address.
            ApiUnavailable: the address cannot be had.
        """


@contextmanager
def opened(engine: Engine, api: str | None) -> Iterator[tuple[Child, ...]]:
    """The children that serve ``engine`` at the address ``api``, if there is one. Takes the address for the block.

    Raises:
        ApiRefused: it is no address, or other hosts reach it and there is no token.
        ApiUnavailable: it cannot be had.
        ConfigError: the token cannot be sent in a header.
        ServiceNotFound: nothing that is installed serves the API.
    """
    if api is None:
        yield ()
        return
    address = read_address(api)
    if token_of(engine.config) is None and not address.ip.is_loopback:
        raise ApiRefused(
            api,
            "other hosts can reach it, so whoever asks must show a token: set TROUPE_API_TOKEN (Config.api_token), "
            "or give a loopback address such as 127.0.0.1:8000",
        )
    with find_service("api")(engine, address) as child:
        yield (child,)


def read_address(api: str) -> ApiAddress:
    """``127.0.0.1:8000``, ``[::1]:8000``, or ``localhost:8000``, which is the first of these.

    Raises:
        ApiRefused: it is no such address.
    """
    given: object = api
    found = _ADDRESS.fullmatch(given) if isinstance(given, str) else None
    if found is None:
        raise ApiRefused(api, _SUCH_AS)
    try:
        v4 = "127.0.0.1" if found["v4"] == "localhost" else found["v4"]
        ip = IPv6Address(found["v6"]) if found["v6"] is not None else IPv4Address(v4)
    except ValueError:
        raise ApiRefused(api, f"{found['v6'] or found['v4']!r} is no IP address; {_SUCH_AS}") from None
    port = int(found["port"])
    if port > 65_535:
        raise ApiRefused(api, f"there is no port {port}; give one from 1 to 65535, or 0 for one that is free")
    return ApiAddress(ip, port)


def token_of(config: Config) -> str | None:
    """What requests must show; None: nothing.

    Raises:
        ConfigError: it cannot be sent in a header.
    """
    token = config.api_token.get_secret_value() if config.api_token is not None else ""
    if not all("!" <= character <= "~" for character in token):
        raise ConfigError(
            "api_token",
            "it has a character that cannot be sent in a header; give visible ASCII characters, without spaces and "
            "without the line break that a file may end with",
        )
    return token or None


def find_service(name: str) -> Service:
    """What the entry point of this name gives.

    Raises:
        ServiceNotFound: there is none, or it cannot be imported.
    """
    found = next(iter(entry_points(group=GROUP, name=name)), None)
    if found is None:
        raise ServiceNotFound(name, f"no installed distribution has an entry point of that name in {GROUP}")
    try:
        return cast("Service", found.load())
    except (ImportError, AttributeError) as error:
        raise ServiceNotFound(name, f"{found.value} cannot be imported: {error}") from error

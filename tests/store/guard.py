"""Servers that let in only who speaks TLS and shows a password: certificates, users, and the lines that say so."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final
from urllib.parse import quote

import redis
import trustme

if TYPE_CHECKING:
    from collections.abc import Sequence

HOST: Final = "127.0.0.1"
PAGE: Final = Path(__file__).parents[2] / "docs" / "redis.md"


def rules_of_page() -> list[str]:
    """What docs/redis.md gives to ACL SETUSER behind the name of the user."""
    found = re.search(r"redis-cli ACL SETUSER troupe (.*?)\n```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return [word.strip("'").replace("\\|", "|") for word in found[1].replace("\\\n", " ").split()]


def rights_of_page(prefix: str) -> list[str]:
    """The same for another application, without the password."""
    on, _, _, *commands = rules_of_page()
    return [on, f"~{{{prefix}}}:*", *commands]


@final
@dataclass(frozen=True, slots=True)
class Guard:
    """One certificate for all servers, and the only ways in: an administrator, and a user with the given rights.

    Both exist with Redis and with the Sentinels; there the user may ask for the primary and nothing else.
    """

    ca_file: str
    pem_file: str
    rights: Sequence[str]
    """Of the user with Redis, as ACL SETUSER takes them."""

    username: str = "troupe"
    password: str = "p/w:of@redis"  # noqa: S105
    sentinel_username: str = "watcher"
    sentinel_password: str = "p/w:of@sentinels"  # noqa: S105
    admin: str = "admin"

    @classmethod
    def make(cls, directory: Path, rights: Sequence[str]) -> Guard:
        """With certificates in the directory."""
        directory.mkdir(exist_ok=True)
        authority = trustme.CA()
        ca_file, pem_file = directory / "ca.pem", directory / "server.pem"
        authority.cert_pem.write_to_path(ca_file)
        authority.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(pem_file)
        return cls(str(ca_file), str(pem_file), rights)

    def options(self, port: int) -> list[str]:
        """Of a redis-server on that port."""
        users = [
            ("default", "off"),
            (self.admin, "on", f">{self.admin}", "~*", "&*", "+@all"),
            (self.username, f">{self.password}", *self.rights),
        ]
        tls = [*self._tls(port), ("tls-replication", "yes"), ("tls-cluster", "yes")]
        lines = [*tls, *(("user", *user) for user in users), ("masteruser", self.admin), ("masterauth", self.admin)]
        return [word for name, *values in lines for word in (f"--{name}", *values)]

    def sentinel_lines(self, port: int, master: str) -> list[str]:
        """Of the configuration of a Sentinel on that port."""
        asks = "+auth +ping +sentinel|get-master-addr-by-name +sentinel|master"
        return [
            *(" ".join(line) for line in [*self._tls(port), ("tls-replication", "yes")]),
            "user default off",
            f"user {self.admin} on >{self.admin} ~* &* +@all",
            f"user {self.sentinel_username} on >{self.sentinel_password} {asks}",
            f"sentinel sentinel-user {self.admin}",
            f"sentinel sentinel-pass {self.admin}",
            f"sentinel auth-user {master} {self.admin}",
            f"sentinel auth-pass {master} {self.admin}",
        ]

    def _tls(self, port: int) -> list[tuple[str, str]]:
        return [
            ("port", "0"),
            ("tls-port", str(port)),
            ("tls-ca-cert-file", self.ca_file),
            ("tls-cert-file", self.pem_file),
            ("tls-key-file", self.pem_file),
            ("tls-auth-clients", "no"),
        ]

    def url(self, plain: str) -> str:
        """The address with TLS, and with the user of Redis."""
        scheme, _, rest = plain.partition("://")
        user = f"{self.username}:{quote(self.password, safe='')}"
        return f"{scheme.replace('redis', 'rediss', 1)}://{user}@{rest}?ssl_ca_certs={self.ca_file}"

    def sentinel_settings(self) -> dict[str, str]:
        """What a Config needs for the Sentinels, beyond the URL."""
        return {
            "redis_sentinel_username": self.sentinel_username,
            "redis_sentinel_password": self.sentinel_password,
        }

    def admin_options(self) -> dict[str, Any]:
        """For a client of redis-py, as the administrator."""
        return {"ssl": True, "ssl_ca_certs": self.ca_file, "username": self.admin, "password": self.admin}


def connect(port: int, guard: Guard | None, **options: Any) -> redis.Redis:
    """A client of a server or a Sentinel; the administrator's where there is a guard."""
    return redis.Redis(host=HOST, port=port, **(guard.admin_options() if guard else {}), **options)

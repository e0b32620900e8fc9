"""Who a worker is: for Redis, and for people."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import final

from engine.domain.names import quote_name


@final
@dataclass(frozen=True, slots=True)
class Identity:
    """One process's part in the cluster, from one start of the engine to its end.

    Made at start and anew at each start, never at import: forks of a preloaded process would share it and both lead.
    """

    service: str
    host: str
    pid: int
    nonce: str
    """64 random bits, hexadecimal."""

    @classmethod
    def make(cls, service: str, nonce: str) -> Identity:
        """The identity of this process from now on."""
        return cls(service=service, host=socket.gethostname(), pid=os.getpid(), nonce=nonce)

    @property
    def key(self) -> str:
        """What Redis holds: without a colon or a bar, which separate it from other fields there."""
        return f"{quote_name(self.host)}-{self.pid}-{self.nonce}"

    @property
    def worker_id(self) -> str:
        """What people see."""
        return f"{self.service}-{self.host}-{self.pid}-{self.nonce[:4]}"

"""The store: every operation on Redis, grouped by who uses it, each one script or one read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from engine.store.catalog import CatalogStore
from engine.store.election import ElectionStore
from engine.store.history import History
from engine.store.keys import Keys
from engine.store.leases import LeaseStore
from engine.store.ledger import LedgerStore
from engine.store.operations import OperationStore
from engine.store.retelling import Retelling
from engine.store.runs import RunStore
from engine.store.session import Session
from engine.store.timetable import Timetable

if TYPE_CHECKING:
    from engine.errors import KeyMalformed
    from engine.store.transport import Transport

__all__ = ["Store"]


@final
@dataclass(frozen=True, slots=True)
class Store:
    """Typed operations over one transport, for one application (``redis_key_prefix``)."""

    transport: Transport
    keys: Keys
    election: ElectionStore
    timetable: Timetable
    runs: RunStore
    leases: LeaseStore
    catalog: CatalogStore
    ledger: LedgerStore
    operations: OperationStore
    retelling: Retelling
    history: History

    @property
    def broken(self) -> KeyMalformed | None:
        """The key of all that somebody waits for now because it holds what Troupe did not write."""
        return self.runs.session.oddities.broken()

    @classmethod
    def over(
        cls, transport: Transport, *, prefix: str, ledger_length: int = 1_000, history: History | None = None
    ) -> Store:
        """A store that sends its commands over ``transport``, under keys that begin with ``{prefix}:``.

        ``history`` is what greets the connections of the transport, if it greets them so.
        """
        keys = Keys(prefix)
        session = Session(transport, keys, ledger_length)
        history = history or History(keys)
        return cls(
            transport=transport,
            keys=keys,
            election=ElectionStore(session),
            timetable=Timetable(session),
            runs=RunStore(session),
            leases=LeaseStore(session),
            catalog=CatalogStore(session),
            ledger=LedgerStore(session),
            operations=OperationStore(session),
            retelling=Retelling(session, history),
            history=history,
        )

"""Every message that actors send each other, in the order in which a slot meets them.

Requests are imperatives, facts are in the past tense. A message that wants an answer carries a ``Reply``. The inbox of
each role is a closed union, at the end: a new message type is a type error in the actor that forgets it.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias, final

from engine.domain.task import Definition
from engine.runtime import Reply
from engine.store.election import Renewed
from engine.store.retelling import Adoption, Tables
from engine.store.timetable import Due


@final
@dataclass(frozen=True, slots=True)
class Term:
    """One leadership: what a leader's write must show, and how long a renewal holds."""

    value: str
    lease_s: float


# -- Leading --------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Campaign:
    """Try to lead, or renew. Leader -> itself, by its timer."""


@final
@dataclass(frozen=True, slots=True)
class SeatVacated:
    """Somebody can lead now. Catalog -> Leader, as soon as the event of a resignation is heard.

    Heartbeat -> Leader, when Redis has been told all that this worker remembers.
    """


@final
@dataclass(frozen=True, slots=True)
class LeadershipTaken:
    """This worker leads. Leader -> Coordinator, Reconciler, Catalog; for each term, and again when one of them asks."""

    term: Term
    renewed_at_s: float
    """Monotonic instant at which the election, or the last renewal, was sent."""


@final
@dataclass(frozen=True, slots=True)
class LeaseRenewed:
    """The lease was extended. Leader -> Coordinator, Reconciler; Coordinator -> Leader when it had to renew itself."""

    term: Term
    renewed_at_s: float
    """Monotonic instant at which the renewal was sent."""

    answer: Renewed


@final
@dataclass(frozen=True, slots=True)
class LeadershipEnded:
    """This worker leads no longer, or resigned. Leader -> Coordinator, Reconciler, Catalog."""


@final
@dataclass(frozen=True, slots=True)
class TermAsked:
    """Does this worker lead? Coordinator, Reconciler, Catalog -> Leader, when they start: a restart knows nothing."""


@final
@dataclass(frozen=True, slots=True)
class WriteRefused:
    """Redis refused a leader's write: the term is over. Coordinator, Reconciler -> Leader."""

    term: Term


# -- Which tasks exist ----------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Refresh:
    """Read the catalog if its version is not this one. Heartbeat, Consumer, Catalog's own reader -> Catalog."""

    version: int | None
    """None: read it in any case."""


@final
@dataclass(frozen=True, slots=True)
class CatalogRead:
    """The tasks that exist now. Catalog -> Coordinator, Consumer, Reconciler; at each change."""

    version: int
    tasks: Mapping[str, Definition]
    """Task id -> definition, of every task that some live set or a dynamic definition has."""

    sets: Mapping[str, AbstractSet[str]]
    """Digest of a declared set -> ids of its tasks."""

    functions: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Digest of a declared set -> ids (``group/function``) of the functions that its process knows."""

    forgotten: tuple[str, ...] = ()
    """Tasks whose removal is not finished."""

    withdrawn: tuple[str, ...] = ()
    """Tasks that were removed while processes declared them: they do not exist, until they are made again."""

    others: frozenset[str] = frozenset()
    """Tasks that exist, and whose definitions this version does not understand: for others to run, not to touch."""

    complete: bool = True
    """Every task that exists is named here. Not so if something declared does not even say which task it is."""


@final
@dataclass(frozen=True, slots=True)
class CatalogAsked:
    """Say again which tasks exist. Coordinator, Consumer, Reconciler -> Catalog, when they start."""


# -- When what is due -----------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Woken:
    """Something became due soon, out of turn. Catalog (which hears the wake stream) -> Coordinator."""

    due: tuple[Due, ...]
    """Empty: there may be more than was heard of."""


@final
@dataclass(frozen=True, slots=True)
class Turn:
    """Publish what is due. Coordinator -> itself, by its timer."""


# -- Runs -----------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class RunsAsked:
    """Which runs (and fences) does this worker hold? Heartbeat -> Consumer, before each beat."""

    reply: Reply[list[tuple[str, int]]]


@final
@dataclass(frozen=True, slots=True)
class StopRuns:
    """Stop these runs. Heartbeat -> Consumer."""

    lost: frozenset[tuple[str, int]] = frozenset()
    """Other workers may have them by now: nothing more is written about them."""

    cancelled: frozenset[tuple[str, int]] = frozenset()
    """Somebody asked for it: they end as cancelled."""


@final
@dataclass(frozen=True, slots=True)
class LeasesInDanger:
    """No beat got through for most of a lease: stop what can be stopped in time. Heartbeat -> Consumer.

    The runs are handed back when Redis answers again.
    """


@final
class RunEnd(NamedTuple):
    """How one attempt ended."""

    run_id: str
    outcome: str
    """``ran``, ``failed``, ``dead``, ``retrying``, ``handed back``, ``lost`` or ``refused``."""

    duration_s: float
    """Monotonic seconds from the body's start to its end."""


@final
@dataclass(frozen=True, slots=True)
class RunsEnded:
    """Attempts ended, and Redis knows. Consumer -> Stats; one message for each batch told to Redis."""

    ends: tuple[RunEnd, ...]


@final
@dataclass(frozen=True, slots=True)
class CountsAsked:
    """How many runs ended how? Heartbeat -> Stats."""

    reply: Reply[Mapping[str, int]]


# -- Watching the others --------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Look:
    """Look for lost leases. Reconciler -> itself, by its timer."""


@final
@dataclass(frozen=True, slots=True)
class Beat:
    """Renew leases and presence. Heartbeat -> itself, by its timer."""


# -- When Redis forgets ---------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class HistoryDoubted:
    """Redis may go on with another history: look now. Leader, Catalog -> Heartbeat."""


@final
@dataclass(frozen=True, slots=True)
class RunsRemembered:
    """Which runs has this worker, and which had it lately? Heartbeat -> Consumer, when Redis may have forgotten."""

    sure_until_s: float
    """Monotonic instant up to which Redis went on with the history of before: what it refused by then, it refused."""

    reply: Reply[list[Adoption]]


@final
@dataclass(frozen=True, slots=True)
class Remembered:
    """The catalog as a worker last read it, in the history of before."""

    tables: Tables
    tasks: Mapping[str, Definition]


@final
@dataclass(frozen=True, slots=True)
class CatalogRemembered:
    """Which tasks and pauses were there? Heartbeat -> Catalog, when Redis may have forgotten."""

    reply: Reply[Remembered | None]
    """None: it was never read."""


# -- Stopping -------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Drain:
    """Take no more work and let go of what can be let go of. Engine -> Leader, Consumer, Heartbeat, all at once."""

    reply: Reply[None]
    """Sent when nothing is left to wait for."""


LeaderInbox: TypeAlias = Campaign | SeatVacated | LeaseRenewed | TermAsked | WriteRefused | Drain
CatalogInbox: TypeAlias = LeadershipTaken | LeadershipEnded | Refresh | CatalogAsked | CatalogRemembered
CoordinatorInbox: TypeAlias = LeadershipTaken | LeaseRenewed | LeadershipEnded | CatalogRead | Woken | Turn
ConsumerInbox: TypeAlias = CatalogRead | RunsAsked | StopRuns | LeasesInDanger | RunsRemembered | Drain
StatsInbox: TypeAlias = RunsEnded | CountsAsked
ReconcilerInbox: TypeAlias = LeadershipTaken | LeaseRenewed | LeadershipEnded | CatalogRead | Look
HeartbeatInbox: TypeAlias = Beat | HistoryDoubted | Drain

"""The actor runtime: actors with mailboxes, supervisors that restart them, and a tree to look at.

Usable on its own: it knows trio and nothing of what the actors do.
"""

from engine.runtime.actor import Actor
from engine.runtime.clock import Clock, virtual_clock
from engine.runtime.context import Context, Environment, default_environment
from engine.runtime.events import (
    ChildEnded,
    ChildFailed,
    ChildFailedStopping,
    ChildIgnoresCancellation,
    ChildStarted,
    ChildStopOverdue,
    ChildStopped,
    SupervisorEvent,
    SupervisorGaveUp,
)
from engine.runtime.mailbox import Mailbox, MailboxStatistics, Reply
from engine.runtime.render import render
from engine.runtime.spec import Backoff, Child, Restart, Strategy, Supervisor
from engine.runtime.supervision import Supervision, supervise
from engine.runtime.tree import Failure, Kind, Node, State

__all__ = [
    "Actor",
    "Backoff",
    "Child",
    "ChildEnded",
    "ChildFailed",
    "ChildFailedStopping",
    "ChildIgnoresCancellation",
    "ChildStarted",
    "ChildStopOverdue",
    "ChildStopped",
    "Clock",
    "Context",
    "Environment",
    "Failure",
    "Kind",
    "Mailbox",
    "MailboxStatistics",
    "Node",
    "Reply",
    "Restart",
    "State",
    "Strategy",
    "Supervision",
    "Supervisor",
    "SupervisorEvent",
    "SupervisorGaveUp",
    "default_environment",
    "render",
    "supervise",
    "virtual_clock",
]

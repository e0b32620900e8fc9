"""Stats: what this worker's runs came to."""

from __future__ import annotations

import logging
from collections import Counter
from typing import assert_never, final

from actors.messages import CountsAsked, RunsEnded, StatsInbox
from engine.runtime import Actor

log = logging.getLogger("fastapi.task-manager.statistics")


@final
class Stats(Actor[StatsInbox]):
    """Counts how runs ended here. The ledger in Redis is the truth; a restart loses only the counts of this process."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    async def receive(self, message: StatsInbox) -> None:
        """Count, or tell."""
        match message:
            case RunsEnded():
                for end in message.ends:
                    self._counts[end.outcome] += 1
                    log.debug("Run %s: %s after %.3f s", end.run_id, end.outcome, end.duration_s)
                self.context.doing(", ".join(f"{count} {outcome}" for outcome, count in sorted(self._counts.items())))
            case CountsAsked():
                message.reply.send(dict(self._counts))
            case _:
                assert_never(message)

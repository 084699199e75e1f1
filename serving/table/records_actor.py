"""The detached actor `records:{service}`, which hosts the records log of one service.

Its log does not survive a crash: a restarted log continues with higher numbers and reports what was lost.
Where the wall clock was set back meanwhile its numbers are lower, and it tells each reader so.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from serving.clock import boot_s
from serving.messages import RecordBatch, RecordPage, ScoreRecord
from serving.table.records_log import RecordLog


class RecordsActor:
    """Hosts the `RecordLog` of one service."""

    def __init__(self) -> None:
        # Microseconds since the epoch: above every number of an earlier log, unless the clock was set back.
        self._log = RecordLog(first_seq=time.time_ns() // 1000)

    async def append_batch(self, batch: RecordBatch) -> None:
        """Append a router's batch; a repeated one is ignored."""
        self._log.append_batch(batch, now_s=boot_s(), wall_s=time.time())

    async def append_scores(self, scores: Sequence[ScoreRecord]) -> None:
        """Append scores."""
        self._log.append_scores(scores)

    async def read(self, after_seq: int, limit: int) -> RecordPage:
        """The next events. Raises ValueError."""
        return self._log.read(after_seq, limit, now_s=boot_s(), wall_s=time.time())

"""Whether stable answers its users, by the routers' records: the newest requests, of which none was answered.

Invariant: it decides nothing. A request that its client left says nothing; one that stable answered with
another failure than its own, as a 4xx, is answered.
"""

from __future__ import annotations

from dataclasses import dataclass

from serving.messages import CANARY, STABLE, RequestRecord

MIN_REQUESTS = 5  # in a row: fewer may be chance
RECENT_S = 60.0  # older failures say nothing of what users get now
FAILED_STATUS = 400  # of an answer at a second attempt, or to a canary's request


@dataclass(frozen=True, slots=True)
class Outage:
    """Requests in a row that stable answered none of. Times are wall times of the routers."""

    since_s: float  # when the first of them ended
    requests: int
    cause: str  # of the newest, a fixed word: refused, reset, status 503, silent


class StableAnswers:
    """The requests since stable's newest answer. Not thread-safe."""

    def __init__(self) -> None:
        self.answered_s: float | None = None  # when its newest answer ended; None: none is known
        self._since_s = self._newest_s = 0.0
        self._requests = 0
        self._cause = ""

    def add(self, record: RequestRecord) -> None:
        """Count a request, in the order of the log."""
        if _is_answered(record):
            self._requests = 0
            self.answered_s = max(record.done_at_s, self.answered_s or 0.0)
        elif record.arm == STABLE and record.error:
            if not self._requests:
                self._since_s = self._newest_s = record.done_at_s
            self._requests += 1
            self._newest_s = max(self._newest_s, record.done_at_s)
            self._cause = record.cause or ""

    def outage(self, now_s: float) -> Outage | None:
        """The outage that lasts; None: there is none, or too little is known of the last minute."""
        if self._requests < MIN_REQUESTS or now_s - self._newest_s > RECENT_S:
            return None
        return Outage(self._since_s, self._requests, self._cause)


def _is_answered(record: RequestRecord) -> bool:
    """True: its client has an answer of stable's, whichever arm it was of."""
    if record.arm == STABLE and record.error is False:
        return True
    is_second = record.arm == CANARY or record.retries > 0
    is_good = record.status is not None and record.status < FAILED_STATUS
    return is_second and record.served_arm == STABLE and is_good

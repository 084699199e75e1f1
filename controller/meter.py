"""How many requests a second a service gets, from its records log: for plans, and for warming a canary up."""

from __future__ import annotations

from collections import deque

from controller.evidence_feed import RecordsLog
from serving.messages import RequestRecord

WINDOW_S = 60.0
PAGE_EVENTS = 5_000


class TrafficMeter:
    """Counts the requests of one service over the last minute."""

    def __init__(self, service: str, log: RecordsLog) -> None:
        self._service = service
        self._log = log
        self._seq = 0
        self._recent: deque[float] = deque()
        self._since_s: float | None = None  # None: the log was not read yet

    def look(self, now_s: float) -> None:
        """Take in what is new; a log that cannot be read changes nothing."""
        page = self._log.read(self._service, after_seq=self._seq, limit=PAGE_EVENTS)
        if page is None:
            return
        self._seq = page.next_seq
        if self._since_s is None:
            self._since_s = now_s
        self._recent.extend(event.at_s for event in page.events if isinstance(event, RequestRecord))
        while self._recent and self._recent[0] < now_s - WINDOW_S:
            self._recent.popleft()

    def requests_per_s(self) -> float | None:
        """Requests a second over the last minute; None: nothing was counted yet."""
        if self._since_s is None or not self._recent:
            return None
        return len(self._recent) / WINDOW_S

"""Endpoints to which no connection can be made: why, for the log and for the error that a client gets.

Invariant: a reason is of a fixed set of words and names no host, for clients are told it; the log names both.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from dataclasses import dataclass

from serving.network_errors import BY_NUMBER, LATE, RESET, network_reason

ENDPOINTS_LIMIT = 1024  # that are remembered
DETAIL_LIMIT = 200  # characters of an error
LOG_EVERY_S = 60.0  # at most, of one endpoint: one that comes and goes must not fill the log

log = logging.getLogger("canaryctl.router")

_EARLY_RESET = f"{RESET} before a request was sent"
_CLEAR = frozenset({*BY_NUMBER.values(), LATE, _EARLY_RESET})  # reasons to which the error adds nothing


def reason_of(error: BaseException) -> str:
    """Why no connection was made, in a few words."""
    reason = network_reason(error)
    return _EARLY_RESET if reason == RESET else reason


@dataclass(frozen=True, slots=True)
class Unreachable:
    """Why no connection can be made to an endpoint."""

    reason: str  # of a fixed set, for clients
    detail: str  # of the error, for the log alone; empty: the reason says all

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


class Reachability:
    """What is unreachable now. Each beginning and end is logged once, unless another log has them."""

    def __init__(self) -> None:
        self.reasons: MutableMapping[str, Unreachable] = {}  # by origin of the endpoint
        self.is_logged = True  # False: `health.py` logs what fails
        self._garbled_s: dict[str, float] = {}  # when it was logged that an endpoint answers what is no HTTP
        self._logged: set[str] = set()  # endpoints whose beginning was logged
        self._since_s: dict[str, float] = {}
        self._last_s: dict[str, float] = {}  # when anything was logged of an endpoint

    def failed(self, endpoint: str, error: BaseException, *, now_s: float) -> None:
        """No connection could be made to this endpoint."""
        if (
            max(len(self._last_s), len(self.reasons)) >= ENDPOINTS_LIMIT
        ):  # replicas come and go, at other addresses
            for one in (self.reasons, self._logged, self._since_s, self._last_s):
                one.clear()
        reason = reason_of(error)
        known = self.reasons.get(endpoint)
        detail = "" if reason in _CLEAR else str(error)[:DETAIL_LIMIT]
        self.reasons[endpoint] = Unreachable(reason, detail)
        self._since_s.setdefault(endpoint, now_s)
        is_new = known is None or known.reason != reason or endpoint not in self._logged
        if not (self.is_logged and is_new):
            return
        if now_s - self._last_s.setdefault(endpoint, -LOG_EVERY_S) >= LOG_EVERY_S:
            self._logged.add(endpoint)
            self._last_s[endpoint] = now_s
            fields = {"endpoint": endpoint, "reason": reason, "error": str(error)[:DETAIL_LIMIT]}
            log.warning("endpoint cannot be reached", extra=fields)

    def garbled(self, endpoint: str, why: str, *, now_s: float) -> None:
        """What this endpoint answers is no HTTP. `health.py`, which logs what fails, does not know why."""
        last_s = self._garbled_s.get(endpoint, -LOG_EVERY_S)
        if now_s - last_s < LOG_EVERY_S:
            return
        if len(self._garbled_s) >= ENDPOINTS_LIMIT:
            self._garbled_s.clear()
        self._garbled_s[endpoint] = now_s
        fields = {"endpoint": endpoint, "error": why[:DETAIL_LIMIT]}
        log.warning("endpoint answers what is no HTTP; the connection is closed", extra=fields)

    def reached(self, endpoint: str, *, now_s: float) -> None:
        """A connection has been made."""
        if self.reasons.pop(endpoint, None) is None:
            return
        since_s = self._since_s.pop(endpoint, now_s)
        if endpoint in self._logged:
            self._logged.discard(endpoint)
            self._last_s[endpoint] = now_s
            fields = {"endpoint": endpoint, "unreachable_s": round(now_s - since_s, 1)}
            log.warning("endpoint is reached again", extra=fields)

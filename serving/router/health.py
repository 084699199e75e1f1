"""Upstreams of a table file that fail: which are set aside for a while, and what the log says of them. Pure.

Rules:
1. A canary that had no answer (no connection, broken, timed out) for `failures` requests in a row is set
   aside: its requests go to stable at once. They stay charged to the canary, with the cause `set aside`.
2. It is set aside for FIRST_S, then for twice as long each time, LONGEST_S at most. Then one request tries
   it; an answer brings it back, another failure sets it aside again.
3. Stable is never set aside: nobody stands behind it.
4. The log has a line when an upstream begins to fail, when it is set aside, every TELL_S while it goes on,
   and when it answers again, QUIET_S after the last failure.

`now_s` is CLOCK_BOOTTIME, set a few times a second: no request pays for reading a clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from serving.messages import CANARY, STABLE, Arm, RouteTable

FAILURES = 3
FIRST_S, LONGEST_S = 5.0, 60.0
TELL_S = 60.0
QUIET_S = 10.0
FORGET_S = 300.0  # after the last failure of an upstream that nobody asks any more
NO_ANSWER = frozenset({"refused", "reset", "timeout"})
# Of a canary these are worth a line although they may be the client's own mistake: stable is asked too.
TOLD_4XX = frozenset({401, 403, 404, 405})
_NAMES = {STABLE: "stable", CANARY: "canary"}
_REASONS = {
    "refused": "no connection",
    "reset": "the connection broke before an answer",
    "timeout": "no answer in time",
    "cut": "an answer broke off",
    "key refused": "it refuses our API key; correct the key, which is read again for each request",
}


@dataclass(slots=True)
class Failing:
    """One upstream that fails."""

    since_s: float
    last_s: float  # of the last failure
    cause: str
    failures: int = 0  # attempts
    in_a_row: int = 0  # without any answer
    to_stable: int = 0  # requests that stable was asked instead
    answered_s: float | None = None  # of an answer since the last failure; None: none
    aside_s: float = 0.0  # for how long it was set aside last; 0: it was not
    aside_until_s: float | None = None  # None: it is asked
    is_tried: bool = False  # its time is over and one request tries it
    told_s: float | None = None  # when the log last had a line; None: never
    is_aside_told: bool = False


class UpstreamHealth:
    """The failing upstreams of one service."""

    def __init__(self, service: str, *, failures: int = FAILURES) -> None:
        """failures: in a row, after which a canary is set aside; 0: it never is."""
        self.now_s = 0.0
        self.failures = failures
        self._service = service
        self.failing: dict[tuple[int, str], Failing] = {}  # by arm and URL

    # ---- of attempts

    def failed(self, arm: int, url: str, cause: str) -> None:
        """An attempt at this upstream failed. cause: a fixed word."""
        now_s = self.now_s
        one = self.failing.get((arm, url))
        if one is None:
            one = self.failing[arm, url] = Failing(now_s, now_s, cause)
        one.last_s, one.cause, one.answered_s = now_s, cause, None
        one.failures += 1
        if cause not in NO_ANSWER:
            one.in_a_row = 0
            return
        one.in_a_row += 1
        if arm != CANARY or not self.failures or one.in_a_row < self.failures:
            return
        if one.aside_until_s is not None and not one.is_tried:
            return  # of a request that was sent before
        one.aside_s = min(2 * one.aside_s or FIRST_S, LONGEST_S)
        one.aside_until_s, one.is_tried = now_s + one.aside_s, False

    def answered(self, arm: int, url: str) -> None:
        """This upstream has sent a head that is an answer."""
        one = self.failing.get((arm, url))
        if one is not None:
            one.in_a_row, one.answered_s = 0, self.now_s
            one.aside_s, one.aside_until_s = 0.0, None
            one.is_tried = one.is_aside_told = False

    def went_to_stable(self, url: str) -> None:
        """Stable is asked in place of this canary."""
        one = self.failing.get((CANARY, url))
        if one is not None:
            one.to_stable += 1

    def is_aside(self, url: str) -> bool:
        """True when this canary is not to be asked now. False, once when its time is over: this one tries."""
        one = self.failing.get((CANARY, url))
        if one is None or one.aside_until_s is None:
            return False
        if self.now_s < one.aside_until_s:
            return True
        one.aside_until_s = self.now_s + one.aside_s  # another tries then, if this one has not ended
        one.is_tried = True
        return False

    # ---- of time

    def tick(self, now_s: float, table: RouteTable | None) -> Iterator[tuple[bool, str]]:
        """The lines for the log that are due: (whether it fails, text). Sets the clock."""
        self.now_s = now_s
        for (arm, url), one in list(self.failing.items()):
            name = f"{self._service} {_NAMES[arm]} {url}"
            counts = f"{one.failures} failed attempts, {one.to_stable} requests went to stable"
            if one.answered_s is not None and now_s - one.last_s >= QUIET_S:
                del self.failing[arm, url]
                yield False, f"upstream answers again: {name} after {now_s - one.since_s:.0f} s: {counts}"
            elif now_s - one.last_s >= FORGET_S:
                del self.failing[arm, url]
            elif one.told_s is None:
                one.told_s = now_s
                yield True, f"upstream fails: {name}: {self._reason(one, _arm(table, arm))}{_instead(arm)}"
            elif one.aside_until_s is not None and not one.is_aside_told:
                one.is_aside_told, one.told_s = True, now_s
                yield (
                    True,
                    f"upstream set aside: {name}: {one.in_a_row} requests in a row had no answer; the next "
                    f"go to stable at once, and one tries it again after {one.aside_s:g} s, then less often",
                )
            elif one.last_s > one.told_s and now_s - one.told_s >= TELL_S:
                one.told_s = now_s
                reason = self._reason(one, _arm(table, arm))
                yield True, f"upstream still fails: {name}: {reason}; in {now_s - one.since_s:.0f} s {counts}"

    def _reason(self, one: Failing, arm: Arm | None) -> str:
        key = arm.api_key if arm is not None else None
        if key is not None and one.cause == "refused" and (problem := key.problem()) is not None:
            return problem
        of_key = f" ({key})" if key is not None and one.cause == "key refused" else ""
        return _REASONS.get(one.cause, one.cause) + of_key


def _arm(table: RouteTable | None, arm: int) -> Arm | None:
    return None if table is None else table.canary if arm == CANARY else table.stable


def _instead(arm: int) -> str:
    return "; stable is asked instead" if arm == CANARY else "; nobody stands behind it"

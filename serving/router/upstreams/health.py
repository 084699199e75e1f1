"""Upstreams of a table file that fail: which are set aside for a while, and what the log says of them. Pure.

Rules:
1. A canary that had no answer (no connection, broken, timed out) for `failures` requests in a row, each with
   its repetition, is set aside: its users get stable's answer at once. Requests are drawn for it all the
   same, and each is charged by what a copy of it, or of one like it, meets there (`exchange/trial.py`).
   One that broke or timed out counts when stable answers the request: one that stable does not answer either
   may be the cause of both, and one client could keep a canary aside by it.
2. The first answer, of whatever status, brings it back. A head of status 200 is none before its content:
   the front of an engine that hangs may still write it. What breaks off before that is a broken connection.
3. Stable is never set aside: nobody stands behind it.
4. The log has a line when an upstream begins to fail, when it is set aside, every TELL_S while it goes on,
   and when it answers again, QUIET_S after the last failure. It is the only one, also of connections: it has
   their reason from `reachability.py`, which then logs only why an answer is no HTTP.
5. A canary that hangs fails nobody before its time-out, of 300 s for what is no stream, nor those who leave
   before. So the log has a line, too, when FAILURES requests in a row were silent: without a word for
   SILENT_S when their clients left, or when they were recorded as open. The canary may only be slow: nobody
   is set aside for it.

`now_s` is CLOCK_BOOTTIME, set a few times a second: no request pays for reading a clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from serving.messages import CANARY, STABLE, Arm, RouteTable
from serving.router.upstreams.reachability import Unreachable
from serving.targets import Endpoint

NOTHING: Mapping[str, Unreachable] = MappingProxyType({})
FAILURES = 3
SILENT_S = 30.0
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
    in_a_row: int = 0  # requests without any answer
    to_stable: int = 0  # requests that stable was asked instead
    answered_s: float | None = None  # of the first answer since the last failure; None: none
    is_aside: bool = False
    told_s: float | None = None  # when the log last had a line; None: never
    is_aside_told: bool = False


@dataclass(slots=True)
class Silence:
    """Requests in a row of which a canary has said nothing, by rule 5."""

    requests: int = 0
    last_s: float = 0.0  # when the last one was
    told_s: float | None = None  # when the log last had a line; None: never
    since_s: float = 0.0  # of the first line
    is_over: bool = False


class UpstreamHealth:
    """The failing upstreams of one service."""

    def __init__(self, service: str, *, failures: int = FAILURES, now_s: float = 0.0) -> None:
        """failures: in a row, after which a canary is set aside; 0: it never is."""
        self.now_s = now_s
        self.failures = failures
        self._service = service
        self.failing: dict[tuple[int, str], Failing] = {}  # by arm and URL
        self.silences: dict[str, Silence] = {}  # by URL of a canary

    # ---- of attempts

    def failed(self, arm: int, url: str, cause: str, *, is_lookup: bool = False) -> None:
        """An attempt at this upstream failed. cause: a fixed word. is_lookup: it sets nobody aside."""
        now_s = self.now_s
        one = self.failing.get((arm, url))
        if one is None:
            one = self.failing[arm, url] = Failing(now_s, now_s, cause)
        one.last_s, one.cause, one.answered_s = now_s, cause, None
        one.failures += 1
        if is_lookup:
            return
        if cause not in NO_ANSWER:
            one.in_a_row, one.is_aside, one.is_aside_told = 0, False, False

    def unanswered(self, url: str) -> None:
        """A request gives up this canary, which had no answer for it, by rule 1. Called once a request."""
        one = self.failing.get((CANARY, url))
        if one is None:
            return
        one.in_a_row += 1
        one.is_aside = one.is_aside or 0 < self.failures <= one.in_a_row

    def silent(self, url: str) -> None:
        """One more request of this canary is silent, by rule 5."""
        one = self.silences.setdefault(url, Silence())
        one.requests, one.last_s, one.is_over = one.requests + 1, self.now_s, False

    @property
    def silent_requests(self) -> int:
        """The most requests in a row of which a canary has said nothing."""
        return max((one.requests for one in self.silences.values()), default=0)

    def answered(self, arm: int, url: str) -> None:
        """This upstream has begun an answer."""
        if arm == CANARY and (silence := self.silences.get(url)) is not None:
            silence.requests, silence.is_over = 0, True
        one = self.failing.get((arm, url))
        if one is not None:
            one.in_a_row = 0
            if one.answered_s is None:
                one.answered_s = self.now_s
            one.is_aside = one.is_aside_told = False

    def went_to_stable(self, url: str) -> None:
        """Stable is asked by a request that could have been this canary's."""
        one = self.failing.get((CANARY, url))
        if one is not None:
            one.to_stable += 1

    def is_aside(self, url: str) -> bool:
        """Whether this canary is set aside now. Changes nothing."""
        one = self.failing.get((CANARY, url))
        return one is not None and one.is_aside

    # ---- of time

    def tick(
        self, now_s: float, table: RouteTable | None, unreachable: Mapping[str, Unreachable] = NOTHING
    ) -> Iterator[tuple[bool, str]]:
        """The lines for the log that are due: (whether it fails, text). Sets the clock.

        unreachable: why no connection can be made, by origin.
        """
        self.now_s = now_s
        for (arm, url), one in list(self.failing.items()):
            name = f"{self._service} {_NAMES[arm]} {url}"
            counts = f"{one.failures} failed attempts, {one.to_stable} requests went to stable"
            if one.answered_s is not None and now_s - one.last_s >= QUIET_S:
                del self.failing[arm, url]
                # The outage itself: this line is later by what must be quiet before it.
                failed_s = one.answered_s - one.since_s
                yield False, f"upstream answers again: {name} after {failed_s:.0f} s: {counts}"
            elif now_s - one.last_s >= FORGET_S:
                del self.failing[arm, url]
            elif one.told_s is None:
                one.told_s = now_s
                reason = _reason(one, url, _arm(table, arm), unreachable)
                yield True, f"upstream fails: {name}: {reason}{_instead(arm, one)}"
            elif one.is_aside and not one.is_aside_told:
                one.is_aside_told, one.told_s = True, now_s
                reason = _reason(one, url, _arm(table, arm), unreachable)  # may be another than the first
                yield (
                    True,
                    f"upstream set aside: {name}: {one.in_a_row} requests in a row had no answer ({reason}); "
                    "the next get stable's at once, while copies of them try it until it answers",
                )
            elif one.last_s > one.told_s and now_s - one.told_s >= TELL_S:
                one.told_s = now_s
                reason = _reason(one, url, _arm(table, arm), unreachable)
                yield True, f"upstream still fails: {name}: {reason}; in {now_s - one.since_s:.0f} s {counts}"
        yield from self._silences(now_s)

    def _silences(self, now_s: float) -> Iterator[tuple[bool, str]]:
        for url, one in list(self.silences.items()):
            name = f"{self._service} {_NAMES[CANARY]} {url}"
            if one.is_over or now_s - one.last_s >= FORGET_S:
                del self.silences[url]
                if one.is_over and one.told_s is not None:
                    yield False, f"upstream is silent no more: {name} after {now_s - one.since_s:.0f} s"
            elif one.requests < FAILURES or (CANARY, url) in self.failing:  # whose lines say more
                continue
            elif one.told_s is None or (one.last_s >= one.told_s and now_s - one.told_s >= TELL_S):
                one.since_s, one.told_s = one.since_s or now_s, now_s
                yield (
                    True,
                    f"upstream is silent: {name}: {one.requests} requests in a row had no word of it for "
                    f"{SILENT_S:g} s or more; who waits gets stable's answer when its time is over",
                )


def _reason(one: Failing, url: str, arm: Arm | None, unreachable: Mapping[str, Unreachable]) -> str:
    key = arm.api_key if arm is not None else None
    if one.cause == "refused":
        if key is not None and (problem := key.problem()) is not None:
            return problem
        if (why := unreachable.get(Endpoint.parsed(url).origin)) is not None:
            return str(why)
    of_key = f" ({key})" if key is not None and one.cause == "key refused" else ""
    return _REASONS.get(one.cause, one.cause) + of_key


def _arm(table: RouteTable | None, arm: int) -> Arm | None:
    return None if table is None else table.canary if arm == CANARY else table.stable


def _instead(arm: int, one: Failing) -> str:
    """Who answers for it. Not every failure of a canary is replaced: what it may have created is not asked
    for twice, and what a client has begun to read cannot always be continued."""
    if arm == STABLE:
        return "; nobody stands behind it"
    return "; stable is asked instead" if one.to_stable else "; no request of it went to stable"

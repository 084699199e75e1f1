"""Attempts of one request: which replica is asked next, and the outcome of each. No socket, no clock.

Rules:
1. One rule for both arms: what the evidence says is the outcome of the first attempt on the assigned arm,
   whatever a repeat does. A first answer of 4xx (not 429) is a rejection, no failure, by its head: its body
   may break off. But an endpoint that answers our API key with 401 or 403 has failed.
2. One rule for both arms: an attempt that was refused, reset, cut or answered 429, 502, 503 or 504 is
   repeated once on the arm, on another replica if there is one; a reset that an endpoint was forgiven
   (`upstream.py`) is that repeat. Stable, behind which nobody stands, also goes on while connections are
   refused. The limit to the first byte is one for all attempts at an arm together, and their number is
   counted by arm (`tried.py`): stable has all of its own after a canary that has used up some.
3. A canary that still does not answer is replaced by stable of the newest table. Stable never falls back.
4. A stream that was cut after the client had seen part of it is continued by stable; one of stable's own by
   another replica of stable, if there is one.
5. Of the two replicas that a key prefers (rendezvous hashing: the highest of the replicas' scores for it),
   the one with less in flight is asked. A key keeps its replicas, whose prefix caches are warm, when others
   come or go: of n replicas one more takes 1/(n+1) of the keys, from all alike.
6. A request for what one engine keeps (a stored response, a file) is a *lookup*: the replicas are asked in
   turn, stable's first; one that does not have it answers 404 before it does anything (400, of endpoints that
   are no vLLM). No memory of ids is needed, so this survives restarts and works at every router.
7. What makes something that lasts (`creates`) goes to a next one only where the last surely made nothing.
   What may be sent but once (`is_once`) is repeated on no arm by the same rule, nor looked up further; but
   stable does it anew where a canary failed at it: no user's request fails because of a canary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from serving.messages import CANARY, STABLE, Arm, AttemptRecord, Replica, RouteTable
from serving.router.exchange.context import RouterContext, current_stable
from serving.router.exchange.preferred import least_loaded, next_beside, preferred, untried_of
from serving.router.exchange.told import tell_answer, tell_failure, tell_silence
from serving.router.exchange.tried import (
    MAX_ATTEMPTS,
    MAX_LOOKUPS,
    NOT_IMPLEMENTED,
    Tried,
    may_be_made,
    may_be_made_by,
    records_of,
    was_sent,
)
from serving.router.exchange.usable import failure_of
from serving.router.types import Assignment, Failure
from serving.router.upstreams.health import TOLD_4XX

_REPEATED = frozenset({"refused", "reset", "cut"})  # after the last two the same replica may be tried again
REPEATED_STATUSES = frozenset({429, 502, 503, 504})


class Attempts:
    """The attempts of one request so far. A replica counts the request as in flight until `release`."""

    def __init__(
        self,
        context: RouterContext,
        table: RouteTable,
        assignment: Assignment,
        *,
        creates: bool = False,
        is_once: bool = False,
    ) -> None:
        """By rule 7."""
        self.creates = creates
        self._is_once = creates or is_once
        self._context = context
        self._table = table
        self._assignment = assignment
        self._tried_urls: list[str] = []  # of the current arm
        self._beside_urls: list[str] = []  # of stable, which were asked beside the canary
        self._may_repeat = True  # one more attempt on this arm is allowed
        self._is_exhausted = False  # stable failed, and is not tried again
        self.arm = assignment.arm
        self.tried: list[Tried] = []
        self.replica: Replica | None = None  # of the current attempt
        self.first_cause: str | None = None  # why the first attempt failed; None: it did not, or was fenced
        self._left_url = ""  # of a canary that failed or is set aside, which stable is to be asked instead of
        self._unanswered = ""  # URL of a canary that gave no answer, which health is not told yet
        self.first_4xx: int | None = None  # status of the first attempt when that was 4xx
        self.refusal: str | None = None  # why the current attempt's 401 or 403 to our key is a failure
        self._has_lookup_failed = False  # a replica that may have what is looked up did not answer
        self.may_be_made = False  # what is asked for, by an attempt that failed after it was sent
        self.is_tried = False  # the first attempt is a trial that is under way, beside those at stable
        self.was_redone = False  # stable answered anew where only the usage was missing
        self.is_stopped = False  # by the router, whose own end is no failure of an arm
        self.was_sent_again = False  # the current attempt, to its replica
        self.was_whole = False  # the answer of the assigned arm was whole, but for what stable adds

    @property
    def count(self) -> int:
        """Attempts so far."""
        return len(self.tried)

    @property
    def is_repeat(self) -> bool:
        """True when the request was sent before the current attempt, and not just not found there."""
        return was_sent(self.tried[:-1], is_lookup=self._assignment.is_lookup)

    @property
    def records(self) -> tuple[AttemptRecord, ...]:
        """The attempts as they are recorded; (): there was one, and it did not fail."""
        return records_of(self.tried)

    @property
    def has_fallen_back(self) -> bool:
        """True when stable serves a canary's request."""
        return self._assignment.arm == CANARY and self.arm == STABLE

    @property
    def current_arm(self) -> Arm | None:
        """The version that is asked now; None: the table has none."""
        return self._version_of(self.arm)

    def _version_of(self, arm: int) -> Arm | None:
        if arm == CANARY:
            return self._table.canary
        return current_stable(self._context, self._table)

    def _count_at(self, arm: int) -> int:
        """Attempts at this arm so far."""
        return sum(one.arm == arm for one in self.tried)

    def begin(self, has_time: Callable[[], bool] | None = None) -> tuple[Arm, Replica] | None:
        """The version and replica to ask now; None: no replica is left, or no time.

        has_time: whether the current arm may still be asked; None: it may.
        """
        if self._assignment.is_lookup:
            return self._begin_lookup(may_ask=has_time is None or has_time())
        while not self._is_exhausted:
            arm = self.current_arm
            may_ask = not self.tried or has_time is None or has_time()
            may_ask = may_ask and self._count_at(self.arm) < MAX_ATTEMPTS
            replica = self._choose_replica(arm) if arm is not None and may_ask else None
            if arm is not None and replica is not None:
                self._use(replica)
                return arm, replica
            if self.arm == STABLE:
                break
            self.first_cause = self.first_cause or "refused"
            self._fall_back()
        return None

    def _begin_lookup(self, *, may_ask: bool) -> tuple[Arm, Replica] | None:
        for arm in (STABLE, CANARY) if may_ask and not self._is_exhausted else ():
            self.arm, current = arm, self._version_of(arm)
            if current is not None and (untried := self._not_looked_at(arm)):
                self._use(preferred(untried, self._assignment.key)[0])
                assert self.replica is not None
                return current, self.replica
        self.arm = STABLE  # the error is of stable
        return None

    def _use(self, replica: Replica) -> None:
        self.tried.append(Tried(self.arm, replica.url))
        self.replica, self.was_sent_again = replica, False
        self._tried_urls.append(replica.url)
        if self._left_url and self.arm == STABLE:
            if self._context.health is not None:
                self._context.health.went_to_stable(self._left_url)
            self._left_url = ""
        self._context.in_flight[replica.url] = self._context.in_flight.get(replica.url, 0) + 1

    def release(self, *, is_cut: bool = False) -> None:
        """The current attempt is over; is_cut: it broke off, and nobody continues it."""
        replica, self.replica = self.replica, None
        if replica is not None:
            if is_cut:
                self._tell("cut")
            remaining = self._context.in_flight[replica.url] - 1
            if remaining:
                self._context.in_flight[replica.url] = remaining
            else:
                del self._context.in_flight[replica.url]

    def failed(self, why: Failure | None) -> None:
        """The current attempt, which is over, got no answer; None: a whole one without usage, no failure."""
        self.tried[-1].cause = why or "cut"
        is_made = self._is_once and may_be_made(why)
        self.may_be_made = self.may_be_made or is_made
        if self._assignment.is_lookup:
            self._has_lookup_failed = True
            self._is_exhausted = is_made
            if why == "refused":
                self._tell(why)
            return
        if why is None:
            self.was_whole = self.was_redone = True
            self._fall_back()
            return
        if why == "withheld" and self.arm == CANARY:
            self._fall_back()
            return
        self._note_failure(why)
        self._tell(why)
        is_stable = self.arm == STABLE
        if is_made and (is_stable or self.creates or self._assignment.is_lookup):
            self._is_exhausted = True  # no other may make a second
            return
        is_repeated = why in _REPEATED or (why == "timeout" and is_stable)
        is_other = is_made or self.creates or self.was_sent_again
        can_repeat = self._may_repeat and is_repeated and not is_other
        if why == "refused" and is_stable:
            can_repeat = True  # nothing was sent
        else:
            self._may_repeat = False
        if can_repeat and why in ("reset", "cut") and not self._untried(self.current_arm):
            self._tried_urls.clear()
        if not (can_repeat and self._untried(self.current_arm)):
            self._is_exhausted = is_stable
            self._fall_back()

    def cut(self, tokens: int, *, is_whole: bool) -> None:
        """The current attempt, which is over, broke off when the client had these tokens of it.

        is_whole: every choice had finished, which is no failure.
        """
        self.tried[-1].cause, self.tried[-1].tokens = "cut", tokens
        if is_whole:
            self.was_whole = True
        else:
            self._note_failure("cut")
            self._tell("cut")
        self._fall_back()

    def beside(self) -> tuple[Arm, Replica] | None:
        """The replica of stable to ask beside an attempt now. None: each was asked, one alone twice."""
        stable, asked = current_stable(self._context, self._table), self._beside_urls
        if stable is None or len(asked) == MAX_ATTEMPTS:
            return None
        replica = next_beside(stable.replicas, asked, self._assignment.key)
        if replica is None:
            return None
        asked.append(replica.url)
        return stable, replica

    def aside(self) -> tuple[Arm, Replica] | None:
        """What a first attempt would ask, if that is a canary that is set aside; None: it is not."""
        arm, health = self.current_arm, self._context.health
        is_free = self.arm == CANARY and not (self.tried or self._assignment.is_lookup or self.creates)
        if not is_free or arm is None or health is None or not health.failing:
            return None
        replica = self._choose_replica(arm)
        return (arm, replica) if replica is not None and health.is_aside(replica.url) else None

    def leave_aside(self, url: str) -> None:
        """Stable is asked at once; the attempt at this canary is a trial, which ends by itself."""
        self.tried.append(Tried(CANARY, url))
        self.arm, self.is_tried, self._left_url = STABLE, True, url

    def tried_aside(self, cause: str | None, status: int | None) -> None:
        """The trial, the first attempt, has ended: failed by this cause, or rejected with this status."""
        self.first_cause, self.first_4xx, self.is_tried = cause, status, False
        self.tried[0].cause = cause if status is None else f"status {status}"

    def asks_canary(self, *, withdrawn: bool) -> bool:
        """True while a drawn canary is asked; withdrawn: one that is not in the newest table any more, as a
        promoted one is, and cannot have made already what stable would make a second time."""
        if self.arm != CANARY or self.replica is None or self._assignment.is_lookup:
            return False
        arms = self._context.table.arms if self._context.table is not None else ()
        is_listed = any(self.replica.url == one.url for arm in arms for one in arm.replicas)
        return not (withdrawn and (is_listed or self.creates))

    def stalled(self) -> None:
        """The current attempt has sent nothing for too long, whatever becomes of it."""
        self._note_failure("stalled")

    def silent(self) -> None:
        """The last attempt has been waited for in vain for long, unless it has begun."""
        if self._context.health is not None and not self._assignment.is_lookup:
            tell_silence(self._context.health, self.tried)

    def can_continue(self) -> bool:
        """True when another replica could continue what the current one began."""
        if self._count_at(STABLE) >= MAX_ATTEMPTS:
            return False
        if self.arm == STABLE:
            return bool(self._untried(self.current_arm))
        stable = current_stable(self._context, self._table)
        return stable is not None and bool(stable.replicas)

    def is_answer(self, status: int, *, asked: str | None = None) -> bool:
        """True: the client gets what the current attempt answered; False: ask again, after `release`."""
        cause = self.refusal or failure_of(status, asked=asked)
        if status >= 300 or cause is not None:
            self.tried[-1].cause = f"status {status}"
        if self._assignment.is_lookup:
            return self._is_found(status, cause is not None)
        health = self._context.health
        if health is not None:
            is_told = not self.refusal and (status != NOT_IMPLEMENTED or self.arm == CANARY)
            if (cause and is_told) or (status in TOLD_4XX and self.arm == CANARY):
                self._tell(f"status {status}")
            elif cause is None and not 200 <= status < 300:
                self._tell_answer()
        if cause is None:
            if 400 <= status < 500 and self._is_first:
                self.first_4xx = status
            is_replaced = status >= 400 and self.arm == CANARY
        else:
            self._note_failure(cause)
            is_made = self._is_once and status >= 500 and may_be_made_by(status)
            self.may_be_made = self.may_be_made or is_made
            can_repeat = self._may_repeat and status in REPEATED_STATUSES and not is_made
            self._may_repeat = False
            if can_repeat and self._count_at(self.arm) < MAX_ATTEMPTS and self._untried(self.current_arm):
                return False
            is_replaced = self.arm == CANARY and not (is_made and self.creates)
        if is_replaced:
            self._fall_back()
        return not is_replaced

    def begun(self) -> None:
        """The current attempt has answered with content, or has ended well without any."""
        last = self.tried[-1]
        last.has_begun = True
        if last.cause is None and not self._assignment.is_lookup:
            self._tell_answer()

    def _is_found(self, status: int, has_failed: bool) -> bool:
        """Whether this is the answer to a lookup. The last replica's "not found" is, if all answered."""
        arm = self.current_arm
        is_unknown = status == 404 or (status == 400 and arm is not None and arm.external)
        is_made = self._is_once and has_failed and may_be_made_by(status)
        if is_made or not (is_unknown or has_failed):
            return True
        self._has_lookup_failed = self._has_lookup_failed or has_failed
        return not self._has_lookup_failed and not self._has_more()

    def _has_more(self) -> bool:
        """True when a lookup has another replica to ask."""
        return any(map(self._not_looked_at, (STABLE, CANARY)))

    def _not_looked_at(self, arm: int) -> Sequence[Replica]:
        """Replicas of this arm that a lookup may still ask."""
        return self._untried(self._version_of(arm)) if self._count_at(arm) < MAX_LOOKUPS else ()

    @property
    def _is_first(self) -> bool:
        return self.count == 1 and not self.has_fallen_back

    def _note_failure(self, cause: str) -> None:
        if self._is_first and self.first_4xx is None and not self.is_stopped:
            self.first_cause = self.first_cause or cause

    def _tell(self, cause: str) -> None:
        """Tell the health of the upstreams how the last attempt failed."""
        if (health := self._context.health) is not None:
            tell_failure(health, self.tried[-1], cause, is_lookup=self._assignment.is_lookup)

    def _tell_answer(self) -> None:
        """Tell it that the last attempt is answered."""
        if (health := self._context.health) is None:
            return
        if self._unanswered and self.arm == STABLE:
            health.unanswered(self._unanswered)
            self._unanswered = ""
        tell_answer(health, self.tried[-1])

    def _tell_unanswered(self) -> None:
        """The request gives its arm up. An attempt that is repeated is not told: health counts requests."""
        health, last = self._context.health, self.tried[-1] if self.tried else None
        if health is not None and last is not None and last.arm == CANARY and last.is_unanswered:
            if last.cause == "refused":
                health.unanswered(last.url)
            else:
                self._unanswered = last.url  # perhaps by the request itself: told when stable answers it

    def _fall_back(self) -> None:
        if self.arm == CANARY:
            self._tell_unanswered()
            self.arm = STABLE
            canary = self._table.canary
            if canary is not None and (self.first_cause or self.first_4xx):
                self._left_url = (self.replica or canary.replicas[0]).url
            self._tried_urls.clear()
            self._may_repeat = True

    def _choose_replica(self, arm: Arm) -> Replica | None:
        """By rule 5; None: none is left. What is set aside is not asked again, but a draw for it stands.

        arm: the current one.
        """
        untried = self._untried(arm)
        health = self._context.health
        if health is not None and health.failing and self.arm == CANARY:
            asked = [one for one in untried if not health.is_aside(one.url)]
            untried = asked if asked or self.tried else untried
        if len(untried) < 2:
            return untried[0] if untried else None
        if self.arm == STABLE and not self._tried_urls and self._beside_urls:
            return next((one for one in untried if one.url == self._beside_urls[-1]), untried[0])
        return least_loaded(untried, self._assignment.key, self._context.in_flight)

    def _untried(self, arm: Arm | None) -> Sequence[Replica]:
        """Replicas of this version, the current one, that have not been asked."""
        return untried_of(arm.replicas, self._tried_urls) if arm is not None else ()

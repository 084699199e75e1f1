"""One attempt of a request as it is remembered, how many there may be, and whether its engine may have done
what was asked. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from serving.messages import AttemptRecord
from serving.router.types import Failure
from serving.router.upstreams.health import NO_ANSWER

# Of each arm: what is used up at a canary that is dead is not taken from stable, which answers in its place.
MAX_ATTEMPTS = 4  # of one request
MAX_LOOKUPS = 64  # replicas that are asked for one id
NOT_IMPLEMENTED = 501  # of a route that an engine does not have: it answers the others
_NOTHING_MADE = frozenset({"refused", "withheld", "key refused", "error in the answer", None})
_NOTHING_MADE_STATUSES = frozenset({429, NOT_IMPLEMENTED, 503})  # of failures; so does a 4xx say


def may_be_made(why: Failure | None) -> bool:
    """Whether what was asked for may have been made or done by an attempt that failed so."""
    return why not in _NOTHING_MADE


def may_be_made_by(status: int) -> bool:
    """The same of one that failed by this status."""
    return status not in _NOTHING_MADE_STATUSES


class Tried(Struct, gc=False):
    """One attempt so far."""

    arm: int
    url: str
    cause: str | None = None  # why it failed; None: it has not
    tokens: int = 0  # that the client has of it
    has_begun: bool = False  # to answer: a head alone is no answer

    @property
    def is_unanswered(self) -> bool:
        """True when it failed before any answer."""
        return self.cause in NO_ANSWER or (self.cause == "cut" and not self.has_begun)


def was_sent(before: Sequence[Tried], *, is_lookup: bool) -> bool:
    """Whether the request was sent by one of these attempts, and not just not found there by a lookup."""
    causes = [one.cause for one in before if one.cause != "refused"]
    if is_lookup:
        return not all(cause is not None and cause.startswith("status") for cause in causes)
    return bool(causes)


def records_of(tried: Sequence[Tried]) -> tuple[AttemptRecord, ...]:
    """The attempts as they are recorded; (): there was one, and it did not fail."""
    if len(tried) == 1 and tried[0].cause is None:
        return ()
    return tuple(AttemptRecord(one.arm, one.url, one.cause, one.tokens) for one in tried)

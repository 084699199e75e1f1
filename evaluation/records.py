"""The evidence: one `Draw` for each toss of the router's coin, one `Score` for each later judgement of an
answer.

The contract of the evidence (the first thing to read in this folder):

- A **unit** is what the coin was tossed for: a request, or a sticky key (a user, a conversation), counted
  once.
- `w` belongs to the **draw**. A unit that is seen again at a higher weight is bet at its conditional
  probability (`units.py`); a request that is held by an affinity token belongs to the draw of the token and
  is never bet again.
- **Intention to treat**: what happens after the coin removes no unit. Takeover, fallback, retry, 429 and
  time-out stay with the *assigned* arm. Only what was decided before the coin and without it is left out,
  for both arms alike.
- **Order**: units settle in the order of their assignment, behind a watermark, never in the order of
  completion.
- **Missing** (`None`, NaN in arrays) is not a value: it is missing, and missing differently by arm makes a
  metric INVALID.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

STABLE = 0
CANARY = 1

#: How long an answer is waited for. What takes longer is told as it stands then, and is censored.
SETTLE_S = 60.0

#: Tossed anew for each request, so the request is the unit.
PER_REQUEST = frozenset({"request", "heavy"})
#: Held by the affinity token of an earlier draw: belongs to that draw, never bet again.
PINNED = frozenset({"pin"})
#: Decided before the coin and without it: no evidence, for both arms alike.
NOT_DRAWN = frozenset(
    {
        "force",
        "no-capacity",
        "no-lease",
        "fenced",
        "shed",
        "excess",
        "lost",
        "mirror",
        "smoke",
        "audience-all",
    }
)


def kind_is_drawn(assigned_by: str) -> bool:
    """Whether a coin was tossed for this very request."""
    return assigned_by not in NOT_DRAWN and assigned_by not in PINNED


class EvidenceError(ValueError):
    """A record that cannot be evidence; the message holds the field, the value, the limit and the remedy."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One request and the coin that was tossed for it; arrives when the request has settled (answered,
    failed, censored).

    `w` is P(canary) at the draw. `w == 0` on stable is a request from before the canary: it teaches what
    stable looks like and is never bet. `w == 1` on the canary is no evidence. Times in seconds since the
    epoch, durations in ms. `assigned_by`: 'request' (each request its own unit), 'pin' (affinity token),
    one of `NOT_DRAWN`, anything else means a sticky unit. `flags` are rates by name (truncated, empty,
    refused, cancelled); `censored` marks an answer that was not complete after `SETTLE_S`: the slowest there
    is, and an error only if `error` says so (not a byte of it had come).
    """

    request_id: str
    unit: str
    at_s: float
    arm: int
    w: float
    assigned_by: str
    stage: int = 0
    bucket: float | None = (
        None  # None: not reported; shown, never used as evidence (it would give the coin away)
    )
    error: bool | None = None  # None: the record was lost, missing for both arms
    latency_ms: float | None = None  # None: not measured
    ttft_ms: float | None = None
    itl_ms: float | None = None
    tokens: float | None = None
    cost: float | None = None
    flags: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Score:
    """A judgement of one answer: quality in [0, 1], hallucinated 0 or 1, a thumb; `at_s` is when it was
    received."""

    request_id: str
    metric: str
    value: float
    at_s: float


@dataclass(frozen=True, slots=True)
class Pair:
    """A mirrored answer beside the one that the user got: stable's score less the canary's, in [-1, 1].

    One pair a conversation. A channel of its own: it can roll back, it never promotes, and its latency is
    never gated.
    """

    conversation: str
    metric: str
    difference: float
    at_s: float


def check_draw(draw: Draw) -> None:
    """Raise EvidenceError unless the draw can be evidence. Checked once, at the door."""
    if not math.isfinite(draw.at_s):
        raise EvidenceError(
            f"at_s {draw.at_s} of {draw.request_id} is not a time; send seconds since the epoch"
        )
    if draw.arm not in (STABLE, CANARY):
        raise EvidenceError(f"arm {draw.arm} of {draw.request_id} is neither 0 (stable) nor 1 (canary)")
    if draw.w in (0.0, 1.0) and draw.w != draw.arm and kind_is_drawn(draw.assigned_by):
        raise EvidenceError(
            f"w {draw.w} of {draw.request_id} cannot give arm {draw.arm}; send P(canary) at the draw"
        )
    if not 0.0 <= draw.w <= 1.0:
        raise EvidenceError(f"w {draw.w} of {draw.request_id} is outside 0..1; send P(canary) at the draw")
    for name in ("latency_ms", "ttft_ms", "itl_ms", "tokens", "cost"):
        value = getattr(draw, name)
        if value is not None and not (math.isfinite(value) and value >= 0.0):
            raise EvidenceError(
                f"{name} {value} of {draw.request_id} is not a number of at least 0; send None if unknown"
            )


def check_score(score: Score) -> None:
    """Raise EvidenceError unless the score is a finite number in [0, 1] with a time."""
    if not (math.isfinite(score.value) and 0.0 <= score.value <= 1.0):
        raise EvidenceError(f"{score.metric} {score.value} of {score.request_id} is outside 0..1; rescale it")
    if not math.isfinite(score.at_s):
        raise EvidenceError(f"at_s {score.at_s} of a score of {score.request_id} is not a time")


def check_pair(pair: Pair) -> None:
    """Raise EvidenceError unless the difference is in [-1, 1] and has a time."""
    if not (math.isfinite(pair.difference) and -1.0 <= pair.difference <= 1.0):
        raise EvidenceError(
            f"difference {pair.difference} of {pair.conversation} is outside -1..1; rescale it"
        )
    if not math.isfinite(pair.at_s):
        raise EvidenceError(f"at_s {pair.at_s} of a pair of {pair.conversation} is not a time")

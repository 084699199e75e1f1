"""Evidence records: a `Draw` for each request, a `Score` for each later judgement of an answer.

The contract of the evidence (the first thing to read in this folder):

- A **unit** is what is randomised: a request, or a sticky key (a user, a conversation), counted once.
- `w` belongs to the **draw**. A unit that returns at a higher weight is bet at its conditional probability
  (`units/units.py`); a request held by an affinity token belongs to the draw of the token. In one process a
  coin is never bet again; what a unit asks after its session has processes of its own (`betting/rounds.py`).
- **Intention to treat**: nothing that happens after the coin removes a unit. Takeover, fallback, retry, 429
  and timeout count for the *assigned* arm. Only requests assigned without the coin are left out, on both
  arms alike.
- **Order**: units settle in order of assignment, behind a watermark, never in order of completion.
- **Cancelled** requests have no answer: slowest on both arms, as failures are, but no error. Percentiles have
  their limit from those who waited, and decide only what holds both without those who left and with them.
- **Missing** (`None`, NaN in arrays) is not a value. A metric missing more often on one arm is INVALID.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from evaluation.metrics import CATALOGUE, VALUES, Kind

STABLE = 0
CANARY = 1

#: Longest wait for an answer. One that takes longer is reported incomplete, and is censored.
SETTLE_S = 60.0

#: Name of the times after which clients left, beside the values of the metrics.
LEFT_MS = "left_ms"

#: Minimum of w and of 1 - w for a toss; less is a mistake, and not representable.
MIN_W = 1e-9

#: Randomised per request, so the request is the unit; with `heavy`, the requests of a heavy key.
PER_REQUEST = frozenset({"request", "heavy"})
#: Randomised by the bucket of a key, so the key is the unit. A `fallback` by stable stays the key's request.
STICKY_KEYS = frozenset(
    {
        "sticky",
        "unit",
        "key",
        "bucket",
        "weight",
        "user",
        "session",
        "conversation",
        "cookie",
        "audience",
        "category",
        "fallback",
    }
)
#: Held by the affinity token of an earlier draw, to which it belongs; never bet again.
PINNED = frozenset({"pin", "pinned", "affinity", "token"})
#: Assigned without the coin: not evidence, on both arms alike.
NOT_DRAWN = frozenset(
    {
        "force",
        "forced",
        "header",
        "no-capacity",
        "no-lease",
        "fenced",
        "shed",
        "capped",
        "stateful",
        "excess",
        "lost",
        "mirror",
        "smoke",
        "audience-all",
    }
)
KNOWN_WORDS = PER_REQUEST | STICKY_KEYS | PINNED | NOT_DRAWN
WORDS_REMEDY = "use request, sticky, pin (a token held it) or force (no coin was tossed)"


def sampled_name(metric: str) -> str:
    """Name of what says of which answers a score of this metric was drawn: 1 or 0, beside the values."""
    return f"{metric}_sampled"


def kind_is_drawn(assigned_by: str) -> bool:
    """Whether the coin was tossed for this request itself."""
    return assigned_by in PER_REQUEST or assigned_by in STICKY_KEYS


class EvidenceError(ValueError):
    """An invalid record; the message holds the field, the value, the limit and the remedy."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One request and its assignment, recorded when it was answered, failed or was censored.

    `w`: P(canary) at the draw; 0 is a request from before the canary, a baseline that is never bet; 1 is not
    evidence. Times in seconds since the epoch, durations in ms. `assigned_by`: 'request' (each request is its
    own unit), 'pin' (affinity token), one of `STICKY_KEYS` (the key is the unit) or of `NOT_DRAWN`. `flags`:
    rates by name (rejected, truncated, empty, ...); `censored`: the answer was incomplete after
    `SETTLE_S`, which counts as slowest, and as an error only with `error` (no byte had arrived).
    `covariates`: numbers known before the coin was tossed, by name; nothing that the arm can change.
    """

    request_id: str
    unit: str
    at_s: float
    arm: int
    w: float
    assigned_by: str
    stage: int = 0
    bucket: float | None = None  # None: not reported. Never used as evidence: it determines the arm
    error: bool | None = None  # None: the record was lost; missing on both arms
    latency_ms: float | None = None  # None: not measured
    ttft_ms: float | None = None
    itl_ms: float | None = None
    tokens: float | None = None
    cost: float | None = None
    left_ms: float | None = None  # how long a client waited that left before the answer; None: not known
    sampled: tuple[str, ...] = ()  # metrics whose judge drew this answer, before it existed, for a score
    flags: Mapping[str, bool] = field(default_factory=dict)
    covariates: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_unanswered(self) -> bool:
        """Whether the assigned version's first attempt gave no answer: an error, or rejected (4xx)."""
        return self.error is True or bool(self.flags.get("rejected"))

    @property
    def is_cancelled(self) -> bool:
        """Whether the client left before an answer or a failure."""
        return bool(self.flags.get("cancelled")) and not self.is_unanswered


@dataclass(frozen=True, slots=True)
class Score:
    """A judgement of one answer: quality in [0, 1], hallucinated 0 or 1, a thumb. `at_s`: when received."""

    request_id: str
    metric: str
    value: float
    at_s: float


@dataclass(frozen=True, slots=True)
class Pair:
    """The scores of a served and of a mirrored answer to one request, each on the metric's own scale, 0..1.

    Both scores and not their difference: which sign is harm, and whether a tolerance is relative, depends on
    the metric. One pair a conversation. Pairs can roll back and never promote; their latency is not gated.
    """

    conversation: str
    metric: str
    stable: float
    canary: float
    at_s: float


def check_draw(draw: Draw) -> None:
    """Raise EvidenceError unless the draw is valid. Checked once, on entry."""
    who = draw.request_id
    if not is_number(draw.at_s):
        raise EvidenceError(f"at_s {draw.at_s!r} of {who} is not a time; send seconds since the epoch")
    if not is_name(draw.unit) or not is_name(who):
        raise EvidenceError(f"unit {draw.unit!r} or request_id {who!r} is not a name; send non-empty text")
    if not is_name(draw.assigned_by) or draw.assigned_by not in KNOWN_WORDS:
        raise EvidenceError(f"assigned_by {draw.assigned_by!r} of {who} is unknown; {WORDS_REMEDY}")
    if draw.arm not in (STABLE, CANARY):
        raise EvidenceError(
            f"arm {draw.arm!r} of {who} is neither 0 (stable) nor 1 (canary); send its number"
        )
    if not is_number(draw.w) or not 0.0 <= draw.w <= 1.0:
        raise EvidenceError(f"w {draw.w!r} of {who} is outside 0..1; send P(canary) at the draw")
    if 0.0 < min(draw.w, 1.0 - draw.w) < MIN_W:
        raise EvidenceError(f"w {draw.w!r} of {who} is too near 0 or 1; send 0, 1 or at least {MIN_W:g} away")
    if draw.w in (0.0, 1.0) and draw.w != draw.arm and kind_is_drawn(draw.assigned_by):
        raise EvidenceError(f"w {draw.w} of {who} cannot give arm {draw.arm}; send P(canary) at the draw")
    for name in ("latency_ms", "ttft_ms", "itl_ms", "tokens", "cost", LEFT_MS):
        value = getattr(draw, name)
        if value is not None and not (is_number(value) and value >= 0.0):
            raise EvidenceError(
                f"{name} {value!r} of {who} is not a number of at least 0; send None if unknown"
            )
    if draw.error is not None and not is_event(draw.error):
        raise EvidenceError(f"error {draw.error!r} of {who} is neither false nor true; send None if unknown")
    for name, flag in draw.flags.items():
        if not is_event(flag):
            raise EvidenceError(f"flag {name} {flag!r} of {who} is neither false nor true; leave it out")
    for name, number in draw.covariates.items():
        if not is_name(name) or not is_number(number):
            raise EvidenceError(f"covariate {name} {number!r} of {who} is not a number; leave it out")


def check_score(score: Score) -> None:
    """Raise EvidenceError unless the score is of a known metric, on its scale, with a time."""
    who = score.request_id
    if not is_name(who):
        raise EvidenceError(f"request_id {who!r} of a score is not a name; send the request's")
    if score.metric not in CATALOGUE or score.metric in VALUES:
        known = ", ".join(name for name in CATALOGUE if name not in VALUES)
        raise EvidenceError(f"metric {score.metric!r} of {who} is not scored; use one of {known}")
    if not is_number(score.value) or not 0.0 <= score.value <= 1.0:
        raise EvidenceError(f"{score.metric} {score.value!r} of {who} is outside 0..1; rescale it")
    if is_rate(score.metric) and not is_event(score.value):
        raise EvidenceError(f"{score.metric} {score.value!r} of {who} is neither 0 nor 1; send one")
    if not is_number(score.at_s):
        raise EvidenceError(f"at_s {score.at_s!r} of a score of {who} is not a time; send seconds")


def check_pair(pair: Pair) -> None:
    """Raise EvidenceError unless both scores are of a known metric, on its scale, with a time."""
    for value in (pair.stable, pair.canary):
        check_score(Score(pair.conversation, pair.metric, value, pair.at_s))


def is_number(value: object) -> bool:
    """Whether the value is a finite number."""
    try:
        return math.isfinite(value)  # type: ignore[arg-type]
    except (TypeError, OverflowError):
        return False


def is_event(value: object) -> bool:
    """Whether the value is false, true, 0 or 1."""
    return is_number(value) and value in (0, 1)


def is_rate(metric: str) -> bool:
    """Whether the metric counts events: each value is 0 or 1."""
    return Kind.RATE in CATALOGUE[metric].kinds


def is_name(value: object) -> bool:
    """Whether the value is non-empty text."""
    return isinstance(value, str) and value != ""

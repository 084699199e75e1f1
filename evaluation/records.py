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

from evaluation.metrics import CATALOGUE, VALUES

STABLE = 0
CANARY = 1

#: How long an answer is waited for. What takes longer is told as it stands then, and is censored.
SETTLE_S = 60.0

#: The least chance that a coin may have of coming up either way; less is a mistake, and no number holds it.
LEAST_W = 1e-9

#: Tossed anew for each request, so the request is the unit. A heavy key's too, though it keeps its name.
PER_REQUEST = frozenset({"request", "heavy"})
#: A key's bucket fell to an arm: the key is the unit. What stable took over later (`fallback`) stays its own.
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
#: Held by the affinity token of an earlier draw: belongs to that draw, never bet again.
PINNED = frozenset({"pin", "pinned", "affinity", "token"})
#: Decided before the coin and without it: no evidence, for both arms alike.
NOT_DRAWN = frozenset(
    {
        "force",
        "forced",
        "header",
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
KNOWN_WORDS = PER_REQUEST | STICKY_KEYS | PINNED | NOT_DRAWN
WORDS_REMEDY = "use request, sticky, pin (a token held it) or force (no coin was tossed)"


def kind_is_drawn(assigned_by: str) -> bool:
    """Whether a coin was tossed for this very request."""
    return assigned_by in PER_REQUEST or assigned_by in STICKY_KEYS


class EvidenceError(ValueError):
    """A record that cannot be evidence; the message holds the field, the value, the limit and the remedy."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One request and the coin that was tossed for it; arrives when the request has settled (answered,
    failed, censored).

    `w` is P(canary) at the draw. `w == 0` on stable is a request from before the canary: it teaches what
    stable looks like and is never bet. `w == 1` on the canary is no evidence. Times in seconds since the
    epoch, durations in ms. `assigned_by`: 'request' (each request its own unit), 'pin' (affinity token),
    one of `STICKY_KEYS` (the key is the unit) or of `NOT_DRAWN`; another word is refused. `flags` are rates
    by name (truncated, empty, refused, cancelled); `censored` marks an answer that was not complete after
    `SETTLE_S`: the slowest there is, and an error only if `error` says so (not a byte of it had come).
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
    who = draw.request_id
    if not is_number(draw.at_s):
        raise EvidenceError(f"at_s {draw.at_s!r} of {who} is not a time; send seconds since the epoch")
    if not is_name(draw.unit) or not is_name(who):
        raise EvidenceError(f"unit {draw.unit!r} or request_id {who!r} is no name; send text, not empty")
    if not is_name(draw.assigned_by) or draw.assigned_by not in KNOWN_WORDS:
        raise EvidenceError(f"assigned_by {draw.assigned_by!r} of {who} is unknown; {WORDS_REMEDY}")
    if draw.arm not in (STABLE, CANARY):
        raise EvidenceError(
            f"arm {draw.arm!r} of {who} is neither 0 (stable) nor 1 (canary); send its number"
        )
    if not is_number(draw.w) or not 0.0 <= draw.w <= 1.0:
        raise EvidenceError(f"w {draw.w!r} of {who} is outside 0..1; send P(canary) at the draw")
    if 0.0 < min(draw.w, 1.0 - draw.w) < LEAST_W:
        raise EvidenceError(f"w {draw.w!r} of {who} is no coin; send 0, 1 or at least {LEAST_W:g} from both")
    if draw.w in (0.0, 1.0) and draw.w != draw.arm and kind_is_drawn(draw.assigned_by):
        raise EvidenceError(f"w {draw.w} of {who} cannot give arm {draw.arm}; send P(canary) at the draw")
    for name in ("latency_ms", "ttft_ms", "itl_ms", "tokens", "cost"):
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


def check_score(score: Score) -> None:
    """Raise EvidenceError unless the score is of a known metric, on its scale, with a time."""
    who = score.request_id
    if not is_name(who):
        raise EvidenceError(f"request_id {who!r} of a score is no name; send the request's")
    if score.metric not in CATALOGUE or score.metric in VALUES:
        known = ", ".join(name for name in CATALOGUE if name not in VALUES)
        raise EvidenceError(f"metric {score.metric!r} of {who} is not scored; use one of {known}")
    if not is_number(score.value) or not 0.0 <= score.value <= 1.0:
        raise EvidenceError(f"{score.metric} {score.value!r} of {who} is outside 0..1; rescale it")
    if is_rate(score.metric) and not is_event(score.value):
        raise EvidenceError(f"{score.metric} {score.value!r} of {who} is neither 0 nor 1; say which")
    if not is_number(score.at_s):
        raise EvidenceError(f"at_s {score.at_s!r} of a score of {who} is not a time; send seconds")


def check_pair(pair: Pair) -> None:
    """Raise EvidenceError unless the difference is in [-1, 1] and has a time."""
    if not is_number(pair.difference) or not -1.0 <= pair.difference <= 1.0:
        raise EvidenceError(
            f"difference {pair.difference!r} of {pair.conversation} is outside -1..1; rescale it"
        )
    if not is_number(pair.at_s):
        raise EvidenceError(
            f"at_s {pair.at_s!r} of a pair of {pair.conversation} is not a time; send seconds"
        )


def is_number(value: object) -> bool:
    """Whether it is a finite number."""
    try:
        return math.isfinite(value)  # type: ignore[arg-type]
    except (TypeError, OverflowError):
        return False


def is_event(value: object) -> bool:
    """Whether it says that something happened or not: false, true, 0 or 1."""
    return is_number(value) and value in (0, 1)


def is_rate(metric: str) -> bool:
    """Whether the metric happens or not, and nothing between."""
    return CATALOGUE[metric].unit.startswith("share")


def is_name(value: object) -> bool:
    """Whether it names something."""
    return isinstance(value, str) and value != ""

"""What a record of the log is to the evaluator, and the policy and stages a rollout is evaluated by."""

from __future__ import annotations

import json
from dataclasses import dataclass

from controller.evidence.pricing import priced, prices_of, tokens_of
from controller.evidence.typical_range import TypicalRanges
from evaluation.costs import Prices
from evaluation.policy.gates import StagePlan
from evaluation.policy.parsing import parse_gate_policy
from evaluation.policy.policy import GatePolicy
from evaluation.records import Draw, Score, is_number
from serving.messages import CANARY, LIMIT_REASONS, RequestRecord, ScoreRecord
from serving.targets import TEXT_PATHS

#: What a router knows of a request before its toss. Not its prompt tokens: the answer reports them, so that
#: the arm decides whether they are known, and by another tokenizer how many they are.
LIVE_COVARIATES = ("body_bytes",)
OF_SIGNALS = ("refused", "leaked", "other_language", "invalid")  # flags that the router reads of a text
LIMITED = frozenset({"status 429", "status 529"})  # causes: a rate limit, and Anthropic's "overloaded"
MAX_VALUE = 1e12  # ms or tokens of one request


@dataclass(frozen=True, slots=True)
class GateConfig:
    """Gate policy and stages of one rollout, pinned when it starts."""

    policy: GatePolicy
    stages: tuple[StagePlan, ...]
    judged_metric: str | None = None  # of which a judge's verdicts are scores; None: the rollout has no judge
    prices: Prices | None = None  # of both versions' tokens; None: the service has none


def gate_config(request: str) -> GateConfig:
    """The configuration pinned in a rollout's stored request: a newer default changes nothing."""
    pinned = json.loads(request)
    stages = tuple(StagePlan(**stage) for stage in pinned["stages"])
    judge = pinned.get("judge")
    metric = None if judge is None else judge.get("metric", "quality")
    return GateConfig(parse_gate_policy(pinned["gate"]), stages, metric, prices_of(pinned.get("prices")))


def flags_of(record: RequestRecord) -> dict[str, bool]:
    """The metrics of a record that are true or false, except `error`."""
    flags = {
        "truncated": record.finish_reason in LIMIT_REASONS,
        "empty": record.empty,
        "cancelled": record.outcome == "cancelled",
    }
    if record.rejected is not None:
        flags["rejected"] = record.rejected
    if record.error is not None:
        flags["rate_limited"] = record.cause in LIMITED
    if (signals := record.signals) is not None:
        flags |= {name: getattr(signals, name) for name in OF_SIGNALS}
    elif record.path not in TEXT_PATHS and record.outcome == "answered" and record.error is False:
        flags |= dict.fromkeys(OF_SIGNALS, False)  # an answer that holds no text, on either arm
    return flags


def draw_of(
    record: RequestRecord,
    ranges: TypicalRanges | None = None,
    prices: Prices | None = None,
    *,
    sampled: tuple[str, ...] = (),
) -> Draw:
    """The draw of a settled request. ranges: tell the unusual answers; None: not asked. prices: of both
    versions, of which one alone says nothing; None: there are none. sampled: see `Draw`."""
    flags = flags_of(record) | (ranges.flags_of(record) if ranges is not None else {})
    if record.outcome == "open":
        flags["censored"] = True
    # A client that left before any answer might still have been served by the canary. A rejection is a rate
    # of its own, which identical arms share.
    is_known = record.served_arm is not None or record.outcome != "cancelled"
    if record.arm == CANARY and is_known and not record.rejected:
        flags["fell_back"] = record.served_arm != CANARY
    return Draw(
        request_id=record.request_id,
        unit=record.unit,
        at_s=record.at_s,
        arm=record.arm,
        w=record.w,
        assigned_by=record.assigned_by,
        stage=record.stage,
        error=record.error,
        latency_ms=measured(record.latency_ms),
        ttft_ms=measured(record.ttft_ms),
        itl_ms=measured(record.itl_ms),
        tokens=measured(tokens_of(record).completion),
        cost=cost_of(record, prices),
        flags=flags,
        covariates={} if record.body_bytes is None else {"body_bytes": float(record.body_bytes)},
        sampled=sampled,
        left_ms=measured((record.done_at_s - record.at_s) * 1000.0) if flags["cancelled"] else None,
    )


def cost_of(record: RequestRecord, prices: Prices | None) -> float | None:
    """The cost of the answer as evidence; None: not known of both versions' answers alike."""
    return measured(priced(record, prices)) if prices is not None and prices.is_comparable else None


def measured(value: float | None) -> float | None:
    """The value; None when it is no number of at least 0: a bad measurement must not remove its unit."""
    return value if is_number(value) and 0.0 <= value <= MAX_VALUE else None  # type: ignore[operator]


def score_of(score: ScoreRecord, request: RequestRecord) -> Score | None:
    """The score of a request; None: its own arm did not answer it whole, so the score is not of that arm."""
    if request.error is not False or request.served_arm != request.arm:
        return None
    return Score(request.request_id, score.metric, score.value, score.at_s)

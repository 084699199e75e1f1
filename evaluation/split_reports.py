"""Reports on the split: whether units fit their weights, conversations their arms, and who served them."""

from __future__ import annotations

import math

from evaluation.betting.wealth import Decision
from evaluation.pipeline import Pipeline
from evaluation.report import GateReport, Side, Verdict

MAX_CONTRADICTIONS = 10
SERVED = "served"
RATIO_MISMATCH = "sample ratio mismatch"  # begins the reason


def served_reports(pipeline: Pipeline) -> list[GateReport]:
    """Reports on the sample ratio, on the share of its requests that the canary served itself, and on clients
    that leave it before the answer."""
    policy = pipeline.policy
    sample_ratio = pipeline.split.sample_ratio
    below_rollback, below_hold = (pipeline.split.served_below(hold=hold) for hold in (False, True))
    verdict, text = Verdict.UNDECIDED, "units fit their w"
    if sample_ratio.is_reached:
        verdict, text = Verdict.INVALID, "units do not fit their w: statistics are frozen"
    reports = [_served_report("served_share", "guard", verdict, sample_ratio, text, pipeline)]
    if below_rollback.is_reached and below_rollback.seq < frozen_since(pipeline):
        text = f"the canary served less than {policy.served_rate_rollback:.0%} of its units"
        reports.append(
            _served_report("served_rate", "rollback", Verdict.FAIL, below_rollback, text, pipeline)
        )
    if below_hold.is_reached:
        text = f"the canary served less than {policy.served_rate_hold:.0%} of its units"
        reports.append(
            _served_report("served_rate", "promotion", Verdict.UNDECIDED, below_hold, text, pipeline)
        )
    more_cancels = pipeline.split.more_cancels
    if more_cancels.is_reached or pipeline.split.has_many_cancels:
        text = "more requests of the canary than of stable are cancelled by their clients"
        reports.append(
            _served_report("cancelled_share", "promotion", Verdict.UNDECIDED, more_cancels, text, pipeline)
        )
    return reports


def _served_report(
    gate: str, side: Side, verdict: Verdict, decision: Decision, reason: str, pipeline: Pipeline
) -> GateReport:
    return GateReport(
        gate=gate,
        metric=SERVED,
        side=side,
        verdict=verdict,
        log_e=decision.peak,
        limit=decision.limit,
        reason=reason,
        n_canary=pipeline.canary,
        n_stable=pipeline.stable,
        effective_units=float(pipeline.split.share.rows),
        decided_at_s=decision.at_s if decision.is_reached else None,
        decided_canary=decision.canary if decision.is_reached else None,
    )


def is_served_hold(report: GateReport) -> bool:
    """Whether the canary serves too little of its own, or too many clients leave it, to be promoted. No
    reason to doubt the evidence."""
    return report.metric == SERVED and report.side == "promotion"


def split_reasons(pipeline: Pipeline) -> list[str]:
    """Why the split itself is invalid. Empty: it is valid."""
    reasons = []
    if pipeline.canary == 0:
        reasons.append("the canary has no requests")
    if pipeline.stable == 0:
        reasons.append("stable has no requests during the canary")
    if pipeline.split.sample_ratio.is_reached:
        reasons.append(f"{RATIO_MISMATCH}: the share of units does not fit their w")
    units = pipeline.units
    if units.contradictions > MAX_CONTRADICTIONS and units.contradictions > 0.01 * units.sticky_draws:
        reasons.append(f"{units.contradictions} sticky draws contradict their own bucket")
    return reasons


def frozen_since(pipeline: Pipeline) -> float:
    """Sequence number of the row that showed a sample ratio mismatch; infinite: none has."""
    seq = pipeline.split.sample_ratio.seq
    return float(seq) if seq >= 0 else math.inf


def later_void_since(pipeline: Pipeline, part: int) -> float:
    """Sequence number of the row that showed that later sessions of this part are not comparable; infinite:
    none has."""
    shown = [float(d.seq) for d in pipeline.split.returns_differ(part) if d.seq >= 0]
    return min([*shown, sessions_void_since(pipeline)])


def sessions_void_since(pipeline: Pipeline, *, doubted: bool = False) -> float:
    """Sequence number of the row that showed conversations of different length; infinite: none has.
    doubted: of the earlier one that made it likely, from which no session rolls back."""
    split = pipeline.split
    seq = (split.turns_may_differ if doubted else split.turns_differ).seq
    return float(seq) if seq >= 0 else math.inf

"""The split of a file: what share the canary has of its requests, and the rows from before it came."""

from __future__ import annotations

import math
import re

import numpy as np

from controller.cli.evidence_files import EvidenceFile
from controller.cli.observed_range import format_time
from controller.quantities import figure
from evaluation.split_reports import RATIO_MISMATCH

TWICE = re.compile(r"\b(\w+): (\1\b)")  # `error: error < 5x`


def with_shares(reason: str, evidence: EvidenceFile) -> str:
    """The reason, without a gate's name twice; of a sample ratio mismatch with the canary's share of the
    requests and its mean w."""
    reason = TWICE.sub(r"\2", reason)
    return f"{reason}: {shares(evidence)}" if RATIO_MISMATCH in reason else reason


def shares(evidence: EvidenceFile) -> str:
    """`the canary has 10.1 % of 12,000 requests, by w 30 %`, of the requests that may be the canary's."""
    arm, w = (np.asarray(evidence.columns[name], dtype=np.float64) for name in ("arm", "w"))
    is_drawn = w > 0
    if not is_drawn.any():
        return "no request has a w above 0"
    share, mean_w = (figure(100 * float(values[is_drawn].mean()), 3) for values in (arm, w))
    return f"the canary has {share} % of {int(is_drawn.sum()):,} requests, by w {mean_w} %"


def before_canary(evidence: EvidenceFile) -> str:
    """Rows before the first of the canary that are said to have had one, where chance leaves hardly any such;
    empty: there are not so many."""
    arm, w, t_s = (np.asarray(evidence.columns[name], dtype=np.float64) for name in ("arm", "w", "t_s"))
    if not arm.any():
        return ""
    first = int(np.argmax(arm))
    if float(np.sum(np.log1p(-np.minimum(w[:first], 0.999)))) > math.log(1e-3):
        return ""
    since = format_time(float(t_s[first]))
    return (
        f"the first {first:,} rows are stable's alone; if there was no canary yet, give the time at which it "
        f"got its share, not after its first request ({since}): --canary-since TIME, or w 0 in those rows"
    )

"""The rollback bettor of a gate: one place, so that the gate, the segment alarms and `plan` bet alike."""

from __future__ import annotations

import math

from evaluation.betting.latency import ShapeLoss
from evaluation.betting.means import MeanLoss
from evaluation.betting.rates import EventLoss, ShareLoss
from evaluation.betting.scores import ScoreLoss
from evaluation.metrics import Kind

LossBettor = EventLoss | ShareLoss | ScoreLoss | ShapeLoss | MeanLoss


def loss_bettor(
    kind: Kind,
    *,
    tolerance: float,
    threshold: float | None = None,
    longest: float = math.inf,
    failures: float = 1.0,
    sessions: bool = False,
    covariates: bool = False,
    missing_as_harm: bool = False,
) -> LossBettor:
    """The bettor that a gate of this kind rolls back by.

    tolerance, threshold: of the gate (threshold None: the usual harm). longest: where values are censored.
    failures: tolerated ratio of unanswered requests, see `ShapeLoss`. sessions: units with several requests
    each. covariates: units have them, for a score. missing_as_harm: a request without a value counts as an
    event (a score: as 0, in the block). A percentile divides its tolerance out before it counts
    events.
    """
    match kind:
        case Kind.RATE:
            missing_as = 1.0 if missing_as_harm else 0.0
            bettor = ShareLoss if sessions else EventLoss
            return bettor(tolerance=tolerance, missing_as=missing_as)
        case Kind.PERCENTILE:
            return ShareLoss(tolerance=0.0) if sessions else EventLoss(tolerance=0.0)
        case Kind.SCORE:
            return ScoreLoss(tolerance=tolerance, threshold=threshold, covariates=covariates)
        case Kind.MEAN:
            return MeanLoss(tolerance=tolerance)
        case Kind.SHAPE:
            return ShapeLoss(tolerance=tolerance, longest=longest, failures=failures)

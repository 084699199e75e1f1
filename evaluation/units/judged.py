"""What of a unit counts where answers are judged by a sample, or some requests have none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.unit_block import Floats, Ints, UnitBlock
from evaluation.policy.gates import Sampling


def without_failed(block: UnitBlock, unanswered: Floats, units: Ints, known: Ints) -> UnitBlock:
    """The block, with requests without an answer taken out of its outcomes, as missing. unanswered: their
    shares. units, known: numbers of the block's units, and of those that they are of, ascending."""
    missing = np.minimum(unanswered[np.searchsorted(known, units)], block.y)
    return replace(block, y=block.y - missing, missing=missing, is_checked=True) if missing.any() else block


#: Weight of an answer that was drawn for a score before it existed, and has none.
UNJUDGED = -1.0


def missing_weights(
    shares: Floats, raw: Floats, unanswered: NDArray[np.bool_], sampled: NDArray[np.bool_] | None
) -> Floats:
    """What each request without a value weighs where it counts: `shares` without an answer, for how much is
    judged of those that have one, and UNJUDGED of an answer that is known to have been drawn for a score. 0
    for the others. sampled: which requests were drawn; None: not known of any."""
    weights = np.where(unanswered, shares, 0.0)
    if sampled is None:
        return weights
    return np.where(sampled & np.isnan(raw) & ~unanswered, UNJUDGED, weights)


def judged_probability(sampling: Sampling, w: Floats) -> Floats:
    """P(canary) of a unit given that it was judged, from its P(canary) `w`."""
    if sampling.stable == sampling.canary:
        return w
    canary = w * sampling.canary
    return canary / (canary + (1.0 - w) * sampling.stable)

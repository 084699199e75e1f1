"""What of a unit counts where answers are judged by a sample, or some requests have none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from evaluation.betting.unit_block import Floats, Ints, UnitBlock
from evaluation.policy.gates import Sampling


def without_failed(block: UnitBlock, unanswered: Floats, units: Ints, known: Ints) -> UnitBlock:
    """The block, with requests without an answer taken out of its outcomes, as missing. unanswered: their
    shares. units, known: numbers of the block's units, and of those that they are of, ascending."""
    missing = np.minimum(unanswered[np.searchsorted(known, units)], block.y)
    return replace(block, y=block.y - missing, missing=missing, is_checked=True) if missing.any() else block


def judged_probability(sampling: Sampling, w: Floats) -> Floats:
    """P(canary) of a unit given that it was judged, from its P(canary) `w`."""
    if sampling.stable == sampling.canary:
        return w
    canary = w * sampling.canary
    return canary / (canary + (1.0 - w) * sampling.stable)

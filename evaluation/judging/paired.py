"""Exact test of paired right and wrong answers: does one version lose more cases than it wins?

Only pairs that differ say anything. If neither version is better, each of them is lost or won with
probability 1/2, so the number of lost ones is binomial.

Source: McNemar (1947), in its exact form; the sign test.
"""

from __future__ import annotations

import math

from scipy.stats import binom


def lost_p_value(lost: int, won: int) -> float:
    """Probability of at least `lost` of `lost + won` differing pairs if neither version is better; one-sided.

    lost, won: pairs that the one version alone, or the other alone, gets right; >= 0, else ValueError.
    Check: (7, 0) gives 1/128; (5, 1) gives 7/64; (0, 0) gives 1.
    """
    if lost < 0 or won < 0:
        raise ValueError(f"{lost} lost and {won} won pairs; counts are 0 or more")
    return float(binom.sf(lost - 1, lost + won, 0.5)) if lost else 1.0


def fewest_lost(alpha: float) -> int:
    """The fewest lost pairs, with none won, whose p-value is at most alpha; alpha in (0, 1), else ValueError.

    Check: 0.01 gives 7, 0.05 gives 5.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha {alpha:g} is outside 0..1; 0.01 is usual")
    lost = math.ceil(-math.log2(alpha))
    return lost if lost_p_value(lost, 0) <= alpha else lost + 1

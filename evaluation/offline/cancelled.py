"""Cancelled requests of a recorded rollout: the client went away, so there is no answer to judge.

The time until the client left is no latency: where a canary hangs, it is that of the client's patience. How
long the answer would have taken is censored, which is not missing at random: a faster version has fewer
cancels. So a cancelled request is one without an answer, slowest on both arms, as a failure is; but it is no
error and no rejection. The time itself is kept for percentiles (`betting/left.py`). An error before the
client left is still one. Where the canary has more of them than the coin explains, nothing is promoted
(`units/split.py`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.unit_block import Floats
from evaluation.metrics import OUTCOMES

#: Metrics that a cancelled request has by rule: no failure, unless it came before, and no latency.
KNOWN_IF_CANCELLED = OUTCOMES | {"latency_ms"}


def if_not_cancelled(metric: str, values: Floats, cancelled: NDArray[np.bool_]) -> Floats:
    """The values of a metric where a request was cancelled: no error and no rejection, but one before that;
    no latency (NaN); others as they are."""
    if metric not in KNOWN_IF_CANCELLED:
        return values
    if metric in OUTCOMES:
        return np.where(cancelled & (values != 1.0), 0.0, values)
    return np.where(cancelled, np.nan, values)

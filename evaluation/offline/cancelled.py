"""Cancelled requests of a recorded rollout: the client went away, so there is no answer to judge.

How long it would have taken is censored, and whether it would have failed is unknown: both are missing, as
the router of a live rollout records it. The time until the client left is no latency: where a canary hangs,
it is that of the client's patience. Where more requests are cancelled on one arm, more values are missing
there, and the metric is INVALID (`units/missingness.py`): nothing is proven of those who stayed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.unit_block import Floats
from evaluation.metrics import UNANSWERED

#: Metrics that are missing for a cancelled request, but where it had failed before the client left.
UNKNOWN_IF_CANCELLED = UNANSWERED | {"latency_ms"}


def if_not_cancelled(metric: str, values: Floats, cancelled: NDArray[np.bool_]) -> Floats:
    """The values of a metric, NaN where a request was cancelled; an error before that is still one."""
    if metric not in UNKNOWN_IF_CANCELLED:
        return values
    unknown = cancelled if metric not in UNANSWERED else cancelled & (values != 1.0)
    return np.where(unknown, np.nan, values)

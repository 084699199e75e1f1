"""Which values of one metric can be compared: those of requests that were answered, and not cold. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evaluation.betting.unit_block import Floats
from evaluation.metrics import OUTCOMES, VALUES
from evaluation.units.sessions import Rows


def without_answer(
    metric: str, raw: Floats, unanswered: NDArray[np.bool_], cancelled: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which requests have no value because there was no answer: of the cancelled ones not those with one,
    such as a time to the first token that was known when the client left."""
    if not cancelled.any():
        return unanswered
    if metric == "cancelled":
        return unanswered & ~cancelled
    return unanswered & ~(cancelled & ~np.isnan(raw)) if metric in VALUES else unanswered


def comparable(metric: str, raw: Floats, unanswered: NDArray[np.bool_], rows: Rows) -> Floats:
    """The raw values that can be compared: no latency of cold rows, and none of an unanswered request."""
    if metric in VALUES:
        raw = np.where(rows.cold, np.nan, raw) if rows.cold.any() else raw
    if metric in OUTCOMES or not unanswered.any():
        return raw
    return np.where(unanswered, np.nan, raw)

"""Values of distributions that the worlds of the benchmark draw from."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from benchmarks.gate.traffic import Floats


def upper_quantile(share: Floats) -> Floats:
    """The standard normal value that this share exceeds; infinite for 0."""
    values, which = np.unique(share, return_inverse=True)
    cuts = [math.inf if value == 0.0 else NormalDist().inv_cdf(1.0 - value) for value in values.tolist()]
    return np.array(cuts)[which]

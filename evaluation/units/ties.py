"""Order of requests that were assigned at the same moment: by a hash that knows nothing of the arm.

A log at a resolution of a second, or one sorted by arm within a second, would otherwise tell the bets which
arm comes next, and the coin would not look fair. (By arm: a twin logged to the second was INVALID in 11 of 24
runs, to ten seconds in 24 of 24.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from evaluation.betting.unit_block import Floats, Ints


def tie_order(at_s: Floats, keys_of: Callable[[Ints], Sequence[tuple[int, int]]]) -> Ints | None:
    """The order in which requests settle; None: as given, because no two have the same time.

    at_s: ascending. keys_of: hashes of the unit's name and of the request's, for some rows; a unit's requests
    stay together, so that its first one is the first by its own key.
    """
    is_tied = np.zeros(len(at_s), dtype=np.bool_)
    same = at_s[1:] == at_s[:-1]
    if not same.any():
        return None
    is_tied[1:] |= same
    is_tied[:-1] |= same
    rows = np.flatnonzero(is_tied)
    keys = np.array(keys_of(rows), dtype=np.int64).reshape(len(rows), 2)
    order = np.arange(len(at_s))
    order[rows] = rows[np.lexsort((keys[:, 1], keys[:, 0], at_s[rows]))]
    return order

"""Covariates of one metric: their columns, from the requests to the units, and the test that they are equal
on both arms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.betting.covariate_balance import CovariateBalance
from evaluation.betting.unit_block import Floats, Ints, UnitBlock
from evaluation.betting.wealth import Channel, Decision
from evaluation.stream import Stream
from evaluation.units.sessions import Rows

BALANCE_ALPHA = 0.002  # a false INVALID only holds; unnoticed, the covariate's effect would pass for harm


class CovariateColumns:
    """The covariates that a metric's gates name, in their order; `names` is empty where there are none."""

    __state__ = ("balance",)

    def __init__(self, names: Sequence[str], restart_share: float) -> None:
        self.names = tuple(names)
        self.balance: Stream | None = None
        if names:
            limit = math.log(1.0 / BALANCE_ALPHA)
            bettor = CovariateBalance(len(names))
            self.balance = Stream(with_histogram=False, covariates=len(names))
            self.balance.channels = [Channel(bettor, limit=limit, restart_share=restart_share)]

    def of(self, raw: Mapping[str, Floats], rows: Rows) -> Floats | None:
        """The columns, p x n, NaN where missing; None: there are none. raw: columns by name."""
        if not self.names:
            return None
        missing = np.full(len(rows), np.nan)
        return np.stack([raw.get(name, missing) for name in self.names])

    def feed(self, rows: Rows, covariates: Floats | None) -> None:
        """Add all units by their first requests, with a score or not. covariates: p x n."""
        if self.balance is not None:
            block = rows.first_block(np.zeros(len(rows)), rows.w)
            self.balance.feed(with_covariates(block, covariates, block.seq, rows.seq))

    @property
    def decision(self) -> Decision | None:
        """Whether they differ between the arms; None: there are none."""
        return None if self.balance is None else self.balance.channels[0].decision

    def reason(self) -> str | None:
        """Why the metric is INVALID; None: it is not."""
        if self.decision is None or not self.decision.is_reached:
            return None
        names = ", ".join(self.names)
        return f"covariates ({names}) differ by arm; name only what is known before the toss, as body_bytes"


def with_covariates(
    block: UnitBlock, covariates: Floats | Sequence[Floats] | None, units: Ints, known: Ints
) -> UnitBlock:
    """The block with its units' covariates. covariates: p columns, None or empty: there are none. units,
    known: numbers of the block's units, and of those that the columns are of, ascending."""
    if covariates is None or len(covariates) == 0:
        return block
    at = np.searchsorted(known, units)
    return block.with_covariates(np.stack([column[at] for column in covariates], axis=1))

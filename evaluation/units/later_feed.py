"""Later sessions of one metric, fed to the streams of their part: for rollback, and for promotion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.betting.unit_block import Flags, Floats
from evaluation.stream import Stream
from evaluation.units.gate_channels import Column
from evaluation.units.judged import without_failed
from evaluation.units.released import Released


@dataclass(frozen=True, slots=True)
class LaterValues:
    """What later sessions are bet with: P(canary), gap (None: none), share of requests without an answer, and
    which are of conversations with one value each (None: none)."""

    w: Floats
    gap: Floats | None
    unanswered: Floats
    has_one: Flags | None

    def pick(self, which: Flags) -> LaterValues:
        """Those of the chosen sessions."""
        gap = None if self.gap is None else self.gap[which]
        has_one = None if self.has_one is None else self.has_one[which]
        return LaterValues(self.w[which], gap, self.unanswered[which], has_one)


def feed_parts(
    columns: Sequence[Column], released: Released, first: int, width: int, values: LaterValues
) -> None:
    """Feed later sessions to the columns' streams of their parts.

    The values of the columns are in the released ones from `first` on, `width` of them; then come the weights
    of requests without an answer, for the columns after those, which count them as missing.
    """
    for part in np.unique(released.part).tolist():
        which = released.part == part
        sessions, of_part = released.pick(which), values.pick(which)
        fresh = sessions.fresh
        fresh_ones, of_fresh = sessions.pick(fresh), of_part.pick(fresh)
        for index, column in enumerate(columns):
            at = first + index if index < width else first
            weights = first + width if index >= width else None
            _feed(column, column.later[part], sessions.by_round(), at, weights, of_part)
            _feed(column, column.later_proof[part], fresh_ones, at, weights, of_fresh)


def _feed(
    column: Column, stream: Stream, released: Released, at: int, weights: int | None, of: LaterValues
) -> None:
    """Feed one stream, if anything bets on it. weights: their column; None: missing values do not count."""
    if not stream.staged:
        return
    if weights is not None:
        if column.missing is not None:
            stream.feed(released.block_with_missing(at, weights, of.w, of.gap, column.missing, of.has_one))
        return
    block = released.block(at, of.w, of.gap, single_values=column.with_histogram)
    if column.missing is not None:
        block = without_failed(block, of.unanswered, block.draw, released.draw)
    stream.feed(block)

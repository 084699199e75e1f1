"""Ticks: values that come in narrow clusters with nearly nothing in between.

A poll, a batch boundary or a proxy that flushes every 300 ms ends answers at 300, 600, 900 ms and a little
more. What was waited lies somewhere between two ticks, as with values that are rounded up.
"""

from __future__ import annotations

import math

import numpy as np

from evaluation.betting.unit_block import Flags, Floats, Ints

EMPTY = 0.01  # of the largest count near by: a bin that is part of no cluster
NEARLY_EMPTY = 0.05  # of what the clusters beside let expect: a gap
NEAR = 55  # bins of 1 %, so that a gap up to a factor of 3 has a cluster near by
CLEAR = 10.0  # values expected in a gap, if there was none
WIDEST = 30  # bins of a cluster: a factor of 1.35. A wider one hides nothing of a margin
MIN_SHARE, MIN_VALUES = 0.002, 4  # of all values, in a run of bins that is part of a cluster
CHANCE = 3  # bins in a row that are empty by chance
MIN_CLUSTERS = 2
DOUBLE = 70  # bins: a factor of two, from the first tick to the second
OFF, OFF_BINS = 0.1, 2.0  # of the time between two ticks, and bins at the later one: how far one may be off
BIN = math.log(1.01)
EVEN_SHARE = 0.9  # of the values in clusters, in those that fit the ticks
MOST_APART = 110  # bins from one tick to the next: a factor of 3
TOGETHER = 0.5  # share of all values in such clusters
BULK = (0.02, 0.98)
MANY_EMPTY = 0.2  # share of bins in the bulk
SLOW_WIDEST, MIN_HELD = 10, 10  # bins and values of a cluster among slow answers, which may be alone
LEAST_GAP = 5  # bins beside it
EDGE = 5  # bins in which so many values are where exact ones end at once


def clusters(counts: Ints) -> tuple[Ints, Ints]:
    """The first and the last bin of each narrow cluster, ascending; empty: values do not come at ticks.

    counts: of bins that are 1 % wide. They are ticks where at least two clusters, each at most 3 times the
    one before, hold half of all values at even times apart, and the gaps between them are clear: they would
    hold ten values at the density of the sparser cluster beside, and hold less than a twentieth of that.
    """
    none = np.empty(0, dtype=np.int64)
    total = int(counts.sum())
    below = np.cumsum(counts)
    low, high = np.searchsorted(below, np.array(BULK) * total)
    bulk = counts[low : high + 1]
    if total < MIN_CLUSTERS * MIN_VALUES or np.mean(bulk <= NEARLY_EMPTY * bulk.max()) < MANY_EMPTY:
        return none, none
    spans = _bridged(_spans(counts > EMPTY * _largest_near(counts)))
    below = np.append(0, below)
    spans = spans[_held(spans, below) >= max(MIN_SHARE * total, MIN_VALUES)]
    spans = _merged(spans, below)
    spans = spans[spans[:, 1] - spans[:, 0] < WIDEST]
    (firsts, lasts), held = spans.T, _held(spans, below)
    is_near = np.concatenate(([False], np.diff(firsts) <= MOST_APART, [False]))
    is_beside = (is_near[1:] | is_near[:-1])[: len(firsts)]
    firsts, lasts, held = firsts[is_beside], lasts[is_beside], held[is_beside]
    if len(firsts) < MIN_CLUSTERS or held.sum() < TOGETHER * total or not _are_even(firsts, held):
        return none, none
    return firsts, lasts


def slow_clusters(counts: Ints, begin: int) -> tuple[Ints, Ints]:
    """As `clusters`, of the values from bin `begin` on, the quick ones below being exact.

    There may be one alone (the second poll, which few wait for), so they are narrower, and not asked to be
    even. They hold half of those values, and the gaps beside each would hold ten at its density. And what is
    below the gap ends at once: exact values where polling begins, or the poll before. A tail that thins out
    before answers that end at a time-out, each at its own time and a little more, is none.
    """
    found: list[list[int]] = []
    below = np.append(0, np.cumsum(counts))
    before, is_tick = [0, 0], False
    for span in _bridged(_spans(counts > EMPTY * _largest_near(counts))).tolist():
        first, last = span
        held = below[last + 1] - below[first]
        ends_at_once = is_tick or below[before[1] + 1] - below[max(before[1] - EDGE + 1, 0)] >= MIN_HELD
        is_narrow = last - first < SLOW_WIDEST and held >= MIN_HELD
        is_tick = bool(is_narrow and ends_at_once and _stands_apart(span, below))
        found += [span] * is_tick
        before = span
    spans = np.array([span for span in found if span[0] >= begin], dtype=np.int64).reshape(-1, 2)
    total = int(below[-1] - below[min(begin, len(below) - 1)])
    if len(spans) == 0 or _held(spans, below).sum() < TOGETHER * total:
        spans = spans[:0]
    return spans[:, 0], spans[:, 1]


def _stands_apart(span: list[int], below: Ints) -> bool:
    density = _density(span, below)
    gap = max(math.ceil(CLEAR / density), LEAST_GAP)
    first, last = span
    before = below[first] - below[max(first - gap, 0)]
    after = below[min(last + 1 + gap, len(below) - 1)] - below[last + 1]
    return bool(max(before, after) <= NEARLY_EMPTY * density * gap)


def _are_even(firsts: Ints, held: Ints) -> bool:
    """Whether the clusters begin at multiples of one time apart, but for few values. The time is that from
    the fullest cluster to one beside it, or half of it, where one is missing. Two are even where the second
    begins at twice the first: two kinds of requests, each of about one length, are no ticks."""
    if len(firsts) == 2:
        return bool(abs(int(firsts[1] - firsts[0]) - DOUBLE) <= OFF_BINS)
    fullest = int(held.argmax())
    begins = np.exp((firsts - firsts[fullest]) * BIN) - 1.0
    beside = np.abs(begins[max(fullest - 1, 0) : fullest + 2])
    for tick in (*beside[beside > 0.0], *beside[beside > 0.0] / 2.0):
        off = np.abs(begins / tick - np.round(begins / tick))
        fits = off <= OFF + OFF_BINS * BIN * (begins + 1.0) / tick
        if np.count_nonzero(fits) >= 3 and held[fits].sum() >= EVEN_SHARE * held.sum():
            return True
    return False


def _largest_near(counts: Ints) -> Ints:
    padded = np.pad(counts, NEAR)
    largest: Ints = np.lib.stride_tricks.sliding_window_view(padded, 2 * NEAR + 1).max(axis=1)
    return largest


def _spans(is_full: Flags) -> Ints:
    """The first and the last bin of each run, as rows."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], is_full, [False])).astype(np.int8)))
    spans: Ints = edges.reshape(-1, 2) - np.array([0, 1])
    return spans


def _bridged(spans: Ints) -> Ints:
    """Runs with at most `CHANCE` bins between them are one."""
    is_gap = spans[1:, 0] - spans[:-1, 1] > CHANCE + 1
    firsts, lasts = spans[:, 0], spans[:, 1]
    return np.stack((firsts[np.append(True, is_gap)], lasts[np.append(is_gap, True)]), axis=1)


def _held(spans: Ints, below: Ints) -> Ints:
    """The values in each run of bins. below: values below each bin."""
    held: Ints = below[spans[:, 1] + 1] - below[spans[:, 0]]
    return held


def _merged(spans: Ints, below: Ints) -> Ints:
    """Runs that no clear gap parts are one."""
    out: list[list[int]] = []
    for first, last in spans.tolist():
        if out and not _is_clear(out[-1], [first, last], below):
            out[-1][1] = last
        else:
            out.append([first, last])
    return np.array(out, dtype=np.int64).reshape(-1, 2)


def _is_clear(left: list[int], right: list[int], below: Ints) -> bool:
    density = min(_density(left, below), _density(right, below))
    expected = density * (right[0] - left[1] - 1)
    inside = float(below[right[0]] - below[left[1] + 1])
    return expected >= CLEAR and inside <= NEARLY_EMPTY * expected


def _density(span: list[int], below: Ints) -> float:
    return float(below[span[1] + 1] - below[span[0]]) / (span[1] + 1 - span[0])


def next_tick_up(values: Floats, divisor: float, lows: Floats, highs: Floats, tolerance: float) -> Floats:
    """How values divided by `divisor` would have been recorded at most: at the end of the first cluster that
    begins above what the value's own tick becomes, and at most as it is.

    lows, highs: ends of the clusters, ascending. tolerance: relative, by which a tick may lie above its low.
    Check: clusters 300..330 and 600..630, divisor 1.2: 610 stays 610, as 500 would have been recorded at 600;
    divisor 2.1: it is 330.
    """
    own = np.clip(np.searchsorted(lows, values, side="right") - 1, 0, None)
    is_at_tick = (lows[own] <= values) & (values <= highs[own])
    base = np.where(is_at_tick, lows[own] * (1.0 + tolerance), values)
    index = np.searchsorted(lows, base / divisor, side="left")
    ends = np.append(highs, np.inf)
    out: Floats = np.minimum(ends[index], values)
    return out

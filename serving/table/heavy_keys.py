"""Heavy keys: units that send so many requests that one draw must not decide for all of them. Pure.

A unit is heavy with more than 1 % of all requests and more than 100 of them within ten minutes. Routers count
and report with their polls; the table adds up over all routers and publishes. A unit stays heavy until the
rollout ends: were it to turn back, its requests would change their unit once more.

Counting is bounded (Misra and Gries, 1982): of n requests a counter of k units may miss n/(k+1) of a unit's,
and never adds one, so nobody is called heavy who is not.
"""

from __future__ import annotations

from collections import deque

from serving.messages import UnitCounts

HEAVY_SHARE = 0.01
HEAVY_REQUESTS = 100
WINDOW_S = 600.0
SLOT_S = 30.0
COUNTED_UNITS = 1000  # at a router, and in a slot of the table
REPORT_S = 5.0  # between two reports of a router
REPORTED_SHARE = 0.001  # of a router's requests, from which on it reports a unit
HEAVY_LIMIT = 1000  # units in a table


class UnitCounter:
    """Counts of a router since its last report."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._total = 0
        self._taken_s = 0.0

    def add(self, unit: str | None) -> None:
        """One request of this unit; None: of one that has no other request."""
        self._total += 1
        if unit is not None:
            _add(self._counts, unit, 1)

    def add_more(self, unit: str) -> None:
        """The same request under a narrower unit as well."""
        _add(self._counts, unit, 1)

    def take(self, rollout: str, *, now_s: float) -> UnitCounts | None:
        """The report that is due now; None: none is. The counter begins anew. now_s: boot clock."""
        if now_s < self._taken_s + REPORT_S or not self._total:
            return None
        least = self._total * REPORTED_SHARE
        units = {unit: count for unit, count in self._counts.items() if count > least}
        report = UnitCounts(rollout, self._total, units)
        self._counts, self._total, self._taken_s = {}, 0, now_s
        return report

    def clear(self) -> None:
        """Forget all counts: units have other names in another rollout."""
        self._counts, self._total = {}, 0


class HeavyKeys:
    """Counts of all routers in a window of time, and the units that are heavy by them."""

    def __init__(self) -> None:
        self._rollout = ""
        self._slots: deque[tuple[float, dict[str, int], int]] = deque()  # (start, counts, requests)
        self.units: frozenset[str] = frozenset()

    def begin(self, rollout: str) -> None:
        """Count for this rollout; another one's counts are dropped."""
        if rollout != self._rollout:
            self._rollout = rollout
            self._slots.clear()
            self.units = frozenset()

    def add(self, counts: UnitCounts, *, now_s: float) -> bool:
        """A router's report; True when a further unit is heavy. now_s: boot clock."""
        if counts.rollout != self._rollout:
            return False
        if not self._slots or now_s >= self._slots[-1][0] + SLOT_S:
            self._slots.append((now_s, {}, 0))
        start_s, units, requests = self._slots[-1]
        for unit, count in counts.units.items():
            _add(units, unit, count)
        self._slots[-1] = (start_s, units, requests + counts.requests)
        while self._slots[0][0] < now_s - WINDOW_S:
            self._slots.popleft()
        found = self._found()
        if found <= self.units or len(self.units | found) > HEAVY_LIMIT:
            return False
        self.units |= found
        return True

    def _found(self) -> frozenset[str]:
        total = sum(requests for _, _, requests in self._slots)
        least = max(total * HEAVY_SHARE, HEAVY_REQUESTS)
        sums: dict[str, int] = {}
        for _, units, _ in self._slots:
            for unit, count in units.items():
                sums[unit] = sums.get(unit, 0) + count
        return frozenset(unit for unit, count in sums.items() if count > least)


def _add(counts: dict[str, int], unit: str, count: int) -> None:
    """Count in bounded memory: beyond COUNTED_UNITS every unit loses what the new one brings."""
    if unit in counts or len(counts) < COUNTED_UNITS:
        counts[unit] = counts.get(unit, 0) + count
        return
    least = min(count, min(counts.values()))
    for one, held in list(counts.items()):
        if held <= least:
            del counts[one]
        else:
            counts[one] = held - least
    if count > least:
        counts[unit] = count - least

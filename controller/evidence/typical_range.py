"""What is usual of stable's own answers, and which answers are not: a range of each signal, learned before.

Rules:
1. A range is learned of stable's answers to requests of a size (in powers of four bytes) from before the
   rollout: of the newest KEPT, and from LEARNED_FROM answers on. Of one unit the newest UNIT_LIMIT are kept
   from the start, so that a unit with many requests takes the place of its own alone.
2. It is fixed when the rollout's first draw comes, for all answers alike. So each flag is a function of the
   past and of one answer, whose rate can be tested: nothing of a unit's own coin is in it.
3. Where the range of a request's size is not known the flag is missing: nobody knows what is usual there.
4. A text that is too short for a signal is usual in it. Its length says the rest.
5. Whether the rollout's traffic is like what was learned is not known here: `evaluation/units/own_range.py`
   counts how many of stable's own answers are outside.

Source: the extremes of n values, or what stands TAIL of them from each end, leave about 1 % outside.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from typing import Any

from serving.messages import STABLE, RequestRecord

LEARNED_FROM = 200
KEPT = 1000
UNIT_LIMIT = 10
TAIL = 0.005
FLAGS = {
    "unusual_length": "characters",
    "unusual_repetition": "repeated",
    "unusual_compression": "compression",
}


class _Newest:
    """The newest KEPT values, at most UNIT_LIMIT of one unit: its own oldest makes room for its next."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, tuple[str, float]] = OrderedDict()  # number -> (digest of unit, value)
        self._of_unit: dict[str, deque[int]] = {}  # numbers of each unit's, oldest first
        self._added = 0

    def __iter__(self) -> Iterator[tuple[str, float]]:
        """Oldest first."""
        return iter(self._kept.values())

    def add(self, unit: str, value: float) -> None:
        own = self._of_unit.setdefault(unit, deque())
        if len(own) == UNIT_LIMIT:
            del self._kept[own.popleft()]
        elif len(self._kept) == KEPT:
            number, (oldest, _) = self._kept.popitem(last=False)
            self._of_unit[oldest].remove(number)
            if not self._of_unit[oldest] and oldest != unit:
                del self._of_unit[oldest]
        self._added += 1
        own.append(self._added)
        self._kept[self._added] = (unit, value)


class TypicalRanges:
    """The ranges of one rollout. Nothing is known until `fix`."""

    def __init__(self) -> None:
        self._seen: dict[str, _Newest] = {}  # by flag and size
        self._fixed: dict[str, tuple[float, float]] | None = None  # None: still learning

    def learn(self, record: RequestRecord) -> None:
        """Learn of an answer from before the rollout."""
        is_stables = record.arm == STABLE and record.served_arm == STABLE
        if record.signals is None or self._fixed is not None or not is_stables:
            return
        for flag, name in FLAGS.items():
            value = getattr(record.signals, name)
            if value is not None:
                self._seen.setdefault(_key(flag, record), _Newest()).add(record.unit[:16], float(value))

    def fix(self) -> None:
        """The rollout has begun: what is known now is what its answers are compared with."""
        if self._fixed is not None:
            return
        self._fixed = {}
        for key, seen in self._seen.items():
            values = sorted(value for _, value in seen)
            if len(values) >= LEARNED_FROM:
                outside = int(TAIL * len(values))
                self._fixed[key] = (values[outside], values[-1 - outside])
        self._seen.clear()

    def flags_of(self, record: RequestRecord) -> dict[str, bool]:
        """Whether this answer is unusual, by flag; absent: not known."""
        if record.signals is None or not self._fixed:
            return {}
        found = {}
        for flag, name in FLAGS.items():
            if (range_of := self._fixed.get(_key(flag, record))) is not None:
                value = getattr(record.signals, name)
                found[flag] = value is not None and not range_of[0] <= value <= range_of[1]
        return found

    def to_mapping(self) -> dict[str, Any]:
        """JSON values for the snapshot."""
        seen = {key: [list(one) for one in values] for key, values in self._seen.items()}
        return {"seen": seen, "fixed": self._fixed}

    @classmethod
    def of(cls, data: Mapping[str, Any] | None) -> TypicalRanges:
        """The ranges of `to_mapping`; None: of an older release, nothing is known."""
        made = cls()
        for key, values in (data or {}).get("seen", {}).items():
            made._seen[key] = _Newest()
            for unit, value in values:
                made._seen[key].add(str(unit), float(value))
        if (fixed := (data or {}).get("fixed")) is not None:
            made._fixed = {key: (float(low), float(high)) for key, (low, high) in fixed.items()}
        return made


def _key(flag: str, record: RequestRecord) -> str:
    return f"{flag} {int(math.log2(max(record.body_bytes or 1, 1)) / 2)}"

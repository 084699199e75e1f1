"""What is usual of stable's own answers, and which answers are not: a range of each signal, learned before.

Rules:
1. A range is learned of stable's answers to requests of a size (in powers of four bytes) from before the
   rollout: of the newest KEPT, at most UNIT_LIMIT of one unit, and from LEARNED_FROM answers on.
2. It is fixed when the rollout's first draw comes, for all answers alike. So each flag is a function of the
   past and of one answer, whose rate can be tested: nothing of a unit's own coin is in it.
3. Where no range of any size is known the flags are missing; where only this size's is not, all is usual.
4. A text that is too short for a signal is usual in it. Its length says the rest.

Source: the extremes of n values, or what stands TAIL of them from each end, leave about 1 % outside.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping
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


class TypicalRanges:
    """The ranges of one rollout. Nothing is known until `fix`."""

    def __init__(self) -> None:
        # By flag and size: (digest of the unit, value) of the newest answers.
        self._seen: dict[str, deque[tuple[str, float]]] = {}
        self._fixed: dict[str, tuple[float, float]] | None = None  # None: still learning

    def learn(self, record: RequestRecord) -> None:
        """Learn of an answer from before the rollout."""
        is_stables = record.arm == STABLE and record.served_arm == STABLE
        if record.signals is None or self._fixed is not None or not is_stables:
            return
        for flag, name in FLAGS.items():
            value = getattr(record.signals, name)
            if value is not None:
                seen = self._seen.setdefault(_key(flag, record), deque(maxlen=KEPT))
                seen.append((record.unit[:16], float(value)))

    def fix(self) -> None:
        """The rollout has begun: what is known now is what its answers are compared with."""
        if self._fixed is not None:
            return
        self._fixed = {}
        for key, seen in self._seen.items():
            counted: Counter[str] = Counter()
            values = []
            for unit, value in reversed(seen):
                counted[unit] += 1
                if counted[unit] <= UNIT_LIMIT:
                    values.append(value)
            if len(values) >= LEARNED_FROM:
                values.sort()
                outside = int(TAIL * len(values))
                self._fixed[key] = (values[outside], values[-1 - outside])
        self._seen.clear()

    def flags_of(self, record: RequestRecord) -> dict[str, bool]:
        """Whether this answer is unusual, by flag; absent: not known."""
        if record.signals is None or not self._fixed:
            return {}
        found = {}
        for flag, name in FLAGS.items():
            value = getattr(record.signals, name)
            low, high = self._fixed.get(_key(flag, record), (-math.inf, math.inf))
            found[flag] = value is not None and not low <= value <= high
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
            made._seen[key] = deque(((str(unit), float(value)) for unit, value in values), maxlen=KEPT)
        if (fixed := (data or {}).get("fixed")) is not None:
            made._fixed = {key: (float(low), float(high)) for key, (low, high) in fixed.items()}
        return made


def _key(flag: str, record: RequestRecord) -> str:
    return f"{flag} {int(math.log2(max(record.body_bytes or 1, 1)) / 2)}"

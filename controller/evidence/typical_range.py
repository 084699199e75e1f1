"""What is usual of stable's own answers, and which answers are not: a range of each signal, learned once.

Rules:
1. A range is that of the first LEARNED_FROM answers of stable to requests of a size (in powers of four
   bytes), from before the rollout or in it. About 1 % of stable's later ones are outside, on either side.
2. It never changes once it is learned, and until then nothing is unusual or usual: the flag is missing, on
   both arms alike. So each flag is a function of the past and of one answer, and its rate can be tested.
3. A text that is too short for a signal is usual in it. Its length says the rest.

Source: the extremes of n values leave a share of 2 / (n + 1) outside, in the mean (order statistics).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from serving.messages import STABLE, RequestRecord

LEARNED_FROM = 200
FLAGS = {
    "unusual_length": "characters",
    "unusual_repetition": "repeated",
    "unusual_compression": "compression",
}


class TypicalRanges:
    """The ranges of one service's stable answers. Nothing is known at first."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float, float]] = {}  # by flag and size: how many, min, max

    def flags_of(self, record: RequestRecord) -> dict[str, bool]:
        """Whether this answer is unusual, by flag; absent: not known. Then learn of it, if it is stable's."""
        if record.signals is None:
            return {}
        size = int(math.log2(max(record.body_bytes or 1, 1)) / 2)
        found = {}
        for flag, name in FLAGS.items():
            value = getattr(record.signals, name)
            key = f"{flag} {size}"
            count, low, high = self._seen.get(key, (0, math.inf, -math.inf))
            if count >= LEARNED_FROM:
                found[flag] = value is not None and not low <= value <= high
            elif value is not None and record.arm == STABLE and record.served_arm == STABLE:
                self._seen[key] = (count + 1, min(low, value), max(high, value))
        return found

    def to_mapping(self) -> dict[str, list[float]]:
        """JSON values for the snapshot."""
        return {key: list(seen) for key, seen in self._seen.items()}

    @classmethod
    def of(cls, data: Mapping[str, Any] | None) -> TypicalRanges:
        """The ranges of `to_mapping`; None: of an older release, nothing is known."""
        made = cls()
        for key, (count, low, high) in (data or {}).items():
            made._seen[key] = (int(count), float(low), float(high))
        return made

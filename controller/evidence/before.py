"""What stable's own requests before the canary's first unit tell: its values, and whether units have keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from controller.evidence.pricing import tokens_of
from controller.evidence.records import cost_of, measured
from controller.evidence.typical_range import TypicalRanges
from evaluation.costs import Prices
from evaluation.records import STICKY_KEYS
from serving.messages import STABLE, RequestRecord

SEED_VALUES = 4_000  # of stable's own traffic, per metric, before the canary's first unit
SEED_METRICS = ("latency_ms", "ttft_ms", "itl_ms")  # the fields of a record
SEED_SIZES = ("tokens", "cost")  # of which the caps of means are learned (`evaluation/units/capped.py`)


class StableBefore:
    """The newest values by metric. has_keys: some request's unit is a user or a conversation, so that alpha
    is split for these from the first bet on, whichever unit comes first."""

    def __init__(self, prices: Prices | None = None) -> None:
        """prices: of both versions; None: there are none."""
        self._prices = prices
        self.values: dict[str, list[float]] = {metric: [] for metric in (*SEED_METRICS, *SEED_SIZES)}
        self.has_keys = False

    def learn(self, record: RequestRecord, ranges: TypicalRanges) -> None:
        """Learn one request of the service from before the canary's first unit."""
        self.has_keys = self.has_keys or record.assigned_by in STICKY_KEYS
        if record.error is not False or record.served_arm != STABLE:
            return
        ranges.learn(record)
        sizes = {"tokens": measured(tokens_of(record).completion), "cost": cost_of(record, self._prices)}
        for metric, values in self.values.items():
            value = sizes[metric] if metric in sizes else getattr(record, metric)
            if value is not None:
                values.append(value)
                del values[:-SEED_VALUES]

    def restore(self, values: Mapping[str, Sequence[float]], *, has_keys: bool) -> None:
        """Go on from a snapshot. values: empty once there is an evaluator."""
        self.values = {metric: list(known) for metric, known in values.items()} or self.values
        self.has_keys = has_keys

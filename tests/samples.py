"""Samples: of a test's cases in `make check`, of a simulation's runs in `make test`."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

#: Marks of what make check does not run anyway.
LEFT_OUT = ("slow", "calibration", "integration")
IS_WHOLE = os.environ.get("CANARYCTL_TEST_RUNS") == "all"


def runs(sample: int, *, whole: int) -> int:
    """Runs of a simulation: `sample`, in which a gross fault shows; `whole` in `make bench-gate`."""
    return whole if IS_WHOLE else sample


def leave_to_make_test(items: Sequence[pytest.Item]) -> None:
    """Mark as slow the cases that `@pytest.mark.sample(n)` leaves out: it keeps n of them, evenly spread."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        is_run = not any(item.get_closest_marker(name) for name in LEFT_OUT)
        if is_run and item.get_closest_marker("sample") is not None:
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for of_one in cases.values():
        mark = of_one[0].get_closest_marker("sample")
        assert mark is not None
        (count,) = mark.args
        kept = {number * len(of_one) // count for number in range(count)}
        for number, item in enumerate(of_one):
            if number not in kept:
                item.add_marker(pytest.mark.slow)

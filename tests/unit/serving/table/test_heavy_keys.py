"""Heavy keys: who is called heavy, by the counts of all routers, in bounded memory."""

from __future__ import annotations

import random

import pytest

from serving.messages import UnitCounts
from serving.table.heavy_keys import COUNTED_UNITS, HeavyKeys, UnitCounter


def report(requests: int, rollout: str = "r", **units: int) -> UnitCounts:
    return UnitCounts(rollout, requests, units)


def heavy() -> HeavyKeys:
    keys = HeavyKeys()
    keys.begin("r")
    return keys


def test_a_unit_is_heavy_with_over_1_percent_and_over_100_requests_of_all_routers() -> None:
    keys = heavy()
    first = keys.add(report(4000, a=60, b=30), now_s=1.0)
    second = keys.add(report(4000, a=60, b=30), now_s=2.0)

    assert (first, second) == (False, True)
    assert keys.units == {"a"}


def test_a_unit_with_many_requests_but_under_1_percent_is_not_heavy() -> None:
    keys = heavy()
    keys.add(report(100_000, a=900), now_s=1.0)

    assert keys.units == frozenset()


def test_requests_of_more_than_ten_minutes_ago_do_not_count() -> None:
    keys = heavy()
    for minute in range(20):
        keys.add(report(100, a=9), now_s=60.0 * minute)  # 99 in ten minutes

    assert keys.units == frozenset()


def test_a_heavy_unit_stays_heavy_until_the_rollout_ends() -> None:
    keys = heavy()
    keys.add(report(200, a=150), now_s=1.0)
    keys.add(report(1_000_000), now_s=2000.0)
    before = keys.units
    keys.begin("next")

    assert (set(before), set(keys.units)) == ({"a"}, set())


def test_the_counts_of_another_rollout_name_other_units() -> None:
    keys = heavy()

    assert not keys.add(report(200, rollout="old", a=150), now_s=1.0)


@pytest.mark.slow
def test_a_counter_misses_no_heavy_unit_and_stays_bounded_among_a_million_others() -> None:
    rng, counter = random.Random(5), UnitCounter()
    truth = 0
    for n in range(100_000):
        is_heavy = rng.random() < 0.012
        truth += is_heavy
        counter.add("heavy" if is_heavy else f"u-{n}")
    counts = counter.take("r", now_s=10.0)

    assert counts is not None
    assert counts.requests == 100_000
    assert truth - 100_000 / (COUNTED_UNITS + 1) <= counts.units["heavy"] <= truth
    assert len(counts.units) < COUNTED_UNITS


def test_the_tables_window_is_bounded_whatever_routers_report() -> None:
    keys = heavy()
    for n in range(50):
        keys.add(UnitCounts("r", 500, {f"u-{n}-{i}": 1 for i in range(500)}), now_s=1.0)

    assert keys.units == frozenset()
    assert sum(len(slot[1]) for slot in keys._slots) <= COUNTED_UNITS


def test_a_report_is_due_every_five_seconds() -> None:
    counter = UnitCounter()
    counter.add("a")
    first = counter.take("r", now_s=100.0)
    counter.add("a")

    assert first is not None
    assert counter.take("r", now_s=104.0) is None
    assert counter.take("r", now_s=105.0) is not None

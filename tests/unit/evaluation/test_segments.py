"""Segment alarms: harm in one segment is found, and many healthy segments raise few alarms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation import snapshot as snapshots
from evaluation.betting.unit_block import UnitBlock
from evaluation.metrics import Kind
from evaluation.segments import MAX_SEGMENTS, SegmentAlarms
from tests.fakes.evidence_maker import unit_block


def units(
    n: int, seed: int, *, rate: float = 0.05, harm: float = 1.0, w: float = 0.2, first: int = 0
) -> UnitBlock:
    rng = np.random.default_rng(seed)
    arm = rng.random(n) < w
    y = (rng.random(n) < rate * np.where(arm, harm, 1.0)).astype(np.float64)
    return unit_block(arm, w, y, first=first)


def named(alarms: SegmentAlarms) -> list[str]:
    return [alarm.segment for alarm in alarms.alarms()]


def test_harm_to_one_tenant_in_twenty_is_named() -> None:
    alarms = SegmentAlarms(Kind.RATE, tolerance=0.25)
    for i in range(20):
        alarms.feed(f"tenant {i}", units(1500, i, harm=4.0 if i == 13 else 1.0))

    assert named(alarms) == ["tenant 13"]


@pytest.mark.calibration
def test_forty_healthy_segments_rarely_raise_an_alarm() -> None:
    with_alarm = 0
    for run in range(25):
        alarms = SegmentAlarms(Kind.RATE, tolerance=0.0, alpha=0.1)
        for i in range(40):
            alarms.feed(str(i), units(300, 1000 * run + i))
        with_alarm += bool(named(alarms))

    assert with_alarm <= 5


def test_the_levels_of_all_segments_add_up_to_alpha() -> None:
    alarms = SegmentAlarms(Kind.RATE, tolerance=0.25, alpha=0.01)
    for i in range(MAX_SEGMENTS):
        alarms.feed(str(i), units(1, i))
    limits = [stream.channels[0].decision.limit for stream in alarms.streams]

    assert 0.0099 < sum(math.exp(-limit) for limit in limits) <= 0.01


@pytest.mark.slow
def test_random_headers_cannot_fill_the_memory() -> None:
    alarms = SegmentAlarms(Kind.RATE, tolerance=0.25)
    for i in range(MAX_SEGMENTS + 50):
        alarms.feed(
            f"header {i}", units(200, i, rate=0.3, harm=3.0 if i >= MAX_SEGMENTS else 1.0, first=200 * i)
        )

    assert "(others)" in named(alarms)
    assert len(alarms.streams) == MAX_SEGMENTS + 1


@pytest.mark.parametrize("kind", [Kind.SCORE, Kind.SHAPE])
def test_scores_and_values_raise_alarms_too(kind: Kind) -> None:
    block = units(4000, 3, w=0.3)
    rng = np.random.default_rng(4)
    bad = np.where(block.arm, 0.2, 0.0)
    y = {
        Kind.SCORE: rng.beta(4 * (0.7 - bad), 4 * (0.3 + bad)),
        Kind.SHAPE: rng.lognormal(7 + 2 * bad, 0.5),
    }[kind]
    alarms = SegmentAlarms(kind, tolerance=0.02)
    alarms.feed(
        "long prompts",
        unit_block(block.arm, block.w, y),
    )

    assert named(alarms) == ["long prompts"]


def test_restored_segment_alarms_continue_with_the_same_bits() -> None:
    whole, cut = SegmentAlarms(Kind.RATE, tolerance=0.25), SegmentAlarms(Kind.RATE, tolerance=0.25)
    for i in range(4):
        for alarms in (whole, cut):
            alarms.feed(f"tenant {i % 3}", units(700, i, harm=3.0, first=700 * i))
        saved = snapshots.write(cut, digest="rates")
        cut = SegmentAlarms(Kind.RATE, tolerance=0.25)
        snapshots.read(cut, saved, digest="rates")

    assert cut.alarms() == whole.alarms() != ()
    assert snapshots.write(cut, digest="rates") == snapshots.write(whole, digest="rates")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"kind": Kind.PERCENTILE, "tolerance": 0.1}, "rate, score or shape"),
        ({"kind": Kind.RATE, "tolerance": -0.1}, "tolerance -0.1"),
        ({"kind": Kind.RATE, "tolerance": 0.1, "alpha": 0.0}, "alpha 0.0"),
    ],
)
def test_an_invalid_segment_test_is_refused(bad: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentAlarms(bad.pop("kind"), **bad)  # type: ignore[arg-type]

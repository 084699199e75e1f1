"""Measured baseline of stable: its summary, and the baseline that it gives the simulation."""

from __future__ import annotations

from controller.planning.baseline import MeasuredBaseline, ScoreStats

MEASURED = MeasuredBaseline(
    4120,
    {"error": 37, "truncated": 4},
    420.0,
    2100.0,
    0.6,
    {"quality": ScoreStats(3980, 0.7, 0.1, 0.97)},
    1.8,
)


def test_the_summary_tells_measured_figures_from_typical_ones() -> None:
    assert MEASURED.summary({"error", "quality", "hallucinated"}) == (
        "measured over 4,120 requests: errors 0.9 %, latency p50 420 ms, p99 2.1 s",
        "hallucinated: 0 scores, 100 are needed: the typical 3 % is used, with every answer scored",
        "quality 0.7 (sd 0.1) over 3,980 scores, of 97 % of the answers",
    )


def test_scores_of_0_and_1_give_a_valid_baseline() -> None:
    baseline = MeasuredBaseline(500, scores={"quality": ScoreStats(400, 0.9, 0.3, None)}).baseline(
        {"quality"}
    )

    assert baseline.score_mean == 0.9
    assert 0.29 < baseline.score_sd < 0.3

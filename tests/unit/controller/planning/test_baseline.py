"""Measured baseline of stable: its summary, and the baseline that it gives the simulation."""

from __future__ import annotations

from dataclasses import replace

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


def test_scores_that_never_came_are_said_not_to_have_come() -> None:
    """As for NOT JUDGED; `0 scores` read as if the forecast counted on them."""
    silent = replace(MEASURED, scores={}, settled=4000)
    few = MeasuredBaseline(150, settled=140)

    assert silent.summary({"quality"})[1] == (
        "quality: no scores in the last 4,000 requests: the typical 0.8 is used, "
        "as if every answer were scored"
    )
    assert few.summary({"quality", "error"})[1:] == ("quality: no scores in the last 140 requests",)


def test_answers_too_young_for_a_score_say_nothing_of_scores() -> None:
    assert "no scores" not in " ".join(replace(MEASURED, scores={}).summary({"quality"}))
    assert len(MeasuredBaseline(150).summary({"quality"})) == 1

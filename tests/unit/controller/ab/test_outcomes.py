"""Outcome ledger: which requests count, in which order, and from when on."""

from __future__ import annotations

from typing import Any

import pytest

from controller.ab.results import AbEvaluator
from controller.ab.spec import LIVE_METRICS, parse_ab
from controller.store.rows import AbOutcome
from serving.answer_signals import Signals
from serving.messages import Event, RequestRecord, ScoreRecord
from tests.fakes.ab_maker import BODY, JoinedLedger, consume, request, score


def timed(n: int, latency_ms: float, **changes: Any) -> RequestRecord:
    return request(n, latency_ms=latency_ms, **changes)


def outcomes(
    ledger: JoinedLedger, through_s: float = 1e9, now_s: float = 1e9
) -> list[tuple[bool, float | None]]:
    return [(outcome.is_b, outcome.y) for outcome in ledger.settle(through_s, now_s)]


def test_outcomes_come_in_the_order_of_assignment_not_of_answers() -> None:
    ledger = JoinedLedger("r-1", "latency_ms", 600.0)
    consume(ledger, [timed(1, 1.0, at_s=9.0), timed(2, 2.0, at_s=3.0, arm=1)])

    assert outcomes(ledger) == [(True, 2.0), (False, 1.0)]


def test_nothing_settles_before_every_earlier_request_is_known() -> None:
    ledger = JoinedLedger("r-1", "latency_ms", 600.0)
    consume(ledger, [timed(1, 1.0, at_s=9.0)])

    assert outcomes(ledger, through_s=9.0) == []
    assert outcomes(ledger, through_s=9.1) == [(False, 1.0)]


def test_a_score_is_waited_for_and_then_missing() -> None:
    ledger = JoinedLedger("r-1", "quality", 30.0)
    consume(ledger, [request(1, at_s=100.0)])

    assert outcomes(ledger, now_s=129.0) == []
    assert outcomes(ledger, now_s=131.0) == [(False, None)]


def test_a_scored_request_counts_unless_an_earlier_one_still_waits() -> None:
    ledger = JoinedLedger("r-1", "quality", 600.0)
    consume(ledger, [request(n, at_s=float(n), arm=n % 2) for n in (1, 2, 3, 4)])
    consume(ledger, [score(5, "q1"), score(6, "q2"), score(7, "q4")])

    assert outcomes(ledger, now_s=10.0) == [(True, 0.7), (False, 0.7)]
    assert outcomes(ledger, now_s=604.0) == [(True, None), (False, 0.7)]


@pytest.mark.parametrize("name", ["q1", "a1"])
@pytest.mark.parametrize("score_first", [True, False])
def test_a_score_finds_its_request_by_either_id_before_or_after(name: str, score_first: bool) -> None:
    ledger = JoinedLedger("r-1", "quality", 600.0)
    later: list[Event] = [request(1), score(2, name)]
    earlier: list[Event] = [score(1, name), request(2, request_id="q1", answer_id="a1")]
    consume(ledger, earlier if score_first else later)

    assert outcomes(ledger) == [(False, 0.7)]


def test_a_restart_rereads_from_a_score_still_without_its_request() -> None:
    ledger = JoinedLedger("r-1", "quality", 600.0)
    consume(ledger, [score(41, "q9")])

    assert (ledger.join.first_held() or 0) - 1 == 40


@pytest.mark.slow
def test_scores_without_a_request_expire() -> None:
    ledger = JoinedLedger("r-1", "quality", 600.0)
    consume(ledger, [score(1, "lost", at_s=0.0), score(2, "q2", at_s=901.0)])
    assert (ledger.join.first_held() or 0) - 1 == 1

    consume(ledger, [score(n, f"x{n}", at_s=902.0) for n in range(3, 25_000)])
    assert (ledger.join.first_held() or 0) > 4000


def test_a_unit_counts_once() -> None:
    ledger = JoinedLedger("r-1", "latency_ms", 600.0)
    consume(ledger, [timed(n, float(n), unit="ada", assigned_by="sticky") for n in range(1, 6)])

    assert outcomes(ledger) == [(False, 1.0)]


@pytest.mark.parametrize(
    "left_out",
    [
        {"assigned_by": "no-capacity"},
        {"assigned_by": "fenced"},
        {"rollout": "r-0"},
        {"w": 0.0},
        {"w": 1.0},
    ],
)
def test_requests_that_were_not_drawn_are_left_out(left_out: dict[str, Any]) -> None:
    ledger = JoinedLedger("r-1", "latency_ms", 600.0)
    consume(ledger, [timed(1, 1.0, **left_out)])

    assert outcomes(ledger) == []


def test_a_lost_span_is_dropped_for_both_arms() -> None:
    ledger = JoinedLedger("r-1", "latency_ms", 600.0)
    consume(ledger, [timed(n, float(n), arm=n % 2) for n in range(1, 7)])
    ledger.drop_span(2.0, 5.0)

    assert outcomes(ledger) == [(True, 1.0), (True, 5.0), (False, 6.0)]


@pytest.mark.parametrize(
    ("metric", "record", "value"),
    [
        ("error", {"error": True}, 1.0),
        ("rejected", {"rejected": True, "error": False}, 1.0),
        ("rejected", {"rejected": None, "error": True}, 0.0),
        ("rejected", {"rejected": None, "error": None}, None),
        ("tokens", {"completion_tokens": 9}, 9.0),
        ("truncated", {"finish_reason": "length"}, 1.0),
        ("cancelled", {"outcome": "cancelled"}, 1.0),
        ("empty", {"empty": True}, 1.0),
        ("ttft_ms", {"ttft_ms": None}, None),
        ("ttft_ms", {"outcome": "cancelled", "error": None, "latency_ms": None, "ttft_ms": None}, 60_000.0),
        ("ttft_ms", {"outcome": "cancelled", "error": None, "latency_ms": None, "ttft_ms": 9.0}, 9.0),
        ("latency_ms", {"outcome": "cancelled", "error": None, "latency_ms": None}, 60_000.0),
        ("itl_ms", {"outcome": "cancelled", "error": None, "latency_ms": None, "itl_ms": None}, None),
    ],
)
def test_a_request_metric_is_read_from_the_record(
    metric: str, record: dict[str, Any], value: float | None
) -> None:
    ledger = JoinedLedger("r-1", metric, 600.0)
    consume(ledger, [request(1, **record)])

    assert outcomes(ledger) == [(False, value)]


@pytest.mark.parametrize("metric", sorted(LIVE_METRICS))
def test_every_live_metric_is_read_from_the_record_or_scored(metric: str) -> None:
    ledger = JoinedLedger("r-1", metric, 600.0)
    signals = Signals(9, None, None, leaked=False, refused=True, other_language=False, invalid=False)
    answered = request(1, ttft_ms=1.0, itl_ms=1.0, signals=signals)
    consume(ledger, [answered, ScoreRecord(2, "q1", metric, 1.0, 1.0)])

    [(_, value)] = outcomes(ledger)
    assert value is not None
    AbEvaluator(parse_ab(BODY | {"metric": metric}), [AbOutcome(1, False, 0.5, value, 1.0)])


def test_of_several_scores_the_first_counts() -> None:
    ledger = JoinedLedger("r-1", "quality", 600.0)
    consume(ledger, [request(1), score(2, "q1", 0.2), score(3, "q1", 0.9)])

    assert outcomes(ledger) == [(False, 0.2)]


@pytest.mark.parametrize("change", [{"served_arm": 0}, {"error": True}, {"served_arm": None}])
def test_a_score_of_an_answer_that_b_did_not_write_is_not_bs(change: dict[str, Any]) -> None:
    ledger = JoinedLedger("r-1", "quality", 600.0)
    consume(ledger, [request(1, arm=1, **change), score(2, "q1", 1.0)])

    assert outcomes(ledger) == [(True, None)]


def test_later_answers_of_a_counted_unit_are_counted_as_left_out() -> None:
    ledger = JoinedLedger("r-1", "latency_ms", 600.0)
    consume(ledger, [timed(n, float(n), unit="ada", assigned_by="sticky") for n in range(1, 6)])
    outcomes(ledger)
    consume(ledger, [timed(6, 6.0, unit="ada", assigned_by="pin", at_s=2e9)])

    assert ledger.left_out == 5


def test_a_request_that_is_read_after_its_span_was_lost_is_dropped_too() -> None:
    ledger = JoinedLedger("r-1", "latency_ms", 600.0)
    ledger.drop_span(2.0, 4.0)
    ledger.drop_span(3.5, 5.0)
    consume(ledger, [timed(n, float(n), arm=n % 2) for n in range(1, 7)])

    assert outcomes(ledger) == [(True, 1.0), (True, 5.0), (False, 6.0)]


@pytest.mark.parametrize(
    ("arms", "weights", "crossed"),
    [([0, 1], [0.5, 0.5], 1), ([1, 0], [0.2, 0.5], 1), ([0, 1], [0.2, 0.5], 0), ([1, 1], [0.5, 0.5], 0)],
)
def test_a_unit_on_both_sides_is_noted_unless_the_split_was_raised(
    arms: list[int], weights: list[float], crossed: int
) -> None:
    ledger = JoinedLedger("r-1", "latency_ms", 600.0)
    rows = enumerate(zip(arms, weights, strict=True), start=1)
    consume(ledger, [timed(n, 1.0, unit="ada", assigned_by="sticky", arm=arm, w=w) for n, (arm, w) in rows])

    assert len(ledger.crossed) == crossed


def test_a_request_that_failed_fast_counts_as_slowest() -> None:
    ledger = JoinedLedger("r-1", "latency_ms", 600.0)
    consume(ledger, [timed(1, 900.0), timed(2, 5.0, error=True), timed(3, 5.0, rejected=True)])

    assert [y for _, y in outcomes(ledger)] == [900.0, 60_000.0, 60_000.0]

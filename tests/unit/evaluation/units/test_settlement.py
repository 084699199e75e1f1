"""Settlement: order of assignment, watermark, deadlines of scores; invalid records are refused by field."""

import math
from dataclasses import replace
from typing import Any

import pytest

from evaluation.evaluator import Evaluator
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.records import Draw, EvidenceError, Pair, Score
from evaluation.units.settlement import Settlement

GOOD = Draw("a", "a", 1.0, 0, 0.5, "request", error=False, latency_ms=10.0)
POLICY = GatePolicy.default()


def evaluator(policy: GatePolicy = POLICY) -> Evaluator:
    return Evaluator.start(policy, stages=(StagePlan(0.5, 0),), seed_latency_ms={})


def settlement() -> Settlement:
    return Settlement(keep_scores_s=600.0)


def test_draws_settle_in_order_of_assignment_behind_the_watermark() -> None:
    pending = settlement()
    for name, at_s in (("c", 3.0), ("a", 1.0), ("d", 4.0), ("b", 2.0)):
        pending.add_draw(replace(GOOD, request_id=name, at_s=at_s))

    assert [d.request_id for d in pending.advance(4.0, 4.0)] == ["a", "b", "c"]


def test_draws_of_one_moment_settle_in_an_order_that_the_arm_does_not_decide() -> None:
    """Whatever the order in which they came: by a hash of the unit."""
    settled = []
    for names in ("abcdef", "fedcba"):
        pending = settlement()
        for name in names:
            pending.add_draw(replace(GOOD, request_id=name, unit=name, at_s=1.0))
        settled.append("".join(d.request_id for d in pending.advance(4.0, 4.0)))

    assert settled[0] == settled[1]
    assert settled[0] not in ("abcdef", "fedcba")


def test_a_repeated_record_counts_once() -> None:
    gate = evaluator()
    for _ in range(3):
        gate.add(replace(GOOD, arm=1))
    gate.advance(10.0, 10.0)

    assert (gate.report().n_canary, gate.settlement.repeated) == (1, 2)


def test_a_record_from_before_the_watermark_is_counted_as_late() -> None:
    gate = evaluator()
    gate.advance(5.0, 5.0)
    gate.add(GOOD)
    gate.advance(10.0, 10.0)

    assert (gate.report().n_stable, gate.report().late_events) == (0, 1)


@pytest.mark.slow
def test_a_watermark_that_goes_back_is_refused() -> None:
    gate = evaluator()
    gate.advance(5.0, 5.0)

    with pytest.raises(EvidenceError, match="went back"):
        gate.advance(4.0, 6.0)


def test_scores_do_not_expire_while_the_log_is_still_being_read() -> None:
    gate = evaluator()
    gate.add(GOOD)
    gate.advance(5.0, 5.0)
    gate.advance(5.0, 10_000.0)  # a page of a long log: more follow, so the watermark stays
    gate.add(Score("a", "quality", 0.5, 2.0))
    gate.advance(6.0, 10_000.0)

    assert settled_scores(gate) == 1


def test_a_clock_set_back_is_ignored() -> None:
    gate = evaluator()
    gate.advance(5.0, 5.0)
    gate.advance(6.0, 4.0)

    assert gate.settlement.now_s == 5.0


def settled_scores(gate: Evaluator) -> int:
    return next(r.n_stable for r in gate.report().gates if r.gate == "quality" and r.side == "rollback")


def test_a_score_settles_when_all_earlier_ones_have() -> None:
    gate = evaluator()
    for name, at_s in (("a", 1.0), ("b", 2.0)):
        gate.add(replace(GOOD, request_id=name, at_s=at_s))
    gate.add(Score("b", "quality", 0.5, 3.0))
    gate.advance(10.0, 10.0)
    before = settled_scores(gate)
    gate.add(Score("a", "quality", 0.5, 11.0))
    gate.advance(12.0, 12.0)

    assert (before, settled_scores(gate)) == (0, 2)


def test_a_failed_request_does_not_delay_later_scores() -> None:
    """It gets no score: waiting for its deadline would delay the quality gate by ten minutes."""
    gate = evaluator()
    for row in range(4):
        gate.add(replace(GOOD, request_id=str(row), unit=str(row), at_s=float(row), error=row == 0))
        if row > 0:
            gate.add(Score(str(row), "quality", 1.0, float(row)))
    gate.advance(10.0, 10.0)

    assert settled_scores(gate) == 3


def test_a_score_after_its_deadline_is_missing() -> None:
    gate = evaluator()
    gate.add(GOOD)
    gate.add(Score("a", "quality", 0.5, 602.0))  # the deadline is 600 s after 1.0
    gate.advance(700.0, 700.0)

    assert settled_scores(gate) == 0


def test_the_first_score_of_a_request_counts() -> None:
    gate = evaluator()
    gate.add(GOOD)
    for value in (0.25, 1.0):
        gate.add(Score("a", "quality", value, 2.0))
    gate.advance(10.0, 10.0)

    assert next(r.stable for r in gate.report().gates if r.gate == "quality") == 0.25


def test_expired_scores_are_forgotten() -> None:
    gate = evaluator()
    gate.add(Score("unknown", "quality", 0.5, 2.0))
    gate.advance(700.0, 700.0)
    gate.report()

    assert gate.settlement.scores == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"at_s": math.nan}, "at_s nan"),
        ({"at_s": math.inf}, "at_s inf"),
        ({"arm": 2}, "arm 2"),
        ({"w": -0.1}, "w -0.1"),
        ({"w": 1.1}, "w 1.1"),
        ({"w": math.nan}, "w nan"),
        ({"w": 0.0, "arm": 1}, "cannot give arm 1"),
        ({"w": 1.0, "arm": 0}, "cannot give arm 0"),
        ({"latency_ms": -1.0}, "latency_ms -1.0"),
        ({"latency_ms": math.inf}, "latency_ms inf"),
        ({"ttft_ms": math.nan}, "ttft_ms nan"),
        ({"tokens": -5.0}, "tokens -5.0"),
    ],
)
def test_an_invalid_record_is_refused_by_field_and_changes_nothing(
    change: dict[str, Any], message: str
) -> None:
    gate = evaluator()
    before = gate.snapshot()

    with pytest.raises(EvidenceError, match=message):
        gate.add(replace(GOOD, **change))
    assert gate.snapshot() == before


@pytest.mark.parametrize(
    "event",
    [
        Score("a", "quality", 1.5, 1.0),
        Score("a", "quality", math.nan, 1.0),
        Pair("c", "quality", -2.0, 0.5, 1.0),
    ],
)
def test_a_score_outside_its_range_is_refused(event: Score | Pair) -> None:
    with pytest.raises(EvidenceError, match="outside"):
        evaluator().add(event)


def test_an_invalid_seed_value_is_refused() -> None:
    with pytest.raises(EvidenceError, match="latency_ms"):
        Evaluator.start(POLICY, stages=(StagePlan(0.5, 0),), seed_latency_ms={"latency_ms": [1.0, math.nan]})


def test_a_stage_outside_the_plan_cannot_be_entered() -> None:
    gate = evaluator()

    with pytest.raises(EvidenceError, match="stage 1"):
        gate.enter_stage(1, 0.0)


def test_a_silent_answer_is_an_error_and_slowest() -> None:
    gate = evaluator()
    gate.add(replace(GOOD, error=True, latency_ms=None, flags={"censored": True}))
    gate.advance(10.0, 10.0)

    assert next(r.stable for r in gate.report().gates if r.gate == "error") == 1.0

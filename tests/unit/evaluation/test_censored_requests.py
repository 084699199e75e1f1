"""Censored answers, incomplete when the router stops waiting: slowest, and an error only without a byte."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evaluation.evaluator import Evaluator
from evaluation.offline import backtest
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.records import SETTLE_S, Draw
from evaluation.report import Verdict

LONGEST_MS = SETTLE_S * 1000.0
SLOW = GatePolicy.default().only("latency_ms")
STAGES = (StagePlan(0.5, 0, margins={"latency_p99": 1.2, "latency_shape": 1.2}),)
ANSWER = Draw(
    request_id="a",
    unit="a",
    at_s=1.0,
    arm=0,
    w=0.5,
    assigned_by="request",
    error=False,
    latency_ms=100.0,
    ttft_ms=10.0,
)


def evaluator(policy: GatePolicy) -> Evaluator:
    seed = np.random.default_rng(5).lognormal(7.0, 0.4, 4000)
    return Evaluator.start(policy, stages=STAGES, seed_latency_ms={"latency_ms": list(seed)})


def fed(policy: GatePolicy, *, canary: Draw, every: int, requests: int = 3000) -> Evaluator:
    """An evaluator fed with equal arms, except that every so-many-th canary request is `canary`."""
    gate = evaluator(policy)
    rng = np.random.default_rng(6)
    for row in range(requests):
        arm = int(rng.random() < 0.5)
        draw = replace(ANSWER, latency_ms=float(rng.lognormal(7.0, 0.4)))
        if arm and row % every == 0:
            draw = canary
        gate.add(replace(draw, request_id=str(row), unit=str(row), at_s=float(row), arm=arm))
    gate.advance(float(requests), float(requests))
    return gate


STREAMING = replace(ANSWER, latency_ms=LONGEST_MS, flags={"censored": True})
SILENT = replace(ANSWER, error=True, latency_ms=None, ttft_ms=None, flags={"censored": True})


@pytest.mark.slow
def test_an_answer_that_still_streams_is_not_an_error() -> None:
    gate = fed(GatePolicy.default().only("error"), canary=STREAMING, every=5)

    assert next(r.canary for r in gate.report().gates if r.gate == "error") == 0.0


@pytest.mark.slow
def test_a_silent_answer_is_an_error_that_rolls_back() -> None:
    gate = fed(GatePolicy.default().only("error"), canary=SILENT, every=5)

    rollback = gate.report().rollback
    assert rollback is not None
    assert rollback.metric == "error"


@pytest.mark.slow
def test_answers_that_still_stream_are_slowest_and_roll_back() -> None:
    gate = fed(SLOW, canary=STREAMING, every=5)

    rollback = gate.report().rollback
    assert rollback is not None
    assert rollback.metric == "latency_ms"


@pytest.mark.slow
def test_silent_answers_are_slowest_and_prove_nothing() -> None:
    report = fed(SLOW, canary=SILENT, every=5).report()

    assert report.rollback is not None
    assert {r.verdict for r in report.gates if r.side == "promotion"} == {Verdict.UNDECIDED}


@pytest.mark.slow
def test_how_long_a_censored_answer_waited_does_not_matter() -> None:
    early = fed(SLOW, canary=replace(STREAMING, latency_ms=300.0), every=5)
    late = fed(SLOW, canary=replace(STREAMING, latency_ms=LONGEST_MS + 700.0), every=5)

    assert early.report().gates == late.report().gates


@pytest.mark.slow
def test_a_value_beyond_the_longest_wait_equals_a_censored_one() -> None:
    ended = fed(SLOW, canary=replace(ANSWER, latency_ms=LONGEST_MS * 3), every=5)

    assert wealth(ended) == wealth(fed(SLOW, canary=STREAMING, every=5))


def wealth(gate: Evaluator) -> list[tuple[str, str, float]]:
    return [(r.gate, r.side, r.log_e) for r in gate.report().gates]


def slow_service(times: float, requests: int = 20_000) -> dict[str, np.ndarray]:
    """A service with half of its answers longer than a minute; the canary takes `times` as long."""
    rng = np.random.default_rng(8)
    arm = (rng.random(requests) < 0.5).astype(np.float64)
    latency_ms = rng.lognormal(np.log(LONGEST_MS), 0.3, requests)
    return {
        "t_s": np.arange(requests, dtype=np.float64),
        "arm": arm,
        "w": np.full(requests, 0.5),
        "assigned_by": np.full(requests, "request"),
        "error": np.zeros(requests),
        "latency_ms": latency_ms * np.where(arm == 1.0, times, 1.0),
    }


def slow_seed() -> dict[str, np.ndarray]:
    return {"latency_ms": np.random.default_rng(9).lognormal(np.log(LONGEST_MS), 0.3, 4000)}


@pytest.mark.slow
def test_censoring_does_not_make_a_tolerable_canary_worse() -> None:
    result = backtest.run(slow_service(1.09), SLOW, stages=STAGES, seed_latency_ms=slow_seed())

    assert result.decision != "rollback"


@pytest.mark.slow
def test_a_slow_canary_of_a_slow_service_is_detected() -> None:
    result = backtest.run(slow_service(1.5), SLOW, stages=STAGES, seed_latency_ms=slow_seed())

    assert result.decision == "rollback"


@pytest.mark.slow
def test_censoring_does_not_prove_a_slow_canary() -> None:
    result = backtest.run(slow_service(1.5), SLOW, stages=STAGES, seed_latency_ms=slow_seed())

    assert result.proofs == {}

"""Metrics without a source, and metrics that stop: what the report says, and what happens to alpha."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation.evaluator import Evaluator
from evaluation.offline.backtest import run
from evaluation.policy.alpha_split import gate_alpha, served_alpha
from evaluation.policy.parsing import parse_gate_policy
from evaluation.policy.policy import GatePolicy
from evaluation.report import GateReport, Source, Verdict
from tests.fakes.evidence_maker import ONE_STAGE, Columns, requests


def quality_of(columns: Columns) -> tuple[str, GateReport]:
    result = run(columns)
    [report] = [g for g in result.gates if (g.gate, g.side) == ("quality", "rollback")]
    return result.decision, report


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("share", [1.0, 0.2, 0.03])
def test_a_metric_that_stops_is_named_with_its_last_time(share: float) -> None:
    """However few answers were judged: a silence that is no chance blocks, within minutes."""
    columns = requests(9000, before=1000, w=0.2)
    judged = np.random.default_rng(3).random(9000) < share
    judged[8000:] = False
    columns["quality"] = np.where(judged, columns["quality"], np.nan)
    last = float(columns["t_s"][np.flatnonzero(judged & (columns["error"] == 0.0))[-1]])

    decision, report = quality_of(columns)

    assert (decision, report.verdict, report.source) == ("invalid", Verdict.INVALID, Source.STOPPED)
    assert report.last_value_s == last
    assert report.reason.startswith("stopped arriving: no value in the last ")


@pytest.mark.slow
def test_a_metric_that_arrives_again_is_valid_again() -> None:
    columns = requests(9000, before=1000, w=0.2)
    columns["quality"][5000:6000] = np.nan

    assert quality_of(columns)[1].source is Source.ARRIVES


@pytest.mark.slow
def test_a_metric_that_never_arrived_is_not_judged() -> None:
    columns = requests(4000, before=500, w=0.2)
    columns["quality"] = np.full(4000, np.nan)

    decision, report = quality_of(columns)

    assert (decision, report.source, report.last_value_s) == ("invalid", Source.NEVER, None)


def total(policy: GatePolicy) -> float:
    return math.fsum(gate.alpha_share for gate in policy.gates)


def test_a_presets_gate_without_a_source_shares_out_its_alpha() -> None:
    policy = GatePolicy.default()

    shared = policy.without_sources({"ttft_ms", "hallucinated"})

    assert shared.gate("ttft_shape").is_alarm
    assert shared.gate("hallucination").is_alarm
    assert total(shared) == pytest.approx(total(policy))
    assert shared.gate("quality").alpha_share == pytest.approx(0.2 / 0.7)
    assert all("hallucination" not in rung.margins for rung in shared.rungs)


def test_a_gate_that_a_user_asked_for_keeps_its_alpha_and_blocks() -> None:
    policy = parse_gate_policy({"gates": {"error": {}, "ttft_shape": {"threshold": 0.3}}})

    assert policy.gate("ttft_shape").required
    assert not policy.gate("error").required
    assert policy.without_sources({"ttft_ms"}) == policy
    columns = requests(4000, before=500, w=0.2)
    columns["ttft_ms"] = np.full(4000, np.nan)
    assert run(columns, policy).decision == "invalid"


@pytest.mark.parametrize("names", [("default",), ("strict",)])
def test_a_stored_policy_knows_which_gates_were_asked_for(names: tuple[str]) -> None:
    policy = parse_gate_policy({"base": names[0], "gates": {"error": {}, "quality": {"threshold": 0.1}}})

    assert parse_gate_policy(policy.to_mapping()) == policy


@pytest.mark.slow
@pytest.mark.parametrize("streams", [True, False])
def test_where_nothing_is_streamed_the_streaming_gates_alpha_is_shared_out(streams: bool) -> None:
    seeds: dict[str, list[float]] = {"latency_ms": [400.0] * 300, "ttft_ms": [40.0] * 300 if streams else []}
    evaluator = Evaluator.start(GatePolicy.default(), stages=ONE_STAGE, seed_latency_ms=seeds)
    restored = Evaluator.restore(GatePolicy.default(), ONE_STAGE, evaluator.snapshot())

    for one in (evaluator, restored):
        share = one.pipeline.policy.gate("quality").alpha_share
        assert share == pytest.approx(0.2 if streams else 0.2 / 0.9)


def test_the_gates_and_the_served_rate_spend_alpha_once() -> None:
    for policy in (GatePolicy.default(), GatePolicy.strict(), GatePolicy.default().only("quality")):
        spent = math.fsum(gate_alpha(policy, gate) for gate in policy.gates) + served_alpha(policy)

        assert spent <= policy.alpha * (1.0 + 1e-9)
        assert served_alpha(policy) > 0.0

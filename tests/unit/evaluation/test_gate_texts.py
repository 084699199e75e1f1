"""A proof is of users: where all requests together are beyond the margin, its text says so."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.gate_texts import requests_text
from evaluation.offline.backtest import run
from evaluation.policy.gates import Proof, StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.report import GateReport, Verdict
from tests.fakes.evidence_maker import Columns

STAGE = StagePlan(0.25, 0, {"quality": 0.05})
POLICY = GatePolicy.default().only("error", "quality")


def talks(loss: float) -> Columns:
    """70 % of the users ask once, the others ten times, which is 81 % of the requests; there the canary is
    worse by `loss`."""
    rng, users = np.random.default_rng(1), 4000
    is_long, on_canary = rng.random(users) < 0.3, rng.random(users) < 0.25
    unit = np.repeat(np.arange(users), np.where(is_long, 10, 1))
    size = len(unit)
    harm = np.where(is_long & on_canary, loss, 0.0)[unit]
    return {
        "t_s": 5.0 * unit + np.arange(size) * 1e-4,
        "unit": unit,
        "arm": on_canary[unit].astype(np.int64),
        "w": np.full(size, 0.25),
        "assigned_by": np.full(size, "sticky"),
        "error": np.zeros(size),
        "quality": np.clip(rng.beta(6, 2, size) - harm, 0.0, 1.0),
    }


def proof_of_quality(columns: Columns) -> GateReport:
    reports = run(columns, POLICY, stages=(STAGE,)).gates
    return next(r for r in reports if (r.gate, r.side) == ("quality", "promotion"))


@pytest.mark.slow
def test_harm_of_those_who_ask_most_is_said_beside_the_proof_of_users() -> None:
    report = proof_of_quality(talks(0.08))

    assert report.verdict is Verdict.PASS
    assert report.reason.startswith("quality > -0.05 proven for users; over all requests it is -0.06")


@pytest.mark.slow
def test_alike_versions_are_proven_without_a_word_more() -> None:
    assert proof_of_quality(talks(0.0)).reason == "quality > -0.05 proven"


@pytest.mark.parametrize(
    ("gate", "proof", "stable", "canary", "expected"),
    [
        ("error", Proof(3.0, 0.005), 0.01, 0.04, "4x"),
        ("error", Proof(3.0, 0.005), 0.001, 0.004, ""),  # within the floor
        ("error", Proof(3.0, 0.005), 0.0, 0.02, "+0.020"),
        ("latency_shape", Proof(1.2, 0.0), 800.0, 1000.0, "1.25x"),
        ("latency_p99", Proof(1.2, 0.0), 800.0, float("inf"), ""),
        ("quality", Proof(0.05, 0.0), None, 0.5, ""),
    ],
)
def test_each_kind_has_its_own_figure(
    gate: str, proof: Proof, stable: float | None, canary: float | None, expected: str
) -> None:
    text = requests_text(GatePolicy.default().gate(gate), proof, stable, canary, requests_per_unit=3.0)

    assert (f"over all requests it is {expected} (" in text) if expected else text == ""


def test_where_each_request_is_a_unit_nothing_differs() -> None:
    gate = GatePolicy.default().gate("quality")

    assert requests_text(gate, Proof(0.05, 0.0), 0.75, 0.6, requests_per_unit=1.0) == ""

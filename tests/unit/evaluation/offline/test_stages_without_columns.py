"""Stages whose margins name a gate that the file has no column for: the others are judged."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.offline.backtest import run
from evaluation.offline.trace import trace
from evaluation.policy.gates import StagePlan
from evaluation.policy.parsing import gate_policy_of
from evaluation.policy.values import PolicyError
from evaluation.records import EvidenceError
from tests.fakes.evidence_maker import requests

POLICY = gate_policy_of(
    {
        "name": "with cost",
        "gates": {
            **dict.fromkeys(("quality", "hallucination", "ttft_shape", "latency_p99")),
            "cost": {"metric": "cost", "kind": "mean", "threshold": 0.2, "alpha_share": 0.05},
        },
    }
)
MARGINS = {"error": 5.0, "cost": 1.3}


def test_an_own_gate_without_a_column_is_not_judged_and_the_others_are() -> None:
    found = run(requests(2000), POLICY, stages=[StagePlan(0.2, 200, MARGINS, floor=0.03)])

    assert "cost" in found.not_judged
    assert (found.decision, set(found.proofs)) == ("promote", {"error"})


def test_a_gate_that_is_asked_for_still_blocks() -> None:
    stages = [StagePlan(0.2, 200, MARGINS, floor=0.03)]

    found = run(requests(2000), POLICY, stages=stages, required=["cost"])

    assert (found.decision, found.reasons) == ("undecided", ("cost: NOT JUDGED, it has no column",))


def test_its_trace_is_that_of_the_others() -> None:
    columns = requests(2000)
    whole, others = (
        trace(columns, POLICY, stages=[StagePlan(0.2, 200, margins, floor=0.03)])
        for margins in (MARGINS, {"error": 5.0})
    )

    assert {name: values.tolist() for name, values in whole.proofs.items()} == {
        name: values.tolist() for name, values in others.proofs.items()
    }


def test_a_margin_of_no_gate_at_all_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"stages.0.margins.costs names no gate"):
        run(requests(200), POLICY, stages=[StagePlan(0.2, 200, {"costs": 1.3})])


@pytest.mark.parametrize("score", [85.0, 5.0, -1.0])
def test_scores_of_another_scale_are_refused(score: float) -> None:
    columns = requests(200)

    with pytest.raises(EvidenceError, match=r"quality .* give a number in 0\.\.1"):
        run(columns | {"quality": np.full(200, score)})

"""Latency where requests fail: the table shows the figure that was compared, and what counts as slowest."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, Group

from benchmarks.gate.traffic import Behaviour, Case
from controller.cli.main import run
from controller.cli.render_gates import gate_notes, gates_table
from controller.evidence.point_estimates import point_estimates
from controller.rollout.figures import with_figures
from controller.views.rollout import gate_view
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.report import EvaluationReport, GateReport, Verdict
from tests.unit.cli.test_backtest import write

# The answers of the canary are as fast as stable's, but one in ten requests has none.
FAILING = Case("failing fast", "rollback", Behaviour(error=0.1), canary_requests=3000)
TAIL = GateReport(
    "latency_p99", "latency_ms", "rollback", Verdict.FAIL, 7.0, 5.8,
    "latency_p99 above 1.1x shown by sessions", 412, 3900, 2568.0, math.inf, statistic="p99",
    unanswered=(0.001, 0.1), limits="above 1.1x",
)  # fmt: skip
SHAPE = replace(
    TAIL, gate="latency_shape", side="promotion", verdict=Verdict.PASS, canary=801.0, stable=793.7,
    statistic="p50", limits="not slower throughout than 1.2x",
)  # fmt: skip


@pytest.mark.slow
def test_a_percentile_is_of_all_requests_and_the_table_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(FAILING, tmp_path / "e.jsonl")

    run(["backtest", str(path)])
    text = capsys.readouterr().out
    run(["backtest", str(path), "-o", "json"])
    gates = json.loads(capsys.readouterr().out)["gates"]

    rows = [line for line in text.splitlines() if line.startswith("latency_p99 ")]
    assert all("no answer" in row for row in rows)
    assert "worse: above 1.1x?" in rows[0]
    assert "proven: not slower throughout than 1.2x?" in text
    assert "requests without an answer count as slowest: " in text.splitlines()[-1]
    tail, *_ = [gate for gate in gates if gate["gate"] == "latency_p99"]
    assert tail["canary"] is None
    assert tail["stable"] > 2000
    assert tail["unanswered"][0] == pytest.approx(0.01, abs=0.005)
    assert tail["unanswered"][1] == pytest.approx(0.1, abs=0.02)
    shape, *_ = [gate for gate in gates if gate["gate"] == "latency_shape"]
    assert shape["canary"] > 1.03 * shape["stable"]  # the median of all, not of the nine in ten


def test_status_says_what_counts_as_slowest() -> None:
    views = [gate_view(TAIL), gate_view(SHAPE)]
    console = Console(width=120, record=True)
    console.print(Group(gates_table(views, is_wide=False), *gate_notes(views)))
    text = console.export_text()

    [row] = [line for line in text.splitlines() if line.startswith("latency_p99 ")]
    assert row.split()[-3:] == ["no", "answer", "3900/412"]
    assert (
        "latency_p99, latency_shape: requests without an answer count as slowest: 0.1 % of stable's, 10 % of "
        "the canary's"
    ) in text


def test_worse_and_proven_at_once_are_explained_by_their_limits() -> None:
    harm = replace(SHAPE, side="rollback", verdict=Verdict.FAIL, limits="above 1.1x", unanswered=(0.0, 0.0))
    proof = replace(SHAPE, unanswered=(0.0, 0.0))

    assert gate_notes([gate_view(harm), gate_view(proof)]) == [
        "latency_shape: worse is above 1.1x, proven is not slower throughout than 1.2x: between, both hold"
    ]
    assert gate_notes([gate_view(proof)]) == []


def test_a_reason_says_that_the_percentile_has_no_answer() -> None:
    assert with_figures(TAIL).endswith("canary p99 without an answer (n 412), stable p99 2568 ms (n 3,900)")


def test_a_percentile_without_an_answer_is_outside_every_margin() -> None:
    both = replace(TAIL, side="promotion", verdict=Verdict.UNDECIDED, stable=math.inf)
    report = EvaluationReport(0, Verdict.UNDECIDED, None, (both,), (), False, 412, 3900, 412, 0.0)
    stage = StagePlan(weight=0.1, min_canary=0, margins={"latency_p99": 1.2})

    found = point_estimates(report, GatePolicy.default(), stage)

    assert (found.within, found.text) == (False, "latency_p99 p99: too many requests have no answer")

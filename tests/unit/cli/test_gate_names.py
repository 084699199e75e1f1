"""Two gates on one metric compare different figures of it; every table says which."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.gate.traffic import Behaviour, Case
from controller.cli.main import run
from controller.cli.render_gates import gates_table
from controller.rollout.figures import with_figures
from controller.views.rollout import gate_view
from evaluation.report import GateReport, Verdict
from tests.unit.cli.test_backtest import write

TAIL = GateReport(
    "tail", "latency_ms", "rollback", Verdict.UNDECIDED, 0.4, 6.9, "", 412, 3900, 2568.0, 2279.0,
    statistic="p99",
)  # fmt: skip
MEDIAN = replace(TAIL, gate="latency_shape", stable=801.6, canary=817.7, statistic="p50")


@pytest.mark.slow
def test_the_table_of_a_backtest_names_the_percentile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(Case("two latencies", "no_harm", Behaviour(), canary_requests=300), tmp_path / "e.jsonl")

    run(["backtest", str(path)])
    table = capsys.readouterr().out
    run(["backtest", str(path), "-o", "json"])
    statistics = {gate["gate"]: gate["statistic"] for gate in json.loads(capsys.readouterr().out)["gates"]}

    assert "latency_shape p50 " in table
    assert "latency_p99 " in table
    assert "latency_p99 p99" not in table
    assert (statistics["error"], statistics["latency_shape"], statistics["latency_p99"]) == (
        "mean",
        "p50",
        "p99",
    )


def test_the_table_of_a_rollout_names_the_percentile() -> None:
    console = Console(width=100, record=True)
    console.print(gates_table([gate_view(TAIL), gate_view(MEDIAN)], is_wide=False))

    text = console.export_text()
    assert "tail p99 " in text
    assert "latency_shape p50 " in text


def test_a_reason_names_the_percentile() -> None:
    assert with_figures(replace(MEDIAN, reason="slower")) == (
        "slower; canary p50 817.7 ms (n 412), stable p50 801.6 ms (n 3,900)"
    )


@pytest.mark.slow
def test_a_backtest_explains_its_evidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(Case("legend", "no_harm", canary_requests=100), tmp_path / "e.jsonl")

    run(["backtest", str(path)])

    assert "evidence: how much the data speak for a yes, of what a yes takes" in capsys.readouterr().out

"""The documented columns are those that are read, and the documentation's example is judged as it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from controller.cli.evidence_logs import KNOWN_LOGS
from controller.cli.main import app
from evaluation.offline.names import KNOWN

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "backtest.md").read_text()
EXAMPLE = ROOT / "examples" / "backtest.csv"


@pytest.mark.parametrize("name", KNOWN)
def test_every_column_is_documented(name: str) -> None:
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize("log", KNOWN_LOGS, ids=lambda log: log.title)
def test_every_recognised_log_is_documented(log: object) -> None:
    title = str(getattr(log, "title", "")).split(" of ")[0]

    assert title in PAGE


@pytest.mark.slow
def test_the_example_is_promoted_stage_by_stage(capsys: pytest.CaptureFixture[str]) -> None:
    policy = EXAMPLE.with_name("backtest-policy.yaml")
    app(args=["backtest", str(EXAMPLE), "--policy", str(policy), "-o", "json"], standalone_mode=False)
    answer = json.loads(capsys.readouterr().out)

    assert (answer["decision"], answer["not_judged"], answer["ignored_columns"]) == ("promote", [], [])
    assert [stage["verdict"] for stage in answer["stages"]] == ["PASS", "PASS"]

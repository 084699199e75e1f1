"""Costs where people read them: `status`, `backtest --prices`, and JSON."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.cli.main import run
from controller.cli.render import rollout_parts
from controller.cli.render_costs import cost_lines
from controller.rollout.observation import ArmCosts, CostStatus, EvidenceStatus
from controller.views.cost_models import CostView
from controller.views.costs import costs_view
from controller.views.rollout import rollout_view
from evaluation.report import GateReport, Verdict
from serving.router.records.records_file import line_of
from tests.fakes.feed_maker import a_record, in_stage

STABLE = ArmCosts(1203, 1200, 310_000, 0, 88_000, 2.4)
CANARY = ArmCosts(63, 63, 16_000, 0, 6_000, 0.15)
COSTS = CostStatus(STABLE, CANARY, ArmCosts(20, 20, 900, 0, 100, 0.02), 12, 9_000, 0.009, "USD")
MEANS = GateReport(
    "cost_alarm", "cost", "rollback", Verdict.UNDECIDED, 1.0, 9.0, "", 63, 1200, 0.002, 0.0025, None, 9.0,
    is_alarm=True,
)  # fmt: skip


def evidence(costs: CostStatus | None = COSTS, *gates: GateReport) -> EvidenceStatus:
    return EvidenceStatus(0, Verdict.UNDECIDED, gates=gates, costs=costs)


def view(costs: CostStatus | None = COSTS, *gates: GateReport) -> CostView | None:
    return costs_view(evidence(costs, *gates))


def test_status_says_what_both_versions_cost_and_apart_what_judges_them() -> None:
    shown = rollout_view(in_stage(), evidence(COSTS, MEANS))
    lines = [str(part) for part in rollout_parts(shown, is_wide=False)]

    assert (
        "cost in USD: stable 0.002 an answer (1,200 of 1,203 answers, 310,000 + 88,000 tokens, 2.4); canary "
        "0.0025 an answer (63 answers, 16,000 + 6,000 tokens, 0.15), 1.25x"
    ) in lines
    assert (
        "apart from these, in USD: judge 12 questions, 9,000 tokens, 0.009; mirror 20 copies, 1,000 tokens, "
        "0.02"
    ) in lines


def test_json_has_the_counts_also_without_prices() -> None:
    plain = CostStatus(ArmCosts(3, 3, 30, 0, 9), ArmCosts())
    shown = rollout_view(in_stage(), evidence(plain)).model_dump(mode="json")["costs"]

    assert (shown["currency"], shown["stable"]["prompt_tokens"], shown["stable"]["cost"]) == (None, 30, None)
    assert cost_lines(view(plain)) == []


def test_a_version_without_a_price_is_named() -> None:
    lines = cost_lines(view(CostStatus(STABLE, ArmCosts(3, 3, 30, 0, 9), currency="USD")))

    assert lines[0].endswith("; canary no price (3 answers)")


def test_without_evidence_there_is_nothing_to_show() -> None:
    assert costs_view(None) is None
    assert view(None) is None
    assert cost_lines(view(CostStatus(currency="USD"))) == []


# --- a file


def records(path: Path, *, rows: int = 300, dearer: int = 1, prompt: int | None = 1000) -> Path:
    draws = random.Random(4)
    lines = []
    for n in range(rows):
        arm = int(draws.random() < 0.5)
        completion = draws.randint(100, 300) * (dearer if arm else 1)
        record = a_record(
            n, arm=arm, w=0.5, version="mini" if arm else "large", prompt_tokens=prompt,
            completion_tokens=completion,
        )  # fmt: skip
        if n % 50 == 0 and arm:
            record = replace(record, error=True, cause="status 429", status=429)
        lines.append(line_of(record, "chat"))
    path.write_bytes(b"".join(lines))
    return path


def prices(path: Path, text: str = "currency: EUR\ninput: 1\noutput: 10\n") -> str:
    path.write_text(text)
    return str(path)


def judged(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    run(["backtest", *arguments, "-o", "json", "--allow-unjudged", "no judge"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.slow
def test_a_backtest_of_records_shows_costs_and_raises_the_alarm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(records(tmp_path / "r.jsonl", rows=3000, dearer=2))
    found = judged(capsys, file, "--prices", prices(tmp_path / "p.yaml"))

    costs = found["costs"]
    assert (costs["currency"], {"cost", "tokens", "rate_limited"} <= set(found["alarms"])) == ("EUR", True)
    assert costs["stable"]["cost"]["mean"] == pytest.approx(0.003, rel=0.02)
    assert costs["canary"]["cost"]["mean"] == pytest.approx(0.005, rel=0.02)
    assert costs["canary"]["cost"]["answers"] == costs["canary"]["tokens"]["answers"] < 1500

    run(["backtest", file, "--prices", prices(tmp_path / "p.yaml")])
    assert "cost in EUR: stable 0.00" in capsys.readouterr().out


def test_prices_by_version_and_by_arm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(records(tmp_path / "r.jsonl"))
    text = "prices: {versions: {large: {input: 2, output: 20}, canary: {input: 1, output: 10}}}"
    costs = judged(capsys, file, "--prices", prices(tmp_path / "p.yaml", text))["costs"]

    assert costs["stable"]["cost"]["mean"] == pytest.approx(2 * costs["canary"]["cost"]["mean"], rel=0.1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("versions: {mini: {input: 1, output: 1}}", "--prices has none for large; give input and output"),
        ("input: 1", "prices.output is missing beside input"),
        ("- 1", "prices"),
    ],
)
def test_bad_prices_are_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    code = run(
        ["backtest", str(records(tmp_path / "r.jsonl")), "--prices", prices(tmp_path / "p.yaml", text)]
    )

    error = capsys.readouterr().err
    assert (code, said in error, len(error.strip().splitlines())) == (2, True, 1)


def test_prices_are_for_records_of_a_router(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "log.csv"
    file.write_text("t_s,arm,w,error\n1,0,0.5,0\n2,1,0.5,0\n")

    code = run(["backtest", str(file), "--prices", prices(tmp_path / "p.yaml")])

    assert code == 2
    assert "--prices is for records of canaryctl router" in capsys.readouterr().err


def test_without_known_tokens_there_are_no_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(records(tmp_path / "r.jsonl", prompt=None))
    found = judged(capsys, file, "--prices", prices(tmp_path / "p.yaml"))

    assert "cost" not in found["costs"]["stable"]
    assert found["costs"]["stable"]["tokens"]["answers"] > 0


def test_a_log_of_statuses_says_which_were_rate_limits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"{n},{n % 2},0.5,{429 if n % 4 == 1 else 400 if n % 40 == 0 else 200}" for n in range(800)]
    file = tmp_path / "log.csv"
    file.write_text("t_s,arm,w,status\n" + "\n".join(lines) + "\n")

    run(["backtest", str(file), "--map", "error=status", "-o", "json"])

    found = json.loads(capsys.readouterr().out)
    [limited] = [one for one in found["gates"] if one["gate"] == "rate_limited_alarm"]
    assert (limited["stable"], limited["canary"]) == (0.0, 0.5)

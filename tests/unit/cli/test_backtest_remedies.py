"""What a backtest says of a file that it cannot judge: the cause with its figures, and what to type."""

from __future__ import annotations

import csv
import json
import random
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from controller.cli.main import run
from controller.rollout.observation import EvidenceStatus
from evaluation.report import EvaluationReport, Verdict
from tests.fakes.view_maker import GATE

ROWS = 4000


def rows(seed: int = 1) -> Iterator[tuple[float, str, bool, int, float]]:
    """Time, user, arm drawn at 10 %, status, latency of each request; each was drawn by itself."""
    draw = random.Random(seed)
    for number in range(ROWS):
        status = 500 if draw.random() < 0.01 else 200
        user, is_canary = f"u{draw.randrange(200)}", draw.random() < 0.1
        yield 1.7e9 + number, user, is_canary, status, draw.lognormvariate(6, 0.4)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.csv"
    with path.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["t_s", "user_id", "model", "error", "latency_ms"])
        writer.writerows([t, user, "v2" if arm else "v1", status, ms] for t, user, arm, status, ms in rows())
    return path


def told(capsys: pytest.CaptureFixture[str], *arguments: str, code: int) -> str:
    capsys.readouterr()
    assert run(["backtest", *arguments]) == code
    return " ".join("".join(capsys.readouterr()).split())


@pytest.mark.slow
def test_a_wrong_share_is_told_with_the_observed_one(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [str(plain), "--map", "arm=model", "--canary", "v2", "--ignore", "user_id"]

    text = told(capsys, *options, "--w", "0.3", code=6)

    headline = text[text.index("INVALID") : text.index("(policy")]
    assert "sample ratio mismatch: the share of units does not fit their w: the canary has 10" in headline
    assert "of 4,000 requests, by w 30 %" in headline
    assert "not proven yet" not in headline
    assert run(["backtest", *options, "--w", "0.3", "-o", "json"]) == 6
    reasons = json.loads(capsys.readouterr().out)["reasons"]
    assert any("of 4,000 requests, by w 30 %" in reason for reason in reasons)

    swapped = [*options[:4], "v1", *options[5:]]
    assert "the canary has 89." in told(capsys, *swapped, "--w", "0.1", code=6)


@pytest.mark.slow
def test_a_column_that_was_not_drawn_is_named_with_its_remedy(
    plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`next: mend the recording` stood there, though the recording was right."""
    options = [str(plain), "--map", "arm=model", "--canary", "v2", "--w", "0.1"]

    hint = told(capsys, *options, code=2)
    assert "give --map unit=user_id if all requests of one user_id were sent to one arm" in hint
    assert "or --ignore user_id if each request was drawn by itself" in hint

    text = told(capsys, *options, "--map", "unit=user_id", code=6)
    assert "next: requests of one user_id are on both arms" in text
    assert "--ignore user_id" in text
    assert "mend the recording" not in text
    assert "conversations differ in length" not in text[: text.index("(policy")]

    assert "INVALID" not in told(capsys, *options, "--ignore", "user_id", code=6)


@pytest.mark.slow
def test_no_gate_is_named_twice_in_the_reasons(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [str(plain), "--map", "arm=model", "--canary", "v2", "--w", "0.1", "--ignore", "user_id"]

    text = told(capsys, *options, code=6)

    headline = text[text.index("UNDECIDED") : text.index("(policy")]
    for name in ("error", "latency_shape"):
        assert f"{name}: {name}" not in headline


@pytest.mark.slow
def test_an_arm_within_json_is_offered_as_it_can_be_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--map arm=metadata --canary {"variant": "canary"}` was offered."""
    path = tmp_path / "traces.csv"
    with path.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["t_s", "metadata", "error"])
        for t, _, arm, status, _ in rows():
            writer.writerow([t, json.dumps({"variant": "the canary" if arm else "stable", "n": t}), status])

    text = told(capsys, str(path), "--w", "0.1", code=2)

    offered = text[text.index("--map arm=") : text.index(" (it has")].rstrip(",")
    assert offered == "--map arm=metadata.variant --canary 'the canary'"
    told(capsys, str(path), "--w", "0.1", *shlex.split(offered), code=6)


@pytest.mark.slow
def test_an_outcome_is_never_offered_as_an_arm(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, str(plain), "--map", "arm=error", "--w", "0.1", "--ignore", "user_id", code=2)

    assert "error says how a request ended (200, 500), not which version was drawn" in text
    assert "--canary 200" not in text


def test_a_live_mismatch_is_told_with_the_observed_share() -> None:
    gate = replace(
        GATE, gate="served_share", metric="served", side="guard", verdict=Verdict.INVALID, n_canary=80,
        n_stable=920, canary=None, stable=None, reason="units do not fit their w: statistics are frozen",
    )  # fmt: skip
    report = EvaluationReport(
        stage=0, stage_verdict=Verdict.INVALID, rollback=None, gates=(gate,), missing=(), frozen=True,
        n_canary=80, n_stable=920, stage_canary=80, through_s=1.0, late_events=0,
    )  # fmt: skip

    [shown] = EvidenceStatus.of(report).gates

    assert shown.reason.endswith("statistics are frozen; the canary has 8 % of 1,000 requests")
    assert (shown.canary, shown.stable) == (0.08, 0.92)


def test_a_proxys_log_says_how_it_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "access.log").write_text("10.1.1.1 - - [01/Jan/2026] 200\n")

    text = told(capsys, str(tmp_path / "access.log"), code=2)

    assert "a proxy's log is read as CSV with a line of names, or as JSON lines" in text


@pytest.mark.slow
def test_seconds_that_were_mapped_as_milliseconds_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log.csv"
    lines = [f"{n},{int(n % 5 == 0)},0.2,0,{0.02 + n / 100_000}" for n in range(200)]
    path.write_text("\n".join(["t_s,arm,w,error,took", *lines]) + "\n")

    text = told(capsys, str(path), "--map", "latency_ms=took", code=6)
    assert "latency_ms has a median of 0.021 ms; if it is in seconds: --map latency_ms=COLUMN:s" in text

    assert "if it is in seconds" not in told(capsys, str(path), "--map", "latency_ms=took:s", code=6)

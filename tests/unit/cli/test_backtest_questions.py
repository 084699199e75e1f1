"""What a backtest's table asks and answers, and a log that begins before the canary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.cli.main import run

POLICY = "gates: {error: {metric: error, kind: rate, threshold: 1.5, alpha_share: 0.2}}\n"


def a_log(folder: Path, *, before: int, after: int, share: float, fallbacks: float = 0.0) -> Path:
    """Requests, of which the first `before` came when there was no canary."""
    rng = np.random.default_rng(1)
    path = folder / "log.jsonl"
    with path.open("w") as file:
        for at in range(before + after):
            arm = int(at >= before and rng.random() < share)
            row: dict[str, Any] = {"t_s": 1_700_000_000 + at, "arm": arm, "error": 0, "latency_ms": 100.0}
            if fallbacks:
                row["fell_back"] = int(arm and rng.random() < fallbacks)
            file.write(json.dumps(row) + "\n")
    return path


def policy(folder: Path) -> str:
    path = folder / "policy.yaml"
    path.write_text(POLICY)
    return str(path)


def test_a_log_that_begins_before_the_canary_is_told_so_and_read_from_then_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = a_log(tmp_path, before=400, after=1500, share=0.2)
    arguments = ["backtest", str(path), "--w", "20%", "--policy", policy(tmp_path), "-o", "json"]

    assert run(["backtest", str(path), "--w", "20%", "--policy", policy(tmp_path)]) == 6
    shown = capsys.readouterr()
    told = " ".join((shown.out + shown.err).split())
    assert run([*arguments, "--canary-since", "1700000400"]) in (0, 6)
    found = json.loads(capsys.readouterr().out)
    assert run([*arguments, "--canary-since", "1700001000"]) == 2
    refused = capsys.readouterr().err

    assert "rows are stable's alone" in told
    assert "--canary-since TIME" in told
    assert found["decision"] != "invalid"
    assert "rows of the canary are before --canary-since" in refused


def test_evidence_stands_beside_the_question_that_it_is_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    fair = a_log(tmp_path, before=0, after=600, share=0.3, fallbacks=0.5)
    run(["backtest", str(fair), "--w", "30%", "--policy", policy(tmp_path)])
    fallen_back = capsys.readouterr().out
    unfair = a_log(tmp_path, before=0, after=1500, share=0.5)
    run(["backtest", str(unfair), "--w", "30%", "--policy", policy(tmp_path)])
    frozen = capsys.readouterr().out

    assert "served too little?" in fallen_back
    assert "unfair split?" in fallen_back
    row = next(line for line in frozen.splitlines() if "unfair split?" in line)
    assert "YES" in row
    assert "void" in next(line for line in frozen.splitlines() if "worse" in line and "error" in line)

"""Recorded outcomes of public reports: what a status, an error object or a lost client means, as it does live.

Their sources are in tests/public_reports.md.
"""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.cli.evidence_columns import ReadOptions
from controller.cli.evidence_files import EvidenceFile, read_evidence
from controller.cli.main import run
from controller.errors import BadInput

Rows = list[dict[str, Any]]
START_S = 1_780_000_000


def written(path: Path, rows: Rows) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def read(path: Path, *maps: str, **options: Any) -> EvidenceFile:
    return read_evidence(path, options=ReadOptions(maps, **options))


def column(found: EvidenceFile, name: str) -> list[float]:
    return [float(value) for value in found.columns[name]]


def backtest(capsys: pytest.CaptureFixture[str], path: Path, *arguments: str) -> dict[str, Any]:
    code = run(["backtest", str(path), *arguments, "--allow-unjudged", "not known", "-o", "json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


# --- status codes


def statuses(*codes: object) -> Rows:
    return [{"t_s": START_S + n, "arm": n % 2, "w": 0.5, "status": code} for n, code in enumerate(codes)]


@pytest.mark.parametrize(
    ("code", "error", "rejected"),
    [
        (0, 1, 0),  # no response
        ("000", 1, 0),
        (200, 0, 0),
        (302, 1, 0),
        (401, 0, 1),
        (429, 1, 0),
        (502, 1, 0),
    ],
)
def test_a_status_means_what_it_means_to_the_router(
    tmp_path: Path, code: object, error: int, rejected: int
) -> None:
    found = read(written(tmp_path / "e.csv", statuses(200, code)), "error=status", "rejected=status")

    assert column(found, "error") == [0, error]
    assert column(found, "rejected") == [0, rejected]


def test_what_is_no_status_code_in_a_column_of_them_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "e.csv", statuses(200, 200, 1))

    with pytest.raises(BadInput, match="line 4: status '1' is not an event"):
        read(path, "error=status")


def test_zero_stays_no_error_in_a_column_of_flags(tmp_path: Path) -> None:
    assert column(read(written(tmp_path / "e.csv", statuses(0, 1, 0)), "error=status"), "error") == [0, 1, 0]


@pytest.mark.parametrize("code", [0, 302])
def test_a_canary_without_responses_is_rolled_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    rng, rows = random.Random(5), []
    for n in range(3000):
        canary = rng.random() < 0.5
        status = code if canary and rng.random() < 0.2 else 200
        rows.append({"t_s": START_S + n, "arm": int(canary), "w": 0.5, "status": status})

    found = backtest(capsys, written(tmp_path / "e.csv", rows), "--map", "error=status")
    assert (found["decision"], found["metric"]) == ("rollback", "error")


def test_a_column_of_statuses_says_of_rejections_too(tmp_path: Path) -> None:
    found = read(written(tmp_path / "e.csv", statuses(200, 401, 500, 499)), "error=status")

    np.testing.assert_equal(column(found, "error"), [0, 0, 1, np.nan])
    np.testing.assert_equal(column(found, "rejected"), [0, 1, 0, np.nan])
    assert column(found, "cancelled") == [0, 0, 0, 1]
    assert "rejected and cancelled from status too: it holds status codes" in found.notes


# --- requests that the client gave up on


def hanging(share: float, *, seed: int = 6) -> Rows:
    """An nginx log: answers take 8 s; a share of the canary's hang until the client leaves after 5 s."""
    rng, rows = random.Random(seed), []
    for n in range(1200):
        canary = rng.random() < 0.5
        left = canary and rng.random() < share
        rows.append(
            {
                "msec": f"{START_S + 10 * n:.3f}",
                "request_time": "5.000" if left else f"{rng.gauss(8.0, 0.5):.3f}",
                "status": 499 if left else 200,
                "upstream_addr": "10.0.0.2:8000" if canary else "10.0.0.1:8000",
                "request_id": f"r{n}",
            }
        )
    return rows


@pytest.mark.parametrize("policy", ["default", "strict"])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_requests_that_the_client_gave_up_on_prove_no_speed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], share: float, policy: str
) -> None:
    path = written(tmp_path / "access.csv", hanging(share))
    options = ("--map", "arm=upstream_addr", "--canary", "10.0.0.2:8000", "--w", "50%", "--policy", policy)
    found = backtest(capsys, path, *options)

    assert found["decision"] == "invalid"
    assert not [gate for gate in found["proofs"] if gate.startswith("latency")]
    assert any("requests were cancelled by their client (0.0% of stable's" in note for note in found["notes"])

"""Cases from public reports about recorded experiments; their sources are in tests/public_reports.md."""

from __future__ import annotations

import csv
import json
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from controller.cli.main import run

Rows = list[dict[str, Any]]


def write(path: Path, rows: Rows) -> str:
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code, and all that was printed."""
    code = run(list(arguments))
    out, err = capsys.readouterr()
    return code, out + err


def score(rng: random.Random, mean: float = 0.6) -> float:
    return round(min(1.0, max(0.0, rng.gauss(mean, 0.2))), 3)


@pytest.mark.slow
def test_units_on_both_sides_make_a_test_invalid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, rows = random.Random(1), []
    for user in range(600):
        first = rng.random() < 0.5
        for k in range(2):
            arm = first if k == 0 else rng.random() < 0.5
            common = {"t_s": 1000 + user * 2 + k, "arm": int(arm), "w": 0.5, "assigned_by": "user"}
            rows.append({**common, "unit": f"u{user}", "error": 0, "quality": score(rng, 0.6 + 0.1 * arm)})
    path = write(tmp_path / "both.csv", rows)
    judged, backtested = printed(capsys, "ab", "judge", path)[1], printed(capsys, "backtest", path)[1]

    assert " invalid " in judged.splitlines()[1]
    assert "of 600 units are on both sides: u1, u10, u101 and " in judged
    assert "sticky draws contradict their own bucket" in backtested


@pytest.mark.parametrize("command", [("ab", "judge"), ("ab", "judge", "--fixed"), ("backtest",)])
def test_a_test_with_nobody_in_b_is_invalid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    rng = random.Random(2)
    common = {"arm": 0, "w": 0.5, "assigned_by": "user"}
    rows = [{"t_s": 1000 + u, **common, "unit": f"u{u}", "quality": score(rng)} for u in range(500)]
    code, text = printed(capsys, *command, write(tmp_path / "nobody.csv", rows))

    assert code == 6
    assert "invalid" in text.lower()


@pytest.mark.slow
def test_an_uneven_split_as_drawn_is_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(2)
    rows = []
    for u in range(4000):
        common = {"t_s": 1000 + u, "arm": int(rng.random() < 0.05), "w": 0.05, "assigned_by": "user"}
        rows.append({**common, "unit": f"u{u}", "quality": score(rng)})
    text = printed(capsys, "ab", "judge", write(tmp_path / "95-5.csv", rows))[1]

    assert "invalid" not in text


@pytest.mark.slow
def test_outcomes_after_a_users_first_request_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, rows = random.Random(3), []
    for user in range(600):
        arm = int(rng.random() < 0.5)
        for k in range(5):
            failed = int(arm and k > 0 and rng.random() < 0.3)
            common = {"t_s": 1000 + user * 5 + k, "arm": arm, "w": 0.5, "assigned_by": "user"}
            rows.append({**common, "unit": f"u{user}", "error": failed})
    path = write(tmp_path / "later.csv", rows)
    judged = printed(capsys, "ab", "judge", path, "--metric", "error")[1]

    assert "a better" in judged
    assert "a unit counts once, with the mean of its answers (5 each on average)" in judged
    assert printed(capsys, "backtest", path)[1].startswith("ROLLBACK by error")


def test_users_who_grade_only_a_later_answer_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = []
    for user in range(800):
        arm = user % 2
        for k in range(3):
            grade = round(0.5 + 0.3 * arm + 0.01 * (user % 10), 3) if k == 2 else ""
            common = {"t_s": 1000 + user * 3 + k, "arm": arm, "w": 0.5, "assigned_by": "user"}
            rows.append({**common, "unit": f"u{user}", "quality": grade})
    code, text = printed(capsys, "ab", "judge", write(tmp_path / "third.csv", rows), "-o", "json")

    [whole] = json.loads(text)["rows"]
    assert (code, whole["verdict"], whole["n_a"], whole["n_b"]) == (0, "b better", 400, 400)


@pytest.fixture
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process lives in the time zone of the parameter."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield
    time.tzset()


NIGHT_S = datetime(2026, 4, 30, 18, tzinfo=UTC).timestamp()
RANGE = {"since": "2026-05-01", "until": "2026-05-01T06:00:00Z"}


@pytest.mark.slow
@pytest.mark.sample(2)
@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata"], indirect=True)
@pytest.mark.parametrize(
    ("since", "until"),
    [("2026-05-01", "2026-05-01T06:00"), ("2026-04-30T20:00:00-04:00", "2026-05-01T06:00Z")],
)
def test_an_observed_range_is_the_same_in_every_time_zone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], zone: None, since: str, until: str
) -> None:
    rows = []
    for i in range(2880):
        common = {"t_s": NIGHT_S + i * 30, "arm": 0, "w": 0, "assigned_by": "request", "unit": f"u{i}"}
        rows.append({**common, "latency_ms": 300 + i % 50 + (200 if i < 720 else 0)})
    path = write(tmp_path / "night.csv", rows)
    assert run(["observed", path, "--since", since, "--until", until, "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)["observed_ranges"]["latency_ms_range"]

    assert {name: found[name] for name in RANGE} == RANGE
    assert all(low >= 300 and high <= 350 for low, high in found["ranges"].values())


@pytest.mark.slow
def test_times_in_milliseconds_are_the_same_evidence_as_in_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []
    for scale in (1, 1000):
        rng, rows = random.Random(3), []
        for i in range(3000):
            user = rng.randrange(200)
            common = {"t_s": int((1.78e9 + i * 2) * scale), "arm": int(user % 5 == 0), "w": 0.2}
            names = {"assigned_by": "user", "unit": f"u{user}", "error": int(rng.random() < 0.02)}
            rows.append({**common, **names, "latency_ms": round(300 + 100 * rng.random(), 1)})
        assert run(["backtest", write(tmp_path / f"{scale}.csv", rows), "-o", "json"]) != 2
        answers.append(json.loads(capsys.readouterr().out))

    assert answers[1].pop("notes") == ["t_s is in ms, by its size"]
    assert answers[0].pop("notes") == []
    assert answers[0] == answers[1]

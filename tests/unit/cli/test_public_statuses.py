"""Recorded outcomes of public reports: what a status, an error object, a lost client means.

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
    assert code in (0, 5, 6), err
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


@pytest.mark.slow
@pytest.mark.sample(1)
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

    assert column(found, "error") == [0, 0, 1, 0]
    assert column(found, "rejected") == [0, 1, 0, 0]
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


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("policy", ["default", "strict"])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_requests_that_the_client_gave_up_on_prove_no_speed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], share: float, policy: str
) -> None:
    path = written(tmp_path / "access.csv", hanging(share))
    options = ("--map", "arm=upstream_addr", "--canary", "10.0.0.2:8000", "--w", "50%", "--policy", policy)
    found = backtest(capsys, path, *options)

    assert (found["decision"], found["metric"]) == ("rollback", "latency_ms")
    assert not [gate for gate in found["proofs"] if gate.startswith("latency")]
    assert any("requests were cancelled by their client (0.0% of stable's" in note for note in found["notes"])


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("harm", [0.2, 0.0])
def test_an_alarm_that_was_raised_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: float
) -> None:
    rng, rows = random.Random(7), []
    for n in range(2000):
        canary = rng.random() < 0.5
        empty = rng.random() < 0.01 + (harm if canary else 0.0)
        rows.append({"t_s": START_S + n, "arm": int(canary), "w": 0.5, "error": 0, "empty": int(empty)})
    path = written(tmp_path / "e.csv", rows)

    assert run(["backtest", str(path), "--allow-unjudged", "not known"]) in (0, 6)
    out = capsys.readouterr().out
    assert ("ALARM, which decides nothing: worse empty (stable 0.0" in out) == (harm > 0.0)
    [line] = [line for line in out.splitlines() if line.startswith("empty_alarm")]
    assert ("YES" in line and "shown by first requests" in line) == (harm > 0.0)
    assert backtest(capsys, path)["alarms"] == (["empty"] if harm else [])


# --- where both arms fail


@pytest.mark.slow
def test_requests_that_fail_on_both_arms_prove_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(8)
    rows = [
        {"t_s": START_S + n, "arm": int(rng.random() < 0.5), "w": 0.5, "error": int(rng.random() < 0.9)}
        for n in range(2000)
    ]
    found = backtest(capsys, written(tmp_path / "e.csv", rows))

    assert found["decision"] == "undecided"
    assert any("both arms are bad" in reason for reason in found["reasons"])


# --- errors inside an answer


def openai(n: int, *, canary: bool, bad: bool, how: str) -> dict[str, Any]:
    """One line of an OpenAI-style log. how: what tells that it failed."""
    row: dict[str, Any] = {
        "id": f"r{n}",
        "variant": "b" if canary else "a",
        "created": START_S + n,
        "usage": {"completion_tokens": 0 if bad else 100},
        "choices": [{"finish_reason": "stop"}],
    }
    match how:
        case "object":
            row["status_code"] = 200
            if bad:
                row |= {"error": {"message": "TimeoutError", "code": 504}, "choices": []}
        case "object without a message":
            row["status_code"] = 200
            if bad:
                row["error"] = {"type": "server_error"}
        case "finish reason":
            row["status_code"] = 200
            row["choices"] = [{"finish_reason": "error" if bad else "stop"}]
        case "finish reason alone":
            row["choices"] = [{"finish_reason": "error" if bad else "stop"}]
        case "null":
            row |= {"error": None, "response": {"status_code": 500 if bad else 200}}
        case "null or object":
            row["error"] = {"message": "boom"} if bad else None
        case "no response":
            row["response"] = {"status_code": 0 if bad else 200}
    return row


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "how",
    [
        "object", "object without a message", "finish reason", "finish reason alone", "null",
        "null or object", "no response",
    ],
)  # fmt: skip
def test_an_openai_style_log_has_its_errors_wherever_they_stand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    rng, rows, failed = random.Random(9), [], []
    for n in range(1500):
        canary = rng.random() < 0.5
        failed.append(rng.random() < (0.25 if canary else 0.01))
        rows.append(openai(n, canary=canary, bad=failed[-1], how=how))
    path = written(tmp_path / "log.jsonl", rows)

    found = read(path, "arm=variant", w=0.5)
    assert column(found, "error") == [float(bad) for bad in failed]
    result = backtest(capsys, path, "--map", "arm=variant", "--w", "50%")
    assert (result["decision"], result["metric"]) == ("rollback", "error")


@pytest.mark.parametrize("empty", [[], {}, "", "[]", "{}", False, 0, "false", None])
def test_what_is_empty_is_not_present(tmp_path: Path, empty: object) -> None:
    rows = [
        {"t_s": START_S + n, "arm": n % 2, "w": 0.5, "errs": "boom" if n == 3 else empty} for n in range(6)
    ]
    found = read(written(tmp_path / "e.jsonl", rows), "error=errs:present")

    assert column(found, "error") == [0, 0, 0, 1, 0, 0]


def test_a_list_of_errors_is_present_where_it_holds_one(tmp_path: Path) -> None:
    rows = [{"t_s": START_S + n, "arm": n % 2, "w": 0.5, "errs": ["boom"] if n else []} for n in range(3)]

    assert column(read(written(tmp_path / "e.jsonl", rows), "error=errs:present"), "error") == [0, 1, 1]


# --- words that a log did not have before


def unknown_word(tmp_path: Path) -> Path:
    rows = [openai(n, canary=n % 2 == 1, bad=False, how="finish reason") for n in range(6)]
    rows[3]["choices"][0]["finish_reason"] = "abort"
    rows[4]["choices"][0]["finish_reason"] = "length"
    return written(tmp_path / "log.jsonl", rows)


def test_an_unknown_word_of_a_log_is_missing_and_said(tmp_path: Path) -> None:
    found = read(unknown_word(tmp_path), "arm=variant", w=0.5)

    np.testing.assert_equal(column(found, "truncated"), [0, 0, 0, np.nan, 1, 0])
    note = "truncated is missing in 1 rows whose choices.0.finish_reason says nothing of it (abort)"
    assert note in found.notes


def test_an_unknown_word_of_a_column_that_was_named_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"line 4: choices\.0\.finish_reason 'abort' is not an event"):
        read(unknown_word(tmp_path), "arm=variant", "truncated=choices.0.finish_reason", w=0.5)


@pytest.mark.parametrize("ignored", ["choices.0.finish_reason", "truncated"])
def test_a_source_that_was_found_can_be_ignored(tmp_path: Path, ignored: str) -> None:
    found = read(unknown_word(tmp_path), "arm=variant", w=0.5, ignore=frozenset({ignored}))

    assert "truncated" not in found.columns
    assert "choices.0.finish_reason" in found.ignored


# --- failures that nginx does not give an address


def without_server() -> Rows:
    rng, rows = random.Random(10), []
    for n in range(4000):
        canary = rng.random() < 0.5
        down = canary and rng.random() < 0.04
        address = "llm_canary" if down else "10.0.0.2:8000" if canary else "10.0.0.1:8000"
        rows.append(
            {
                "msec": START_S + n + 0.5,
                "request_time": "0.000" if down else "0.500",
                "status": 502 if down else 200,
                "upstream_addr": address,
                "request_id": f"r{n}",
            }
        )
    return rows


@pytest.mark.slow
def test_failures_without_a_server_are_not_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "access.csv", without_server())
    options = {"stable": "10.0.0.1:8000", "w": 0.5}

    with pytest.raises(BadInput, match=r"llm_canary is no address: .*--canary 10\.0\.0\.2:8000,llm_canary"):
        read(path, "arm=upstream_addr", canary="10.0.0.2:8000", **options)
    named = ("--map", "arm=upstream_addr", "--canary", "10.0.0.2:8000,llm_canary", "--w", "50%")
    assert backtest(capsys, path, *named)["decision"] == "rollback"


@pytest.mark.slow
def test_values_of_an_arm_are_checked(tmp_path: Path) -> None:
    path = written(tmp_path / "access.csv", without_server())

    with pytest.raises(BadInput, match=r"upstream_addr '10\.0\.0\.1:8000' is given for both arms"):
        read(path, "arm=upstream_addr", canary="10.0.0.1:8000,llm_canary", stable="10.0.0.1:8000", w=0.5)
    with pytest.raises(BadInput, match=r"no row has upstream_addr '10\.0\.0\.9:1'; it has"):
        read(path, "arm=upstream_addr", canary="10.0.0.2:8000,10.0.0.9:1", stable="10.0.0.1:8000", w=0.5)


# --- a spend log's prices, times and ids


def spend(n: int, *, streams: bool = True, **more: object) -> dict[str, Any]:
    def at(second: float) -> str:
        return f"2026-05-01T{n // 3600:02d}:{n // 60 % 60:02d}:{n % 60:02d}.{round(second * 1000):03d}Z"

    row = {
        "request_id": f"r{n}",
        "call_type": "acompletion",
        "spend": 0.001,
        "startTime": at(0.0),
        "endTime": at(0.9),
        "completionStartTime": at(0.3 if streams else 0.9),
        "status": "success",
        "model": "v2" if n % 2 else "v1",
        "completion_tokens": 100,
    }
    return row | more


def test_the_first_token_of_a_spend_log_is_read_where_it_streams(tmp_path: Path) -> None:
    rows = [spend(n, streams=n != 2) for n in range(4)]
    found = read(written(tmp_path / "spend.csv", rows), "arm=model", canary="v2", w=0.5)

    np.testing.assert_allclose(column(found, "ttft_ms"), [300, 300, np.nan, 300], rtol=1e-5)
    assert "1 rows have no ttft_ms: it was not streamed, but ended then" in found.notes


def test_a_model_without_a_price_does_not_cost_nothing(tmp_path: Path) -> None:
    rows = [spend(n, spend=0.0 if n % 2 else 0.002) for n in range(3)]
    rows.append(spend(3, spend=0.0, completion_tokens=0, status="failure"))  # no answer, no cost
    found = read(written(tmp_path / "spend.csv", rows), "arm=model", canary="v2", w=0.5)

    np.testing.assert_equal(column(found, "cost"), [0.002, np.nan, 0.002, 0.0])
    assert "1 rows have no cost: its model has no price" in found.notes


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize(("price", "decision"), [(0.0, "invalid"), (0.001, "promote")])
def test_the_cheapest_model_is_not_one_without_a_price(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], price: float, decision: str
) -> None:
    policy = tmp_path / "cost.yaml"
    policy.write_text(
        "name: cost\ngates:\n  cost: {metric: cost, kind: shape, threshold: 0.2, alpha_share: 0.1}\n"
        "  hallucination: null\n  quality: null\n"
        "stages:\n  - {weight: 50%, min_canary: 100, margins: {error: 5.0, cost: 1.2}}\n"
    )
    rng, rows = random.Random(11), []
    for n in range(3000):
        canary = rng.random() < 0.5
        rows.append(
            spend(n, model="v2" if canary else "v1")
            | {"spend": (price if canary else 0.001) * rng.lognormvariate(0.0, 0.3)}
        )
    path = written(tmp_path / "spend.csv", rows)
    options = ("--map", "arm=model", "--canary", "v2", "--w", "50%", "--policy", str(policy))
    found = backtest(capsys, path, *options)

    assert found["decision"] == decision
    [proof] = [gate for gate in found["gates"] if gate["gate"] == "cost" and gate["side"] == "promotion"]
    assert proof["reason"] == (
        "cost: not higher throughout than 1.2x proven" if price else "values are missing differently by arm"
    )


def test_rows_of_a_spend_log_without_an_id_are_requests_of_their_own(tmp_path: Path) -> None:
    rows = [spend(n, request_id="" if n in (1, 2) else f"r{n}") for n in range(4)]
    path = written(tmp_path / "spend.csv", rows)
    found = read(path, "arm=model", canary="v2", w=0.5)

    assert found.columns["request_id"].tolist() == ["r0", "(line 3)", "(line 4)", "r3"]
    assert "2 of 4 rows have no request_id: each is a request of its own" in found.notes
    ignored = read(path, "arm=model", canary="v2", w=0.5, ignore=frozenset({"request_id"}))
    assert "request_id" not in ignored.columns

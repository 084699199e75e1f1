"""Tokens, costs and spans of public reports, as other tools' logs write them.

Their sources are in tests/public_reports.md.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.cli.evidence_columns import ReadOptions
from controller.cli.evidence_files import EvidenceFile, read_evidence
from controller.cli.main import run
from controller.errors import BadInput

CACHED = {"input_cached_tokens": 30}
START = datetime(2026, 5, 1, tzinfo=UTC)
NAN = np.nan


def read(path: Path, rows: list[dict[str, Any]], *maps: str, **options: Any) -> EvidenceFile:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_evidence(path, options=ReadOptions(maps, w=0.5, **options))


def values(found: EvidenceFile, name: str) -> list[float]:
    return [float(value) for value in found.columns[name]]


def times(n: int) -> dict[str, str]:
    at = START + timedelta(seconds=n)
    return {"startTime": at.isoformat(), "endTime": (at + timedelta(milliseconds=900)).isoformat()}


def observation(n: int, **more: object) -> dict[str, Any]:
    named = {"id": f"o{n}", "traceId": f"t{n}", "type": "GENERATION", "model": "v2" if n % 2 else "v1"}
    return {**named, **times(n), "level": "DEFAULT", **more}


def spend(n: int, **more: object) -> dict[str, Any]:
    named = {"request_id": f"r{n}", "call_type": "acompletion", "model": "v2" if n % 2 else "v1"}
    return {**named, **times(n), "status": "success", **more}


def of_models(path: Path, rows: list[dict[str, Any]], **options: Any) -> EvidenceFile:
    return read(path, rows, "arm=model", canary="v2", **options)


def test_a_model_without_a_price_does_not_cost_nothing_in_langfuse(tmp_path: Path) -> None:
    usage = {"input": 50, "output": 10, "total": 60}
    rows = [observation(n, usageDetails=usage, totalCost=0 if n % 2 else 0.002) for n in range(4)]

    found = of_models(tmp_path / "o.jsonl", rows)

    np.testing.assert_equal(values(found, "cost"), [0.002, NAN, 0.002, NAN])
    assert "2 rows have no cost: its model has no price" in found.notes


def test_nor_does_one_of_a_langfuse_trace(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"t{n}", "timestamp": times(n)["startTime"], "latency": 0.9, "sessionId": f"s{n}",
            "usage": {"input": 50, "output": 10}, "totalCost": 0 if n % 2 else 0.002,
            "model": "v2" if n % 2 else "v1",
        }
        for n in range(4)
    ]  # fmt: skip

    np.testing.assert_equal(values(of_models(tmp_path / "t.jsonl", rows), "cost"), [0.002, NAN, 0.002, NAN])


def test_zeros_of_a_gateway_are_no_tokens_and_no_cost(tmp_path: Path) -> None:
    rows = [spend(n, spend=0.002, prompt_tokens=9, completion_tokens=5) for n in range(3)]
    rows[1] |= {"prompt_tokens": 0, "completion_tokens": 0}
    rows += [spend(3, spend=0, prompt_tokens=0, completion_tokens=0)]
    rows += [spend(4, spend=0.002, prompt_tokens=9, completion_tokens=0)]  # as of an embedding

    found = of_models(tmp_path / "s.jsonl", rows)

    np.testing.assert_equal(values(found, "tokens"), [5, NAN, 5, NAN, 0])
    np.testing.assert_equal(values(found, "cost"), [0.002, 0.002, 0.002, NAN, 0.002])
    assert "2 rows have no tokens: no tokens were counted" in found.notes
    assert "1 rows have no cost: no tokens were counted" in found.notes


def test_an_openai_style_log_of_zeros_has_no_tokens(tmp_path: Path) -> None:
    rows = []
    for n in range(4):
        usage = {"prompt_tokens": 0 if n % 2 else 9, "completion_tokens": 0 if n % 2 else 5}
        rows.append({"id": f"r{n}", "created": 1_780_000_000 + n, "arm": n % 2, "usage": usage})

    np.testing.assert_equal(values(read(tmp_path / "l.jsonl", rows), "tokens"), [5, NAN, 5, NAN])


def test_a_streams_cost_is_read_from_where_the_spend_log_has_it(tmp_path: Path) -> None:
    more = {"prompt_tokens": 9, "completion_tokens": 5}
    breakdown = {"cost_breakdown": {"total_cost": 0.003}}
    rows = [spend(n, spend=0.0 if n % 2 else 0.002, metadata=breakdown, **more) for n in range(4)]

    found = of_models(tmp_path / "s.jsonl", rows)

    assert values(found, "cost") == [0.002, 0.003, 0.002, 0.003]
    assert "cost is read from metadata.cost_breakdown.total_cost in 2 rows whose spend is 0" in found.notes
    assert not [note for note in found.notes if "no price" in note]


@pytest.mark.parametrize("is_text", [False, True])
@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"input": 50, "output": 10, "output_reasoning_tokens": 30, "total": 90}, 40),
        ({"input": 50, "output": 10, "output_reasoning_tokens": 30, "total": 0}, 40),
        ({"input": 50, "output": 10, "output_reasoning_tokens": 30}, 40),
        ({"input": 50, "output": 40, "output_reasoning_tokens": 30, "total": 90}, 40),  # within
        (
            {
                "input": 20,
                **CACHED,
                "output": 10,
                "output_reasoning_tokens": 30,
                "total": 90,
            },
            40,
        ),
        (
            {
                "input": 20,
                **CACHED,
                "output": 40,
                "output_reasoning_tokens": 35,
                "total": 90,
            },
            40,
        ),
        ({"input": 50, "output": 10, "output_reasoning_tokens": 0, "total": 60}, 10),
    ],
)
def test_thoughts_beside_the_output_are_tokens_of_the_answer(
    tmp_path: Path, usage: dict[str, int], tokens: int, is_text: bool
) -> None:
    plain = {"input": 50, "output": 10, "total": 60}
    rows = [observation(n, usageDetails=usage if n % 2 else plain) for n in range(4)]
    if is_text:
        rows = [{**row, "usageDetails": json.dumps(row["usageDetails"])} for row in rows]

    assert values(of_models(tmp_path / "o.jsonl", rows), "tokens") == [10, tokens, 10, tokens]


# --- spans of OpenTelemetry


def spans(*statuses: object) -> list[dict[str, Any]]:
    return [{"t_s": 1_780_000_000 + n, "arm": n % 2, "status": one} for n, one in enumerate(statuses)]


@pytest.mark.parametrize(
    ("statuses", "errors"),
    [
        (({}, {"code": 1}, {}, {"code": 1}), [0, 0, 0, 0]),
        (({"code": 1}, {"code": 2}, {"code": 0}, {"code": 1}), [0, 1, 0, 0]),
        (({}, {"code": 2}, {}, {"code": 2}), [0, 1, 0, 1]),
        (({"code": "STATUS_CODE_OK"}, {"code": "STATUS_CODE_ERROR"}), [0, 1]),
        (({"code": "STATUS_CODE_UNSET"}, {"code": "STATUS_CODE_ERROR"}), [0, 1]),
        (({"code": "Unset"}, {"code": "Error"}, {"code": "Ok"}, {"code": "Error"}), [0, 1, 0, 1]),
    ],
)
def test_a_spans_status_is_an_error_where_it_says_so(
    tmp_path: Path, statuses: tuple[object, ...], errors: list[int]
) -> None:
    assert values(read(tmp_path / "s.jsonl", spans(*statuses), "error=status.code"), "error") == errors


def test_other_columns_of_codes_keep_their_meaning(tmp_path: Path) -> None:
    rows = [{"t_s": 1_780_000_000 + n, "arm": n % 2, "statusCode": 0} for n in range(4)]

    assert values(read(tmp_path / "s.jsonl", rows, "error=statusCode"), "error") == [1, 1, 1, 1]


# --- what was right


def test_a_latency_that_is_infinite_is_refused_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "e.jsonl"
    lines = [f'{{"t_s": {1_780_000_000 + n}, "arm": {n % 2}, "latency_ms": 9}}' for n in range(4)]
    path.write_text("\n".join([*lines[:3], lines[3].replace("9}", "Infinity}")]) + "\n")

    assert run(["backtest", str(path), "--w", "50%"]) == 2
    assert "line 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["t_s,arm,error,error\n1780000000,0,0,0\n", "t_s,arm\n1780000000,0\nt_s,arm\n"]
)
def test_a_header_that_names_a_column_twice_or_stands_amid_the_rows_is_refused(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "e.csv").write_text(text)

    with pytest.raises(BadInput):
        read_evidence(tmp_path / "e.csv", options=ReadOptions(w=0.5))


def test_estimated_tokens_of_failures_are_no_tokens_of_an_answer(tmp_path: Path) -> None:
    rows = [spend(n, spend=0.002, prompt_tokens=20, completion_tokens=5) for n in range(3)]
    rows += [spend(3, spend=0, status="failure", prompt_tokens=2900, completion_tokens=0)]

    assert not [note for note in of_models(tmp_path / "s.jsonl", rows).notes if "no price" in note]


def test_a_status_that_is_null_where_it_succeeded_is_no_success(tmp_path: Path) -> None:
    rows = [spend(n, status="failure" if n == 3 else None) for n in range(4)]

    np.testing.assert_equal(values(of_models(tmp_path / "s.jsonl", rows), "error"), [NAN, NAN, NAN, 1])

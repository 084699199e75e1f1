"""Reading evidence files: three formats, the same columns; malformed rows are refused with their line."""

from __future__ import annotations

import csv
import gzip
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from controller.cli import evidence_formats
from controller.cli.evidence_files import read_evidence
from controller.errors import BadInput

ROWS: list[dict[str, object]] = [
    {
        "t_s": 1.5,
        "unit": "u1",
        "arm": 0,
        "w": 0.05,
        "assigned_by": "sticky",
        "error": False,
        "latency_ms": 812.25,
    },
    {
        "t_s": 2.5,
        "unit": "u2",
        "arm": 1,
        "w": 0.05,
        "assigned_by": "sticky",
        "error": True,
        "latency_ms": None,
    },
    {"t_s": 3.5, "unit": "u1", "arm": 0, "w": 0.05, "assigned_by": "pin", "error": False, "latency_ms": 0.5},
]


def write(path: Path, rows: list[dict[str, object]] = ROWS) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("name", ["e.jsonl", "e.csv", "e.parquet"])
def test_every_format_gives_the_same_columns(tmp_path: Path, name: str) -> None:
    columns = read_evidence(write(tmp_path / name)).columns

    assert {k: v.tolist() for k, v in columns.items() if k != "latency_ms"} == {
        "t_s": [1.5, 2.5, 3.5],
        "unit": ["u1", "u2", "u1"],
        "arm": [0, 1, 0],
        "w": [0.05, 0.05, 0.05],
        "assigned_by": ["sticky", "sticky", "pin"],
        "error": [0.0, 1.0, 0.0],
    }
    np.testing.assert_array_equal(columns["latency_ms"], [812.25, np.nan, 0.5])


def test_arms_may_be_given_by_name(tmp_path: Path) -> None:
    rows = [row | {"arm": "canary" if row["arm"] else "stable"} for row in ROWS]

    assert read_evidence(write(tmp_path / "e.jsonl", rows)).columns["arm"].tolist() == [0, 1, 0]


def test_a_key_that_first_appears_later_is_missing_in_earlier_rows(tmp_path: Path) -> None:
    rows = [*ROWS[:2], ROWS[2] | {"quality": 0.5}]

    np.testing.assert_array_equal(
        read_evidence(write(tmp_path / "e.jsonl", rows)).columns["quality"], [np.nan, np.nan, 0.5]
    )


def test_columns_that_no_gate_uses_are_reported(tmp_path: Path) -> None:
    rows = [row | {"region": "eu"} for row in ROWS]

    assert read_evidence(write(tmp_path / "e.jsonl", rows)).ignored == ("region",)


def write_text(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("e.txt", "", "e.txt ends in .txt; give a .jsonl, .json, .csv or .parquet file"),
        ("e.jsonl", '{"t_s": 1}\nnonsense\n', "e.jsonl line 2 is not JSON"),
        ("e.jsonl", "[1]\n", "e.jsonl line 1 is list, not an object"),
        (
            "e.jsonl",
            '{"t_s": 1, "arm": 0}\n',
            "e.jsonl lacks w; give --w 5% if it was the same for every row",
        ),
        ("e.jsonl", "", "e.jsonl has no rows"),
        (
            "e.jsonl",
            '{"t_s": 1, "unit": "a", "arm": 2, "w": 0.1, "assigned_by": "request"}\n',
            "line 1: arm 2 is neither",
        ),
        (
            "e.jsonl",
            '{"t_s": 1, "unit": null, "arm": 0, "w": 0.1, "assigned_by": "request"}\n',
            "line 1: it has no unit; fill it in",
        ),
        (
            "e.jsonl",
            '{"t_s": 1, "unit": "a", "arm": 0, "w": "x", "assigned_by": "request"}\n',
            "line 1: w 'x' is not a share; write 0.05 or 5%",
        ),
        ("e.csv", "t_s,unit,arm,w,assigned_by\n", "e.csv has no rows"),
        ("e.csv", "t_s,unit,arm,w,assigned_by\n1,a,0\n", "e.csv line 2 does not have 5 cells"),
        ("e.csv", "t_s,unit,arm,w,assigned_by\n1,a,0,0.1,request,9\n", "e.csv line 2 does not have 5 cells"),
        (
            "e.jsonl",
            '{"t_s": 1, "unit": ["a"], "arm": 0, "w": 0.1, "assigned_by": "request"}\n',
            r"line 1: unit \['a'\] is not a name",
        ),
        ("e.jsonl", '{"t_s": 1, "arm": 0, "w": 0.1, "w": 0.2}\n', "line 1 is not JSON .duplicate key"),
        ("e.jsonl", "[" * 100_000, "e.jsonl line 1 is nested too deeply"),
        ("e.csv", "t_s,unit,arm,w,assigned_by,error,error\n1,a,0,0.1,request,0,1\n", "two columns 'error'"),
        ("e.csv", "t_s,unit,arm,w,assigned_by\n1,a\0,0,0.1,request\n", "line 2: unit .* is not a name"),
        (
            "e.csv",
            "t_s,unit,arm,w,assigned_by\nyesterday,a,0,0.1,request\n",
            "write seconds since the epoch",
        ),
        ("e.parquet", "not parquet", "e.parquet is not Parquet"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    path = write_text(tmp_path / name, content)

    with pytest.raises(BadInput, match=message) as refused:
        read_evidence(path)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_bad_input_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=r"nowhere\.csv cannot be read: No such file or directory; check the path"
    ):
        read_evidence(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("name", ["e.csv", "e.jsonl"])
def test_a_file_that_is_not_utf_8_is_refused_with_the_byte(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"t_s,unit,arm,w,assigned_by\n1,\xe9,0,0.1,request\n")

    with pytest.raises(BadInput, match=r"is not UTF-8 \(byte \d+\); save it as UTF-8"):
        read_evidence(path)


@pytest.mark.parametrize("name", ["e.csv", "e.jsonl"])
def test_a_byte_order_mark_is_not_part_of_a_column_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())

    assert read_evidence(path).columns["t_s"].tolist() == [1.5, 2.5, 3.5]


def test_parquet_timestamps_become_seconds(tmp_path: Path) -> None:
    times = [datetime(2026, 5, 1, 0, 0, second, tzinfo=UTC) for second in range(3)]
    aware = [row | {"t_s": at} for row, at in zip(ROWS, times, strict=True)]
    naive = [row | {"t_s": at.replace(tzinfo=None)} for row, at in zip(ROWS, times, strict=True)]

    for rows in (naive, aware):
        t_s = read_evidence(write(tmp_path / "e.parquet", rows)).columns["t_s"]
        assert t_s.tolist() == [1777593600.0, 1777593601.0, 1777593602.0]


def test_the_unit_column_is_optional(tmp_path: Path) -> None:
    rows = [{name: value for name, value in row.items() if name != "unit"} for row in ROWS]

    assert "unit" not in read_evidence(write(tmp_path / "e.jsonl", rows)).columns


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "json"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, suffix: str) -> None:
    pipe = tmp_path / f"rows.{suffix}"
    os.mkfifo(pipe)

    with pytest.raises(BadInput, match=f"rows.{suffix} is no file but a pipe or a device"):
        read_evidence(pipe)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("one.jsonl", "\n" + "0" * 1_001, "one.jsonl line 2 has over 1000 characters"),
        ("one.csv", "unit,arm\n" + "0" * 1_001, "one.csv line 2 has over 1000 characters"),
        ("quoted.csv", 'unit,arm\n"' + "ab\n" * 500, r"quoted.csv line \d+ is not CSV \(field larger"),
        ("one.json", "[" + "0" * 2_001, "one.json has over 2000 characters; write one object per line"),
    ],
)
def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, message: str
) -> None:
    """A file of 7 MB that unpacks to one line of 1.5 GB took 3.1 GB."""
    monkeypatch.setattr(evidence_formats, "MAX_LINE", 1_000)
    monkeypatch.setattr(evidence_formats, "MAX_JSON", 2_000)
    path = tmp_path / f"{name}.gz"
    with gzip.open(path, "wt") as file:
        file.write(text)

    with pytest.raises(BadInput, match=message.replace(name, f"{name}.gz")):
        read_evidence(path)

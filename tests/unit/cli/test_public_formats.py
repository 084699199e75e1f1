"""Files of public reports: what spreadsheets, databases and Arrow write, read or refused in one line.

Their sources are in tests/public_reports.md.
"""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from controller.cli.evidence_columns import ReadOptions
from controller.cli.evidence_files import EvidenceFile, read_evidence
from controller.cli.evidence_scores import only_score
from controller.cli.main import run
from controller.errors import BadInput

START_S = datetime(2026, 5, 1, tzinfo=UTC).timestamp()
ROWS = 4


def read(path: Path, *maps: str, **options: Any) -> EvidenceFile:
    return read_evidence(path, options=ReadOptions(maps, **options))


def text(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


# --- JSON


def test_an_error_that_is_null_or_an_object_tells_who_failed(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"t_s": n, "arm": n % 2, "w": 0.5, "error": None} for n in range(4)]
    rows[3]["error"] = {"message": "out of memory", "code": 500}
    path = text(tmp_path / "e.jsonl", *map(json.dumps, rows))

    found = read(path)

    assert found.columns["error"].tolist() == [0, 0, 0, 1]
    assert "error" not in found.empty


# --- times


def test_times_with_a_zone_and_without_one_are_not_mixed(tmp_path: Path) -> None:
    path = text(
        tmp_path / "e.csv",
        "t_s,arm,w,error",
        "2026-05-01T14:00:00+02:00,0,.5,0",
        "2026-05-01T14:00:00,1,.5,0",
    )

    with pytest.raises(
        BadInput, match="line 3: t_s has no time zone, but one in line 2; write it throughout"
    ):
        read(path)


def test_a_spreadsheets_days_are_noted(tmp_path: Path) -> None:
    path = text(tmp_path / "e.csv", "t_s,arm,w,error", "46143.58,0,.5,0", "46143.59,1,.5,0")

    assert any("spreadsheet's date, in days" in one for one in read(path).notes)


# --- CSV


def test_a_cell_may_hold_a_whole_prompt(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    path = text(tmp_path / "e.csv", "t_s,arm,w,error,prompt", f"1,0,0.5,0,{'x' * 200_000}", "2,1,0.5,1,hello")

    assert read(path).columns["error"].tolist() == [0, 1]
    assert csv.field_size_limit() == before


def test_an_error_of_csv_names_the_line_of_the_record_that_cannot_be_read(tmp_path: Path) -> None:
    path = text(tmp_path / "e.csv", "t_s,arm,w,prompt", '1,0,.5,"a', 'b"', '2,1,.5,"c"', '3,0,.5,"d" e')

    with pytest.raises(BadInput, match="line 5 is not CSV"):
        read(path)


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;"])
def test_a_first_line_that_names_the_separator_is_no_header(tmp_path: Path, line: str) -> None:
    path = text(tmp_path / "e.csv", line, "t_s;arm;w;latency_ms", "1;0;0,5;812,5", "2;1;0,5;900")
    found = read(path)

    assert found.columns["latency_ms"].tolist() == [812.5, 900.0]
    assert found.place(1) == "line 4"


@pytest.mark.parametrize("cells", [("898", "1.257"), ("898,5", "1.257"), ("1.257", "2.001.500")])
def test_a_point_that_may_separate_thousands_is_refused(tmp_path: Path, cells: tuple[str, str]) -> None:
    path = text(
        tmp_path / "e.csv", "t_s;arm;w;latency_ms", *(f"{n};{n};0,5;{c}" for n, c in enumerate(cells))
    )

    with pytest.raises(
        BadInput, match=r"latency_ms 1\.257 may be 1257 or 1,257; write it without a separator"
    ):
        read(path)


@pytest.mark.parametrize(
    ("w", "cells", "values"),
    [
        ("0.5", ("0.876", "1.257"), [0.876, 1.257]),  # the first shows that points are decimal
        ("0.5", ("812.5", "1.257"), [812.5, 1.257]),
        ("0.5", ("2.001", "1.257"), [2.001, 1.257]),  # three decimals throughout
        ("0,5", ("812.5", "1.257"), [812.5, 1.257]),  # so does this one, whatever w has
        ("0,5", ("812,5", "1257"), [812.5, 1257.0]),
    ],
)
def test_decimal_points_beside_semicolons_are_read(
    tmp_path: Path, w: str, cells: tuple[str, str], values: list[float]
) -> None:
    path = text(
        tmp_path / "e.csv", "t_s;arm;w;latency_ms", *(f"{n};{n};{w};{c}" for n, c in enumerate(cells))
    )

    assert read(path).columns["latency_ms"].tolist() == pytest.approx(values)


@pytest.mark.parametrize("cell", ["\\N", "#N/A", "<NA>"])
def test_what_databases_and_spreadsheets_write_for_missing_is_missing(tmp_path: Path, cell: str) -> None:
    path = text(tmp_path / "e.csv", "t_s,arm,w,error,quality", f"1,0,0.5,0,{cell}", "2,1,0.5,0,0.5")

    np.testing.assert_equal(read(path).columns["quality"], [np.nan, 0.5])


# --- times


@pytest.mark.parametrize(
    "time",
    [
        "2026-05-01 00:00:07.000000 UTC",  # BigQuery
        "2026-05-01 00:00:07 UTC",
        "2026-05-01 00:00:07 +0000 UTC",  # Go
        "2026-05-01 02:00:07.000000001 +0200 CEST m=+0.012345",
        "20260501000007",
    ],
)
def test_times_of_bigquery_and_go_and_compact_ones_are_read(tmp_path: Path, time: str) -> None:
    path = text(tmp_path / "e.csv", "t_s,arm,w,error", f"{time},0,0.5,0")

    assert read(path).columns["t_s"].tolist() == [START_S + 7]


@pytest.mark.parametrize("time", ["2026-05-01 00:00:07 EST", "05/01/2026 00:00:00"])
def test_a_time_that_two_readers_would_read_differently_is_refused(tmp_path: Path, time: str) -> None:
    with pytest.raises(BadInput, match="is not a time; write seconds since the epoch"):
        read(text(tmp_path / "e.csv", "t_s,arm,w,error", f"{time},0,0.5,0"))


def test_compact_times_and_milliseconds_are_not_mixed(tmp_path: Path) -> None:
    path = text(tmp_path / "e.csv", "t_s,arm,w,error", "20260501000007,0,0.5,0", "1777593608000,1,0.5,0")

    with pytest.raises(BadInput, match="t_s is in ms, but in YYYYMMDDhhmmss in line 2; write one unit"):
        read(path)


# --- Parquet


def parquet(path: Path, **columns: pa.Array) -> Path:
    plain = {
        "t_s": pa.array(START_S + np.arange(ROWS)),
        "arm": pa.array(np.arange(ROWS) % 2),
        "w": pa.array(np.full(ROWS, 0.5)),
        "error": pa.array(np.zeros(ROWS)),
    }
    pq.write_table(pa.table(plain | columns), path)
    return path


def timestamps(seconds: int, kind: pa.DataType) -> pa.Array:
    return pa.array([seconds] * ROWS, pa.int64()).cast(kind)


@pytest.mark.parametrize(
    "unused",
    [
        timestamps(9_000_000_000_000_000, pa.timestamp("s")),  # beyond any number of microseconds
        pa.array([-1_000_000] * ROWS, pa.int32()).cast(pa.date32()),  # 769 BC
        pa.array([1_234_567] * ROWS, pa.time64("ns")),
        pa.array([{"at": 1_234_567_891}] * ROWS, pa.struct([("at", pa.timestamp("ns"))])),
        pa.array([[{"at": 1_234_567_891}]] * ROWS, pa.list_(pa.struct([("at", pa.timestamp("ns"))]))),
        timestamps(1_780_000_000, pa.timestamp("s", tz="Mars/Base")),
    ],
    ids=["far year", "before our era", "nanoseconds of a day", "within a struct", "within a list", "zone"],
)
def test_a_column_that_nothing_reads_does_not_stop_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], unused: pa.Array
) -> None:
    path = parquet(tmp_path / "e.parquet", unused=unused)

    assert run(["backtest", str(path), "--allow-unjudged", "x"]) == 6, capsys.readouterr().err


def test_a_time_beyond_the_calendar_is_refused_in_one_line(tmp_path: Path) -> None:
    path = parquet(tmp_path / "e.parquet", t_s=timestamps(9_000_000_000_000, pa.timestamp("s")))

    with pytest.raises(BadInput, match=r"row 1: t_s 'timestamp\[ms\] out of range' is not a time"):
        read(path)


@pytest.mark.parametrize("zone", ["UTC", "tzutc()", "Mars/Base", "+05:30", "America/New_York"])
def test_a_timestamp_is_its_instant_whatever_its_zone_is_called(tmp_path: Path, zone: str) -> None:
    path = parquet(tmp_path / "e.parquet", t_s=timestamps(1_780_000_000, pa.timestamp("s", tz=zone)))

    assert read(path).columns["t_s"].tolist() == [1_780_000_000.0] * ROWS


def test_two_parquet_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    arrays = [pa.array([1.0]), pa.array([0]), pa.array([0]), pa.array([0.5])]
    path = tmp_path / "e.parquet"
    pq.write_table(pa.Table.from_arrays(arrays, names=["t_s", "arm", "arm", "w"]), path)

    with pytest.raises(BadInput, match=r"e\.parquet has two columns 'arm'; name each once"):
        read(path)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.dictionary(pa.int8(), pa.binary())])
def test_bytes_that_are_text_are_read_as_text(tmp_path: Path, kind: pa.DataType) -> None:
    arms = pa.array([b"canary" if n % 2 else b"stable" for n in range(ROWS)])
    path = parquet(tmp_path / "e.parquet", arm=arms.cast(kind) if kind != pa.binary() else arms)

    assert read(path).columns["arm"].tolist() == [0, 1, 0, 1]


def test_ids_of_sixteen_bytes_are_names(tmp_path: Path) -> None:
    ids = [bytes([250, n]) * 8 for n in range(ROWS)]
    path = parquet(tmp_path / "e.parquet", request_id=pa.array(ids, pa.binary(16)))

    assert read(path).columns["request_id"].tolist() == [one.hex() for one in ids]


def test_nested_parquet_columns_have_the_names_of_nested_json(tmp_path: Path) -> None:
    usage = pa.array([{"completion_tokens": n} for n in range(ROWS)])
    found = read(parquet(tmp_path / "e.parquet", usage=usage), "tokens=usage.completion_tokens")

    assert found.columns["tokens"].tolist() == [0, 1, 2, 3]


# --- rows that stay as they are


def test_half_a_surrogate_pair_is_a_name_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    lines = [f'{{"t_s": {n}, "arm": {n % 2}, "w": 0.5, "error": 0, "unit": "u\\ud83d{n}"}}' for n in range(4)]
    found = read(text(path, *lines))

    assert len(set(found.columns["unit"].tolist())) == 4


def test_times_in_scientific_notation_are_read(tmp_path: Path) -> None:
    path = text(tmp_path / "e.csv", "t_s,arm,w,error", "1.78000E+09,0,0.5,0", "1.78001E+09,1,0.5,0")

    assert read(path).columns["t_s"].tolist() == [1_780_000_000.0, 1_780_010_000.0]


def test_a_file_that_was_cut_off_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text('{"t_s": 1, "arm": 0, "w": 0.5, "error": 0}\n{"t_s": 2, "arm": 1, "w"')

    with pytest.raises(BadInput, match="line 2 is not JSON"):
        read(path)


def test_a_request_that_nginx_gave_to_no_upstream_is_refused_with_the_count(tmp_path: Path) -> None:
    lines = [f"{START_S + n:.3f},0.5,200,{'-' if n == 2 else f'10.0.0.{n % 2 + 1}:80'}" for n in range(4)]
    path = text(tmp_path / "access.csv", "msec,request_time,status,upstream_addr", *lines)

    with pytest.raises(BadInput, match=r"line 4: upstream_addr is missing \(in 1 of 4 rows\)"):
        read(path, "arm=upstream_addr", canary="10.0.0.2:80", w=0.5)


@pytest.mark.parametrize("cells", [["[0.78]", "[]", "[0.2, 0.9]"], [[0.78], [], [0.2, 0.9]]])
def test_scores_in_a_list_of_their_own_are_read(cells: list[object]) -> None:
    """As an export with a column for each score writes them; the first of several counts."""
    assert [only_score(cell) for cell in cells] == [0.78, None, 0.2]


def test_a_log_without_a_header_line_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "access.csv"
    path.write_text("2026-11-01T10:00:00+00:00,r1,200,200,0.512\n2026-11-01T10:00:01+00:00,r2,200,200,0.4\n")

    with pytest.raises(BadInput, match=r"access\.csv has no header line, its first line holds '200' twice"):
        read(path)

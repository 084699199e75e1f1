"""Logs of other tools, other names, other units: read as they are or by --map, or refused with the remedy."""

from __future__ import annotations

import csv
import gzip
import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from controller.cli.evidence_cells import event, number
from controller.cli.evidence_columns import ReadOptions
from controller.cli.evidence_files import EvidenceFile, read_evidence
from controller.cli.evidence_options import read_options
from controller.errors import BadInput

START = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
START_S = START.timestamp()
Rows = list[dict[str, Any]]


def jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def comma(path: Path, rows: Rows, delimiter: str = ",") -> Path:
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def read(path: Path, *maps: str, **options: Any) -> EvidenceFile:
    return read_evidence(path, options=ReadOptions(maps, **options))


def iso(second: float) -> str:
    return (START + timedelta(seconds=second)).isoformat().replace("+00:00", "Z")


def column(found: EvidenceFile, name: str) -> list[float]:
    return [float(value) for value in found.columns[name]]


# --- logs that are recognised


def litellm(n: int) -> dict[str, Any]:
    return {
        "request_id": f"chatcmpl-{n}",
        "call_type": "acompletion",
        "api_key": "hash",
        "spend": 0.002,
        "total_tokens": 30,
        "prompt_tokens": 20,
        "completion_tokens": 10 + n,
        "startTime": iso(n),
        "endTime": iso(n + 0.25),
        "completionStartTime": iso(n + 0.1),
        "model": "llama-v2" if n % 4 == 0 else "llama-v1",
        "user": "default_user_id",
        "end_user": f"u{n % 20}",
        "session_id": f"s{n}",
        "status": "failure" if n == 3 else "success",
        "cache_hit": "False",
        "metadata": {"tags": ["a"]},
    }


def test_a_litellm_spend_log_needs_only_the_arm_and_w(tmp_path: Path) -> None:
    path = tmp_path / "spend.json"
    path.write_text(json.dumps([litellm(n) for n in reversed(range(80))]))  # the newest first, as exported
    found = read(path, "arm=model", canary="llama-v2", w=0.25)

    assert column(found, "t_s") == [START_S + n for n in range(80)]
    assert column(found, "arm")[:5] == [1, 0, 0, 0, 1]
    assert column(found, "latency_ms")[0] == pytest.approx(250.0)
    assert column(found, "error")[:5] == [0, 0, 0, 1, 0]
    assert column(found, "tokens")[:2] == [10, 11]
    assert set(column(found, "w")) == {0.25}
    assert found.columns["unit"].tolist()[:2] == ["u0", "u1"]  # the user: its arm never changes
    assert found.notes[0].startswith(
        "read as a LiteLLM spend log: t_s from startTime, latency_ms from endTime-"
    )
    assert "unit from end_user: each of its values is always on one arm" in found.notes


def test_a_spend_logs_failures_are_read_by_their_status_code(tmp_path: Path) -> None:
    """A client that left is a failure of code 499 there; as errors, 6 % of them rolled a canary back."""
    codes = {3: "499", 5: "400", 6: "500", 7: None, 9: "429"}
    rows = [litellm(n) | {"status": "failure" if n in codes else "success"} for n in range(80)]
    for n, code in codes.items():
        rows[n]["metadata"] = {"tags": ["a"], "error_information": {"error_code": code}}
    found = read(jsonl(tmp_path / "spend.jsonl", rows), "arm=model", canary="llama-v2", w=0.25)

    def rows_of(name: str) -> list[int]:
        return [n for n, value in enumerate(column(found, name)) if value == 1.0]

    assert (rows_of("cancelled"), rows_of("rejected"), rows_of("error")) == ([3], [5], [6, 7, 9])
    assert any("by their status code in metadata.error_information.error_code" in one for one in found.notes)


def test_a_word_for_a_client_that_left_is_no_fast_answer(tmp_path: Path) -> None:
    rows = [
        {
            "t_s": START_S + n,
            "arm": n % 2,
            "w": 0.5,
            "latency_ms": 5.0,
            "status": "cancelled" if n == 4 else "success",
        }
        for n in range(20)
    ]
    found = read(jsonl(tmp_path / "words.jsonl", rows), "error=status")

    assert column(found, "cancelled") == [float(n == 4) for n in range(20)]
    assert math.isnan(column(found, "latency_ms")[4])
    assert "cancelled from status too: it holds the word" in found.notes


@pytest.mark.parametrize(
    ("around", "said"),
    [
        ({"total": 3000}, "20 of 3000 rows"),
        ({"meta": {"totalItems": 90, "page": 1}}, "20 of 90 rows"),
        ({"total_pages": 3, "page": 1}, "20 rows, one of 3 pages"),
        ({"object": "list", "has_more": True}, "20 rows of a list that goes on"),
        ({"meta": {"nextCursor": "abc"}}, "20 rows of a list that goes on"),
    ],
)
def test_one_page_of_many_is_refused(tmp_path: Path, around: dict[str, Any], said: str) -> None:
    path = tmp_path / "page.json"
    path.write_text(json.dumps({"data": [litellm(n) for n in range(20)], **around}))
    with pytest.raises(BadInput, match=said):
        read(path, "arm=model", canary="llama-v2", w=0.25)


@pytest.mark.parametrize("around", [{"total": 20}, {"total_pages": 1}, {"has_more": False, "next": None}, {}])
def test_a_whole_list_is_read(tmp_path: Path, around: dict[str, Any]) -> None:
    path = tmp_path / "page.json"
    path.write_text(json.dumps({"data": [litellm(n) for n in range(20)], **around}))
    assert read(path, "arm=model", canary="llama-v2", w=0.25).rows == 20


def test_a_unit_on_both_arms_is_not_taken_for_the_randomised_one(tmp_path: Path) -> None:
    rows = [litellm(n) | {"end_user": f"u{n % 7}"} for n in range(80)]
    found = read(jsonl(tmp_path / "spend.jsonl", rows), "arm=model", canary="llama-v2", w=0.25)

    assert "unit" not in found.columns
    assert "each request is its own unit: no column of users keeps its arm" in found.notes


def langfuse(n: int) -> dict[str, Any]:
    return {
        "id": f"o{n}",
        "trace_id": f"t{n}",
        "type": "SPAN" if n == 5 else "GENERATION",
        "start_time": (START + timedelta(seconds=n)).strftime("%Y-%m-%d %H:%M:%S.%f"),
        "end_time": (START + timedelta(seconds=n + 0.5)).strftime("%Y-%m-%d %H:%M:%S.%f"),
        "completion_start_time": (START + timedelta(seconds=n + 0.2)).strftime("%Y-%m-%d %H:%M:%S.%f"),
        "level": "ERROR" if n == 2 else "DEFAULT",
        "usage_details": {"input": 5, "output": 7},
        "total_cost": 0.01,
        "user_id": f"u{n % 5}",
        "metadata": {"variant": "treatment" if n % 5 == 0 else "control"},
        "latency": 0.5,
    }


def test_a_langfuse_export_counts_its_generations(tmp_path: Path) -> None:
    rows = [langfuse(n) for n in range(60)]
    found = read(jsonl(tmp_path / "o.jsonl", rows), "arm=metadata.variant", w=0.2)

    assert found.rows == 59
    assert column(found, "arm")[0] == 1
    assert column(found, "latency_ms")[0] == pytest.approx(500.0)
    assert column(found, "ttft_ms")[0] == pytest.approx(200.0)
    assert (column(found, "error")[2], column(found, "tokens")[0]) == (1.0, 7.0)
    assert found.columns["unit"].tolist()[:2] == ["u0", "u1"]
    assert "1 rows whose type is not GENERATION are left out" in found.notes


def test_metadata_in_a_csv_cell_is_read_by_its_dotted_name(tmp_path: Path) -> None:
    rows = [langfuse(n) | {"usage_details": "{}"} for n in range(10)]
    rows = [row | {"metadata": json.dumps(row["metadata"])} for row in rows]
    found = read(comma(tmp_path / "o.csv", rows), "arm=metadata.variant", w=0.2)

    assert column(found, "arm")[:6] == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("clock", ["msec", "time_iso8601", "time_local"])
def test_an_nginx_log_dates_a_request_by_its_start(tmp_path: Path, clock: str) -> None:
    ends = [START + timedelta(seconds=n + 2) for n in range(4)]
    at = {
        "msec": [f"{end.timestamp():.3f}" for end in ends],
        "time_iso8601": [end.isoformat() for end in ends],
        "time_local": [end.strftime("%d/%b/%Y:%H:%M:%S +0000") for end in ends],
    }[clock]
    rows = [
        {clock: time, "request_time": "2.000", "status": status, "request_id": f"r{n}", "pool": pool}
        for n, (time, status, pool) in enumerate(zip(at, (200, 503, 404, 499), "xyxy", strict=True))
    ]
    found = read(comma(tmp_path / "access.csv", rows), "arm=pool", canary="y", w=0.5)

    assert column(found, "t_s") == [START_S + n for n in range(4)]
    np.testing.assert_equal(column(found, "latency_ms"), [2000.0] * 3 + [np.nan])
    assert column(found, "error") == [0, 1, 0, 0]  # a client that left is no error
    assert column(found, "cancelled") == [0, 0, 0, 1]


def test_an_openai_style_log_is_flattened(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"chatcmpl-{n}",
            "object": "chat.completion",
            "created": int(START_S) + n,
            "model": "m",
            "choices": [{"index": 0, "finish_reason": "length" if n == 1 else "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
            "duration": 1.5,
            "group": "Canary" if n == 2 else "Stable",
        }
        for n in range(4)
    ]
    path = jsonl(tmp_path / "log.jsonl", rows)
    found = read(path, "arm=group", "latency_ms=duration:s", w=0.05)

    assert column(found, "tokens") == [4.0] * 4
    assert column(found, "truncated") == [0, 1, 0, 0]
    assert column(found, "latency_ms") == [1500.0] * 4
    with pytest.raises(
        BadInput, match=r"'duration' is unknown and close to latency_ms; .*duration:s if it is in sec"
    ):
        read(path, "arm=group", w=0.05)


def test_pandas_parquet_has_nanoseconds_categories_and_an_index(tmp_path: Path) -> None:
    times = pa.array([(START + timedelta(seconds=n)) for n in range(3)], pa.timestamp("ns", "Europe/Berlin"))
    nanos = pa.array([1_500_000_001, 2_000_000_000, None], pa.duration("ns"))
    table = pa.table(
        {
            "t_s": times,
            "arm": pa.array(["control", "treatment", "control"]).dictionary_encode(),
            "w": [0.5] * 3,
            "latency_ms": nanos,
            "__index_level_0__": [0, 1, 2],
        }
    )
    pq.write_table(table, tmp_path / "e.parquet")
    found = read(tmp_path / "e.parquet")

    assert column(found, "t_s") == [START_S, START_S + 1, START_S + 2]
    assert column(found, "arm") == [0, 1, 0]
    np.testing.assert_array_equal(found.columns["latency_ms"], [1500.0, 2000.0, np.nan])
    assert found.ignored == ()


# --- forms of cells and files

PLAIN: Rows = [
    {"t_s": 1.5, "arm": 0, "w": 0.05, "error": 0, "latency_ms": 812.25},
    {"t_s": 2.5, "arm": 1, "w": 0.05, "error": 1, "latency_ms": ""},
]


@pytest.mark.parametrize("name", ["e.csv.gz", "e.jsonl.gz", "e.json.gz", "e.json", "e.tsv"])
def test_the_same_rows_in_every_form(tmp_path: Path, name: str) -> None:
    plain = name.removesuffix(".gz")
    path = tmp_path / plain
    if plain.endswith(".json"):
        path.write_text(json.dumps({"data": PLAIN}))
    elif plain.endswith(".jsonl"):
        jsonl(path, PLAIN)
    else:
        comma(path, PLAIN, "\t" if plain.endswith("tsv") else ",")
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(path.read_bytes()))
    found = read(tmp_path / name)

    assert column(found, "t_s") == [1.5, 2.5]
    np.testing.assert_array_equal(found.columns["latency_ms"], [812.25, np.nan])


def test_a_spreadsheets_csv_has_semicolons_and_decimal_commas(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    path.write_text("t_s;arm;w;latency_ms\n1,5;Control;5%;812,25\n2,5;TREATMENT;0,05;NA\n")
    found = read(path)

    assert (column(found, "w"), column(found, "arm")) == ([0.05, 0.05], [0, 1])
    np.testing.assert_array_equal(found.columns["latency_ms"], [812.25, np.nan])


@pytest.mark.parametrize("word", ["", "NA", "n/a", "null", "None", "-", "NaN"])
def test_words_for_a_missing_value(word: str) -> None:
    found = number(word)

    assert found is not None
    assert np.isnan(found)


@pytest.mark.parametrize(
    ("metric", "cell", "expected"),
    [
        ("error", 503, 1.0),
        ("error", "429", 1.0),
        ("error", 404, 0.0),
        ("rejected", 404, 1.0),
        ("rejected", 429, 0.0),
        ("cancelled", 499, 1.0),
        ("error", "failure", 1.0),
        ("error", "Success", 0.0),
        ("error", "yes", 1.0),
        ("error", False, 0.0),
        ("truncated", "length", 1.0),
        ("truncated", "stop", 0.0),
        ("error", "purple", None),
    ],
)
def test_events_are_read_from_flags_status_codes_and_words(
    metric: str, cell: object, expected: float | None
) -> None:
    assert event(metric, cell) == expected


@pytest.mark.parametrize("zone", ["2026-05-01T12:00:00Z", "2026-05-01T14:00:00+02:00", "2026-05-01 12:00:00"])
def test_iso_times_are_utc_unless_they_have_a_zone(tmp_path: Path, zone: str) -> None:
    found = read(comma(tmp_path / "e.csv", [{"t_s": zone, "arm": 0, "w": 0.05}]))

    assert column(found, "t_s") == [START_S]


@pytest.mark.parametrize(("scale", "unit"), [(1e3, "ms"), (1e6, "us"), (1e9, "ns")])
def test_epoch_times_in_smaller_units_are_told_by_their_size(tmp_path: Path, scale: float, unit: str) -> None:
    rows = [{"t_s": int((START_S + n) * scale), "arm": n % 2, "w": 0.5} for n in range(3)]
    found = read(comma(tmp_path / "e.csv", rows))

    assert column(found, "t_s") == [START_S, START_S + 1, START_S + 2]
    assert found.notes == (f"t_s is in {unit}, by its size",)


def test_mixed_epoch_units_are_refused_with_both_lines(tmp_path: Path) -> None:
    rows = [{"t_s": START_S, "arm": 0, "w": 0.5}, {"t_s": START_S * 1000, "arm": 1, "w": 0.5}]

    with pytest.raises(
        BadInput, match=r"line 3: t_s is in ms, but in s in line 2; write one unit throughout"
    ):
        read(comma(tmp_path / "e.csv", rows))


# --- remedies


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arm": "v2"}, r"line 2: arm 'v2' is neither 0 \(stable\) nor 1 \(canary\); .*version: 1 or v2"),
        ({"w": "half"}, r"line 2: w 'half' is not a share; write 0\.05 or 5%"),
        (
            {"error": "purple"},
            r"line 2: error 'purple' is not an event; write 1 or 0 \(yes, no\), a status code",
        ),
        ({"quality": "good"}, r"line 2: quality 'good' is not a score; write 0\.5 or 50%"),
        ({"latency_ms": "fast"}, r"line 2: latency_ms 'fast' is not a length of time; write 812\.5"),
        ({"t_s": "noon"}, r"line 2: t_s 'noon' is not a time; write seconds since the epoch, or 2026-"),
        ({"t_s": ""}, r"line 2: t_s is missing; write seconds"),
        ({"arm": ""}, r"line 2: arm is missing \(in 1 of 2 rows\); every row needs its assigned arm"),
    ],
)
def test_each_bad_cell_has_its_own_remedy(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = [{**PLAIN[0], **change}, PLAIN[1] | {name: "" for name in change if name not in PLAIN[1]}]

    with pytest.raises(BadInput, match=message):
        read(comma(tmp_path / "e.csv", rows))


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        (["latncy_ms=x"], {}, "'latncy_ms' is not a column of a backtest; did you mean latency_ms"),
        (["latency_ms=duratoin"], {}, "has no column 'duratoin'; did you mean duration"),
        (["latency_ms"], {}, "is not NAME=COLUMN; write --map latency_ms=duration"),
        (["latency_ms=duration", "latency_ms=d2"], {}, "--map latency_ms is given twice"),
        (["arm=model"], {"canary": "v9"}, "model has v1, v2; 'v9' is none of them"),
        (["arm=model"], {"canary": "v2", "stable": "v0"}, "no row has model 'v0'"),
    ],
)
def test_a_wrong_map_is_refused_with_what_was_meant(
    tmp_path: Path, maps: list[str], options: dict[str, Any], message: str
) -> None:
    rows = [{"t_s": n, "model": f"v{n % 2 + 1}", "w": 0.5, "duration": 3} for n in range(4)]
    given = maps if any(text.startswith("arm") for text in maps) else ["arm=model", *maps]

    if not any(text.startswith("latency_ms") for text in maps):
        rows = [{name: cell for name, cell in row.items() if name != "duration"} for row in rows]

    with pytest.raises(BadInput, match=message):
        read(comma(tmp_path / "e.csv", rows), *given, **({"canary": "v2"} | options))


def test_what_is_missing_comes_with_the_option_that_gives_it(tmp_path: Path) -> None:
    rows = [{"timestamp": iso(n), "model": f"v{n % 2 + 1}"} for n in range(4)]

    with pytest.raises(BadInput) as refused:
        read(comma(tmp_path / "e.csv", rows))
    assert str(refused.value) == (
        "e.csv lacks t_s, arm, w; give --map t_s=timestamp, "
        "--map arm=model --canary VALUE (the new version: v1 or v2), "
        "--w 5% if it was the same for every row (it has timestamp, model; what each column holds: "
        "canaryctl backtest --columns)"
    )


@pytest.mark.parametrize(
    ("values", "option"),
    [
        (["b:1", "c:1"] * 4, r"--canary VALUE \(the new version: b:1 or c:1\)$"),
        (["stable:1", "canary:1"] * 4, r"--canary canary:1$"),
        (["b:1", "c:1", "b:1", "b:1"], r"--canary c:1$"),  # a wrong one would contradict w
        (["b:1", "c:1", "d:1"], r"--canary VALUE --stable VALUE \(of b:1, c:1, d:1\)$"),
    ],
)
def test_no_value_is_offered_as_the_canary_that_may_be_stables(
    tmp_path: Path, values: list[str], option: str
) -> None:
    """The first row's was: at 50:50 a canary with 6 % errors against 1 % was promoted."""
    rows = [{"t_s": n, "upstream_addr": value} for n, value in enumerate(values)]

    with pytest.raises(BadInput, match=option):
        read(comma(tmp_path / "e.csv", rows), "arm=upstream_addr", w=0.5)


def test_the_values_that_were_read_as_the_arms_are_said(tmp_path: Path) -> None:
    rows = [{"t_s": n, "upstream_addr": "b:1" if n % 4 else "c:1"} for n in range(8)]
    found = read(comma(tmp_path / "e.csv", rows), "arm=upstream_addr", w=0.25, canary="c:1")

    assert "by upstream_addr, canary: c:1 (2 rows), stable: b:1 (6 rows)" in found.notes


def test_rows_of_other_versions_are_left_out(tmp_path: Path) -> None:
    rows = [{"t_s": n, "model": f"v{n % 3}", "w": 0.5} for n in range(6)]
    found = read(comma(tmp_path / "e.csv", rows), "arm=model", canary="v1", stable="v0")

    assert column(found, "arm") == [0, 1, 0, 1]
    assert found.lines == (2, 3, 5, 6)


@pytest.mark.parametrize("share", ["5", "half", "-1%"])
def test_a_share_outside_its_range_is_refused(share: str) -> None:
    with pytest.raises(BadInput, match=r"is not a share between 0 and 1; write 5% or 0\.05"):
        read_options(maps=None, ignore=None, w=share)


def test_a_column_that_is_read_already_is_not_offered_as_the_arm(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "spend.jsonl", [litellm(n) for n in range(8)])

    with pytest.raises(
        BadInput, match=r"lacks arm; give --map arm=model --canary llama-v2 \(it has request_id, "
    ):
        read(path, w=0.25)


def test_a_user_who_moves_to_the_canary_when_w_is_raised_is_still_the_unit(tmp_path: Path) -> None:
    rows = []
    for n in range(120):
        w, bound = (0.25, 1) if n < 60 else (0.5, 2)
        user = n % 4
        rows.append(litellm(n) | {"end_user": f"u{user}", "model": f"v{1 + (user < bound)}", "w": w})
    found = read(jsonl(tmp_path / "ramp.jsonl", rows), "arm=model", canary="v2")

    assert found.columns["unit"].tolist()[:4] == ["u0", "u1", "u2", "u3"]


def scored(n: int) -> dict[str, Any]:
    """A generation with Langfuse's own list of scores, empty for every third."""
    scores = [
        {"id": f"s{n}", "name": "quality", "value": 0.25 * (n % 4), "dataType": "NUMERIC"},
        {"id": f"h{n}", "name": "hallucinated", "value": int(n == 4), "dataType": "BOOLEAN"},
        {"id": f"c{n}", "name": "tone", "value": None, "stringValue": "kind", "dataType": "CATEGORICAL"},
    ]
    return langfuse(n) | {"scores": scores if n % 3 else []}


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_langfuse_scores_are_metrics_by_their_names(tmp_path: Path, suffix: str) -> None:
    rows = [scored(n) for n in range(10)]
    if suffix == "csv":
        rows = [{key: _cell(value) for key, value in row.items()} for row in rows]
    write = comma if suffix == "csv" else jsonl

    found = read(write(tmp_path / f"o.{suffix}", rows), "arm=metadata.variant", w=0.2)

    kept = [n for n in range(10) if n != 5]  # the span is no generation
    expected = [0.25 * (n % 4) if n % 3 else math.nan for n in kept]
    assert column(found, "quality") == pytest.approx(expected, nan_ok=True)
    assert [n for n, value in zip(kept, column(found, "hallucinated"), strict=True) if value == 1.0] == [4]
    assert any("scores that no gate uses are ignored: tone" in note for note in found.notes)


def test_a_langfuse_export_without_a_usable_score_is_read(tmp_path: Path) -> None:
    rows = [langfuse(n) | {"scores": [{"name": "tone", "value": 0.5}] if n else []} for n in range(10)]

    found = read(jsonl(tmp_path / "o.jsonl", rows), "arm=metadata.variant", w=0.2)

    assert "quality" not in found.columns
    assert any("scores that no gate uses are ignored: tone" in note for note in found.notes)


def _cell(value: object) -> object:
    return json.dumps(value) if isinstance(value, dict | list) else value

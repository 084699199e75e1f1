"""Cells of other tools: ids that were floats, who answered, changed scores, clocks that differ."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from controller.cli.ab_file import judge_file
from controller.cli.evidence_columns import ReadOptions
from controller.cli.evidence_files import EvidenceFile, read_evidence
from controller.cli.main import run as main
from controller.errors import BadInput
from evaluation.offline.backtest import run
from evaluation.records import EvidenceError

Rows = list[dict[str, Any]]
T0 = 1_780_000_000.0


def jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def plain(rows: int = 60) -> Rows:
    return [{"t_s": T0 + row, "arm": row % 3 == 0, "w": 0.3, "error": 0} for row in range(rows)]


# --- agency-fund/evidential-be #51


def people(as_float: bool) -> Rows:
    rows = plain()
    for row, cells in enumerate(rows):
        user = 1000 + row % 12
        cells["arm"] = int(user % 3 == 0)
        cells["unit"] = float(user) if as_float and row % 2 else user
    return rows


def test_a_user_whose_id_went_through_a_float_is_one_user(tmp_path: Path) -> None:
    mixed, whole = (
        read_evidence(jsonl(tmp_path / f"{name}.jsonl", people(name == "mixed")))
        for name in ("mixed", "whole")
    )

    assert list(mixed.columns["unit"]) == list(whole.columns["unit"])
    assert mixed.columns["unit"][1] == "1001"


def test_a_user_of_a_parquet_file_of_floats_is_the_number(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    rows = people(as_float=True)
    units = pa.array([float(row["unit"]) for row in rows], pa.float64())
    columns = {name: [row[name] for row in rows] for name in ("t_s", "arm", "w", "error")}
    pq.write_table(pa.table({**columns, "unit": units}), tmp_path / "requests.parquet")

    assert read_evidence(tmp_path / "requests.parquet").columns["unit"][0] == "1000"


def test_a_float_that_may_be_two_users_is_refused(tmp_path: Path) -> None:
    rows = people(as_float=False)
    rows[7]["unit"] = 2.0**53 + 2.0

    with pytest.raises(BadInput, match=r"line 8: unit is 9007199254740994, a float beyond 2\^53"):
        read_evidence(jsonl(tmp_path / "requests.jsonl", rows))


def test_arrays_of_floats_name_the_same_units() -> None:
    rows = people(as_float=False)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    as_floats = {**columns, "unit": [float(unit) for unit in columns["unit"]]}

    assert run(columns).log_e == run(as_floats).log_e
    with pytest.raises(EvidenceError, match="a float beyond"):
        run({**columns, "unit": [*as_floats["unit"][:-1], 1e17]})


# --- BerriAI/litellm PR #38107


def spend_log(*, fallbacks: bool = True, group: bool = True) -> Rows:
    rng, rows = random.Random(38107), []
    for row in range(400):
        asked = rng.choice(["llama-v1", "llama-v2"])
        fell_back = fallbacks and asked == "llama-v2" and rng.random() < 0.1
        metadata: dict[str, object] = {"attempted_fallbacks": int(fell_back)}
        if group:
            metadata["original_model_group"] = asked
        rows.append(
            {
                "request_id": f"r{row}", "startTime": T0 + row, "endTime": T0 + row + rng.random(),
                "spend": 0.001, "completion_tokens": 30, "status": "success",
                "model": "llama-v1" if fell_back else asked, "metadata": json.dumps(metadata),
            }
        )  # fmt: skip
    return rows


def read_spend(path: Path, rows: Rows, *maps: str) -> EvidenceFile:
    options = ReadOptions(maps=maps, stable="llama-v1", canary="llama-v2", w=0.5)
    return read_evidence(jsonl(path / "spend.jsonl", rows), options=options)


def test_a_fallbacks_answer_is_the_drawn_versions_request(tmp_path: Path) -> None:
    rows = spend_log()
    found = read_spend(tmp_path, rows)

    asked = [json.loads(row["metadata"])["original_model_group"] for row in rows]
    assert list(found.columns["arm"]) == [int(name == "llama-v2") for name in asked]
    assert list(found.columns["fell_back"]) == [
        float(json.loads(row["metadata"])["attempted_fallbacks"]) for row in rows
    ]
    assert found.columns["fell_back"].sum() > 10


def test_the_model_that_answered_is_no_arm_where_fallbacks_answered(tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=r"a fallback answered .* give --map arm=metadata.original_model_group"
    ):
        read_spend(tmp_path, spend_log(), "arm=model")


def test_the_model_is_the_arm_where_none_did(tmp_path: Path) -> None:
    found = read_spend(tmp_path, spend_log(fallbacks=False, group=False), "arm=model")

    assert 100 < found.columns["arm"].sum() < 300


# --- synergyai-nl/svelte-langgraph PR #249, langfuse/langfuse #500, #10634


def observations() -> Rows:
    rows = []
    for row in range(40):
        start = T0 + 10 * row
        rows.append(
            {
                "id": f"o{row}",
                "traceId": f"t{row}",
                "startTime": start,
                "endTime": start + 1.0,
                "arm": row % 2,
            }
        )
    return rows


@pytest.mark.parametrize("has_times", [True, False])
def test_of_several_scores_of_a_request_the_first_counts(tmp_path: Path, has_times: bool) -> None:
    rows = observations()
    for row in rows:
        scores = [
            {"name": "quality", "value": 0.2, "timestamp": "2026-05-01T10:00:00Z"},
            {"name": "quality", "value": 0.9, "timestamp": "2026-05-01T10:00:02Z"},
        ]
        if has_times:
            scores.reverse()
        else:
            scores = [{"name": one["name"], "value": one["value"]} for one in scores]
        row["scores"] = scores

    found = read_evidence(jsonl(tmp_path / "scores.jsonl", rows), options=ReadOptions(w=0.5))

    assert set(found.columns["quality"]) == {0.2}
    assert "40 scores repeat one of the same request and name: the first counts, as live" in found.notes


# --- astaxie/TokenHub PR #103, openobserve/openobserve PR #14367


def test_a_request_that_ends_before_it_starts_has_no_latency(tmp_path: Path) -> None:
    rows = observations()
    rows[3]["endTime"] = rows[3]["startTime"] - 0.02

    found = read_evidence(jsonl(tmp_path / "skew.jsonl", rows), options=ReadOptions(w=0.5))

    latencies = found.columns["latency_ms"]
    assert latencies[3] != latencies[3]
    assert latencies[4] == pytest.approx(1000.0)
    assert "1 rows end before they start by endTime-startTime: missing values" in found.notes


def test_columns_in_the_wrong_order_are_still_refused(tmp_path: Path) -> None:
    options = ReadOptions(w=0.5, maps=("latency_ms=startTime-endTime",))
    found = read_evidence(jsonl(tmp_path / "swapped.jsonl", observations()), options=options)

    with pytest.raises(EvidenceError, match="cannot be evidence"):
        run(found.columns)


# --- growthbook/growthbook #137


@pytest.mark.slow
def test_a_long_tail_of_categories_is_compared_as_one(tmp_path: Path) -> None:
    rng = random.Random(137)
    rows = [
        {
            "t_s": T0 + row, "arm": rng.randrange(2), "w": 0.5, "quality": rng.random(),
            "country": f"c{min(int(rng.expovariate(0.02)), 300):03d}",
        }
        for row in range(3000)
    ]  # fmt: skip
    path = jsonl(tmp_path / "countries.jsonl", rows)

    report = judge_file(path, "quality", alpha=0.05, by="country", is_fixed=False)

    names = [row["category"] for row in report.rows]
    known = {row["country"] for row in rows}
    assert len(names) == 1 + 64
    assert "(other)" in names
    assert f"(other): the {len(known) - 63} smallest categories as one" in report.notes
    sizes = {row["category"]: int(str(row["n_a"])) + int(str(row["n_b"])) for row in report.rows}
    assert sum(size for name, size in sizes.items() if name != "(all)") == sizes["(all)"] == 3000


# --- yinxulai/one-switch #3, QuantumNous/new-api #7134


@pytest.mark.slow
def test_values_that_both_arms_lose_name_max_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(7134)
    rows = [
        {
            "t_s": T0 + row, "arm": rng.randrange(2), "w": 0.5,
            "error": None if rng.random() < 0.4 else int(rng.random() < 0.01),
        }
        for row in range(4000)
    ]  # fmt: skip
    path = jsonl(tmp_path / "agents.jsonl", rows)

    assert main(["backtest", str(path), "--allow-unjudged", "x"]) == 6

    printed = capsys.readouterr()
    assert "limit 10% (max_missing)" in " ".join(printed.out.split())
    assert "raise max_missing in the policy" in " ".join(printed.err.split())


# --- zeeguu/api #665, PostHog/posthog #83190, linkerd/linkerd2 #13483


@pytest.mark.slow
def test_latencies_in_buckets_name_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(665)
    rows = [
        {
            "t_s": T0 + row, "arm": rng.randrange(2), "w": 0.5, "error": 0,
            "latency_ms": rng.choice([250, 500, 500, 1000]),
        }
        for row in range(3000)
    ]  # fmt: skip

    assert main(["backtest", str(jsonl(tmp_path / "b.jsonl", rows)), "--allow-unjudged", "x"]) == 6

    printed = capsys.readouterr()
    assert "1.2x cannot be proven by such values; record it in milliseconds" in " ".join(printed.out.split())
    assert "next: record latency in milliseconds" in printed.err


# --- netdata/go.d.plugin PR #711, mozilla-services/heka #1343


def test_the_times_of_several_tries_are_what_the_user_waited(tmp_path: Path) -> None:
    """A list of times was no length of time, though the list of their upstreams was read."""
    rows = [
        row | {"upstream_response_time": "0.1, 0.7" if n == 3 else "0.5"} for n, row in enumerate(plain())
    ]
    rows[4]["upstream_response_time"] = "-, 0.25 : 0.5"
    rows[5]["upstream_response_time"] = "-, -"

    options = ReadOptions(("latency_ms=upstream_response_time:s",))
    found = read_evidence(jsonl(tmp_path / "e.jsonl", rows), options=options).columns["latency_ms"]

    assert [float(value) for value in found[2:5]] == pytest.approx([500.0, 800.0, 750.0])
    assert float(found[5]) != float(found[5])  # not known


@pytest.mark.parametrize("cell", ["0.1, fast", "1,257", "0.1,0.7"])
def test_what_is_no_list_of_times_is_refused(tmp_path: Path, cell: str) -> None:
    rows = [row | {"latency_ms": cell} for row in plain()]
    with pytest.raises(BadInput, match="is not a length of time"):
        read_evidence(jsonl(tmp_path / "e.jsonl", rows))


# --- jexp/batch-import #50, heremaps/here-cli #156


@pytest.mark.parametrize(
    ("cells", "noted"),
    [
        (
            {2: '"a', 4: 'd"'},
            ["1 cells hold line breaks that look like 2 rows of the file, as after a stray"],
        ),
        ({2: '"a\nsecond line, with a comma\n"'}, []),
        ({}, []),
    ],
)
def test_rows_that_a_stray_quote_took_in_are_noted(
    tmp_path: Path, cells: dict[int, str], noted: list[str]
) -> None:
    lines = ["t_s,arm,w,error,model"]
    lines += [f"{T0 + n},{n % 2},0.5,0,{cells.get(n, 'm')}" for n in range(20)]
    (tmp_path / "e.csv").write_text("\n".join(lines) + "\n")

    notes = read_evidence(tmp_path / "e.csv").notes

    assert [line[: len(noted[0])] for line in notes if "stray quote" in line] == noted


# --- varchar-io/nebula #159, opensearch-project/OpenSearch PR #22741


def test_attributes_of_open_telemetry_are_columns(tmp_path: Path) -> None:
    rows = [
        row | {"attr": [{"key": "variant", "value": {"stringValue": "b" if row["arm"] else "a"}}]}
        for row in plain()
    ]
    expected = [int(row.pop("arm")) for row in rows]

    found = read_evidence(jsonl(tmp_path / "e.jsonl", rows), options=ReadOptions(("arm=attr.variant",)))

    assert [int(value) for value in found.columns["arm"]] == expected


def test_a_map_of_a_parquet_file_is_a_column_for_each_key(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    rows = plain()
    attributes = [[("variant", "b" if row["arm"] else "a"), ("region", "eu")] for row in rows]
    columns = {name: [row[name] for row in rows] for name in ("t_s", "w", "error")}
    maps = pa.array(attributes, pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({**columns, "attr": maps}), tmp_path / "e.parquet")

    found = read_evidence(tmp_path / "e.parquet", options=ReadOptions(("arm=attr.variant",)))

    assert [int(value) for value in found.columns["arm"]] == [int(row["arm"]) for row in rows]

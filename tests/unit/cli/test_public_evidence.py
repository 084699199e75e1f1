"""Recorded evidence of public reports: what other tools write, read as it was meant or refused with a remedy.

Their sources are in tests/public_reports.md.
"""

from __future__ import annotations

import csv
import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from controller.cli.evidence_columns import ReadOptions
from controller.cli.evidence_files import EvidenceFile, read_evidence
from controller.cli.main import run
from controller.errors import BadInput
from evaluation.offline import names
from evaluation.records import EvidenceError

Rows = list[dict[str, Any]]
START = datetime(2026, 5, 1, tzinfo=UTC)


def written(path: Path, rows: Rows) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
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


def decision(capsys: pytest.CaptureFixture[str], path: Path, *arguments: str) -> str:
    code = run(["backtest", str(path), *arguments, "--allow-unjudged", "not known", "-o", "json"])
    out, err = capsys.readouterr()
    assert code in (0, 5, 6), err
    return str(json.loads(out)["decision"])


# --- a column of successes


def jmeter(yes: str, no: str) -> Rows:
    rng = random.Random(7)
    out = []
    for i in range(2000):
        canary = rng.random() < 0.2
        succeeded = rng.random() > (0.3 if canary else 0.02)
        out.append(
            {"t_s": 1.777e9 + i * 4, "arm": int(canary), "w": 0.2, "success": yes if succeeded else no}
        )
    return out


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize(("yes", "no"), [("true", "false"), ("1", "0"), ("success", "failure")])
def test_a_column_of_successes_is_read_by_its_opposite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], yes: str, no: str
) -> None:
    path = written(tmp_path / "jmeter.csv", jmeter(yes, no))

    with pytest.raises(BadInput, match=r"'success' says the opposite of error; give --map error=!success"):
        read(path)
    assert decision(capsys, path, "--map", "error=!success") == "rollback"


def test_successes_are_never_read_as_errors(tmp_path: Path) -> None:
    path = written(tmp_path / "jmeter.csv", jmeter("true", "false"))

    with pytest.raises(
        BadInput, match=r"line 2: success 'true' says the opposite of error; .*error=!success"
    ):
        read(path, "error=success")
    with pytest.raises(EvidenceError, match="'success' says the opposite of error; give error = 1 - success"):
        names.refuse_near_misses(["t_s", "arm", "w", "success"])


@pytest.mark.parametrize(
    ("name", "known"),
    [("ok", "error"), ("is_valid", "invalid"), ("no_error", "error"), ("unflagged", "flagged")],
)
def test_names_of_the_opposite_are_told_from_names_of_the_event(name: str, known: str) -> None:
    assert (names.near_name(name), names.is_opposite(name)) == (known, True)
    assert not names.is_opposite(known)


# --- rows without an arm


def test_rows_without_an_arm_are_refused_as_failures_may_lack_it(tmp_path: Path) -> None:
    rows = []
    for i in range(40):
        at, failed = START + timedelta(seconds=i), i % 10 == 9
        rows.append(
            {
                "request_id": f"r{i}",
                "call_type": "acompletion",
                "startTime": at.isoformat(),
                "endTime": (at + timedelta(seconds=0.0 if failed else 0.9)).isoformat(),
                "model_group": "" if failed else ("v2" if i % 4 == 0 else "v1"),
                "status": "failure" if failed else "success",
            }
        )
    path = written(tmp_path / "spend.json", rows)

    message = r"item 10: model_group is missing \(in 4 of 40 rows\); .* a failed request too"
    for options in ({"canary": "v2"}, {"canary": "v2", "stable": "v1"}, {}):
        with pytest.raises(BadInput, match=message):
            read(path, "arm=model_group", w=0.1, **options)


# --- several upstreams


def nginx(*, with_upstream_status: bool = True) -> Rows:
    out = []
    for i in range(8):
        canary, retried = i % 4 == 0, i in (4, 5)
        drawn, other = ("10.0.0.2:8000", "10.0.0.1:8000") if canary else ("10.0.0.1:8000", "10.0.0.3:8000")
        row = {
            "time_iso8601": (START + timedelta(seconds=i * 2)).isoformat(),
            "request_time": "0.900",
            "status": 200,
            "upstream_addr": f"{drawn}, {other}" if retried else drawn,
        }
        if with_upstream_status:
            row["upstream_status"] = "404, 200" if i == 5 else "502, 200" if retried else "200"
        out.append(row)
    return out


@pytest.mark.parametrize("with_upstream_status", [True, False])
def test_a_retried_request_counts_for_the_upstream_that_was_drawn(
    tmp_path: Path, with_upstream_status: bool
) -> None:
    rows = nginx(with_upstream_status=with_upstream_status)
    path = written(tmp_path / "access.csv", rows)
    found = read(path, "arm=upstream_addr", canary="10.0.0.2:8000", stable="10.0.0.1:8000", w=0.25)

    assert column(found, "arm") == [1, 0, 0, 0, 1, 0, 0, 0]
    assert column(found, "fell_back") == [0, 0, 0, 0, 1, 1, 0, 0]
    assert column(found, "error") == [0, 0, 0, 0, 1, 0 if with_upstream_status else 1, 0, 0]
    assert column(found, "rejected") == [0, 0, 0, 0, 0, 1 if with_upstream_status else 0, 0, 0]
    assert any(note.startswith("2 rows list several upstreams in upstream_addr") for note in found.notes)


def test_an_unknown_status_of_the_first_attempt_is_a_failure(tmp_path: Path) -> None:
    rows = [row | {"upstream_status": "-, 200"} if "," in row["upstream_addr"] else row for row in nginx()]
    path = written(tmp_path / "access.csv", rows)
    found = read(path, "arm=upstream_addr", canary="10.0.0.2:8000", stable="10.0.0.1:8000", w=0.25)

    assert column(found, "error") == [0, 0, 0, 0, 1, 1, 0, 0]


# --- the unit


def users(change: str) -> Rows:
    """300 sticky users of LiteLLM with ten requests each; `change`: which of their names are lost."""
    rng = random.Random(3)
    arm = {user: rng.random() < 0.2 for user in range(300)}
    share = {"one": 0.0, "blank": 0.01, "shared": 0.01, "many": 0.3, "none": 0.0, "request": 1.0}[change]
    out = []
    for i in range(3000):
        user, at = rng.randrange(300), START + timedelta(seconds=i)
        is_lost, canary = rng.random() < share, arm[user]
        if is_lost:
            canary = rng.random() < 0.2
        name = f"user{user}"
        if (is_lost and change in ("blank", "many")) or (change == "one" and i == 77):
            name = ""
        elif is_lost and change == "shared":
            name = "default_user_id"
        out.append(
            {
                "request_id": f"r{i}",
                "call_type": "acompletion",
                "startTime": at.isoformat(),
                "endTime": (at + timedelta(seconds=0.9)).isoformat(),
                "model_group": "v2" if canary else "v1",
                "status": "failure" if rng.random() < 0.01 else "success",
                "end_user": name,
            }
        )
    return out


def read_users(tmp_path: Path, change: str, *maps: str) -> EvidenceFile:
    path = written(tmp_path / "spend.json", users(change))
    return read(path, "arm=model_group", *maps, canary="v2", w=0.2)


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("one", "1 of 3000 rows count each by itself: 1 have none"),
        ("blank", "rows count each by itself: 40 have none"),
        ("shared", "rows count each by itself: 40 share default_user_id, which is on both arms"),
    ],
)
def test_a_few_rows_without_a_user_of_their_own_leave_the_unit_in_place(
    tmp_path: Path, change: str, said: str
) -> None:
    found = read_users(tmp_path, change)
    drawn = found.columns["assigned_by"].tolist()

    assert any("unit from end_user, but" in note and said in note for note in found.notes), found.notes
    assert drawn.count("request") == (1 if change == "one" else 40)
    assert len(set(found.columns["unit"].tolist())) == 300 + drawn.count("request")


@pytest.mark.slow
def test_every_user_is_a_unit_and_draws_by_request_have_none(tmp_path: Path) -> None:
    assert "unit from end_user: each of its values is always on one arm" in read_users(tmp_path, "none").notes
    assert "unit" not in read_users(tmp_path, "request").columns


@pytest.mark.slow
def test_an_unclear_unit_has_to_be_named(tmp_path: Path) -> None:
    with pytest.raises(
        BadInput,
        match=r"unclear whether end_user was drawn: \d+ of 3000 rows have no end_user.*--map unit=end_user",
    ):
        read_users(tmp_path, "many")

    named = read_users(tmp_path, "many", "unit=end_user")
    assert any("rows have no end_user and count each by itself" in note for note in named.notes)
    assert len(set(read_users(tmp_path, "many", "unit=request_id").columns["unit"].tolist())) == 3000


@pytest.mark.slow
def test_rows_that_count_by_themselves_are_evidence_of_both_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "spend.json", users("shared"))
    options = ("--map", "arm=model_group", "--canary", "v2", "--w", "20%")

    assert decision(capsys, path, *options) == "undecided"
    assert (
        run(["ab", "judge", str(path), *options, "--metric", "latency_ms", "-o", "json"]) == 6
    )  # it names no side
    [row] = json.loads(capsys.readouterr().out)["rows"]
    assert row["n_a"] + row["n_b"] == 300 + 40


# --- rows that asked no version


def spend(kind: str) -> Rows:
    """600 requests, one in five v2's. "cached": two of five of v1's and one of ten of v2's were hits;
    "checked": a health check of both every 10 s."""
    rng, rows = random.Random(5), []
    for i in range(600):
        model = "v2" if rng.random() < 0.2 else "v1"
        is_hit = kind == "cached" and rng.random() < (0.1 if model == "v2" else 0.4)
        at = START + timedelta(seconds=i)
        row = {
            "request_id": f"r{i}",
            "startTime": at.isoformat(),
            "endTime": (at + timedelta(milliseconds=4 if is_hit else 900)).isoformat(),
            "spend": 0.0 if is_hit else 0.001,
            "status": "success",
            "model_group": model,
            "cache_hit": "True" if is_hit else "None",
            "request_tags": "[]",
        }
        rows.append(row)
        if kind == "checked" and i % 10 == 0:
            check = {"cache_hit": "None", "request_tags": '["litellm-internal-health-check"]'}
            rows += [row | check | {"request_id": f"{m}{i}", "model_group": m} for m in ("v1", "v2")]
    return rows


def read_spend(folder: Path, kind: str, **options: Any) -> EvidenceFile:
    path = written(folder / "spend.csv", spend(kind))
    return read(path, "arm=model_group", canary="v2", w=0.2, **options)


def test_answers_of_a_gateways_cache_are_no_requests_of_an_arm(tmp_path: Path) -> None:
    """Identical versions were rolled back for latency: the canary's cache was colder."""
    found = read_spend(tmp_path, "cached")

    assert {round(value) for value in column(found, "latency_ms")} == {900}
    [note] = [line for line in found.notes if "cache" in line]
    assert note.startswith(
        "210 rows were answered from the gateway's cache and are left out (40.5% of v1, 13"
    )
    assert read_spend(tmp_path, "cached", ignore=frozenset({"cache_hit"})).rows == 600


def test_health_checks_are_no_requests_of_an_arm(tmp_path: Path) -> None:
    """As many of both arms, whatever w: a sample ratio mismatch that nothing explained."""
    found = read_spend(tmp_path, "checked")

    assert found.rows == 600
    assert any(
        line.startswith("120 rows are the gateway's health checks and are left") for line in found.notes
    )


def test_a_first_token_at_the_end_is_none_in_langfuse_either(tmp_path: Path) -> None:
    rows = []
    for n in range(40):
        start, end = (START + timedelta(seconds=n + s) for s in (0, 3))
        first = start + timedelta(seconds=1) if n % 2 else end
        times = {"startTime": start, "endTime": end, "completionStartTime": first}
        row = {"id": f"o{n}", "traceId": f"t{n}", "type": "GENERATION", "variant": "a" if n % 4 else "b"}
        rows.append(row | {name: at.isoformat() for name, at in times.items()})

    found = read(written(tmp_path / "o.csv", rows), "arm=variant", w=0.25)

    assert [value for value in column(found, "ttft_ms") if value == value] == [1000.0] * 20
    assert any(line.startswith("20 rows have no ttft_ms: it was not streamed") for line in found.notes)


def test_the_generations_of_a_trace_are_one_unit(tmp_path: Path) -> None:
    rng, rows = random.Random(11), []
    for trace in range(60):
        canary = rng.random() < 0.3
        for k in range(4):
            at = START + timedelta(seconds=trace * 40 + k * 3)
            rows.append(
                {
                    "id": f"o{trace}-{k}",
                    "traceId": f"t{trace}",
                    "type": "GENERATION",
                    "startTime": at.isoformat(),
                    "endTime": (at + timedelta(seconds=0.9)).isoformat(),
                    "level": "DEFAULT",
                    "variant": "canary" if canary else "stable",
                }
            )
    found = read(written(tmp_path / "observations.json", rows), "arm=variant", w=0.3)

    assert "unit from traceId: each of its values is always on one arm" in found.notes
    assert len(set(found.columns["unit"].tolist())) == 60


# --- requests that fail fast


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("fixed", [(), ("--fixed",)])
def test_a_version_that_fewer_clients_leave_is_not_slower_in_an_ab_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fixed: tuple[str, ...]
) -> None:
    """Both are alike, but A's clients leave where an answer takes over 1 s: the slow half is B's alone."""
    rng, rows = random.Random(3), []
    for i in range(1500):
        b = rng.random() < 0.5
        took_ms = round(rng.gauss(1000, 150), 1)
        left = not b and took_ms > 1000
        row = {"t_s": 1.777e9 + i * 4, "arm": int(b), "w": 0.5, "error": 0, "cancelled": int(left)}
        rows.append(row | {"latency_ms": 1000 if left else took_ms})
    path = written(tmp_path / "left.csv", rows)

    assert run(["ab", "judge", str(path), "--metric", "latency_ms", *fixed, "-o", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"][0]["verdict"] != "a better"
    assert any("(error, rejected, cancelled) count at 60 s" in note for note in report["notes"])


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("fixed", [(), ("--fixed",)])
def test_failing_fast_is_not_fast_in_an_ab_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fixed: tuple[str, ...]
) -> None:
    rng, rows = random.Random(2), []
    for i in range(1500):
        b = rng.random() < 0.5
        failed = b and rng.random() < 0.6
        latency_ms = 0 if failed else round(rng.gauss(1000, 150), 1)
        rows.append(
            {"t_s": 1.777e9 + i * 4, "arm": int(b), "w": 0.5, "error": int(failed), "latency_ms": latency_ms}
        )
    path = written(tmp_path / "fast.csv", rows)

    assert run(["ab", "judge", str(path), "--metric", "latency_ms", *fixed, "-o", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"][0]["verdict"] == "a better"
    assert any(
        "requests without an answer (error, rejected) count at 60 s" in note for note in report["notes"]
    )


@pytest.mark.slow
def test_failed_requests_are_no_part_of_an_observed_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, rows = random.Random(2), []
    for i in range(2000):
        failed = i % 8 == 0
        latency_ms = 0 if failed else round(rng.gauss(1000, 150), 1)
        rows.append({"t_s": 1.777e9 + i * 10, "error": int(failed), "latency_ms": latency_ms})
    ranges = []
    for name, chosen in (("all", rows), ("answered", [row for row in rows if not row["error"]])):
        path = written(tmp_path / f"{name}.csv", chosen)
        since = str(rows[1]["t_s"])  # the first answered row: the windows of both files begin there
        assert run(["observed", str(path), "--since", since, "-o", "json"]) == 0
        found = json.loads(capsys.readouterr().out)
        ranges.append(found["observed_ranges"]["latency_ms_range"]["ranges"])

    assert ranges[0] == ranges[1]


# --- requests twice


@pytest.mark.slow
@pytest.mark.parametrize("command", [("backtest",), ("ab", "judge", "--metric", "latency_ms")])
@pytest.mark.parametrize("twice", [True, False])
def test_requests_that_stand_twice_under_two_ids_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], twice: bool
) -> None:
    rng, rows = random.Random(8), []
    for i in range(300):
        at = START + timedelta(seconds=i * 2, microseconds=rng.randrange(10**6))
        row = {
            "request_id": f"chatcmpl-{i}",
            "call_type": "aresponses",
            "startTime": at.isoformat(),
            "endTime": (at + timedelta(milliseconds=rng.gauss(900, 150))).isoformat(),
            "model_group": "v2" if rng.random() < 0.2 else "v1",
            "status": "success",
        }
        rows.append(row)
        if twice:
            rows.append(row | {"request_id": f"resp_{i}", "call_type": "acompletion"})
    path = written(tmp_path / "spend.json", rows)

    code = run([*command, str(path), "--map", "arm=model_group", "--canary", "v2", "--w", "20%"])
    err = capsys.readouterr().err
    assert (code == 2) == twice
    message = "request_id resp_0 in item 2 equals another row in all but its id, as do 299 more"
    assert (message in err) == twice


# --- values that say less than they seem to


@pytest.mark.parametrize(("base_ms", "is_said"), [(200_000, True), (900, False)])
def test_latencies_beyond_what_the_gates_tell_apart_are_said(
    tmp_path: Path, base_ms: float, is_said: bool
) -> None:
    rows = [
        {"t_s": 1.777e9 + i, "arm": i % 2, "w": 0.5, "error": 0, "latency_ms": base_ms + i} for i in range(40)
    ]
    found = read(written(tmp_path / "long.csv", rows))

    assert any("100% of latency_ms are beyond 60 s" in note for note in found.notes) == is_said


@pytest.mark.parametrize(("absent", "is_said"), [("", True), ("0", False)])
def test_a_column_with_a_value_only_where_it_happened_names_the_remedy(
    tmp_path: Path, absent: str, is_said: bool
) -> None:
    rows = [
        {"t_s": 1.777e9 + i, "arm": i % 2, "w": 0.5, "error": "1" if i % 7 == 0 else absent}
        for i in range(40)
    ]
    path = written(tmp_path / "sparse.csv", rows)

    assert any("--map error=error:present" in note for note in read(path).notes) == is_said
    if is_said:
        assert sum(column(read(path, "error=error:present"), "error")) == 6

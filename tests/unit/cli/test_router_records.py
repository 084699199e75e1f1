"""A standalone router's own records as evidence: they mean what they mean to the controller."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from controller.cli.evidence_columns import ReadOptions
from controller.cli.evidence_files import read_evidence
from controller.errors import BadInput
from controller.evidence.records import OF_SIGNALS, draw_of
from serving.answer_signals import Signals
from serving.messages import CANARY, STABLE, AttemptRecord, RequestRecord
from serving.router.records.records_file import line_of
from tests.fakes.feed_maker import a_record

LEFT = a_record(
    1,
    arm=CANARY,
    outcome="cancelled",
    error=None,
    latency_ms=None,
    served_arm=None,
)
FELL_BACK = a_record(
    2,
    arm=CANARY,
    served_arm=STABLE,
    error=True,
    cause="reset",
    attempts=(AttemptRecord(CANARY, "http://a", "reset", 0), AttemptRecord(STABLE, "http://b", None, 0)),
)
RECORDS = [a_record(0), LEFT, FELL_BACK, a_record(3, rejected=True, error=False, latency_ms=None, status=400)]


def write(path: Path, records: list[RequestRecord]) -> Path:
    path.write_bytes(b"".join(line_of(one, "chat") for one in records))
    return path


def test_each_record_is_the_draw_that_the_controller_takes_it_for(tmp_path: Path) -> None:
    found = read_evidence(write(tmp_path / "r.jsonl", RECORDS))

    draws = sorted(map(draw_of, RECORDS), key=lambda draw: draw.at_s)
    assert found.columns["arm"].tolist() == [draw.arm for draw in draws]
    for name in ("cancelled", "fell_back"):
        expected = [float(draw.flags[name]) if name in draw.flags else np.nan for draw in draws]
        np.testing.assert_array_equal(np.asarray(found.columns[name], dtype=np.float64), expected)
    np.testing.assert_array_equal(found.columns["error"], [0.0, 0.0, 1.0, 0.0])
    left_ms = np.asarray(found.columns["left_ms"], dtype=np.float64)
    np.testing.assert_allclose(left_ms, [np.nan, 50.0, np.nan, np.nan], rtol=1e-4)
    assert not any("ignored" in note for note in found.notes)


def test_the_signals_of_answers_are_read_from_the_file(tmp_path: Path) -> None:
    """They were lost: a table has the parts of a record's field as columns of their own."""
    quiet = Signals(9, None, 1.5, leaked=False, refused=False, other_language=False, invalid=False)
    signals = [None, quiet, replace(quiet, leaked=True), replace(quiet, refused=True, invalid=True)]
    records = [a_record(n, signals=one) for n, one in enumerate(signals)]

    found = read_evidence(write(tmp_path / "r.jsonl", records))

    for name in OF_SIGNALS:
        expected = [np.nan if one is None else float(getattr(one, name)) for one in signals]
        np.testing.assert_array_equal(np.asarray(found.columns[name], dtype=np.float64), expected)
    assert not set(found.empty) & set(OF_SIGNALS)


def test_joined_columns_are_read_and_a_field_can_be_a_category(tmp_path: Path) -> None:
    lines = [json.loads(line_of(one, "chat")) for one in RECORDS]
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps({**line, "quality": 0.5}) + "\n" for line in lines))

    found = read_evidence(path, extra=("finish_reason",))

    assert found.columns["quality"].tolist()[0] == 0.5
    assert found.columns["finish_reason"].tolist() == ["stop"] * 4


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", RECORDS)
    path.write_text(path.read_text().replace('"outcome":"cancelled"', '"outcome":"gone"'))

    with pytest.raises(BadInput, match=r"r.jsonl: line 2 is no record of a router .*remove the line"):
        read_evidence(path)


STABLE_ALONE = [a_record(n, w=0.0, rollout="", version="stable") for n in range(3)]
V1 = [a_record(10 + n, arm=n % 2, w=0.5, rollout="file-1", version=f"v{n % 2}") for n in range(6)]
V2 = [a_record(20 + n, arm=n % 2, w=0.5, rollout="file-2", version=f"v{2 * (n % 2)}") for n in range(4)]


def test_of_several_canaries_the_newest_is_judged_and_the_others_are_named(tmp_path: Path) -> None:
    found = read_evidence(write(tmp_path / "r.jsonl", [*STABLE_ALONE, *V2, *V1]))  # in any order

    times = [one.at_s for one in (*STABLE_ALONE, *V2)]
    assert np.asarray(found.columns["t_s"]).tolist() == times
    assert (
        "judged: rollout file-2 (of chat, version v2, 2 canary requests, until 2027-01-15 08:00 UTC), "
        "the newest of 2 in r.jsonl; left out: file-1 (of chat, version v1, 3 canary requests, "
        "until 2027-01-15 08:00 UTC); to judge another: --rollout ID"
    ) in found.notes


def test_another_rollout_of_the_file_can_be_chosen_by_its_id(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", [*V1, *V2])

    found = read_evidence(path, options=ReadOptions(rollout="file-1"))

    assert found.rows == len(V1)
    with pytest.raises(
        BadInput, match=r"--rollout file-3: .* it has file-1 \(of chat, version v1, .*; file-2"
    ):
        read_evidence(path, options=ReadOptions(rollout="file-3"))


def test_another_service_in_the_file_is_another_rollout(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    of_code = [a_record(0, w=0.0, rollout=""), *V1]
    path.write_bytes(
        b"".join(line_of(one, "code") for one in of_code) + b"".join(line_of(one, "chat") for one in V2)
    )

    assert read_evidence(path).rows == len(V2)


def test_records_of_one_rollout_and_its_ramp_need_no_choice(tmp_path: Path) -> None:
    found = read_evidence(write(tmp_path / "r.jsonl", [*STABLE_ALONE, *V1]))

    assert found.rows == 9
    assert not any("judged:" in line for line in found.notes)


def test_a_rollout_is_chosen_of_a_routers_records_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("t_s,arm,w\n1,0,0.5\n")

    with pytest.raises(BadInput, match=r"--rollout is for records of canaryctl router, and r\.csv has none"):
        read_evidence(path, options=ReadOptions(rollout="file-1"))

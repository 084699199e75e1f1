"""A standalone router's own records as evidence: they mean what they mean to the controller."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from controller.cli.evidence_files import read_evidence
from controller.errors import BadInput
from controller.evidence.records import draw_of
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

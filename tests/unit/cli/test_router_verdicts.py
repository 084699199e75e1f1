"""Verdicts in the file of a standalone router: scores of their requests, and what becomes of other lines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from controller.cli.evidence_columns import ReadOptions
from controller.cli.evidence_files import EvidenceFile, read_evidence
from serving.judge_messages import JudgeRecord
from serving.messages import RequestRecord
from serving.router.records.records_file import line_of, verdict_line_of
from tests.fakes.feed_maker import a_record

RECORDS = [a_record(n, arm=n % 2, w=0.5, rollout="r-1", judged=True) for n in range(6)]


CAUSES = ("timeout", "timeout", "no judge")


def a_verdict(
    request_id: str,
    bad: bool | None,
    *,
    label: bool | None = None,
    cause: str | None = None,
    revision: str = "a1",
) -> JudgeRecord:
    return JudgeRecord(0, "r-1", revision, 9.0, request_id, label, bad, cause, 50, "router")


def read(
    path: Path, records: list[RequestRecord], verdicts: list[JudgeRecord], more: str = ""
) -> EvidenceFile:
    lines = [line_of(one, "chat") for one in records] + [verdict_line_of(one, "chat") for one in verdicts]
    path.write_bytes(b"".join(lines) + more.encode())
    return read_evidence(path, options=ReadOptions())


def quality(found: EvidenceFile) -> list[float | None]:
    values = np.asarray(found.columns["quality"], dtype=np.float64).tolist()
    return [None if value != value else value for value in values]


def test_a_verdict_is_the_quality_of_its_request(tmp_path: Path) -> None:
    ids = [one.request_id for one in RECORDS]
    verdicts = [
        a_verdict(ids[0], False),
        a_verdict(ids[1], True),
        a_verdict(ids[2], None, cause="timeout"),
        a_verdict(ids[3], None, cause="no answer"),
        a_verdict(ids[1], False),  # the first one counts
        a_verdict("", True, label=True),
        a_verdict("", True, label=False),
    ]
    found = read(tmp_path / "r.jsonl", RECORDS, verdicts)
    assert quality(found) == [1.0, 0.0, None, None, None, None]
    assert (
        "quality of r-1: 3 verdicts of a judge (revision a1) on 5 answers; it was right about 1 of 2 "
        "anchors; no verdict: timeout 1, no answer 1"
    ) in found.notes
    assert not any("ignored" in note for note in found.notes)


def test_a_file_with_lines_of_unknown_kinds_is_read_without_them(tmp_path: Path) -> None:
    more = json.dumps({"kind": "weather", "at_s": 1.0, "cause": "rain"}) + "\n"
    found = read(tmp_path / "r.jsonl", RECORDS, [], more)
    assert (found.rows, "quality" in found.columns) == (6, False)
    assert "1 lines of another kind than requests and verdicts are left out" in found.notes


def test_of_two_judges_the_newest_counts(tmp_path: Path) -> None:
    ids = [one.request_id for one in RECORDS]
    verdicts = [a_verdict(ids[0], True, revision="old"), a_verdict(ids[1], True)]
    found = read(tmp_path / "r.jsonl", RECORDS, verdicts)
    assert quality(found) == [None, 0.0, None, None, None, None]
    assert any("1 of another revision are left out" in note for note in found.notes)


def test_a_judge_that_drifted_says_nothing(tmp_path: Path) -> None:
    anchors = [a_verdict("", n < 60, label=True) for n in range(120)]
    found = read(tmp_path / "r.jsonl", RECORDS, [a_verdict(RECORDS[0].request_id, True), *anchors])
    assert "quality" not in found.columns
    assert any("the judge drifted" in note and "are left out" in note for note in found.notes)


def test_a_judge_that_gave_no_verdict_at_all_is_told_with_the_causes(tmp_path: Path) -> None:
    """Nothing was said of it, and its gates were "not judged (no column quality)"."""
    ids = [one.request_id for one in RECORDS]
    verdicts = [a_verdict(one, None, cause=cause) for one, cause in zip(ids, CAUSES, strict=False)]
    found = read(tmp_path / "r.jsonl", RECORDS, verdicts)

    assert "quality of r-1: none of 3 answers has a verdict; no verdict: timeout 2, no judge 1" in found.notes


def test_without_any_verdict_nothing_is_said(tmp_path: Path) -> None:
    found = read(tmp_path / "r.jsonl", RECORDS, [])
    assert "quality" not in found.columns
    assert not any("verdict" in note for note in found.notes)

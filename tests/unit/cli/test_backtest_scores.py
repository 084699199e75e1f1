"""`backtest --scores FILE`: scores in a file of their own, joined to the requests by their ids."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.cli.evidence_columns import ReadOptions
from controller.cli.evidence_files import EvidenceFile, read_evidence
from controller.errors import BadInput
from serving.messages import ScoreRecord
from serving.router.records.records_file import line_of, score_line
from tests.fakes.feed_maker import a_record


def _lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _requests(folder: Path) -> Path:
    rows = [
        {"request_id": f"req-{n}", "answer_id": f"c-{n}", "t_s": n, "arm": n % 2, "w": 0.5} for n in range(4)
    ]
    return _lines(folder / "requests.jsonl", rows)


def _read(folder: Path, scores: list[Any]) -> EvidenceFile:
    options = ReadOptions(scores=_lines(folder / "scores.jsonl", scores))
    return read_evidence(_requests(folder), options=options)


def test_scores_join_by_either_id_the_first_counts_and_the_rest_is_told(tmp_path: Path) -> None:
    found = _read(
        tmp_path,
        [
            {"id": "req-1", "score": 0.25},
            {"id": "c-1", "score": 1},
            {"id": "c-2", "metric": "thumbs", "score": 1, "at_s": 3.0},
            {"id": "req-9", "score": 1},
        ],
    )

    quality, thumbs = (np.asarray(found.columns[name], dtype=float) for name in ("quality", "thumbs"))
    assert [None if math.isnan(one) else one for one in quality] == [None, 0.25, None, None]
    assert [None if math.isnan(one) else one for one in thumbs] == [None, None, 1.0, None]
    assert (
        "scores.jsonl: 2 scores joined, 1 repeat one of the same request and metric, 1 are of no request here"
        in (found.notes)
    )


def test_what_a_router_writes_is_read_with_its_records(tmp_path: Path) -> None:
    records = [replace(a_record(n, arm=n % 2, w=0.5), request_id=f"req-{n}") for n in range(4)]
    requests = tmp_path / "requests.jsonl"
    requests.write_bytes(b"".join(line_of(one, "chat") for one in records))
    votes = tmp_path / "votes.jsonl"
    votes.write_bytes(score_line(ScoreRecord(0, "req-2", "thumbs", 0.0, 9.0), "chat"))

    found = read_evidence(requests, options=ReadOptions(scores=votes))

    assert np.nansum(np.asarray(found.columns["thumbs"], dtype=float) == 0.0) == 1


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([{"request": "req-1", "score": 1}], "--scores scores.jsonl has no column id"),
        (
            [{"id": "req-1", "score": 1}, {"id": "req-2", "score": 3}],
            "line 2: score '3' is not a number from 0 to 1",
        ),
        ([{"id": "req-1", "score": "good"}], "line 1: score 'good' is not a number"),
        ([{"id": "req-1", "metric": "latency_ms", "score": 1}], "metric 'latency_ms' is unknown; use one of"),
        ([{"id": "x", "score": 1}], "none of the 1 ids of --scores scores.jsonl is in requests.jsonl"),
    ],
)
def test_scores_that_cannot_be_joined_are_refused_in_one_line(
    tmp_path: Path, scores: list[Any], said: str
) -> None:
    with pytest.raises(BadInput) as refused:
        _read(tmp_path, scores)

    assert said in str(refused.value)

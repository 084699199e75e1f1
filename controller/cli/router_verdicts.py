"""What a standalone router's judge said (`kind: judge` in its records), as scores of the requests.

Rules:
1. A verdict is the score `quality` of its request, 1 or 0; the first of a request counts. A value that the
   request's own line has, as one that was joined, stays.
2. One judge a rollout: verdicts of another revision than its newest are left out.
3. A judge whose anchors show that it changed says nothing of the whole rollout: what it said before the
   change cannot be compared with what it said after, and when that was is not known.
4. What was drawn for a verdict is known (`judged` of its request): without one it is missing.
5. Lines of a kind that is not known are left out, and counted.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from controller.cli.evidence_formats import RawTable
from evaluation.judging.anchors import AnchorWatch
from evaluation.records import sampled_name
from serving.messages import RequestRecord
from serving.router.records.records_file import JUDGE_KIND, VERDICT_FIELDS

SCORE = "quality"
# What a verdict's line has and a request's has not.
_OF_VERDICTS = {"kind", SCORE, *VERDICT_FIELDS} - {one.name for one in dataclasses.fields(RequestRecord)}


def with_verdicts(table: RawTable) -> tuple[RawTable, tuple[str, ...]]:
    """The requests with their verdicts, and a line on each thing that was done with other lines."""
    kinds = table.columns.get("kind")
    if kinds is None:
        return table, ()
    rows = [row for row, kind in enumerate(kinds) if kind is None]
    judged = [row for row, kind in enumerate(kinds) if kind == JUDGE_KIND]
    notes: list[str] = []
    if others := len(table) - len(rows) - len(judged):
        notes.append(f"{others} lines of another kind than requests and verdicts are left out")
    columns = table.columns
    found: dict[tuple[object, object, object], object] = {}  # by service, rollout and request
    for place in _by_rollout(table, judged).values():
        kept, lines = _usable(table, place)
        notes += lines
        for row in kept:
            name = (columns["service"][row], columns["rollout"][row], columns["request_id"][row])
            found.setdefault(name, columns[SCORE][row])
    requests = table.pick(rows)
    names = _names_of(requests)
    own = requests.columns.get(SCORE, [None] * len(rows))
    scores = [
        value if value is not None else found.get(name)
        for value, name in zip(own, zip(*names, strict=True), strict=True)
    ]
    left = {
        name: cells
        for name, cells in requests.columns.items()
        if name not in _OF_VERDICTS or any(cell is not None for cell in cells)
    }
    if found:
        left[SCORE] = scores
        judged_ones = {name[:2] for name in found}
        drawn = requests.columns.get("judged", [None] * len(rows))
        left[sampled_name(SCORE)] = [
            int(is_drawn is True and name in judged_ones)
            for is_drawn, name in zip(drawn, zip(*_names_of(requests)[:2], strict=True), strict=True)
        ]
    return dataclasses.replace(requests, columns=left), tuple(notes)


def _names_of(table: RawTable) -> list[list[object]]:
    """Each row's service, rollout and request."""
    return [
        list(table.columns.get(name, [None] * len(table))) for name in ("service", "rollout", "request_id")
    ]


def _by_rollout(table: RawTable, rows: Sequence[int]) -> dict[tuple[object, object], list[int]]:
    places: dict[tuple[object, object], list[int]] = {}
    services, rollouts = (table.columns.get(name, [None] * len(table)) for name in ("service", "rollout"))
    for row in rows:
        places.setdefault((services[row], rollouts[row]), []).append(row)
    return places


def _usable(table: RawTable, rows: Sequence[int]) -> tuple[list[int], list[str]]:
    """The rows of verdicts that count, of one rollout, and what is to be said of the others."""
    columns = table.columns
    rollout = columns["rollout"][rows[0]]
    revisions = [columns["revision"][row] for row in rows if columns[SCORE][row] is not None]
    if not revisions:
        answers = [row for row in rows if columns["label"][row] is None]
        why = _told(_causes(table, answers))
        return [], [f"{SCORE} of {rollout}: none of {len(answers)} answers has a verdict{why}"]
    newest = revisions[-1]
    verdicts = [row for row in rows if columns["revision"][row] == newest and columns[SCORE][row] is not None]
    answers = [row for row in rows if columns["label"][row] is None]
    kept = [row for row in verdicts if columns["label"][row] is None]
    anchors = [row for row in verdicts if columns["label"][row] is not None]
    watch = AnchorWatch()
    for row in anchors:
        watch.add(is_bad=columns["label"][row] is True, called_bad=columns[SCORE][row] == 0)
    if watch.drift is not None:
        return [], [f"{SCORE} of {rollout}: {watch.drift}; its verdicts are left out"]
    right = sum((columns["label"][row] is True) == (columns[SCORE][row] == 0) for row in anchors)
    line = (
        f"{SCORE} of {rollout}: {len(kept)} verdicts of a judge (revision {newest}) on {len(answers)} "
        f"answers; it was right about {right} of {len(anchors)} anchors"
    )
    causes = _causes(table, answers)
    line += _told(causes)
    if other := len(answers) - len(kept) - causes.total():
        line += f"; {other} of another revision are left out"
    return kept, [line]


def _causes(table: RawTable, answers: Sequence[int]) -> Counter[str]:
    """How many of these answers have no verdict, by why."""
    cells, scores = table.columns["cause"], table.columns[SCORE]
    return Counter(str(cells[row]) for row in answers if scores[row] is None)


def _told(causes: Counter[str]) -> str:
    listed = ", ".join(f"{cause} {count}" for cause, count in causes.most_common())
    return f"; no verdict: {listed}" if listed else ""

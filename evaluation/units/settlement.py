"""Settlement: requests in order of assignment, behind a watermark; scores up to their own deadline.

In order of completion, a slow canary's units would come later than stable's of the same moment, and drift
would look like harm (29 % false rollbacks). So a unit waits for every earlier one, and a score that arrives
after its deadline is missing.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from evaluation.records import Draw, EvidenceError, Score
from evaluation.units.ties import tie_order
from evaluation.units.units import unit_hash


class Settlement:
    """Pending records: draws until the watermark passes them, scores until their draws settle."""

    __state__ = ("waiting_rows", "scores", "through_s", "now_s", "late", "repeated")

    def __init__(self, *, keep_scores_s: float) -> None:
        self._keep_s = keep_scores_s
        self.waiting: dict[str, Draw] = {}
        self.scores: dict[str, list[tuple[str, float, float]]] = {}  # request -> (metric, value, at_s)
        self.through_s = float("-inf")
        self.now_s = float("-inf")
        self.late = 0
        self.repeated = 0

    def add_draw(self, draw: Draw) -> None:
        """Store a draw until it settles; late and repeated ones are only counted."""
        if draw.at_s < self.through_s:
            self.late += 1
        elif draw.request_id in self.waiting:
            self.repeated += 1
        else:
            self.waiting[draw.request_id] = draw

    def add_score(self, score: Score) -> None:
        """Store a score until its draw settles; the first of each metric counts."""
        known = self.scores.setdefault(score.request_id, [])
        if any(metric == score.metric for metric, _, _ in known):
            self.repeated += 1
            return
        known.append((score.metric, score.value, score.at_s))

    def advance(self, through_s: float, now_s: float) -> list[Draw]:
        """Remove and return the draws assigned before the watermark `through_s`, in order.

        Errors: EvidenceError when the watermark goes back. `now_s` is ignored unless the watermark advances:
        a reader of a long log knows the time before it has read the scores. A clock set back is ignored.
        """
        if through_s < self.through_s:
            raise EvidenceError(f"watermark {through_s} went back from {self.through_s}; send them ascending")
        if through_s > self.through_s:
            self.now_s = max(self.now_s, now_s)
        self.through_s = through_s
        due = [draw for draw in self.waiting.values() if draw.at_s < through_s]
        for draw in due:
            del self.waiting[draw.request_id]
        due.sort(key=lambda draw: draw.at_s)
        at_s = np.array([draw.at_s for draw in due])
        order = tie_order(at_s, lambda rows: [_tie_key(due[row]) for row in rows.tolist()])
        return due if order is None else [due[row] for row in order.tolist()]

    def score_of(self, request_id: str, metric: str, before_s: float) -> float | None:
        """The score of a request if it was received by `before_s`; None: not received."""
        for name, value, at_s in self.scores.get(request_id, ()):
            if name == metric and at_s <= before_s:
                return value
        return None

    def forget_scores(self) -> None:
        """Drop scores whose draws have settled and whose deadlines have passed."""
        before_s = min(self.through_s, self.now_s - self._keep_s)
        expired = [r for r, known in self.scores.items() if all(at_s < before_s for _, _, at_s in known)]
        for request in expired:
            del self.scores[request]

    @property
    def waiting_rows(self) -> list[list[object]]:
        """The pending draws as plain values, for a snapshot."""
        return [
            [getattr(draw, name) for name in _FIELDS[:-2]] + [dict(draw.flags), dict(draw.covariates)]
            for draw in self.waiting.values()
        ]

    @waiting_rows.setter
    def waiting_rows(self, rows: list[list[object]]) -> None:
        draws = [Draw(*row) for row in rows]  # type: ignore[arg-type]
        self.waiting = {draw.request_id: draw for draw in draws}


def _tie_key(draw: Draw) -> tuple[int, int]:
    return unit_hash(draw.unit), unit_hash(draw.request_id)


_FIELDS = tuple(field.name for field in fields(Draw))

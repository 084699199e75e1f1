"""Scores find their requests: by the request's id or the answer's, before or after the request is told."""

from __future__ import annotations

from collections import OrderedDict

from evaluation.records import Score
from serving.messages import RequestRecord, ScoreRecord

JOIN_IDS = 200_000
HELD_SCORES = 20_000


class ScoreJoin:
    """Ids of answers and requests -> request, with scores that came before their request."""

    def __init__(self) -> None:
        self._requests: OrderedDict[str, str] = OrderedDict()
        self._held: OrderedDict[str, list[ScoreRecord]] = OrderedDict()  # by the id they name

    def add(self, record: RequestRecord) -> list[Score]:
        """Remember a request; returns the held scores that were waiting for it."""
        names = {record.request_id, record.answer_id} - {None}
        for name in names:
            self._requests[str(name)] = record.request_id
        while len(self._requests) > JOIN_IDS:
            self._requests.popitem(last=False)
        waiting = [score for name in names for score in self._held.pop(str(name), [])]
        waiting.sort(key=lambda score: score.seq)  # the first counts, by whichever id it came
        return [_score(record.request_id, score) for score in waiting]

    def match(self, score: ScoreRecord) -> Score | None:
        """The score under its request's id; None: held until the request comes."""
        request = self._requests.get(score.id)
        if request is not None:
            return _score(request, score)
        self._held.setdefault(score.id, []).append(score)
        while len(self._held) > HELD_SCORES:
            self._held.popitem(last=False)
        return None

    def forget(self, before_s: float) -> None:
        """Drop held scores that were given before `before_s`."""
        while self._held and next(iter(self._held.values()))[0].at_s < before_s:
            self._held.popitem(last=False)

    def first_held(self) -> int | None:
        """Position of the oldest held score; None: none is held."""
        return next(iter(self._held.values()))[0].seq if self._held else None


def _score(request_id: str, score: ScoreRecord) -> Score:
    return Score(request_id, score.metric, score.value, score.at_s)

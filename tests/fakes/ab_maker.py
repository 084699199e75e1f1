"""Requests, scores and a ledger for the tests of A/B tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from controller.ab.outcomes import OutcomeLedger
from controller.evidence.score_join import JOIN_WINDOW_S, ScoreJoin
from serving.messages import Event, RequestRecord, ScoreRecord
from tests.fakes.feed_maker import a_record

BODY = {"version": {"model": "/models/b"}}


def request(n: int, **changes: Any) -> RequestRecord:
    """Request n of the rollout r-1, drawn at w = 0.5, served by its arm; its position and time are n."""
    changes = {"served_arm": changes.get("arm", 0), **changes}
    return replace(a_record(n, w=0.5, rollout="r-1"), **{"seq": n, "at_s": float(n), **changes})


class JoinedLedger(OutcomeLedger):
    """A ledger with a join of its own."""

    def __init__(self, rollout: str, metric: str, score_wait_s: float) -> None:
        super().__init__(rollout, metric, score_wait_s)
        self.join = ScoreJoin()


def consume(ledger: JoinedLedger, events: list[Event]) -> None:
    for event in ledger.join.join(events):
        if event.is_new:
            ledger.add_request(event.request)
        for score in event.scores:
            ledger.add_score(score, event.request.request_id)
    ledger.join.forget(before_s=events[-1].at_s - JOIN_WINDOW_S, max_ids=1000)


def score(seq: int, of: str, value: float = 0.7, *, at_s: float = 1.0) -> ScoreRecord:
    return ScoreRecord(seq, of, "quality", value, at_s)

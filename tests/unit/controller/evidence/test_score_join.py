"""Scores from outside: which count, and what becomes of a gate whose scores do not come."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from controller.evidence.feed import EvidenceFeeds, GateConfig
from controller.rollout.observation import EvidenceStatus
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.report import GateReport, Verdict
from serving.messages import Event
from tests.fakes.feed_maker import (
    CONFIG,
    ROLLOUT,
    START_S,
    Snapshots,
    a_record,
    a_score,
    feeds_on,
    in_stage,
    look,
    n_of,
)
from tests.fakes.plane import FakeLog

DEADLINE_S = 600.0  # of quality, by default
LATER_S = START_S + 5000.0


def quality(sight: EvidenceStatus, side: str = "rollback") -> GateReport:
    return next(gate for gate in sight.gates if gate.gate == "quality" and gate.side == side)


def seen(*events: Event, restart: bool = False) -> EvidenceStatus:
    """What a stage says once all of these have settled; restart: between each two of them."""
    log = FakeLog(watermark_s=START_S)
    feeds = feeds_on(log)
    for event in events:
        log.append(event)
        if restart:
            look(feeds, in_stage(), START_S + 5.0)
            feeds = feeds_on(log, feeds.snapshot(ROLLOUT))
    log.watermark_s = LATER_S
    return look(feeds, in_stage(), LATER_S)


both = pytest.mark.parametrize("restart", [False, True], ids=["no restart", "restarts"])


@both
@pytest.mark.parametrize("ids", [("q7", "q7"), ("a7", "a7"), ("a7", "q7")], ids="-".join)
@pytest.mark.parametrize("early", [False, True], ids=["request first", "scores first"])
def test_of_two_scores_of_one_answer_the_first_counts(
    ids: tuple[str, str], early: bool, restart: bool
) -> None:
    scores = [a_score(ids[0], 0.25, at_s=START_S + 2), a_score(ids[1], 1.0, at_s=START_S + 3)]
    events: list[Event] = [*scores, a_record(7, arm=1)] if early else [a_record(7, arm=1), *scores]

    gate = quality(seen(*events, restart=restart))

    assert (gate.n_canary, gate.canary) == (1, 0.25)


@both
@pytest.mark.parametrize(("after_s", "counted"), [(0.0, 1), (0.001, 0)], ids=["on time", "late"])
def test_a_score_after_its_deadline_is_missing(after_s: float, counted: int, restart: bool) -> None:
    record = a_record(7, arm=1)
    score = a_score("a7", 1.0, at_s=record.at_s + DEADLINE_S + after_s)

    assert n_of(seen(record, score, restart=restart), "quality") == (0, counted)


@both
def test_a_late_score_does_not_stand_in_the_way_of_none_before_it(restart: bool) -> None:
    record = a_record(7, arm=1)
    scores = (
        a_score("a7", 0.5, at_s=record.at_s + 1.0),
        a_score("q7", 1.0, at_s=record.at_s + DEADLINE_S + 1.0),
    )

    assert quality(seen(record, *scores, restart=restart)).canary == 0.5


@both
def test_a_score_of_another_rollouts_request_is_no_evidence(restart: bool) -> None:
    own = (a_record(1, arm=1), a_score("a1", 0.5, at_s=START_S + 1))
    other = (a_record(2, arm=1, rollout="r-00000000"), a_score("a2", 0.0, at_s=START_S + 1))

    assert seen(*own, *other, restart=restart) == seen(*own)


@both
def test_a_score_of_nobody_is_no_evidence_and_is_forgotten(restart: bool) -> None:
    own = (a_record(1, arm=1), a_score("a1", 0.5, at_s=START_S + 1))

    assert seen(*own, a_score("nobody", 0.0), restart=restart) == seen(*own)


def test_scores_of_nobody_do_not_pile_up() -> None:
    log = FakeLog(watermark_s=START_S)
    feeds = feeds_on(log)
    for n in range(50):
        log.append(a_score(f"nobody{n}", 0.0))
    held = []
    for now_s in (START_S + 10, LATER_S):
        look(feeds, in_stage(), now_s)
        held.append(feeds._feeds[ROLLOUT]._join.first_held())

    assert held == [1, None]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.01, 1.01])
def test_a_score_that_is_none_is_refused_and_a_right_one_still_counts(value: float) -> None:
    scores = (a_score("a7", value, at_s=START_S + 1), a_score("a7", 0.75, at_s=START_S + 2))
    gate = quality(seen(a_record(7, arm=1), *scores))

    assert (gate.n_canary, gate.canary) == (1, 0.75)


def test_a_score_cannot_say_what_the_router_has_seen() -> None:
    records = [a_record(n, arm=n % 2, w=0.5) for n in range(40)]
    lies = [a_score(f"a{n}", 1.0, metric="error", at_s=START_S + 5) for n in range(1, 40, 2)]

    assert seen(*records, *lies) == seen(*records)


@pytest.mark.parametrize(
    "failure",
    [
        {"outcome": "fallback", "served_arm": 0, "error": True},
        {"outcome": "fenced", "served_arm": 0},
        {"outcome": "cut", "error": True},
        {"outcome": "cancelled", "error": None},
    ],
    ids=lambda failure: str(failure["outcome"]),
)
@both
def test_what_its_arm_did_not_answer_whole_has_no_quality(failure: dict[str, Any], restart: bool) -> None:
    sight = seen(a_record(7, arm=1, **failure), a_score("a7", 1.0, at_s=START_S + 2), restart=restart)

    assert n_of(sight, "quality") == (0, 0)


# --- a gate whose scores do not come


def a_stage(scored: tuple[float, float]) -> EvidenceStatus:
    """600 harmless requests at 50 %; the shares of each arm's answers that somebody scores."""
    log = FakeLog()
    for n in range(600):
        log.append(a_record(n, arm=n % 2, w=0.5))
        if (n // 2) % 20 < 20 * scored[n % 2]:
            log.append(a_score(f"a{n}", 0.9, at_s=START_S + 0.1 * n + 1))
    log.watermark_s = LATER_S
    return look(feeds_on(log), in_stage(1), LATER_S)


@pytest.mark.parametrize(
    ("scored", "why"),
    [
        ((0.0, 0.0), "no value in 600 requests"),
        ((1.0, 0.0), "values are missing differently by arm"),
        ((1.0, 0.7), "values are missing differently by arm"),
    ],
    ids=["of neither", "of stable alone", "of fewer canary answers"],
)
def test_a_gate_without_its_scores_is_invalid_and_never_passes(scored: tuple[float, float], why: str) -> None:
    sight = a_stage(scored)

    assert (sight.verdict, sight.rollback) == (Verdict.INVALID, None)
    assert quality(sight, "promotion").reason == why
    assert sight.missing == (f"quality: {why}",)


def test_a_gate_with_all_its_scores_is_judged() -> None:
    sight = a_stage((1.0, 1.0))

    assert (quality(sight, "promotion").verdict, sight.missing) == (Verdict.PASS, ())


@pytest.mark.parametrize("restart", [False, True], ids=["no restart", "restart"])
def test_a_patient_gate_still_finds_the_request_of_a_score_that_comes_after_an_hour(restart: bool) -> None:
    gates = tuple(replace(g, deadline_s=7200.0) for g in CONFIG.policy.gates if g.metric == "quality")
    config = GateConfig(replace(GatePolicy.default(), gates=gates), (StagePlan(0.1, 50),))
    log = FakeLog(watermark_s=START_S)
    feeds = EvidenceFeeds(log, Snapshots(), lambda rollout: config)
    log.append(a_record(7, arm=1))
    for hour_s in (0.0, 1800.0, 3500.0):
        log.watermark_s = START_S + hour_s
        look(feeds, in_stage(), START_S + hour_s)
    if restart:
        feeds = EvidenceFeeds(log, Snapshots(feeds.snapshot(ROLLOUT)), lambda rollout: config)
    log.append(a_score("a7", 0.5, at_s=START_S + 3600.0))
    log.watermark_s = START_S + 9000.0

    assert n_of(look(feeds, in_stage(), START_S + 9000.0), "quality") == (0, 1)

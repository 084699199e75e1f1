"""Score join in an evidence feed: which scores count, and the verdict of a gate without its scores."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from controller.evidence.records import GateConfig, draw_of
from controller.evidence.score_join import SCORES_OF_ONE, ScoreJoin
from controller.rollout.observation import EvidenceStatus
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.records import check_draw
from evaluation.report import GateReport, Verdict
from serving.messages import Event, RequestRecord, ScoreRecord
from tests.fakes.feed_maker import (
    CONFIG,
    ROLLOUT,
    START_S,
    a_record,
    a_score,
    feeds_on,
    in_stage,
    n_of,
    observe,
)
from tests.fakes.plane import FakeLog

DEADLINE_S = 600.0  # of quality, by default
LATER_S = START_S + 5000.0


def quality(evidence: EvidenceStatus, side: str = "rollback") -> GateReport:
    return next(gate for gate in evidence.gates if gate.gate == "quality" and gate.side == side)


def settled(*events: Event, restart: bool = False) -> EvidenceStatus:
    """Evidence of a stage after all these events have settled; restart: after each event."""
    log = FakeLog(watermark_s=START_S)
    feeds = feeds_on(log)
    for event in events:
        log.append(event)
        if restart:
            observe(feeds, in_stage(), START_S + 5.0)
            feeds = feeds_on(log, feeds.snapshot(ROLLOUT))
    log.watermark_s = LATER_S
    return observe(feeds, in_stage(), LATER_S)


both = pytest.mark.parametrize("restart", [False, True], ids=["no restart", "restarts"])


@pytest.mark.sample(2)
@both
@pytest.mark.parametrize("ids", [("q7", "q7"), ("a7", "a7"), ("a7", "q7")], ids="-".join)
@pytest.mark.parametrize("early", [False, True], ids=["request first", "scores first"])
def test_of_two_scores_of_one_answer_the_first_counts(
    ids: tuple[str, str], early: bool, restart: bool
) -> None:
    scores = [a_score(ids[0], 0.25, at_s=START_S + 2), a_score(ids[1], 1.0, at_s=START_S + 3)]
    events: list[Event] = [*scores, a_record(7, arm=1)] if early else [a_record(7, arm=1), *scores]

    gate = quality(settled(*events, restart=restart))

    assert (gate.n_canary, gate.canary) == (1, 0.25)


@pytest.mark.slow
@both
@pytest.mark.parametrize(("after_s", "counted"), [(0.0, 1), (0.001, 0)], ids=["on time", "late"])
def test_a_score_after_its_deadline_is_missing(after_s: float, counted: int, restart: bool) -> None:
    record = a_record(7, arm=1)
    score = a_score("a7", 1.0, at_s=record.at_s + DEADLINE_S + after_s)

    assert n_of(settled(record, score, restart=restart), "quality") == (0, counted)


@pytest.mark.slow
@both
def test_a_late_score_does_not_replace_one_on_time(restart: bool) -> None:
    record = a_record(7, arm=1)
    scores = (
        a_score("a7", 0.5, at_s=record.at_s + 1.0),
        a_score("q7", 1.0, at_s=record.at_s + DEADLINE_S + 1.0),
    )

    assert quality(settled(record, *scores, restart=restart)).canary == 0.5


@pytest.mark.sample(1)
@both
def test_a_score_of_another_rollouts_request_is_no_evidence(restart: bool) -> None:
    own = (a_record(1, arm=1), a_score("a1", 0.5, at_s=START_S + 1))
    other = (a_record(2, arm=1, rollout="r-00000000"), a_score("a2", 0.0, at_s=START_S + 1))

    assert settled(*own, *other, restart=restart) == settled(*own)


@pytest.mark.slow
@both
def test_a_score_without_a_request_is_no_evidence_and_expires(restart: bool) -> None:
    own = (a_record(1, arm=1), a_score("a1", 0.5, at_s=START_S + 1))

    assert settled(*own, a_score("unknown", 0.0), restart=restart) == settled(*own)


def test_scores_without_a_request_do_not_accumulate() -> None:
    log = FakeLog(watermark_s=START_S)
    feeds = feeds_on(log)
    for n in range(50):
        log.append(a_score(f"unknown{n}", 0.0))
    held = []
    for now_s in (START_S + 10, LATER_S):
        observe(feeds, in_stage(), now_s)
        held.append(feeds._reader._join.first_held())

    assert held == [1, None]


def test_scores_of_one_request_that_never_comes_do_not_accumulate() -> None:
    """As of a grader in a loop: 600,000 were held under one id."""
    join = ScoreJoin()

    join.join(ScoreRecord(seq, "never", "quality", 0.5, 1000.0) for seq in range(1000))
    join.join(ScoreRecord(1000 + seq, "other", f"m{seq}", 0.5, 1000.0) for seq in range(1000))

    assert [len(held) for held in join._held.values()] == [1, SCORES_OF_ONE]
    assert join.first_held() == 0


def test_a_router_whose_clock_is_ahead_keeps_no_id_from_being_forgotten() -> None:
    """Its requests counted as younger than all others, whose scores then found nothing."""
    join, now_s, seq = ScoreJoin(), 1_000_000.0, 0
    for _ in range(30):
        now_s += 60.0
        events = []
        for router in range(10):
            seq += 1
            at_s = now_s + (86_400.0 if router % 2 else 0.0)
            events.append(replace(a_record(seq, w=0.5), at_s=at_s, request_id=f"q{seq}", answer_id=None))
        join.join(events, now_s=now_s)
        join.forget(before_s=now_s - 300.0, max_ids=50)

    assert [number for number in range(1, seq + 1) if join.has(f"q{number}")] == list(range(241, 301))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.01, 1.01])
def test_a_malformed_score_is_refused_and_a_valid_one_still_counts(value: float) -> None:
    scores = (a_score("a7", value, at_s=START_S + 1), a_score("a7", 0.75, at_s=START_S + 2))
    gate = quality(settled(a_record(7, arm=1), *scores))

    assert (gate.n_canary, gate.canary) == (1, 0.75)


def test_a_score_cannot_override_a_metric_of_the_request_record() -> None:
    records = [a_record(n, arm=n % 2, w=0.5) for n in range(40)]
    overrides = [a_score(f"a{n}", 1.0, metric="error", at_s=START_S + 5) for n in range(1, 40, 2)]

    assert settled(*records, *overrides) == settled(*records)


@pytest.mark.sample(3)
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
def test_a_request_its_arm_did_not_answer_whole_has_no_score(failure: dict[str, Any], restart: bool) -> None:
    evidence = settled(a_record(7, arm=1, **failure), a_score("a7", 1.0, at_s=START_S + 2), restart=restart)

    assert n_of(evidence, "quality") == (0, 0)


# --- a gate without its scores


def scored_stage(scored: tuple[float, float]) -> EvidenceStatus:
    """600 harmless requests at 50 %. scored: share of answers with a score, by arm."""
    log = FakeLog()
    for n in range(600):
        log.append(a_record(n, arm=n % 2, w=0.5))
        if (n // 2) % 20 < 20 * scored[n % 2]:
            log.append(a_score(f"a{n}", 0.9, at_s=START_S + 0.1 * n + 1))
    log.watermark_s = LATER_S
    return observe(feeds_on(log), in_stage(1), LATER_S)


DIFFERENTLY = (
    "values are missing differently by arm; if the arms are judged at different rates, state both in the "
    "gate's `sampling`"
)


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("scored", "why"),
    [
        ((0.0, 0.0), "no value in 600 requests"),
        ((1.0, 0.0), DIFFERENTLY),
        ((1.0, 0.7), DIFFERENTLY),
    ],
    ids=["of neither", "of stable alone", "of fewer canary answers"],
)
def test_a_gate_without_its_scores_is_invalid_and_never_passes(scored: tuple[float, float], why: str) -> None:
    evidence = scored_stage(scored)

    assert (evidence.verdict, evidence.rollback) == (Verdict.INVALID, None)
    assert quality(evidence, "promotion").reason.startswith(why)
    assert [line.startswith(f"quality: {why}") for line in evidence.missing] == [True]


@pytest.mark.slow
def test_a_gate_with_all_its_scores_passes() -> None:
    evidence = scored_stage((1.0, 1.0))

    assert (quality(evidence, "promotion").verdict, evidence.missing) == (Verdict.PASS, ())


@pytest.mark.parametrize("restart", [False, True], ids=["no restart", "restart"])
def test_a_score_within_a_two_hour_deadline_finds_its_request_after_an_hour(restart: bool) -> None:
    gates = tuple(replace(g, deadline_s=7200.0) for g in CONFIG.policy.gates if g.metric == "quality")
    config = GateConfig(replace(GatePolicy.default(), gates=gates), (StagePlan(0.1, 50),))
    log = FakeLog(watermark_s=START_S)
    feeds = feeds_on(log, config=config)
    log.append(a_record(7, arm=1))
    for hour_s in (0.0, 1800.0, 3500.0):
        log.watermark_s = START_S + hour_s
        observe(feeds, in_stage(), START_S + hour_s)
    if restart:
        feeds = feeds_on(log, feeds.snapshot(ROLLOUT), config=config)
    log.append(a_score("a7", 0.5, at_s=START_S + 3600.0))
    log.watermark_s = START_S + 9000.0

    assert n_of(observe(feeds, in_stage(), START_S + 9000.0), "quality") == (0, 1)


def joined_to(score_id: str, *requests: RequestRecord) -> str:
    join = ScoreJoin()
    join.join(requests)
    [one] = join.join([replace(a_score(score_id, 0.0), seq=99)])
    return one.request.request_id


def test_a_later_answer_cannot_take_the_id_of_an_earlier_one() -> None:
    victim = replace(a_record(1, arm=0), answer_id="chatcmpl-1", seq=1)
    later = replace(a_record(2, arm=1), answer_id="chatcmpl-1", seq=2)

    assert joined_to("chatcmpl-1", victim, later) == "q1"
    assert joined_to("chatcmpl-1", later, victim) == "q1"  # read again in another order


@pytest.mark.parametrize("is_claimed_first", [True, False])
def test_an_answer_cannot_take_the_id_of_a_request(is_claimed_first: bool) -> None:
    victim = replace(a_record(1, arm=0), seq=2 if is_claimed_first else 1)
    other = replace(a_record(2, arm=1), answer_id="q1", seq=1 if is_claimed_first else 2)
    order = [other, victim] if is_claimed_first else [victim, other]

    assert joined_to("q1", *order) == "q1"


HUGE = 10**400


@pytest.mark.parametrize(
    "values",
    [{"completion_tokens": HUGE}, {"completion_tokens": -1}, {"latency_ms": math.nan}, {"itl_ms": math.inf}],
)
def test_a_bad_measurement_leaves_its_unit_in_the_evidence(values: dict[str, Any]) -> None:
    draw = draw_of(a_record(1, arm=1, **values))

    check_draw(draw)
    assert None in (draw.tokens, draw.latency_ms, draw.itl_ms)

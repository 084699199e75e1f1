"""Verdicts of a judge in a rollout's feed: scores, missing ones, anchors; and what makes them void."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from controller.evidence.feed import Feed
from controller.evidence.judged import without_judge
from controller.evidence.reader import JoinedPage
from controller.evidence.records import GateConfig, gate_config
from controller.evidence.score_join import Joined
from controller.evidence.snapshot import envelope_of, stored_feed
from controller.rollout.judge_plan import JudgeState
from controller.rollout.observation import EvidenceStatus, JudgeEvidence
from controller.rollout.state import RolloutState
from evaluation.evaluator import Evaluator
from evaluation.policy.gates import StagePlan
from evaluation.policy.parsing import gate_policy_of
from evaluation.report import EvaluationReport, GateReport, Verdict
from serving.judge_messages import JudgeRecord
from serving.messages import RequestRecord, ScoreRecord
from tests.fakes.feed_maker import ROLLOUT, START_S, a_record, a_score, feeds_on, in_stage, observe, traffic
from tests.fakes.judged import a_verdict, admitted, an_anchor
from tests.fakes.plane import FakeLog

POLICY = gate_policy_of(
    {
        "base": "default",
        "gates": {
            **dict.fromkeys(("rejected", "latency_p99", "latency_shape", "ttft_shape", "hallucination")),
            "quality": {"deadline_s": 60.0, "sampling": {"stable": 0.5, "canary": 0.5}},
        },
    }
)
CONFIG = GateConfig(POLICY, (StagePlan(0.1, 50),), "quality")
EXAMINED = JudgeState(1, admitted())


def judged_stage(judge: JudgeState = EXAMINED) -> RolloutState:
    return replace(in_stage(), judge=judge)


def page(feed: Feed, *events: object, now_s: float = START_S + 10.0, through_s: float = START_S) -> None:
    """One page of records, verdicts and scores of request `q0`."""
    requests = [event for event in events if not isinstance(event, JudgeRecord | ScoreRecord)]
    scores = [event for event in events if isinstance(event, ScoreRecord)]
    joined = [Joined(request, True, ()) for request in requests]  # type: ignore[arg-type]
    joined += [Joined(a_record(0), False, (score,)) for score in scores]
    verdicts = [event for event in events if isinstance(event, JudgeRecord)]
    feed.follow(judged_stage(), None, now_s)
    feed.on_page(JoinedPage(joined, (), through_s, True, (), verdicts), now_s)


def counts(feed: Feed) -> JudgeEvidence:
    status = feed.status()
    assert status is not None
    assert status.judge is not None
    return status.judge


def sampled(n: int, *, arm: int = 0, **more: object) -> RequestRecord:
    return replace(a_record(n, arm=arm), judged=True, **more)  # type: ignore[arg-type]


def scores_of(feed: Feed) -> dict[str, list[tuple[str, float, float]]]:
    evaluator = feed._evaluator
    assert isinstance(evaluator, Evaluator)
    return evaluator.settlement.scores


def test_a_verdict_is_a_score_whichever_of_the_two_comes_first() -> None:
    feed = Feed(ROLLOUT, CONFIG)
    page(feed, sampled(0), a_verdict("q1", True, at_s=START_S + 2.0))
    page(feed, sampled(1, arm=1), a_verdict("q0", False, at_s=START_S + 1.0))

    assert scores_of(feed) == {
        "q1": [("quality", 0.0, START_S + 2.0)],
        "q0": [("quality", 1.0, START_S + 1.0)],
    }
    assert counts(feed).verdicts == (1, 1)


def test_where_a_judge_has_the_metric_the_scores_of_others_are_none() -> None:
    """They come on other answers than those that were drawn: whoever sends them chooses which."""
    feed = Feed(ROLLOUT, CONFIG)
    page(feed, sampled(0), a_score("q0", 0.3), a_score("q0", 1.0, metric="thumb"), a_verdict("q0", False))
    page(
        feed, replace(sampled(1), judged=False), replace(sampled(2, arm=1), judged=False), a_score("q0", 0.1)
    )

    assert [one for one in scores_of(feed)["q0"] if one[0] == "quality"] == [("quality", 1.0, START_S)]
    assert counts(feed).verdicts == (1, 0)
    assert counts(feed).others == 2
    assert "left out 2 scores of quality that are not the judge's" in counts(feed).text


def test_a_judges_count_of_others_scores_outlives_a_restart() -> None:
    feed = Feed(ROLLOUT, CONFIG)
    page(feed, sampled(0), a_score("q0", 0.3))
    again = Feed.restore(ROLLOUT, CONFIG, feed.snapshot(0))
    page(again, a_score("q0", 0.3))

    assert counts(again).others == 2


@pytest.mark.parametrize("changes", [{"revision": "another"}, {"rollout": "r-other"}])
def test_a_verdict_of_another_revision_or_rollout_is_not_read(changes: dict[str, str]) -> None:
    feed = Feed(ROLLOUT, CONFIG)
    others = [replace(one, **changes) for one in (a_verdict("q0", True), an_anchor(True, True))]  # type: ignore[arg-type]
    page(feed, sampled(0), *others)

    assert scores_of(feed) == {}
    assert (counts(feed).verdicts, counts(feed).anchors) == ((0, 0), 0)


def test_what_has_no_verdict_in_time_is_missing_by_arm_and_cause() -> None:
    feed = Feed(ROLLOUT, CONFIG)
    page(
        feed,
        *(sampled(0), sampled(1, arm=1), sampled(2, arm=1), a_record(3), sampled(4)),
        a_verdict("q0", None, cause="timeout", at_s=START_S + 1.0),
        a_verdict("q1", True, at_s=START_S + 99.0),
        a_verdict("q4", None, cause="over budget", at_s=START_S + 1.0),
    )
    assert counts(feed).missing == (2, 1)
    page(feed, now_s=START_S + 500.0, through_s=START_S + 400.0)

    assert counts(feed).missing == (2, 2)
    assert counts(feed).causes == (("lost", 1), ("over budget", 1), ("timeout", 1), ("too late", 1))
    assert counts(feed).text == (
        "judged 0 stable, 0 canary; missing 2 stable, 2 canary (lost 1, over budget 1, timeout 1, too late 1)"
    )


def test_a_sampled_request_without_an_answer_is_not_the_judges_fault() -> None:
    feed = Feed(ROLLOUT, CONFIG)
    page(
        feed,
        sampled(0, arm=1, error=True, outcome="fallback", served_arm=0),
        sampled(1, outcome="cancelled", error=None),
        sampled(2, rejected=True),
        *(a_verdict(f"q{n}", None, cause="no answer") for n in range(3)),
        now_s=START_S + 500.0,
        through_s=START_S + 400.0,
    )

    assert counts(feed).unanswered == (2, 1)
    assert counts(feed).missing == (0, 0)


def test_a_restarted_feed_knows_what_waits_and_what_the_anchors_said() -> None:
    feed = Feed(ROLLOUT, CONFIG)
    anchors = [an_anchor(True, n % 7 > 0) for n in range(60)] + [an_anchor(False, True)]
    page(feed, sampled(0), sampled(1), a_verdict("q1", True), a_verdict("q2", False), *anchors)

    again = Feed.restore(ROLLOUT, CONFIG, feed.snapshot(0))
    for one in (feed, again):
        page(one, sampled(2), a_verdict("q0", False), an_anchor(True, False))

    assert counts(again) == counts(feed)
    assert counts(again).verdicts == (3, 0)
    assert (counts(again).anchors, counts(again).anchors_wrong) == (62, 11)
    assert again._judged.to_mapping() == feed._judged.to_mapping()


def test_a_snapshot_from_before_judges_is_read() -> None:
    feed = Feed(ROLLOUT, CONFIG)
    page(feed, sampled(0))
    saved = stored_feed(feed.snapshot(0))
    del saved["judged"]

    assert counts(Feed.restore(ROLLOUT, CONFIG, envelope_of(None, saved))).verdicts == (0, 0)


def test_a_rollout_without_a_judge_reads_no_verdicts() -> None:
    feed = Feed(ROLLOUT, replace(CONFIG, judged_metric=None))
    page(feed, sampled(0), a_verdict("q0", True))
    status = feed.status()

    assert status is not None
    assert status.judge is None
    assert scores_of(feed) == {}
    assert stored_feed(feed.snapshot(0))["judged"] is None


def judged_traffic(log: FakeLog, count: int, *, canary_accuracy: float) -> None:
    """`count` requests at w = 0.5, each with a verdict."""
    rng = random.Random(3)
    for n in range(count):
        arm = int(rng.random() < 0.5)
        log.append(replace(sampled(n, arm=arm), w=0.5))
        is_bad = rng.random() >= (canary_accuracy if arm else 0.97)
        log.append(a_verdict(f"q{n}", is_bad, at_s=START_S + 0.1 * n + 0.06))
    log.watermark_s = START_S + 0.1 * count


@pytest.mark.slow
def test_drift_voids_harm_that_the_same_verdicts_show() -> None:
    log = FakeLog()
    feeds = feeds_on(log, config=CONFIG)
    judged_traffic(log, 3000, canary_accuracy=0.5)
    before = observe(feeds, judged_stage(), START_S + 2000.0)
    for called_bad in [True] * 200 + [False] * 200:
        log.append(an_anchor(True, called_bad))
    after = observe(feeds, judged_stage(), START_S + 2001.0)

    assert before.rollback is not None
    assert before.rollback.gate == "quality"
    assert (after.rollback, after.verdict) == (None, Verdict.INVALID)
    assert after.judge is not None
    assert after.judge.drift is not None
    assert reason_of(after).endswith("its verdicts are void")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("judge", "words"),
    [
        (JudgeState(), "NOT JUDGED: the judge is being examined"),
        (JudgeState(1, admitted(), drift="the judge drifted: x"), "NOT JUDGED: the judge drifted: x; its"),
    ],
)
def test_a_judge_that_may_not_vote_makes_its_gates_invalid(judge: JudgeState, words: str) -> None:
    log = FakeLog()
    traffic(log, 200)
    status = observe(feeds_on(log, config=CONFIG), judged_stage(judge), START_S + 900.0)

    assert status.verdict is Verdict.INVALID
    assert reason_of(status).startswith(words)
    assert any(line.startswith(f"quality: {words}") for line in status.missing)


def reason_of(status: EvidenceStatus) -> str:
    return next(gate.reason for gate in status.gates if gate.gate == "quality")


def a_gate(name: str, metric: str, verdict: Verdict, canary: int) -> GateReport:
    return GateReport(name, metric, "rollback", verdict, 9.0, 6.0, "harm", 9, 9, decided_canary=canary)


def test_harm_that_another_gate_shows_later_is_not_hidden_by_a_void_one() -> None:
    gates = (a_gate("quality", "quality", Verdict.FAIL, 10), a_gate("error", "error", Verdict.FAIL, 500))
    report = EvaluationReport(0, Verdict.FAIL, gates[0], gates, (), False, 900, 900, 900, 0.0)

    void = without_judge(report, "quality", "NOT JUDGED: why")

    assert void.rollback == gates[1]
    assert void.stage_verdict is Verdict.FAIL
    assert (void.gates[0].verdict, void.gates[0].reason) == (Verdict.INVALID, "NOT JUDGED: why")
    assert without_judge(report, "thumbs", "why") is report


def test_the_judges_metric_is_pinned_in_the_request() -> None:
    request = {"gate": POLICY.to_mapping(), "stages": [], "judge": {"url": "u", "model": "m"}}

    assert gate_config(json.dumps(request)).judged_metric == "quality"
    assert gate_config(json.dumps({**request, "judge": None})).judged_metric is None
    del request["judge"]
    assert gate_config(json.dumps(request)).judged_metric is None

"""What a rollout's answers cost: of both versions, and apart its judge and its copies; rate limits."""

from __future__ import annotations

import json
import logging
import random
from dataclasses import replace
from typing import Any

import pytest

from controller.evidence import beside
from controller.evidence.before import StableBefore
from controller.evidence.costs import RolloutCosts
from controller.evidence.feed import Feed
from controller.evidence.pricing import pinned, priced, prices_of
from controller.evidence.reader import JoinedPage
from controller.evidence.records import GateConfig, draw_of, gate_config
from controller.evidence.score_join import Joined
from controller.evidence.typical_range import TypicalRanges
from controller.rollout.observation import ArmCosts, CostStatus
from controller.rollout.serialization import evidence_from_json, evidence_to_json
from controller.spec.prices import BUDGET_ALARM, with_budget
from controller.spec.service import parse_service
from evaluation.costs import Prices, TokenPrice
from evaluation.policy.policy import GatePolicy
from serving.judge_messages import JudgeRecord
from serving.messages import CANARY, STABLE, MirrorRecord, RequestRecord
from tests.fakes.feed_maker import CONFIG, ROLLOUT, START_S, a_record, feeds_on, in_stage, observe
from tests.fakes.plane import FakeLog

PRICES = Prices("USD", TokenPrice(2.5, 10.0), TokenPrice(3.0, 12.0, 0.3), judge=1.0)
PRICED = replace(CONFIG, prices=PRICES)


def answered(n: int, *, arm: int = STABLE, w: float = 0.1, **changes: object) -> RequestRecord:
    record = a_record(n, arm=arm, w=w, prompt_tokens=1000, completion_tokens=200)
    return replace(record, **changes)  # type: ignore[arg-type]


def tokens_of(arm: ArmCosts) -> tuple[int, int, int, int, int]:
    return arm.answers, arm.counted, arm.prompt_tokens, arm.cached_tokens, arm.completion_tokens


def a_copy(**changes: object) -> MirrorRecord:
    copy = MirrorRecord(
        seq=0, request_id="q1", unit="u1", rollout=ROLLOUT, at_s=START_S, path="/v1/chat/completions",
        outcome="ok", cause=None, status=200, latency_ms=9.0, stable_latency_ms=9.0, completion_tokens=100,
        stable_completion_tokens=100, finish_reason="stop", stable_finish_reason="stop", same_text=None,
        router="one", epoch=1, revision=1, prompt_tokens=500,
    )  # fmt: skip
    return replace(copy, **changes)  # type: ignore[arg-type]


def a_question(tokens: int, *, rollout: str = ROLLOUT) -> JudgeRecord:
    return JudgeRecord(0, rollout, "rev", START_S, "q1", None, False, None, tokens, "one")


def test_a_cost_is_tokens_times_the_prices_of_the_arms_version() -> None:
    assert priced(answered(1), PRICES) == pytest.approx(0.0045)
    assert priced(answered(1, arm=CANARY), PRICES) == pytest.approx(0.0054)


def test_cached_tokens_have_their_own_price_within_the_prompt_or_beside_it() -> None:
    within = answered(1, arm=CANARY, cached_tokens=600)
    beside = answered(1, arm=CANARY, cached_tokens=600, path="/v1/messages")

    assert priced(within, PRICES) == pytest.approx((400 * 3 + 600 * 0.3 + 200 * 12) / 1e6)
    assert priced(beside, PRICES) == pytest.approx((1000 * 3 + 600 * 0.3 + 200 * 12) / 1e6)
    assert priced(replace(within, arm=STABLE, served_arm=STABLE), PRICES) == pytest.approx(0.0045)


@pytest.mark.parametrize(
    "changes",
    [
        {"error": True, "cause": "status 503"},
        {"error": True, "served_arm": STABLE, "outcome": "fallback"},
        {"rejected": True, "error": False},
        {"error": None, "outcome": "cancelled"},
        {"served_arm": STABLE},
        {"prompt_tokens": None},
        {"completion_tokens": None},
        {"prompt_tokens": 0},  # of a gateway that counts none
        {"prompt_tokens": 0, "path": "/v1/messages"},
        {"prompt_tokens": 0, "completion_tokens": 0},
        {"completion_tokens": 0},  # beside a text
    ],
)
def test_what_its_version_did_not_answer_or_count_has_no_cost(changes: dict[str, object]) -> None:
    assert priced(replace(answered(1, arm=CANARY), **changes), PRICES) is None  # type: ignore[arg-type]


def test_zeros_of_a_gateway_are_no_tokens_of_an_answer() -> None:
    zeros = answered(1, arm=CANARY, prompt_tokens=0, completion_tokens=0)
    costs = RolloutCosts(ROLLOUT, PRICES)
    costs.add(zeros)
    costs.add_copy(a_copy(prompt_tokens=0))

    assert draw_of(zeros, prices=PRICES).tokens is None
    assert tokens_of(costs.status().canary) == (1, 0, 0, 0, 0)
    assert (costs.status().mirror.answers, costs.status().mirror.counted) == (1, 0)


@pytest.mark.parametrize(
    ("changes", "cost"),
    [
        ({"path": "/v1/embeddings", "completion_tokens": 0}, 1000 * 3),
        ({"finish_reason": "content_filter", "completion_tokens": 0}, 1000 * 3),
        ({"path": "/v1/messages", "prompt_tokens": 0, "cached_tokens": 600}, 600 * 0.3 + 200 * 12),
    ],
)
def test_a_zero_is_known_where_it_can_be_true(changes: dict[str, object], cost: float) -> None:
    record = replace(answered(1, arm=CANARY), **changes)  # type: ignore[arg-type]

    assert priced(record, PRICES) == pytest.approx(cost / 1e6)


def test_a_draw_has_a_cost_only_where_both_versions_have_a_price() -> None:
    one_alone = replace(PRICES, canary=None)

    assert draw_of(answered(1), prices=PRICES).cost == pytest.approx(0.0045)
    assert draw_of(answered(1), prices=one_alone).cost is None
    assert draw_of(answered(1)).cost is None


@pytest.mark.parametrize(
    ("cause", "is_limited"),
    [("status 429", True), ("status 529", True), ("status 503", False), ("reset", False), (None, False)],
)
def test_rate_limits_are_told_from_other_failures(cause: str | None, is_limited: bool) -> None:
    record = answered(1, error=cause is not None, cause=cause)

    assert draw_of(record).flags["rate_limited"] is is_limited


def test_of_a_client_that_left_no_rate_limit_is_known() -> None:
    assert "rate_limited" not in draw_of(answered(1, error=None, outcome="cancelled")).flags


def test_stables_tokens_and_costs_from_before_the_rollout_are_known_to_its_caps() -> None:
    before, ranges = StableBefore(PRICES), TypicalRanges()

    before.learn(answered(1, w=0.0), ranges)
    before.learn(answered(2, w=0.0, completion_tokens=None), ranges)
    before.learn(answered(3, w=0.0, error=True), ranges)

    assert before.values["tokens"] == [200]
    assert before.values["cost"] == [pytest.approx(0.0045)]


def test_judge_and_copies_are_counted_apart() -> None:
    costs = RolloutCosts(ROLLOUT, PRICES)
    for n in range(3):
        costs.add(answered(n))
    costs.add(answered(3, arm=CANARY, cached_tokens=500))
    costs.add(answered(4, arm=CANARY, completion_tokens=None))
    costs.add(answered(5, arm=CANARY, error=True, cause="reset"))
    costs.add_copy(a_copy())
    costs.add_copy(a_copy(outcome="failed"))
    costs.add_copy(a_copy(rollout="r-other"))
    costs.add_question(a_question(900))
    costs.add_question(a_question(100, rollout="r-other"))
    costs.add_question(a_question(0))

    status = costs.status()

    assert tokens_of(status.stable) == (3, 3, 3000, 0, 600)
    assert tokens_of(status.canary) == (2, 1, 1000, 500, 200)
    assert tokens_of(status.mirror) == (1, 1, 500, 0, 100)
    costs_of = [one.cost for one in (status.stable, status.canary, status.mirror)]
    assert costs_of == pytest.approx([0.0135, (1500 + 150 + 2400) / 1e6, 0.0027])
    assert (status.judge_questions, status.judge_tokens, status.judge_cost) == (1, 900, 0.0009)


def test_without_prices_tokens_are_counted_alone() -> None:
    costs = RolloutCosts(ROLLOUT, None)
    costs.add(answered(1))
    costs.add_question(a_question(900))

    assert costs.status().stable == ArmCosts(1, 1, 1000, 0, 200, None)
    assert (costs.status().currency, costs.status().judge_cost) == (None, None)


def test_a_restored_feed_goes_on_counting() -> None:
    log = FakeLog()
    for n in range(40):
        log.append(answered(n, arm=n % 2, w=0.5))
    log.watermark_s = START_S + 100
    feeds = feeds_on(log, config=PRICED)
    before = observe(feeds, in_stage(), START_S + 100)
    saved = feeds.snapshot(ROLLOUT)
    for n in range(40, 60):
        log.append(answered(n, arm=n % 2, w=0.5))

    after = observe(feeds_on(log, saved, PRICED), in_stage(), START_S + 101)

    assert before.costs is not None
    assert after.costs is not None
    assert (before.costs.stable.answers, after.costs.stable.answers) == (20, 30)
    assert after.costs.canary.cost == pytest.approx(30 * 0.0054)
    assert evidence_from_json(evidence_to_json(after)) == after


def test_a_snapshot_of_an_older_release_starts_to_count() -> None:
    feed = Feed(ROLLOUT, PRICED)
    feed._costs.restore(None)

    assert feed._costs.status().stable == ArmCosts()


@pytest.mark.parametrize("digits", [13, 310, 4_299])
def test_no_count_of_an_endpoint_takes_the_evidence_with_it(digits: int) -> None:
    """A judge's total_tokens of 310 digits: no status could be read again, nothing was rolled back."""
    absurd = int("9" * digits)
    feed = Feed(ROLLOUT, PRICED)
    feed.follow(in_stage(), None, START_S)
    wild = answered(0, prompt_tokens=absurd, completion_tokens=absurd, cached_tokens=absurd)
    joined = [Joined(one, True, ()) for one in (wild, *(answered(n, arm=n % 2, w=0.5) for n in range(1, 41)))]
    copies = [a_copy(prompt_tokens=absurd, completion_tokens=absurd)] * 2
    feed.on_page(JoinedPage(joined, (), START_S, True, copies, [a_question(absurd)] * 2), START_S + 10)

    status = feed.status()

    assert feed.snapshot(0)
    assert status is not None
    assert status.costs is not None
    assert tokens_of(status.costs.stable) == (21, 20, 20_000, 0, 4_000)
    assert (status.costs.judge_tokens, status.costs.mirror.counted) == (0, 0)


def test_an_absurd_count_of_an_older_release_is_forgotten() -> None:
    costs = RolloutCosts(ROLLOUT, PRICES)
    data = costs.to_mapping()
    assert data is not None
    costs.restore({**data, "judge": [3, 10**4_000]})

    assert (costs.status().judge_questions, costs.status().judge_tokens) == (0, 0)


def test_a_fault_of_what_decides_nothing_is_told_once_and_leaves_the_evidence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise RuntimeError("broken")

    feed = Feed(ROLLOUT, PRICED)
    feed.follow(in_stage(), None, START_S)
    for name in ("priced", "CostStatus", "asdict"):
        monkeypatch.setattr(f"controller.evidence.costs.{name}", broken)
    for name in ("segments_of", "asdict", "_alarm"):
        monkeypatch.setattr(f"controller.evidence.segment_alarms.{name}", broken)
    joined = [Joined(answered(n, arm=n % 2, w=0.5), True, ()) for n in range(40)]
    with caplog.at_level(logging.ERROR, logger="canaryctl"):
        feed.on_page(JoinedPage(joined, (), START_S, True, (), ()), START_S + 10)
        status = feed.status()
        saved = feed.snapshot(0)

    assert status is not None
    assert status.costs == CostStatus()
    assert len([one for one in caplog.records if "beside the evidence" in one.message]) == 4
    beside._told.clear()
    assert Feed.restore(ROLLOUT, PRICED, saved).seq == feed.seq


@pytest.mark.slow
def test_a_dear_canary_raises_an_alarm_with_its_figures_and_rolls_nothing_back() -> None:
    log, draws = FakeLog(), random.Random(3)
    for n in range(1200):
        arm = int(draws.random() < 0.4)
        log.append(answered(n, arm=arm, w=0.4, completion_tokens=200 + n % 50))
    log.watermark_s = START_S + 1000
    dear = Prices("EUR", TokenPrice(2.5, 10.0), TokenPrice(4.0, 20.0))

    status = observe(feeds_on(log, config=replace(CONFIG, prices=dear)), in_stage(), START_S + 1000)

    [alarm] = [one for one in status.alarms if one.gate == "cost_alarm"]
    assert alarm.text.startswith("cost in EUR 0.00")
    assert "x, limit 1.2x; above 1.1x shown by first requests" in alarm.text
    assert status.rollback is None


def test_prices_are_pinned_in_the_rollouts_request() -> None:
    request: dict[str, object] = {"gate": CONFIG.policy.to_mapping(), "stages": [], "prices": pinned(PRICES)}

    assert gate_config(json.dumps(request)).prices == PRICES
    assert prices_of(pinned(replace(PRICES, canary=None))) == replace(PRICES, canary=None)
    assert gate_config(json.dumps({**request, "prices": None})).prices is None
    del request["prices"]
    assert gate_config(json.dumps(request)).prices is None


def test_the_limit_of_the_prices_is_the_alarms() -> None:
    spec = parse_service({"service": "chat", "url": "http://127.0.0.1:1", "prices": {
        "input": 1, "output": 2, "alert": "150%"}}).prices  # fmt: skip

    alarm = with_budget(GatePolicy.default(), spec).gate(BUDGET_ALARM)

    assert (alarm.threshold, alarm.tolerance, alarm.is_alarm) == (1.5, 0.75, True)
    assert with_budget(GatePolicy.default(), None) == GatePolicy.default()
    assert GateConfig(with_budget(GatePolicy.default(), spec), ()).policy.with_alarms().gates_for("cost") == (
        alarm,
    )

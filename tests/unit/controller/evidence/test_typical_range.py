"""Answers that are unusual by stable's own: the range, when it is known, and gates that use it."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

from controller.evidence.records import GateConfig, draw_of
from controller.evidence.typical_range import FLAGS, LEARNED_FROM, TypicalRanges
from evaluation.metrics import Kind
from evaluation.policy.gates import Gate, StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.report import Verdict
from serving.answer_signals import Signals
from serving.messages import CANARY, RequestRecord
from tests.fakes.feed_maker import START_S, a_record, feeds_on, in_stage, observe
from tests.fakes.plane import FakeLog

PLAIN = Signals(400, 0.05, 2.0, leaked=False, refused=False, other_language=False, invalid=None)


def _record(n: int, characters: int, *, arm: int = 0, **changes: Any) -> RequestRecord:
    return a_record(n, arm=arm, signals=replace(PLAIN, characters=characters), body_bytes=900, **changes)


def _learned(count: int = LEARNED_FROM) -> TypicalRanges:
    ranges, rng = TypicalRanges(), random.Random(7)
    for n in range(count):
        ranges.flags_of(_record(n, round(rng.lognormvariate(6, 0.3))))
    return ranges


def test_nothing_is_unusual_until_enough_is_known() -> None:
    assert _learned(LEARNED_FROM - 1).flags_of(_record(1, 9_000, arm=CANARY)) == {}


def test_a_loss_of_two_thirds_of_the_length_is_unusual_and_so_is_a_loop() -> None:
    ranges = _learned()
    assert ranges.flags_of(_record(1, 130, arm=CANARY))["unusual_length"]
    assert ranges.flags_of(_record(2, 9_000, arm=CANARY))["unusual_length"]
    assert not ranges.flags_of(_record(3, 400, arm=CANARY))["unusual_length"]


def test_about_one_percent_of_stables_later_answers_are_unusual() -> None:
    rates = []
    for seed in range(8):
        rng, ranges = random.Random(seed), TypicalRanges()
        for n in range(LEARNED_FROM):
            ranges.flags_of(_record(n, round(rng.lognormvariate(6, 0.3))))
        later = [ranges.flags_of(_record(n, round(rng.lognormvariate(6, 0.3)))) for n in range(250)]
        rates.append(sum(one["unusual_length"] for one in later) / 250)
    assert 0.003 < sum(rates) / 8 < 0.025


def test_the_canary_teaches_nothing() -> None:
    ranges = TypicalRanges()
    for n in range(LEARNED_FROM):
        ranges.flags_of(_record(n, 400, arm=CANARY))
    assert ranges.flags_of(_record(1, 9_000)) == {}


def test_requests_of_another_size_have_their_own_range() -> None:
    ranges = _learned()
    large = replace(_record(1, 9_000), body_bytes=60_000)
    assert "unusual_length" not in ranges.flags_of(large)


def test_a_text_that_is_too_short_to_repeat_itself_is_usual_in_that() -> None:
    ranges = _learned()
    short = replace(
        _record(1, 3, arm=CANARY), signals=replace(PLAIN, characters=3, repeated=None, compression=None)
    )
    flags = ranges.flags_of(short)
    assert (flags["unusual_length"], flags["unusual_repetition"], flags["unusual_compression"]) == (
        True,
        False,
        False,
    )


def test_an_answer_without_signals_has_no_flags() -> None:
    assert _learned().flags_of(a_record(1)) == {}
    assert not draw_of(a_record(1), _learned()).flags.keys() & (FLAGS.keys() | {"leaked", "refused"})


def test_the_ranges_survive_a_restart() -> None:
    ranges = TypicalRanges.of(json.loads(json.dumps(_learned().to_mapping())))
    assert ranges.flags_of(_record(1, 9_000, arm=CANARY)) == _learned().flags_of(
        _record(1, 9_000, arm=CANARY)
    )
    assert TypicalRanges.of(None).flags_of(_record(1, 9_000)) == {}


def _gated(metric: str) -> GateConfig:
    gate = Gate(metric, metric, Kind.RATE, alpha_share=0.5, threshold=2.0, tolerance=1.0)
    policy = GatePolicy.default().only("error")
    return GateConfig(replace(policy, gates=(*policy.gates, gate)), (StagePlan(0.5, 50, margins={}),))


def _verdict(metric: str, canarys: Signals, share: float) -> Verdict:
    """The verdict on a canary with such signals in this share of its answers."""
    log, rng, config = FakeLog(), random.Random(5), _gated(metric)
    for n in range(LEARNED_FROM):
        log.append(_record(n, round(rng.lognormvariate(6, 0.3)), w=0.0, rollout=""))
    for n in range(LEARNED_FROM, LEARNED_FROM + 700):
        arm = int(rng.random() < 0.5)
        signals = replace(PLAIN, characters=round(rng.lognormvariate(6, 0.3)))
        if arm == CANARY and rng.random() < share:
            signals = canarys
        log.append(a_record(n, arm=arm, w=0.5, signals=signals, body_bytes=900))
    log.watermark_s = START_S + 0.1 * (LEARNED_FROM + 700)
    return observe(feeds_on(log, config=config), in_stage(), log.watermark_s + 120).verdict


def test_a_canary_that_leaks_special_tokens_is_rolled_back() -> None:
    assert _verdict("leaked", replace(PLAIN, leaked=True), 0.2) is Verdict.FAIL
    assert _verdict("leaked", PLAIN, 0.2) is not Verdict.FAIL


def test_a_canary_whose_answers_are_cut_short_is_rolled_back() -> None:
    assert _verdict("unusual_length", replace(PLAIN, characters=60), 0.2) is Verdict.FAIL
    assert _verdict("unusual_length", PLAIN, 0.2) is not Verdict.FAIL

"""Answers that are unusual by stable's own: the range, when it is known, and gates that use it."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest

from controller.evidence.records import OF_SIGNALS, GateConfig, draw_of
from controller.evidence.typical_range import FLAGS, LEARNED_FROM, TypicalRanges
from evaluation.metrics import Kind
from evaluation.policy.gates import Gate, StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.report import Verdict
from serving.answer_signals import Signals
from serving.messages import CANARY, RequestRecord
from tests.fakes.feed_maker import START_S, a_record, feeds_on, in_stage, observe
from tests.fakes.plane import FakeLog

PLAIN = Signals(400, 0.05, 2.0, leaked=False, refused=False, other_language=False, invalid=False)


def _record(n: int, characters: int, *, arm: int = 0, **changes: Any) -> RequestRecord:
    return a_record(n, arm=arm, signals=replace(PLAIN, characters=characters), body_bytes=900, **changes)


def _usual(rng: random.Random) -> int:
    return round(rng.lognormvariate(6, 0.3))


def _learned(count: int = LEARNED_FROM, *, seed: int = 7) -> TypicalRanges:
    ranges, rng = TypicalRanges(), random.Random(seed)
    for n in range(count):
        ranges.learn(_record(n, _usual(rng)))
    ranges.fix()
    return ranges


def test_nothing_is_unusual_where_too_little_is_known() -> None:
    assert _learned(LEARNED_FROM - 1).flags_of(_record(1, 9_000, arm=CANARY)) == {}


def test_a_loss_of_two_thirds_of_the_length_is_unusual_and_so_is_a_loop() -> None:
    ranges = _learned()
    assert ranges.flags_of(_record(1, 130, arm=CANARY))["unusual_length"]
    assert ranges.flags_of(_record(2, 9_000, arm=CANARY))["unusual_length"]
    assert not ranges.flags_of(_record(3, 400, arm=CANARY))["unusual_length"]


@pytest.mark.slow
def test_about_one_percent_of_stables_later_answers_are_unusual() -> None:
    rates = []
    for seed in range(6):
        ranges, rng = _learned(600, seed=seed), random.Random(seed + 100)
        later = [ranges.flags_of(_record(n, _usual(rng)))["unusual_length"] for n in range(250)]
        rates.append(sum(later) / 250)
    assert 0.003 < sum(rates) / 6 < 0.025


def test_nothing_is_learned_of_the_canary_of_the_rollout_or_much_of_one_unit() -> None:
    ranges = TypicalRanges()
    for n in range(LEARNED_FROM):
        ranges.learn(_record(n, 400, arm=CANARY))
        ranges.learn(_record(n, 400, unit="one batch"))
    ranges.fix()
    for n in range(LEARNED_FROM):
        ranges.learn(_record(n, 400))
    assert ranges.flags_of(_record(1, 9_000)) == {}


@pytest.mark.slow
def test_the_newest_answers_are_the_range() -> None:
    ranges = TypicalRanges()
    for n in range(3000):
        ranges.learn(_record(n, 50 if n < 1900 else 400 + n % 7))
    ranges.fix()
    assert ranges.flags_of(_record(1, 50))["unusual_length"]


def test_of_a_size_without_a_range_nobody_knows_what_is_unusual() -> None:
    large = replace(_record(1, 9_000), body_bytes=60_000)
    assert _learned().flags_of(large) == {}


@pytest.mark.slow
def test_a_unit_with_many_requests_does_not_push_out_what_others_showed() -> None:
    ranges, rng = TypicalRanges(), random.Random(3)
    for n in range(400):
        ranges.learn(_record(n, _usual(rng), unit=f"unit {n}"))
    for n in range(1500):
        ranges.learn(_record(n, 390 + n % 20, unit="one batch"))
    kept = json.loads(json.dumps(ranges.to_mapping()))["seen"]
    ranges = TypicalRanges.of({"seen": kept, "fixed": None})
    ranges.fix()
    flags = [ranges.flags_of(_record(n, size))["unusual_length"] for n, size in enumerate((3, 400, 20_000))]
    assert flags == [True, False, True]
    assert sum(unit == "one batch" for unit, _ in kept["unusual_length 4"]) == 10


@pytest.mark.slow
def test_what_a_unit_showed_last_counts_of_it() -> None:
    ranges = TypicalRanges()
    for n in range(3000):
        ranges.learn(_record(n, 50 if n < 1500 else 400 + n % 7, unit=f"unit {n % 40}"))
    ranges.fix()
    assert ranges.flags_of(_record(1, 50))["unusual_length"]


def test_a_text_that_is_too_short_to_repeat_itself_is_usual_in_that() -> None:
    signals = replace(PLAIN, characters=3, repeated=None, compression=None)
    flags = _learned().flags_of(replace(_record(1, 3, arm=CANARY), signals=signals))
    assert flags == {"unusual_length": True, "unusual_repetition": False, "unusual_compression": False}


def test_an_answer_without_signals_has_no_flags() -> None:
    assert _learned().flags_of(a_record(1)) == {}
    assert not draw_of(a_record(1), _learned()).flags.keys() & (FLAGS.keys() | {"leaked", "refused"})


def test_an_answer_that_holds_no_text_has_none_of_the_faults_of_a_text() -> None:
    flags = draw_of(a_record(1, path="/v1/embeddings")).flags
    assert [flags[name] for name in OF_SIGNALS] == [False] * 4


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
        log.append(_record(n, _usual(rng), w=0.0, rollout=""))
    for n in range(LEARNED_FROM, LEARNED_FROM + 700):
        arm = int(rng.random() < 0.5)
        signals = replace(PLAIN, characters=_usual(rng))
        if arm == CANARY and rng.random() < share:
            signals = canarys
        log.append(a_record(n, arm=arm, w=0.5, signals=signals, body_bytes=900))
    log.watermark_s = START_S + 0.1 * (LEARNED_FROM + 700)
    return observe(feeds_on(log, config=config), in_stage(), log.watermark_s + 120).verdict


@pytest.mark.slow
def test_a_canary_that_leaks_special_tokens_is_rolled_back() -> None:
    assert _verdict("leaked", replace(PLAIN, leaked=True), 0.2) is Verdict.FAIL
    assert _verdict("leaked", PLAIN, 0.2) is not Verdict.FAIL


@pytest.mark.slow
def test_a_canary_whose_answers_are_cut_short_is_rolled_back() -> None:
    assert _verdict("unusual_length", replace(PLAIN, characters=60), 0.2) is Verdict.FAIL
    assert _verdict("unusual_length", PLAIN, 0.2) is not Verdict.FAIL

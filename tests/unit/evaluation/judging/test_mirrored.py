"""Judged pairs of mirrored answers: bet on in order of assignment, once a unit, never by what is missing."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.judging import mirrored
from evaluation.judging.mirrored import WAIT_S, MirroredVerdicts
from evaluation.policy.alpha_split import PAIRS_SHARE, channel_alphas, log_limit
from evaluation.policy.policy import GatePolicy

DEFAULT = GatePolicy.named("default")
POLICY = replace(
    DEFAULT, gates=tuple(replace(gate, mirrored=gate.metric == "quality") for gate in DEFAULT.gates)
)
QUALITY = next(gate for gate in POLICY.gates if gate.metric == "quality")


def pairs() -> MirroredVerdicts:
    return MirroredVerdicts(POLICY, "quality")


def fed(rates: tuple[float, float], count: int, seed: int = 1) -> MirroredVerdicts:
    rng, found = random.Random(seed), pairs()
    for n in range(count):
        found.add(f"u{n}", float(n), (rng.random() < rates[0], rng.random() < rates[1]))
    found.advance(count + WAIT_S + 1.0)
    return found


def test_much_worse_answers_roll_back_with_the_figures_of_the_pairs() -> None:
    found = fed((0.03, 0.5), 200)
    gate = found.rollback

    assert gate is not None
    assert (gate.gate, gate.side, gate.n_stable, gate.n_canary) == ("quality", "rollback", 200, 200)
    assert gate.canary == pytest.approx(1.0 - found.wrong[1] / 200)
    assert gate.stable == pytest.approx(1.0 - found.wrong[0] / 200)
    assert "mirrored pairs" in gate.reason
    assert gate.decided_canary == 0  # no user had any of them


@pytest.mark.parametrize("rates", [(0.1, 0.1), (0.5, 0.03), (0.0, 0.0), (1.0, 1.0)])
def test_equal_and_better_answers_do_not(rates: tuple[float, float]) -> None:
    assert fed(rates, 400).rollback is None


def test_a_quarter_of_the_metrics_alpha_is_theirs() -> None:
    alphas = channel_alphas(POLICY, QUALITY, sticky=False)

    assert alphas.pairs == pytest.approx(PAIRS_SHARE * (alphas.first + alphas.pairs))
    rolled_back = 0.0
    found = pairs()
    while found.rollback is None:  # each pair alone is the strongest evidence that there is
        rolled_back += 1
        found.add(f"u{rolled_back}", rolled_back, (False, True))
        found.advance(rolled_back + WAIT_S + 1.0)
    channel = found._evaluator.pipeline.metrics["quality"].pairs[0].channels[0]
    assert channel.decision.limit == log_limit(alphas.pairs)
    assert 8 <= rolled_back <= 20


def test_without_the_reserved_alpha_pairs_are_counted_and_decide_nothing() -> None:
    found = MirroredVerdicts(DEFAULT, "quality")
    for n in range(100):
        found.add(f"u{n}", float(n), (False, True))
    found.advance(1000.0)

    assert (found.judged, found.wrong, found.rollback) == (100, [0, 100], None)


def test_a_pair_waits_for_its_turn_in_order_of_assignment() -> None:
    found = pairs()
    found.add("late", 5.0, (False, False))
    found.add("early", 1.0, (False, True))
    found.advance(3.0 + WAIT_S)
    assert (found.judged, found.wrong) == (1, [0, 1])
    found.advance(5.0 + WAIT_S)
    assert found.judged == 1
    found.advance(5.1 + WAIT_S)
    assert found.judged == 2
    found.add("later than all", 0.5, (True, True))  # its judge was slow
    found.advance(5.2 + WAIT_S)
    assert (found.judged, found.wrong) == (3, [1, 2])


def test_a_unit_counts_once() -> None:
    found = pairs()
    found.add("u", 1.0, (False, True))
    found.add("u", 1.5, (False, True))
    found.advance(2.0 + WAIT_S)
    found.add("u", 3.0, (False, True))
    found.advance(4.0 + WAIT_S)

    assert (found.judged, found.wrong) == (1, [0, 1])


def test_a_pair_with_one_verdict_is_no_harm_and_is_counted_as_missing() -> None:
    found = pairs()
    for n in range(300):
        found.add(f"u{n}", float(n), (None, True) if n % 2 else (False, None), "timeout")
    found.advance(1000.0)

    assert (found.judged, found.missing, found.rollback) == (0, (150, 150), None)
    assert found.too_many is not None
    assert "of stable have no verdict, at most 10% may be (max_missing)" in found.too_many


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrored, "MAX_WAITING", 10)
    found = pairs()
    for n in range(30):
        found.add(f"u{n}", float(n), (False, False))
    assert len(found._waiting) == 10
    found.advance(1000.0)
    assert found.judged == 10


@given(
    st.lists(
        st.tuples(
            st.integers(0, 30),
            st.floats(0.0, 50.0),
            st.sampled_from([True, False, None]),
            st.sampled_from([True, False, None]),
        ),
        max_size=40,
    ),
    st.integers(0, 40),
)
@settings(max_examples=10, deadline=None)
def test_a_restart_at_any_moment_changes_nothing(
    given_pairs: list[tuple[int, float, bool | None, bool | None]], at: int
) -> None:
    through, again = pairs(), pairs()
    for n, (unit, at_s, stable, canary) in enumerate(given_pairs):
        if n == at:
            restored = pairs()
            restored.restore(json.loads(json.dumps(again.to_mapping())))
            again = restored
        for one in (through, again):
            one.add(f"u{unit}", at_s, (stable, canary), "timeout")
            one.advance(float(n) + WAIT_S)
    for one in (through, again):
        one.advance(1000.0)

    assert again.to_mapping() == through.to_mapping()
    assert again.rollback == through.rollback


@given(st.permutations([(n, bool(n % 3 == 0), bool(n % 2)) for n in range(24)]))
@settings(max_examples=8, deadline=None)
def test_the_order_in_which_verdicts_come_changes_nothing(order: list[tuple[int, bool, bool]]) -> None:
    found, in_order = pairs(), pairs()
    for one, all_of in ((found, order), (in_order, sorted(order))):
        for n, stable, canary in all_of:
            one.add(f"u{n}", float(n), (stable, canary))
        one.advance(1000.0)

    assert found.to_mapping()["evaluator"] == in_order.to_mapping()["evaluator"]

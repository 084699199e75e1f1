"""Each channel equals a deliberately simple reference implementation (`reference_gate.py`).

The traffic has single requests, users who return during a ramp, tokens, forced requests, fallbacks, failures,
missing values, a warm-up, two stages, and a latency that drifts on both arms.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from evaluation.betting.everyone import EveryoneChannel
from evaluation.betting.histogram import BELOW, BINS, MORE_ABOVE, WIDTH, LogHistogram
from evaluation.betting.latency import ShapeLoss, ShapeProof
from evaluation.betting.stable_baseline import Stable
from evaluation.betting.wealth import Channel
from evaluation.evaluator import Evaluator
from evaluation.offline.backtest import feed, run
from evaluation.offline.columns import checked_table
from evaluation.pipeline import Pipeline
from evaluation.policy.alpha_split import channel_alphas
from evaluation.policy.parsing import parse_gate_policy
from evaluation.policy.policy import GatePolicy
from evaluation.records import Pair
from evaluation.units.gate_channels import Track
from tests.fakes.evidence_maker import requests, settings_of
from tests.properties.reference_bets import PlainShape
from tests.properties.reference_gate import Key, plain_channels, plain_pairs
from tests.properties.reference_play import Past, Played, Unit
from tests.properties.rich_traffic import (
    MARGINS,
    SEED,
    SINGLE,
    STAGES,
    STICKY,
    WITH_COVARIATES,
    policy_of,
    traffic,
)

METRICS = ("error", "latency_ms", "quality", "hallucinated")
PARTS_SEEN = 2  # of later sessions, with units in this traffic; few of the second
PROOFS = ("proof", "first proof", *(f"later proof {part}" for part in range(PARTS_SEEN)))
ROLLBACKS = ("first", "session", *(f"later {part}" for part in range(PARTS_SEEN)))
KEYS: tuple[Key, ...] = (
    *((gate, use, 0.0) for gate in MARGINS for use in ROLLBACKS),
    *((gate, use, margin) for gate, margin in MARGINS.items() for use in PROOFS if gate != "quality"),
    *(
        ("quality", f"{use}, missing as {missing_as}", MARGINS["quality"])
        for use in PROOFS
        for missing_as in ("harm", "mean")
    ),
    *(("hallucination", f"{use}, missing as harm", MARGINS["hallucination"]) for use in PROOFS),
    *((gate, f"{use}, missing as harm", 0.0) for gate in ("quality", "hallucination") for use in ROLLBACKS),
    *((gate, f"later {part}, missing as absent", 0.0) for gate in MARGINS for part in range(PARTS_SEEN)),
    *((metric, "presence", 0.0) for metric in METRICS),
    ("served", "share", 0.0),
    ("served", "turns", 0.0),
    *(("served", f"returns {part}", 0.0) for part in range(PARTS_SEEN)),
    *(("served", f"fallback {use}", floor) for use in ("first", "session") for floor in (0.9, 0.98)),
)


def played(channel: Channel | EveryoneChannel) -> Played:
    decision = channel.decision
    canary, seq = (decision.canary, decision.seq) if decision.is_reached else (None, None)
    return Played(decision.peak, decision.log_e, canary, seq)


def name_of(track: Track) -> str:
    use = f"{track.use} {track.part}" if track.use in ("later", "later proof") else track.use
    return f"{use}, missing as {track.missing_as}" if track.missing_as else use


@lru_cache
def both(case: str) -> tuple[dict[Key, Played], dict[Key, Played]]:
    """The results of each channel, by the gate and by its twin."""
    columns, policy = traffic(case), policy_of(case)
    pipeline = Pipeline(policy, STAGES)
    pipeline.metrics["latency_ms"].seed(np.array(SEED["latency_ms"]))
    feed(pipeline, checked_table(columns, policy))
    for lane in pipeline.lanes:
        lane.close_through(math.inf)
    split = pipeline.split
    got: dict[Key, Channel | EveryoneChannel] = {
        ("served", "share", 0.0): split.share.channels[0],
        ("served", "turns", 0.0): split.turns.channels[0],
    }
    got |= {("served", f"returns {n}", 0.0): stream.staged[0] for n, stream in enumerate(split.returns)}
    for use, stream in (("first", split.served_first), ("session", split.served)):
        for floor, channel in zip((0.9, 0.98), stream.channels, strict=True):
            if not channel.is_idle:
                got["served", f"fallback {use}", floor] = channel
    for name, metric in pipeline.metrics.items():
        got[name, "presence", 0.0] = metric.presence.channel
        if metric.covariates.balance is not None:
            got[name, "covariates", 0.0] = metric.covariates.balance.channels[0]
        got |= {
            (t.gate.name, name_of(t), t.margin): t.channel for t in metric.tracks if not t.channel.is_idle
        }
    twins = plain_channels(columns, policy, STAGES, SEED, sticky=case != SINGLE)
    return {key: played(channel) for key, channel in got.items()}, twins


@pytest.mark.slow
@pytest.mark.sample(10)
@pytest.mark.parametrize("key", KEYS, ids=lambda key: "-".join(map(str, key)))
@pytest.mark.parametrize("case", [*(pytest.param(case, marks=pytest.mark.slow) for case in STICKY), SINGLE])
def test_a_channel_equals_its_twin(case: str, key: Key) -> None:
    got, twins = both(case)

    of_sticky_units = ("session", "first proof", "later", "fallback session")
    is_there = case != SINGLE or not key[1].startswith(of_sticky_units)
    assert (key in got) == (key in twins) == is_there
    if key in twins:
        assert (got[key].peak, got[key].last) == pytest.approx((twins[key].peak, twins[key].last), abs=1e-9)
        assert (got[key].canary, got[key].seq) == (twins[key].canary, twins[key].seq)


@pytest.mark.slow
@pytest.mark.parametrize(
    "key",
    [
        *(
            ("quality", f"{use}{missing}", 0.0)
            for use in ROLLBACKS[:3]
            for missing in ("", ", missing as harm")
        ),
        ("quality", "covariates", 0.0),
        *(
            ("quality", f"{use}, missing as {missing_as}", MARGINS["quality"])
            for use in PROOFS[:3]
            for missing_as in ("harm", "mean")
        ),
    ],
    ids=lambda key: "-".join(map(str, key)),
)
def test_a_channel_with_covariates_equals_its_twin(key: Key) -> None:
    got, twins = both(WITH_COVARIATES)

    assert (got[key].peak, got[key].last) == pytest.approx((twins[key].peak, twins[key].last), abs=1e-9)
    assert (got[key].canary, got[key].seq) == (twins[key].canary, twins[key].seq)
    assert abs(got[key].last) > 1e-3


@pytest.mark.slow
def test_the_twins_covariates_change_the_bets() -> None:
    columns = traffic(WITH_COVARIATES)
    policy = replace(policy_of(WITH_COVARIATES), session_requests=10, session_s=600.0)
    gates = tuple(replace(gate, covariates=()) for gate in policy.gates)

    with_them = run(columns, policy, stages=STAGES).log_e
    without = run(columns, replace(policy, gates=gates), stages=STAGES).log_e

    assert with_them["quality"] != pytest.approx(without["quality"], abs=1e-3)
    assert {name: e for name, e in with_them.items() if without[name] != e}.keys() == {"quality"}


@pytest.mark.slow
def test_the_twins_traffic_moves_every_channel_and_many_decide() -> None:
    of_all = {(case, key): twin for case in (*STICKY, SINGLE) for key, twin in both(case)[1].items()}
    for case, (gate, use, margin) in list(of_all):
        if re.search("(later|later proof|returns) [1-9]", use):  # few conversations are as long
            del of_all[case, (gate, use, margin)]
    for name in ("turns", "returns 0"):  # all sessions have one request, and none comes later
        assert of_all.pop((SINGLE, ("served", name, 0.0))).last == 0.0
    # The latency drifts, so that stable's own share above these ones' limits never fits a p90 at an event.
    for name, use in (("strict", "first proof"), ("default", "later proof 0")):
        assert of_all.pop((name, ("latency_p90", use, MARGINS["latency_p90"]))).last == 0.0
    twins = list(of_all.values())

    assert all(abs(twin.last) > 1e-3 for twin in twins)
    assert sum(twin.canary is not None for twin in twins) >= 10


@pytest.mark.parametrize("name", ["default", "strict"])
@pytest.mark.parametrize("gate", ["quality", "hallucination"])
def test_mirrored_pairs_equal_their_twin(name: str, gate: str) -> None:
    raw = settings_of(GatePolicy.named(name), gate)
    policy = parse_gate_policy({"base": name, "gates": {gate: {**raw, "mirrored": True}}})
    rng = np.random.default_rng(4)
    metric = policy.gate(gate).metric
    if gate == "quality":
        pairs = np.clip(rng.normal((0.7, 0.6), 0.15, (150, 2)), 0.0, 1.0).tolist()
    else:
        pairs = (rng.random((150, 2)) < (0.1, 0.3)).astype(float).tolist()
    evaluator = Evaluator.start(policy, stages=STAGES[:1], seed_latency_ms={})
    for number, (stable, canary) in enumerate(pairs):
        evaluator.add(Pair(f"c{number}", metric, stable, canary, float(number)))
        evaluator.add(Pair(f"c{number}", metric, 1.0, 0.0, number + 0.5))  # a second pair: not counted
    evaluator.advance(1000.0, 1000.0)
    evaluator.report()
    [track] = [t for t in evaluator.pipeline.metrics[metric].tracks if t.use == "pairs"]
    twin = plain_pairs(pairs, policy.gate(gate), policy)

    assert track.channel.decision.peak == pytest.approx(twin.peak, rel=1e-9)
    assert twin.peak > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("values", [90, 4000])
@pytest.mark.parametrize("times", [1.0, 1.3])
def test_the_tables_of_shape_equal_their_twin(values: int, times: float) -> None:
    """Bins and ratios for rollback (tolerates `times`) and for promotion (margin a little above)."""
    drifting = np.random.default_rng(7).lognormal(6.0, 0.6, values) * np.linspace(1.0, 3.0, values)
    stable, past = Stable(with_histogram=True), Past()
    for part in np.array_split(drifting, 3):
        stable.learn(part)
        for value in part.tolist():
            past.learn(Unit(0, 0.0, value))
    stable.learn(np.full(9, np.inf))  # unanswered requests
    past.learn(Unit(0, 0.0, math.inf, values=[math.inf] * 9))
    pairs: list[tuple[ShapeLoss | ShapeProof, PlainShape]]
    pairs = [(ShapeLoss(tolerance=times - 1.0), PlainShape(times, proof=False))]
    pairs.append((ShapeProof(margin=times + 0.1), PlainShape(times + 0.1, proof=True)))
    for bettor, twin in pairs:
        bettor.end_epoch(stable)
        twin.end_epoch(past)

        assert bettor.edges == pytest.approx(np.array(twin.edges), rel=1e-12)
        assert np.exp(bettor.log_ratios) == pytest.approx(np.array(twin.ratios), rel=1e-9)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.95, 0.99])
def test_a_quantile_of_the_histogram_is_within_a_bin_of_the_sorted_list(share: float) -> None:
    values = np.random.default_rng(8).lognormal(6.0, 0.8, 5000)
    histogram = LogHistogram()
    histogram.add(values)
    exact = sorted(values)[math.ceil(share * 5000) - 1]

    assert exact <= histogram.upper_edges(np.array([share]))[0] * (1 + 1e-12) <= exact * 1.0101


def test_values_outside_the_range_are_counted_in_its_end_bins_and_zeros_apart() -> None:
    histogram = LogHistogram()
    histogram.add(np.full(36, 400.0))
    histogram.add(np.array([0.0, 1e12, 1e12]))
    middles, shares = histogram.occupied()
    end = math.floor(math.log(400.0) / WIDTH) - BELOW + BINS + MORE_ABOVE

    assert shares.tolist() == pytest.approx([1 / 39, 36 / 39, 2 / 39])
    assert middles[0] == 0.0
    assert np.log(middles[2]) / WIDTH == pytest.approx(end - 0.5)


@pytest.mark.slow
def test_the_decision_uses_the_part_of_alpha_that_its_channel_has() -> None:
    columns = requests(4000, seed=3, w=0.3, error=(0.05, 0.2))
    gates = replace(GatePolicy.strict().only("error"), restart_share=0.0)
    result = run(columns, gates)
    rows = int(np.searchsorted(columns["t_s"], result.t_s)) + 1
    before = {name: values[: rows - 1] for name, values in columns.items()}
    limit = math.log(1 / channel_alphas(gates, gates.gate("error"), sticky=False).first)

    assert run(before, gates).log_e["error"] < limit <= result.log_e["error"]


@pytest.mark.slow
def test_the_test_of_everyone_equals_its_twin_over_several_rounds() -> None:
    """Half of the users come back in an hour; at two weights, of which the second begins in the fourth."""
    rng = np.random.default_rng(5)
    bucket, parts = rng.random(60), []
    for hour in range(6):
        user = np.repeat(np.flatnonzero((hour == 0) | (rng.random(60) < 0.5)), 3)
        w = 0.3 if hour < 3 else 0.6
        arm = (bucket[user] < w).astype(int)
        t_s = 3600.0 * hour + 40.0 * user + 0.1 * np.arange(len(user)) / 60
        failed = rng.random(len(user)) < 0.1 + 0.4 * arm
        parts.append({"t_s": t_s, "unit": user, "arm": arm, "w": w + 0.0 * t_s, "error": failed * 1.0})
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    columns["assigned_by"] = np.full(len(columns["unit"]), "sticky")
    policy = GatePolicy.default().only("error")
    pipeline = Pipeline(policy, STAGES)
    feed(pipeline, checked_table(columns, policy))
    for lane in pipeline.lanes:
        lane.close_through(math.inf)
    channel = pipeline.metrics["error"].everyone[0]
    twin = plain_channels(columns, policy, STAGES, SEED, sticky=True)[
        "error", "later 0, missing as absent", 0.0
    ]

    assert played(channel).peak == pytest.approx(twin.peak, abs=1e-9)
    assert played(channel).last == pytest.approx(twin.last, abs=1e-9)
    assert len(channel.so_far.unit) > 10

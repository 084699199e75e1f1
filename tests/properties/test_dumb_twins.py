"""Each channel beside a deliberately dumb twin: plain Python, one row at a time, everything kept in lists."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from evaluation import rates, scores
from evaluation.alpha import parts_of
from evaluation.backtest import feed, run
from evaluation.columns import checked
from evaluation.betting import Block
from evaluation.histogram import LogHistogram
from evaluation.latency import ShapeLoss
from evaluation.pipeline import Pipeline
from evaluation.policy import GatePolicy, StagePlan
from evaluation.stable import Stable
from tests.unit.evidence_maker import Columns, requests, sticky

ROWS = 380  # below 400 stable units the rates' prior stays what it was
STAGES = (StagePlan(0.5, 0, margins={"error": 3.0, "quality": 0.05}, floor=0.01),)


def policy(name: str) -> GatePolicy:
    return replace(GatePolicy.named(name), restart_share=0.0, proof_canary=0, units="sticky")


@dataclass
class Unit:
    w: float
    arm: int
    start_s: float
    single: bool
    requests: list[int] = field(default_factory=list)


def draws_of(columns: Columns) -> list[Unit]:
    """Units in order of their draws; buckets, tokens and session limits as the contract has them."""
    known: dict[int, tuple[float, float]] = {}
    current: dict[int, Unit] = {}
    units: list[Unit] = []
    for row in range(len(columns["t_s"])):
        at, arm, w = float(columns["t_s"][row]), int(columns["arm"][row]), float(columns["w"][row])
        name, how = int(columns["unit"][row]), str(columns["assigned_by"][row])
        if how == "request":
            units.append(Unit(w, arm, at, True, [row]))
            continue
        low, high = known.get(name, (0.0, 1.0))
        chance = min(max((min(w, high) - low) / (high - low), 0.0), 1.0)
        if how == "sticky" and (name not in known or 0.0 < chance < 1.0):
            known[name] = (low, w) if arm else (w, high)
            current[name] = Unit(chance, arm, at, False, [row])
            units.append(current[name])
        elif name in current and len(current[name].requests) < 10 and at <= current[name].start_s + 600.0:
            current[name].requests.append(row)
    return units


def epoch_starts(rows: int) -> list[int]:
    starts, until = [0], 64
    while until < rows:
        starts.append(until)
        until += min(max(until // 5, 64), 4096)
    return starts


def past_mean(ys: list[float], arms: list[int], row: int, before: float) -> float:
    frozen = max(start for start in epoch_starts(len(ys) + 1) if start <= row)
    stable = [y for y, arm in zip(ys[:frozen], arms[:frozen], strict=True) if not arm]
    return before if frozen == 0 else (sum(stable) + before) / (len(stable) + 1)


def past_bet(ys: list[float], arms: list[int], row: int, effect: float) -> float:
    frozen = max(start for start in epoch_starts(len(ys) + 1) if start <= row)
    stable = [y for y, arm in zip(ys[:frozen], arms[:frozen], strict=True) if not arm]
    variance = (
        0.04 if len(stable) < 30 else sum((y - sum(stable) / len(stable)) ** 2 for y in stable) / len(stable)
    )
    return effect / (variance + effect**2)


def peak_of(log_factors: list[list[float]], prior: list[float], looks: list[bool]) -> float:
    total, best = [0.0] * len(prior), 0.0
    for factors, look in zip(log_factors, looks, strict=True):
        total = [a + b for a, b in zip(total, factors, strict=True)]
        if look:
            mixed = sum(p * math.exp(t) for p, t in zip(prior, total, strict=True)) / sum(prior)
            best = max(best, math.log(mixed))
    return best


def peaks(columns: Columns, gates: GatePolicy) -> dict[tuple[str, str], float]:
    pipeline = Pipeline(gates, STAGES)
    feed(pipeline, checked(columns, gates))
    for lane in pipeline.lanes:
        lane.close_through(float("inf"))
    tracks = [track for metric in pipeline.metrics.values() for track in metric.tracks]
    return {(track.gate.name, track.use): track.channel.decision.peak for track in tracks}


def mixed_traffic(seed: int) -> Columns:
    """Requests, sticky users over a ramp, and tokens."""
    w = np.where(np.arange(ROWS) < ROWS // 2, 0.2, 0.5)
    columns = sticky(ROWS, people=60, seed=seed, w=w, error=(0.1, 0.3), worse=0.2)
    single = requests(ROWS, seed=seed + 1, w=w, error=(0.1, 0.3), worse=0.2)
    one = np.random.default_rng(seed).random(ROWS) < 0.4
    for name in columns:
        columns[name] = (
            np.where(one, single[name] + (1000 if name == "unit" else 0), columns[name])
            if name not in ("assigned_by",)
            else np.where(one, "request", "sticky")
        )
    return columns


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["strict", "default"])
def test_first_events_equal_their_twin(seed, name):
    columns, gates = mixed_traffic(seed), policy(name).only("error")
    tolerated = 1.0 + gates.gate("error").tolerance
    owner = {row: unit for unit in draws_of(columns) for row in unit.requests}
    done: set[int] = set()
    factors = []
    for row in range(ROWS):
        unit = owner.get(row)
        if unit is None or columns["error"][row] == 0.0 or id(unit) in done:
            continue
        done.add(id(unit))
        q0 = unit.w * tolerated + 1 - unit.w
        factors.append(
            [
                math.log(q0 / (unit.w * tolerated * rho + 1 - unit.w)) + (math.log(rho) if unit.arm else 0.0)
                for rho in rates.RATIOS
            ]
        )

    expected = peak_of(factors, list(rates.RATIO_PRIOR), [True] * len(factors))

    assert expected > 0.1
    assert peaks(columns, gates)["error", "first"] == pytest.approx(expected)


def unit_means(columns: Columns, metric: str) -> tuple[list[Unit], list[float]]:
    units = draws_of(columns)
    return units, [sum(columns[metric][unit.requests]) / len(unit.requests) for unit in units]


@pytest.mark.parametrize("seed", range(4))
def test_session_means_equal_their_twin(seed):
    columns, gates = mixed_traffic(seed), policy("default").only("error")
    units, means = unit_means(columns, "error")
    arms = [unit.arm for unit in units]
    factors = []
    for row, (unit, y) in enumerate(zip(units, means, strict=True)):
        mu = past_mean(means, arms, row, 0.05)
        z = y / 1.25 if unit.arm else y
        lam = [min(x, 0.9 / max((1 - unit.w) * mu, unit.w * (1 - mu))) for x in rates.TOLERANT_LAMBDAS]
        factors.append([math.log1p(x * (unit.arm - unit.w) * (z - mu)) for x in lam])

    expected = peak_of(factors, [1.0] * len(rates.TOLERANT_LAMBDAS), [unit.arm == 1 for unit in units])

    assert expected > 0.1
    assert peaks(columns, gates)["error", "session"] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_session_counts_equal_their_twin(seed):
    columns, gates = mixed_traffic(seed), policy("strict").only("error")
    units, means = unit_means(columns, "error")
    counts = [round(y * len(unit.requests)) for unit, y in zip(units, means, strict=True)]
    starts = epoch_starts(len(units) + 1)
    factors = []
    for row, unit in enumerate(units):
        frozen = max(start for start in starts if start <= row)
        past = [c for c, other in zip(counts[:frozen], units[:frozen], strict=True) if not other.arm]
        out = []
        for rho in rates.SESSION_RATIOS:
            norm = 1.0 if frozen == 0 else (sum(rho**c for c in past) + 1.0) / (len(past) + 1)
            r = rho ** counts[row] / norm
            out.append((math.log(r) if unit.arm else 0.0) - math.log(unit.w * r + 1 - unit.w))
        factors.append(out)

    expected = peak_of(factors, [1.0] * len(rates.SESSION_RATIOS), [unit.arm == 1 for unit in units])

    assert expected > 0.1
    assert peaks(columns, gates)["error", "session"] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("use", ["first", "session"])
def test_scores_equal_their_twin(seed, use):
    columns, gates = mixed_traffic(seed), policy("default").only("quality")
    units, means = unit_means(columns, "quality")
    if use == "first":
        means = [float(columns["quality"][unit.requests[0]]) for unit in units]
    arms = [unit.arm for unit in units]
    factors = []
    for row, (unit, y) in enumerate(zip(units, means, strict=True)):
        mu = past_mean(means, arms, row, 0.8)
        x = (1 - unit.w) * (mu - y - 0.025) if unit.arm else -unit.w * (mu - y)
        worst = max((1 - unit.w) * (1.025 - mu), unit.w * mu)
        bet = past_bet(means, arms, row, 0.025)
        factors.append([math.log1p(min(bet * part, 0.9 / worst) * x) for part in scores.LOSS_MULTIPLES])

    expected = peak_of(factors, list(scores.LOSS_PRIOR), [unit.arm == 1 for unit in units])

    assert expected > 0.1
    assert peaks(columns, gates)["quality", use] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_score_proofs_equal_their_twin(seed):
    columns = requests(ROWS, seed=seed, w=0.4)
    arms, ys = columns["arm"].tolist(), columns["quality"].tolist()
    factors = []
    for row, (arm, y) in enumerate(zip(arms, ys, strict=True)):
        mu = past_mean(ys, arms, row, 0.8)
        x = 0.6 * (y - mu + 0.05) if arm else -0.4 * (y - mu)
        worst = max(0.6 * (mu - 0.05), 0.4 * (1 - mu))
        bet = past_bet(ys, arms, row, 0.05)
        factors.append([math.log1p(min(bet * part, 0.9 / worst) * x) for part in scores.PROOF_MULTIPLES])

    expected = peak_of(factors, list(scores.PROOF_PRIOR), [arm == 1 for arm in arms])

    assert expected > 0.1
    assert peaks(columns, policy("default").only("quality"))["quality", "proof"] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_rate_proofs_equal_their_twin(seed):
    columns = mixed_traffic(seed)
    columns["error"] = (np.random.default_rng(seed + 50).random(ROWS) < 0.1).astype(float)
    units, means = unit_means(columns, "error")
    arms = [unit.arm for unit in units]
    truths, truth_prior = rates._truths(3.0)
    share = rates.FLOOR_SHARE
    prior = [(1 - share) * p / sum(truth_prior) for p in truth_prior] + [share / 4] * 4
    factors = []
    for row, (unit, y) in enumerate(zip(units, means, strict=True)):
        w, mu = unit.w, past_mean(means, arms, row, 0.02)
        out = []
        for truth in truths:
            lam = min(max(1 - truth / 3.0 * (w * 3.0 + 1 - w) / (w * truth + 1 - w), 0.02), 0.97)
            out.append(math.log1p(lam * y * (-1.0 if unit.arm else w * 3.0 / (1 - w))))
        x = (1 - w) * (mu + 0.01 - y) if unit.arm else -w * (mu - y)
        worst = max((1 - w) * (1 - mu - 0.01), w * mu)
        out += [math.log1p(min(lam, 0.9 / worst) * x) for lam in rates.FLOOR_LAMBDAS]
        factors.append(out)

    expected = peak_of(factors, prior, [unit.arm == 1 or y > 0 for unit, y in zip(units, means, strict=True)])

    assert expected > 0.1
    assert peaks(columns, policy("default").only("error"))["error", "proof"] == pytest.approx(expected)


def test_shape_steps_equal_their_twin():
    rng = np.random.default_rng(7)
    past = Stable(with_histogram=True)
    past.learn(rng.lognormal(6.0, 0.5, 4000))
    bettor = ShapeLoss(tolerance=0.1)
    bettor.turn(past)
    y, arm, w = rng.lognormal(6.1, 0.5, 300), rng.random(300) < 0.3, rng.choice([0.1, 0.3], 300)
    zero = np.zeros(300, dtype=np.int64)
    _, steps, _ = bettor.steps(Block(arm, w, y, np.ones(300), zero, zero, y, zero))
    expected = []
    for value, canary, chance in zip(y, arm, w, strict=True):
        place = sum(edge < (value / 1.1 if canary else value) for edge in bettor.edges)
        ratios = [math.exp(row[place]) for row in bettor.log_ratios]
        expected.append(
            [(math.log(r) if canary else 0.0) - math.log(chance * r + 1 - chance) for r in ratios]
        )

    assert pytest.approx(np.array(expected)) == steps.T


@pytest.mark.parametrize("share", [0.25, 0.5, 0.95, 0.99])
def test_a_quantile_of_the_histogram_is_within_a_bin_of_the_sorted_list(share):
    values = np.random.default_rng(8).lognormal(6.0, 0.8, 5000)
    histogram = LogHistogram()
    histogram.add(values)
    exact = sorted(values)[math.ceil(share * 5000) - 1]

    assert exact <= histogram.upper_edges(np.array([share]))[0] * (1 + 1e-12) <= exact * 1.0101


def test_the_decision_uses_the_part_of_alpha_that_its_channel_has():
    columns = requests(4000, seed=3, w=0.3, error=(0.05, 0.2))
    gates = replace(policy("strict").only("error"), units="auto")
    result = run(columns, gates)
    rows = int(np.searchsorted(columns["t_s"], result.t_s)) + 1
    before = {name: values[: rows - 1] for name, values in columns.items()}
    limit = math.log(1 / parts_of(gates, gates.gate("error"), sticky=False).first)

    assert run(before, gates).log_e["error"] < limit <= result.log_e["error"]

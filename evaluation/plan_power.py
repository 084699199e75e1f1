"""How long a decision will take: each stage of a rollout, simulated under its own policy and traffic.

A harmless canary is run through the gate itself (`backtest.run`) at the service's rate, unit size and number
of users. What comes out is when the stage would be proven, at the median and the 90th percentile, what harm
it can find meanwhile (`detectable.py`), and a refusal where its units cannot carry its proof.

Seeds are fixed: the same question has the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from evaluation.backtest import run
from evaluation.detectable import Baseline, Finding, findings
from evaluation.metrics import Kind
from evaluation.pipeline import stage_margins
from evaluation.policy import GatePolicy, StagePlan

REPS = 20
STABLE_FIRST = 1500  # rows that teach what stable looks like
LEAST_W = 0.10  # smaller weights are simulated at this one: fewer stable rows, slightly later proofs
DEADLINE_FACTOR = 3.0
MUST_PROVE = 0.5  # a stage proven in fewer than half of the runs is refused
MAX_ROWS = 400_000  # of one run; beyond it the stage is judged on what these show
SESSION_GAP_S = 20.0

Column = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class TrafficModel:
    """Who asks. Raises ValueError for numbers that cannot be.

    unit_requests: mean requests of one randomised unit; 1: each request is its own. users: how many distinct
    units there are in all, who then return; None: new ones keep coming. judged_ratio: share of answers that
    get a score.
    """

    requests_per_s: float
    unit_requests: float = 1.0
    users: int | None = None
    judged_ratio: float = 1.0
    baseline: Baseline = field(default_factory=Baseline)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.requests_per_s) and self.requests_per_s > 0):
            raise ValueError(
                f"requests_per_s {self.requests_per_s} is not above 0; measure the service first"
            )
        if not 1 <= self.unit_requests <= 10_000:
            raise ValueError(
                f"unit_requests {self.unit_requests} is outside 1..10000; 1 means no sticky units"
            )
        if self.users is not None and self.users < 2:
            raise ValueError(f"users {self.users} is below 2; there is nobody to compare with")
        if not 0 < self.judged_ratio <= 1:
            raise ValueError(f"judged_ratio {self.judged_ratio} is outside (0, 1]; drop the gate instead")

    @property
    def is_sticky(self) -> bool:
        return self.unit_requests > 1 or self.users is not None


@dataclass(frozen=True, slots=True)
class StageForecast:
    """What to expect of one stage with a harmless canary; requests and seconds of this stage alone."""

    stage: int
    weight: float
    min_canary: int
    deadline_s: float
    proven_ratio: float  # of the runs, by the deadline
    requests_median: (
        float | None
    )  # canary requests until everything was proven; None: not within the deadline
    requests_p90: float | None
    seconds_median: float | None
    seconds_p90: float | None
    slowest_gate: str | None  # the gate that was proven last, most often; None: nothing has to be proven
    finds: tuple[Finding, ...]
    refusal: str | None  # one line: what cannot be proven, and the remedy; None: the stage can be run


def simulate_plan(
    policy: GatePolicy,
    stages: Sequence[StagePlan],
    traffic: TrafficModel,
    *,
    durations_s: Sequence[float] | None = None,
    deadlines_s: Sequence[float] | None = None,
    reps: int = REPS,
    seed: int = 0,
) -> tuple[StageForecast, ...]:
    """A forecast for each stage. durations_s: how long each is held at least; None: not at all.

    Each stage stands alone, so that what an earlier one has accumulated is a bonus. A stage's deadline is
    `deadlines_s`, else three times what its canary requests take, or its duration if that is longer. Raises
    ValueError for a length of either that is not the stages'.
    """
    held = [0.0] * len(stages) if durations_s is None else list(durations_s)
    if len(held) != len(stages):
        raise ValueError(f"{len(held)} durations for {len(stages)} stages; give one for each")
    ends = [None] * len(stages) if deadlines_s is None else list(deadlines_s)
    if len(ends) != len(stages):
        raise ValueError(f"{len(ends)} deadlines for {len(stages)} stages; give one for each")
    return tuple(
        _forecast(policy, stage, traffic, held[index], ends[index], index, reps, seed)
        for index, stage in enumerate(stages)
    )


def _forecast(
    policy: GatePolicy,
    stage: StagePlan,
    traffic: TrafficModel,
    held_s: float,
    ends_s: float | None,
    index: int,
    reps: int,
    seed: int,
) -> StageForecast:
    canary_per_s = traffic.requests_per_s * stage.weight
    planned_s = max(DEADLINE_FACTOR * stage.min_canary / canary_per_s, held_s, 60.0)
    deadline_s = planned_s if ends_s is None else ends_s
    margins, _ = stage_margins(policy, stage)
    asked = replace(policy, gates=tuple(g for g in policy.gates if g.name in margins))
    budget = deadline_s * canary_per_s
    proofs: list[Mapping[str, int]] = []
    if asked.gates:
        proofs = [_one_run(asked, stage, traffic, budget, [seed, index, rep]) for rep in range(reps)]
    times = sorted(
        max(float(stage.min_canary), *found.values()) for found in proofs if set(found) == set(margins)
    )
    if not asked.gates:
        times = [float(stage.min_canary)] * reps
    median, p90 = (_quantile(times, reps, q) for q in (0.5, 0.9))
    ratio = len(times) / reps
    units = (
        budget if traffic.users is None else min(budget, traffic.users * stage.weight * traffic.unit_requests)
    )
    return StageForecast(
        index,
        stage.weight,
        stage.min_canary,
        deadline_s,
        ratio,
        median,
        p90,
        None if median is None else max(median / canary_per_s, held_s),
        None if p90 is None else max(p90 / canary_per_s, held_s),
        _slowest(proofs, tuple(margins)),
        findings(
            policy,
            w=stage.weight,
            canary_requests=min(units, max(float(stage.min_canary), held_s * canary_per_s)),
            unit_requests=traffic.unit_requests,
            baseline=traffic.baseline,
        ),
        _refusal(stage, traffic, proofs, ratio, deadline_s, tuple(margins)),
    )


def _quantile(times: list[float], reps: int, q: float) -> float | None:
    place = math.ceil(q * reps) - 1
    return times[place] if place < len(times) else None


def _slowest(proofs: Sequence[Mapping[str, int]], gates: tuple[str, ...]) -> str | None:
    """The gate that came last in most runs; one that was never proven comes after all that were."""
    if not gates or not proofs:
        return None
    last = [max(gates, key=lambda gate: found.get(gate, math.inf)) for found in proofs]
    return max(gates, key=last.count)


def _refusal(
    stage: StagePlan,
    traffic: TrafficModel,
    proofs: Sequence[Mapping[str, int]],
    ratio: float,
    deadline_s: float,
    gates: tuple[str, ...],
) -> str | None:
    if ratio >= MUST_PROVE:
        return None
    # Rows that were not simulated could still prove it; users who only return could not.
    rows = deadline_s * traffic.requests_per_s * stage.weight / max(stage.weight, LEAST_W)
    if traffic.users is None and STABLE_FIRST + rows > MAX_ROWS:
        return None
    missing = min(gates, key=lambda gate: sum(gate in found for found in proofs))
    share = sum(missing in found for found in proofs) / len(proofs)
    who = f"{traffic.users} returning users" if traffic.users is not None else "its units"
    return (
        f"at {stage.weight * 100:g} % {who} prove {missing} in {share:.0%} of runs and everything in "
        f"{ratio:.0%} within {_duration(deadline_s)}; {_remedy(stage, traffic, missing)}"
    )


def _remedy(stage: StagePlan, traffic: TrafficModel, gate: str) -> str:
    if traffic.users is not None:
        return "draw per request (affinity off), raise its weight or widen the margin: a user counts once"
    if traffic.judged_ratio < 1 and gate in ("quality", "hallucination"):
        return f"judge more than {traffic.judged_ratio:.0%} of the answers, or hold the stage longer"
    if traffic.is_sticky:
        return "hold the stage longer, raise its weight, or draw per request"
    if stage.weight > 0.25:
        return "hold the stage longer, or prove this at a lower weight, where stable is known better"
    return "hold the stage longer, raise its weight, or widen the margin it must prove"


def _duration(seconds: float) -> str:
    for size, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _one_run(
    policy: GatePolicy, stage: StagePlan, traffic: TrafficModel, budget: float, seed: Sequence[int]
) -> Mapping[str, int]:
    """Canary requests at each gate's proof in one run of at most `budget` canary requests."""
    length = min(budget, max(float(stage.min_canary), 400.0))
    while True:
        columns = _rows(policy, stage, traffic, length, np.random.default_rng(seed))
        found = run(columns, policy, stages=(stage,)).proofs
        if len(found) == len(policy.gates) or length >= budget or len(columns["t_s"]) >= MAX_ROWS:
            return found
        length = min(budget, length * 2)


def _rows(
    policy: GatePolicy, stage: StagePlan, traffic: TrafficModel, canary: float, rng: np.random.Generator
) -> dict[str, Column]:
    w = stage.weight if traffic.users is not None else max(stage.weight, LEAST_W)
    n = min(MAX_ROWS, STABLE_FIRST + math.ceil(canary / w))
    t_s = np.arange(n) / traffic.requests_per_s
    before = np.arange(n) < STABLE_FIRST
    if traffic.is_sticky:
        unit = _who(n, traffic, rng)
        before = before if traffic.users is not None else before[np.unique(unit, return_index=True)[1]][unit]
        drawn = rng.random(int(unit.max()) + 1)[unit] < w
    else:
        unit, drawn = np.arange(n), rng.random(n) < w
    columns: dict[str, Column] = {
        "t_s": t_s,
        "unit": unit,
        "arm": (drawn & ~before).astype(np.int64),
        "w": np.where(before, 0.0, w),
        "assigned_by": np.full(n, "sticky" if traffic.is_sticky else "request"),
    }
    for gate in policy.gates:
        if gate.metric not in columns:
            columns[gate.metric] = _values(gate.metric, gate.kind, n, traffic, rng)
    return columns


def _who(n: int, traffic: TrafficModel, rng: np.random.Generator) -> NDArray[np.int64]:
    """Units by first appearance: a closed set of users, or sessions that overlap as they come and go."""
    if traffic.users is not None:
        who = rng.integers(0, traffic.users, n)
    else:
        size = traffic.unit_requests
        open_at_once = max(1.0, SESSION_GAP_S * traffic.requests_per_s)
        # Row i belongs to a session that began up to a session's length of rows before it.
        start = np.arange(n) / size - rng.random(n) * open_at_once
        who = np.floor(start - start.min()).astype(np.int64)
    _, first, inverse = np.unique(who, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse].astype(np.int64)


def _values(metric: str, kind: Kind, n: int, traffic: TrafficModel, rng: np.random.Generator) -> Column:
    baseline = traffic.baseline
    if kind is Kind.RATE:
        values = (rng.random(n) < baseline.rate_of(metric)).astype(np.float64)
    elif kind is Kind.SCORE:
        values = rng.beta(*baseline.score_shape(baseline.score_mean), n)
    else:
        values = np.exp(math.log(1000.0) + baseline.log_sd * rng.standard_normal(n))
    if traffic.judged_ratio < 1 and metric in ("quality", "hallucinated"):
        values[rng.random(n) >= traffic.judged_ratio] = np.nan
    return values

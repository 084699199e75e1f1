"""Simulation of one stage: units of a service's traffic, fed to the gate until all proofs are complete.

Units are simulated one after another; their arrival times are arithmetic (`TrafficModel.seconds_to`). Used
only by forecasts; no live gate runs through this file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from evaluation.forecast.detectable_effect import Baseline
from evaluation.metrics import CATALOGUE, Kind
from evaluation.offline.backtest import feed
from evaluation.offline.columns import Table
from evaluation.pipeline import Pipeline
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.report import Verdict
from evaluation.units.answered import parts_with
from evaluation.units.later_blocks import PARTS
from evaluation.units.units import REQUEST, STICKY, Assignments
from evaluation.verdict import MIN_LATER_SHARE, gate_reports

RUN_ROWS = 100_000  # of one run; later proofs stay unknown
FIRST_LOOK_CANARY = 200  # canary requests before proofs are first checked; then a quarter more each time
STABLE_FIRST = 1500  # requests of stable alone, as the baseline
MIN_SIMULATED_W = 0.10  # lower weights are simulated at this one: fewer stable rows, slightly later proofs

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TrafficModel:
    """Traffic of a service. Raises ValueError for invalid numbers.

    unit_requests: mean requests of one randomised unit's session; 1: each request is its own unit, unless
    has_keys: units are keys (users, conversations), each of which counts when its session has ended, however
    few requests it has. users: number of distinct units, which return; None: all units are new.
    judged_ratio: share of answers that get a score; judged: the same by metric, where known.
    """

    requests_per_s: float
    unit_requests: float = 1.0
    users: int | None = None
    judged_ratio: float = 1.0
    baseline: Baseline = field(default_factory=Baseline)
    judged: Mapping[str, float] = field(default_factory=dict)
    has_keys: bool = False

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
            raise ValueError(f"users {self.users} is below 2; there is no other user to compare with")
        for name, ratio in (("judged_ratio", self.judged_ratio), *self.judged.items()):
            if not 0 < ratio <= 1:
                raise ValueError(f"{name} {ratio} is outside (0, 1]; drop the gate instead")

    @property
    def is_sticky(self) -> bool:
        """Whether units have, or may have, several requests."""
        return self.has_keys or self.unit_requests > 1 or self.users is not None

    def judged_of(self, metric: str) -> float:
        """Share of requests that have a value of this metric."""
        return self.judged.get(metric, self.judged_ratio) if CATALOGUE[metric].arrives_later else 1.0

    def sessions_by(self, seconds: float) -> float:
        """Sessions started by then, of new and returning units."""
        return self.requests_per_s * max(seconds, 0.0) / self.unit_requests

    def units_by(self, seconds: float) -> float:
        """Distinct units that have arrived by then."""
        sessions = self.sessions_by(seconds)
        return sessions if self.users is None else self.users * -math.expm1(-sessions / self.users)

    def seconds_to(self, units: float) -> float:
        """Inverse of `units_by`; inf: there are fewer units."""
        if self.users is not None:
            if units >= self.users:
                return math.inf
            units = -self.users * math.log1p(-units / self.users)
        return units * self.unit_requests / self.requests_per_s


@dataclass(frozen=True, slots=True)
class Run:
    """One simulated run. proofs: canary units at each gate's proof, that by later requests included."""

    proofs: Mapping[str, float]
    units: float  # simulated canary units
    rows: int
    is_cut: bool  # it ended undecided, because of its length


def counted_requests(unit_requests: float, session_requests: int) -> float:
    """Mean requests of a session up to the maximum that count."""
    continues = 1 - 1 / unit_requests  # P(another request)
    return (1 - continues**session_requests) * unit_requests


def units_for_later(unit_requests: float, session_requests: int) -> float:
    """How many times the units of a session's proof the proofs by later requests need, at least 1.

    Of each part of later requests that must be proven, a unit says something if its conversation reaches the
    judged block. Conversations have a geometric number of requests, as in `_table`.
    Check: units_for_later(20, 10) = 3.490; units_for_later(3, 10) = 1.
    """
    continues = 1 - 1 / unit_requests
    # P(a conversation is longer than so many sessions), up to the end of the last part.
    longer = [continues ** (session_requests * sessions) for sessions in range((1 << PARTS) + 1)]
    shares = np.array([longer[1 << part] - longer[2 << part] for part in range(PARTS)])
    reached = [1.0]
    for part in parts_with(shares, MIN_LATER_SHARE):
        first, *others = longer[1 << part : 2 << part]
        reached.append((first + sum(others) / len(others)) / 2 if others else first)
    return 1 / min(reached)


def one_run(
    policy: GatePolicy, stage: StagePlan, traffic: TrafficModel, max_units: float, seed: Sequence[int]
) -> Run:
    """One run until every gate of the policy is proven, or `max_units` canary units were simulated."""
    stages = (replace(stage, warmup_s=0.0),)
    policy = replace(policy, observed_ranges=())  # real values, which are not simulated
    pipeline, rng = Pipeline(policy, stages), np.random.default_rng(seed)
    w = max(stage.weight, MIN_SIMULATED_W)
    size = counted_requests(traffic.unit_requests, policy.session_requests)
    for metric in pipeline.metrics.values():
        for column in metric.columns:
            column.first.channels.clear()  # they only roll back, and are half of the work
    units, canary_units, rows = math.ceil(STABLE_FIRST / size), 0, 0
    feed(pipeline, _table(policy, traffic, units, 0.0, 0, rng)[0])
    while canary_units < max_units and rows < RUN_ROWS:
        step = max(FIRST_LOOK_CANARY / size, canary_units / 4)
        new_units = math.ceil(max(1.0, min(step, max_units - canary_units)) / w)
        table, drawn = _table(policy, traffic, new_units, w, units, rng)
        feed(pipeline, table)
        units, canary_units, rows = units + new_units, canary_units + drawn, rows + len(table.requests)
        proofs, is_hopeless = _proofs(pipeline, stages)
        if is_hopeless or len(proofs) == len(policy.gates):
            break
    if canary_units >= max_units:
        for lane in pipeline.lanes:
            lane.close_through(math.inf)
    proofs, is_hopeless = _proofs(pipeline, stages)
    units_per_request = canary_units / max(pipeline.canary, 1)
    # Sessions are simulated alone; later requests prove the same margins by fewer of the units.
    units_per_request *= units_for_later(traffic.unit_requests, policy.session_requests)
    is_complete = is_hopeless or len(proofs) == len(policy.gates) or canary_units >= max_units
    return Run(
        {gate: canary * units_per_request for gate, canary in proofs.items()},
        canary_units,
        rows,
        is_cut=not is_complete,
    )


def _proofs(pipeline: Pipeline, stages: Sequence[StagePlan]) -> tuple[dict[str, int], bool]:
    """Canary requests at each gate's proof, and whether a gate is INVALID, so that it cannot be proven."""
    reports = [report for report in gate_reports(pipeline, stages, 0) if report.side == "promotion"]
    proofs = {r.gate: r.decided_canary for r in reports if r.decided_canary is not None}
    return proofs, any(report.verdict is Verdict.INVALID for report in reports)


def _table(
    policy: GatePolicy, traffic: TrafficModel, units: int, w: float, first: int, rng: np.random.Generator
) -> tuple[Table, int]:
    """The requests of `units` new units, and how many of the units are the canary's.

    A session has a geometric number of requests, cut at the maximum that counts. Each session ends before
    the next begins: only the order of units matters to the gate.
    """
    size = rng.geometric(1 / traffic.unit_requests, units).clip(max=policy.session_requests)
    arm = rng.random(units) < w
    which = np.repeat(np.arange(units), size)
    n = len(which)
    gap_s = 2 * policy.session_s if traffic.is_sticky else 1.0
    values = {}
    for metric in dict.fromkeys(gate.metric for gate in policy.gates):
        values[metric] = _values(metric, policy.gates_for(metric)[0].kind, n, traffic, rng)
    requests = Assignments(
        at_s=(first + which) * gap_s,
        arm=arm[which],
        w=np.full(n, w),
        kind=np.full(n, STICKY if traffic.is_sticky else REQUEST, dtype=np.int64),
        unit=(first + which).astype(np.int64),
        stage=np.zeros(n, dtype=np.int64),
        fell_back=np.full(n, np.nan),
    )
    return Table(requests, np.zeros(n, dtype=np.bool_), values, np.full(n, np.nan)), int(
        np.count_nonzero(arm)
    )


def _values(metric: str, kind: Kind, n: int, traffic: TrafficModel, rng: np.random.Generator) -> Floats:
    baseline, judged = traffic.baseline, traffic.judged_of(metric)
    if kind is Kind.RATE:
        values = (rng.random(n) < baseline.rate_of(metric)).astype(np.float64)
    elif kind is Kind.SCORE:
        values = rng.beta(*baseline.score_shape(baseline.score_mean), n)
    else:
        values = np.exp(math.log(1000.0) + baseline.log_sd * rng.standard_normal(n))
    if judged < 1:
        values[rng.random(n) >= judged] = np.nan
    return values

"""Simulated units of a service's traffic, sent through the gate until it has its proofs.

Units are simulated one after the other; when they come is arithmetic (`TrafficModel.seconds_to`). Used by
`plan_power.py` alone; no gate runs through this file.
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
from evaluation.units.units import REQUEST, STICKY
from evaluation.verdict import gate_reports

RUN_ROWS = 100_000  # of one run; what was not proven by then is not known
LOOK_CANARY = 200  # canary requests before the first look; then a quarter more before each
STABLE_FIRST = 1500  # requests that teach what stable looks like
LEAST_W = 0.10  # smaller weights are simulated at this one: fewer stable rows, slightly later proofs

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TrafficModel:
    """Who asks. Raises ValueError for numbers that cannot be.

    unit_requests: mean requests of one randomised unit's session; 1: each request is its own unit. users: how
    many distinct units there are in all, who then return; None: new ones keep coming. judged_ratio: share of
    answers that get a score; judged: the same by metric, where it is known.
    """

    requests_per_s: float
    unit_requests: float = 1.0
    users: int | None = None
    judged_ratio: float = 1.0
    baseline: Baseline = field(default_factory=Baseline)
    judged: Mapping[str, float] = field(default_factory=dict)

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
        for name, ratio in (("judged_ratio", self.judged_ratio), *self.judged.items()):
            if not 0 < ratio <= 1:
                raise ValueError(f"{name} {ratio} is outside (0, 1]; drop the gate instead")

    @property
    def is_sticky(self) -> bool:
        return self.unit_requests > 1 or self.users is not None

    def judged_of(self, metric: str) -> float:
        """Share of requests that have a value of this metric."""
        return self.judged.get(metric, self.judged_ratio) if CATALOGUE[metric].arrives_later else 1.0

    def came_by(self, seconds: float) -> float:
        """Sessions that have begun by then, by new and by returning units."""
        return self.requests_per_s * max(seconds, 0.0) / self.unit_requests

    def drawn_by(self, seconds: float) -> float:
        """Distinct units that have come by then."""
        came = self.came_by(seconds)
        return came if self.users is None else self.users * -math.expm1(-came / self.users)

    def seconds_to(self, units: float) -> float:
        """The reverse of `drawn_by`; inf: there are not so many."""
        if self.users is not None:
            if units >= self.users:
                return math.inf
            units = -self.users * math.log1p(-units / self.users)
        return units * self.unit_requests / self.requests_per_s


@dataclass(frozen=True, slots=True)
class Run:
    """One simulated run: canary units at each gate's proof."""

    proofs: Mapping[str, float]
    units: float  # canary units that were simulated
    rows: int
    is_cut: bool  # it was ended for its length alone


def counted(unit_requests: float, session_requests: int) -> float:
    """Mean requests of a session that count."""
    more = 1 - 1 / unit_requests  # chance of one more request
    return (1 - more**session_requests) * unit_requests


def one_run(
    policy: GatePolicy, stage: StagePlan, traffic: TrafficModel, most: float, seed: Sequence[int]
) -> Run:
    """Units until every gate of the policy is proven, at most `most` of the canary's."""
    stages = (replace(stage, warmup_s=0.0),)
    policy = replace(policy, observed_ranges=())  # these are of real values, which are not simulated
    pipeline, rng = Pipeline(policy, stages), np.random.default_rng(seed)
    w = max(stage.weight, LEAST_W)
    size = counted(traffic.unit_requests, policy.session_requests)
    for metric in pipeline.metrics.values():
        for column in metric.columns:
            column.first.channels.clear()  # these only roll back, and are half of the work
    units, canary_units, rows = math.ceil(STABLE_FIRST / size), 0, 0
    feed(pipeline, _table(policy, traffic, units, 0.0, 0, rng)[0])
    while canary_units < most and rows < RUN_ROWS:
        step = max(LOOK_CANARY / size, canary_units / 4)
        asked = math.ceil(max(1.0, min(step, most - canary_units)) / w)
        table, drawn = _table(policy, traffic, asked, w, units, rng)
        feed(pipeline, table)
        units, canary_units, rows = units + asked, canary_units + drawn, rows + len(table.at_s)
        proofs, is_hopeless = _proofs(pipeline, stages)
        if is_hopeless or len(proofs) == len(policy.gates):
            break
    if canary_units >= most:
        for lane in pipeline.lanes:
            lane.close_through(math.inf)
    proofs, is_hopeless = _proofs(pipeline, stages)
    one = canary_units / max(pipeline.canary, 1)
    found = {gate: canary * one for gate, canary in proofs.items()}
    is_whole = is_hopeless or len(found) == len(policy.gates) or canary_units >= most
    return Run(found, canary_units, rows, is_cut=not is_whole)


def _proofs(pipeline: Pipeline, stages: Sequence[StagePlan]) -> tuple[dict[str, int], bool]:
    """Canary requests at each gate's proof, and whether one can have none, for want of values."""
    wanted = [one for one in gate_reports(pipeline, stages, 0) if one.side == "promotion"]
    proofs = {one.gate: one.decided_canary for one in wanted if one.decided_canary is not None}
    return proofs, any(one.verdict is Verdict.INVALID for one in wanted)


def _table(
    policy: GatePolicy, traffic: TrafficModel, units: int, w: float, first: int, rng: np.random.Generator
) -> tuple[Table, int]:
    """The requests of `units` new units, one unit after the other, and how many units are the canary's.

    A session has a geometric number of requests; what it counts at most is what is made. Units follow one
    another so that each session has ended when the next begins: only their order matters to the gate.
    """
    size = rng.geometric(1 / traffic.unit_requests, units).clip(max=policy.session_requests)
    arm = rng.random(units) < w
    which = np.repeat(np.arange(units), size)
    n = len(which)
    gap_s = 2 * policy.session_s if traffic.is_sticky else 1.0
    values = {}
    for metric in dict.fromkeys(gate.metric for gate in policy.gates):
        values[metric] = _values(metric, policy.gates_for(metric)[0].kind, n, traffic, rng)
    table = Table(
        at_s=(first + which) * gap_s,
        arm=arm[which],
        w=np.full(n, w),
        kind=np.full(n, STICKY if traffic.is_sticky else REQUEST, dtype=np.int64),
        unit=(first + which).astype(np.int64),
        stage=np.zeros(n, dtype=np.int64),
        fell_back=np.full(n, np.nan),
        failed=np.zeros(n, dtype=np.bool_),
        values=values,
    )
    return table, int(np.count_nonzero(arm))


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

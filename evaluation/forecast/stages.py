"""Forecast of a rollout: how long each stage takes to prove, simulated under its policy and traffic.

A harmless canary is fed to the gate itself (`backtest.feed`) with units of the service's own size. Result:
when the stage is proven, at the median and the 90th percentile, the minimum detectable effects meanwhile
(`detectable_effect.py`), and a refusal where its units cannot prove what it must.

Units are simulated, time is arithmetic: a proof that took so many units is complete when so many have
arrived, plus what the gate waits for by its own rules (a session's end, a missing score's deadline).

Seeds are fixed: the same input has the same result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evaluation.forecast.detectable_effect import DetectableEffect, detectable_effects
from evaluation.forecast.simulation import Run, TrafficModel, counted_requests, one_run
from evaluation.metrics import Kind
from evaluation.policy.gates import Gate, StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.policy.stage_proofs import stage_margins

MAX_RUNS = 40
MIN_RUNS = 10
UNANIMOUS_RUNS = 20  # no more runs if these all agree
STAGE_ROWS = 200_000  # simulated for one stage, over all runs, once it has had MIN_RUNS
DEADLINE_FACTOR = 3.0  # times the planned time, before a stage is held as not proven
MIN_DEADLINE_S = 60.0
MIN_PROVEN_RATIO = 0.5  # a stage proven in a smaller share of the runs is refused
SIMULATED_DEADLINES = 6.0  # how long a stage is simulated, to find the deadline that it needs
MIN_SIMULATED_UNITS = 4000.0  # canary units, where that is more
WIDER_MARGINS = (1.5, 2.0, 3.0, 5.0)  # factors of wider margins, tried for a stage that cannot prove its own


@dataclass(frozen=True, slots=True)
class StageForecast:
    """Forecast of one stage with a harmless canary; requests and seconds of this stage alone."""

    stage: int
    weight: float
    min_canary: int
    deadline_s: float
    runs: int  # simulated
    proven_runs: int  # of them, by the deadline
    requests_median: float | None  # canary requests until all was proven; None: not within the deadline
    requests_p90: float | None
    seconds_median: float | None
    seconds_p90: float | None
    slowest_gate: str | None  # the gate most often proven last; None: nothing has to be proven
    detectable: tuple[DetectableEffect, ...]
    refusal: str | None  # one line: what cannot be proven, and the remedy; None: the stage can run
    cut_at: float | None = None  # canary requests at which undecided runs were cut; None: none was

    @property
    def proven_ratio(self) -> float:
        """Share of runs proven by the deadline."""
        return self.proven_runs / self.runs


def simulate_plan(
    policy: GatePolicy,
    stages: Sequence[StagePlan],
    traffic: TrafficModel,
    *,
    durations_s: Sequence[float] | None = None,
    deadlines_s: Sequence[float] | None = None,
    reps: int = MAX_RUNS,
    seed: int = 0,
) -> tuple[StageForecast, ...]:
    """A forecast for each stage. durations_s: the minimum duration of each; None: 0.

    Each stage is simulated alone; evidence of earlier stages is a bonus. deadlines_s: of each stage; None:
    three times what its canary requests take, or its duration if that is longer. reps: maximum number of
    runs; fewer where the first all agree, or are long. Raises ValueError unless both lists have the stages'
    length.
    """
    durations = [0.0] * len(stages) if durations_s is None else list(durations_s)
    if len(durations) != len(stages):
        raise ValueError(f"{len(durations)} durations for {len(stages)} stages; give one for each")
    deadlines = [None] * len(stages) if deadlines_s is None else list(deadlines_s)
    if len(deadlines) != len(stages):
        raise ValueError(f"{len(deadlines)} deadlines for {len(stages)} stages; give one for each")
    return tuple(
        _Stage(policy, stage, traffic, durations[index], deadlines[index]).forecast(index, reps, seed)
        for index, stage in enumerate(stages)
    )


class _Stage:
    """One stage under its traffic. duration_s: minimum. deadline_s: None: the default."""

    def __init__(
        self,
        policy: GatePolicy,
        stage: StagePlan,
        traffic: TrafficModel,
        duration_s: float,
        deadline_s: float | None,
    ) -> None:
        self.policy, self.stage, self.traffic, self.duration_s = policy, stage, traffic, duration_s
        self.canary_per_s = traffic.requests_per_s * stage.weight
        default_s = max(DEADLINE_FACTOR * stage.min_canary / self.canary_per_s, duration_s, MIN_DEADLINE_S)
        self.deadline_s = default_s if deadline_s is None else deadline_s
        self.margins, _ = stage_margins(policy, stage)
        self.gates = tuple(g for g in policy.gates if g.name in self.margins)
        # Only a session's first requests count.
        size = counted_requests(traffic.unit_requests, policy.session_requests)
        self.min_units = stage.min_canary / size
        self.min_s = max(traffic.seconds_to(self.min_units / stage.weight), duration_s)

    def forecast(self, index: int, reps: int, seed: int) -> StageForecast:
        """The stage's forecast."""
        runs = self.runs(self.gates, [seed, index], reps)
        ends_s = sorted(self.end_s(run.proofs) for run in runs)
        proven = sum(end_s <= self.deadline_s for end_s in ends_s)
        requests = sorted(
            self.requests(run.proofs) for run in runs if self.end_s(run.proofs) <= self.deadline_s
        )
        # A run that was cut before the deadline could still have been proven.
        cut = [run.units for run in runs if run.is_cut and run.units < self.units_by(self.deadline_s)]
        refusal = None
        if self.gates and proven < MIN_PROVEN_RATIO * len(runs) and not cut:
            refusal = _refusal(self, runs, [seed, index])
        return StageForecast(
            index,
            self.stage.weight,
            self.stage.min_canary,
            self.deadline_s,
            len(runs),
            proven,
            _quantile(requests, len(runs), 0.5),
            _quantile(requests, len(runs), 0.9),
            _quantile(ends_s[:proven], len(runs), 0.5),
            _quantile(ends_s[:proven], len(runs), 0.9),
            self.slowest_gate(runs),
            self.detectable(),
            refusal,
            max(cut) * self.traffic.unit_requests if cut else None,
        )

    def runs(self, gates: tuple[Gate, ...], seed: Sequence[int], reps: int) -> list[Run]:
        """Simulated runs that prove these gates, each to some multiple of the deadline."""
        if not gates:
            return [Run({}, 0.0, 0, is_cut=False)]
        policy = replace(self.policy, gates=gates)
        # As if all units were new, to find how many it takes even where there are fewer.
        sessions = self.traffic.sessions_by(SIMULATED_DEADLINES * self.deadline_s)
        max_units = max(self.stage.weight * sessions, MIN_SIMULATED_UNITS)
        runs: list[Run] = []
        while len(runs) < reps:
            runs.append(one_run(policy, self.stage, self.traffic, max_units, [*seed, len(runs)]))
            if len(runs) == UNANIMOUS_RUNS and self.all_agree(runs):
                break
            if len(runs) >= MIN_RUNS and sum(run.rows for run in runs) >= STAGE_ROWS:
                break
        return runs

    def all_agree(self, runs: Sequence[Run]) -> bool:
        """Whether no run was proven in time, or all were before the stage could end anyway."""
        ends_s = [self.end_s(run.proofs) for run in runs]
        return max(ends_s) <= self.min_s or min(ends_s) > self.deadline_s

    def units_by(self, seconds: float) -> float:
        """Canary units that have arrived by then."""
        return self.stage.weight * self.traffic.units_by(seconds)

    def proof_s(self, gate: Gate, units: float) -> float:
        """When a proof by so many canary units is complete, with what the gate waits for by its rules."""
        lag_s = self.policy.session_s if self.traffic.is_sticky else 0.0
        if self.traffic.judged_of(gate.metric) < 1:
            lag_s += gate.deadline_s  # the gate waits for missing scores
        return self.traffic.seconds_to(units / self.stage.weight) + lag_s

    def end_s(self, proofs: Mapping[str, float]) -> float:
        """When the stage can end with these proofs; inf: some are missing."""
        proofs_s = [self.proof_s(gate, proofs.get(gate.name, math.inf)) for gate in self.gates]
        return max(self.min_s, *proofs_s, 0.0)

    def requests(self, proofs: Mapping[str, float]) -> float:
        """Canary requests until the last of these proofs, and at least the stage's minimum."""
        units = max((proofs[gate.name] for gate in self.gates), default=0.0)
        return max(float(self.stage.min_canary), round(units * self.traffic.unit_requests))

    def slowest_gate(self, runs: Sequence[Run]) -> str | None:
        """The gate that was proven last, or never, in most runs."""
        names = [gate.name for gate in self.gates]
        last = [max(names, key=lambda name: run.proofs.get(name, math.inf)) for run in runs if names]
        return max(names, key=last.count, default=None)

    def detectable(self) -> tuple[DetectableEffect, ...]:
        """The minimum detectable effect of each gate over the stage's minimum duration."""
        duration_s = max(self.duration_s, self.stage.min_canary / self.canary_per_s)
        size = self.traffic.unit_requests
        out: list[DetectableEffect] = []
        for gate in self.policy.gates:
            out += detectable_effects(
                replace(self.policy, gates=(gate,)),
                w=self.stage.weight,
                canary_requests=self.units_by(duration_s) * size * self.traffic.judged_of(gate.metric),
                unit_requests=size,
                baseline=self.traffic.baseline,
            )
        return tuple(out)


def _quantile(ascending: Sequence[float], runs: int, q: float) -> float | None:
    """The q-quantile over all runs, of which the ones without a value are last; None: it has none."""
    index = math.ceil(q * runs) - 1
    return ascending[index] if index < len(ascending) else None


# --- refusals


def _refusal(stage: _Stage, runs: Sequence[Run], seed: Sequence[int]) -> str:
    """One line: what cannot be proven, in how many runs, and the remedies with their numbers."""
    traffic, within = stage.traffic, f"within {_duration(stage.deadline_s)}"
    units = f"{traffic.users} returning users" if traffic.users is not None else "its units"
    subject = f"at {stage.stage.weight * 100:g} % {units}"
    in_time = {gate: sum(_is_in_time(stage, gate, run) for run in runs) for gate in stage.gates}
    unproven = [gate for gate in stage.gates if in_time[gate] < MIN_PROVEN_RATIO * len(runs)]
    if not unproven and stage.min_s <= stage.deadline_s:
        unproven = [min(stage.gates, key=lambda gate: in_time[gate])]
    remedies: list[str] = []
    if not unproven:
        counted = math.floor(stage.units_by(stage.deadline_s) * stage.stage.min_canary / stage.min_units)
        problem = (
            f"{subject} send {counted} canary requests that count {within}, "
            f"min_canary is {stage.stage.min_canary}"
        )
        remedies.append(f"lower it to {counted}")
    else:
        worst = min(unproven, key=lambda gate: in_time[gate])
        problem = f"{subject} prove {worst.name} in {in_time[worst]} of {len(runs)} runs {within}"
        judged = traffic.judged_of(worst.metric)
        if judged < 1:
            problem += f", with {judged:.0%} of the answers judged"
            remedies.append("judge more of them")
    remedies += _longer_or_heavier(stage, runs)
    if unproven and stage.min_s <= stage.deadline_s:
        wider = [_wider(stage, gate, [*seed, index]) for index, gate in enumerate(unproven)]
        if None not in wider:
            remedies.append(f"widen its margins to {', '.join(map(str, wider))}")
    if traffic.is_sticky:
        remedies.append("let each request be its own unit, for a user counts once")
    return f"{problem}; {', or '.join(remedies or ['require a proof that fewer units can give'])}"


def _longer_or_heavier(stage: _Stage, runs: Sequence[Run]) -> list[str]:
    """The deadline and the weight with which nine runs in ten have their proofs."""
    proof_units = [[run.proofs.get(gate.name, math.inf) for gate in stage.gates] for run in runs]
    index = math.ceil(0.9 * len(runs)) - 1
    end_s = sorted(stage.end_s(run.proofs) for run in runs)[index]
    units = sorted(max(*needed, stage.min_units, 0.0) for needed in proof_units)[index]
    remedies = []
    if math.isfinite(end_s):
        remedies.append(f"give it a deadline of {_duration(_round_up(end_s))}")
    arrived = stage.traffic.units_by(stage.deadline_s)
    weight = _round_up(units / arrived * 100) / 100 if math.isfinite(units) and arrived > 0 else math.inf
    if stage.stage.weight < weight <= 0.5:
        remedies.append(f"raise its weight to {weight * 100:g} %")
    return remedies


def _is_in_time(stage: _Stage, gate: Gate, run: Run) -> bool:
    return stage.proof_s(gate, run.proofs.get(gate.name, math.inf)) <= stage.deadline_s


def _wider(stage: _Stage, gate: Gate, seed: Sequence[int]) -> str | None:
    """The narrowest of the wider margins that nine runs in ten prove in time, as `gate: margin`."""
    margin = stage.margins[gate.name]
    for factor in WIDER_MARGINS:
        wide = margin * factor if gate.kind is Kind.SCORE else 1 + (max(margin, 1.0) - 1) * factor
        if gate.kind is Kind.SCORE and wide >= stage.traffic.baseline.score_mean:
            return None
        plan = replace(stage.stage, margins={gate.name: wide})
        trial = _Stage(stage.policy, plan, stage.traffic, stage.duration_s, stage.deadline_s)
        runs = trial.runs(trial.gates, seed, MIN_RUNS)
        if sum(_is_in_time(trial, gate, run) for run in runs) >= 0.9 * len(runs):
            return f"{gate.name}: {wide:.2g}"
    return None


def _round_up(value: float) -> float:
    """Rounded up to two significant digits, so that the proposed value is enough."""
    size = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / size - 1e-9) * size


def _duration(seconds: float) -> str:
    for size, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"

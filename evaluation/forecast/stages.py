"""How long a decision will take: each stage of a rollout, simulated under its own policy and traffic.

A harmless canary is run through the gate itself (`backtest.feed`) with units of the service's own size. What
comes out is when the stage would be proven, at the median and the 90th percentile, what harm it can find
meanwhile (`detectable.py`), and a refusal where its units cannot carry its proof.

Units are simulated, time is arithmetic: a proof that took so many units comes when so many were drawn, and
after what the gate waits for by its own rules (a session's end, a missing score's deadline).

Seeds are fixed: the same question has the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evaluation.forecast.detectable_effect import Finding, findings
from evaluation.forecast.simulation import Run, counted, one_run
from evaluation.forecast.simulation import TrafficModel as TrafficModel
from evaluation.metrics import Kind
from evaluation.pipeline import stage_margins
from evaluation.policy.gates import Gate, StagePlan
from evaluation.policy.policy import GatePolicy

MOST_RUNS = 40
LEAST_RUNS = 10
SURE_RUNS = 20  # when these all say the same, more would, too
STAGE_ROWS = 200_000  # simulated of one stage, over all runs, once it has had LEAST_RUNS
DEADLINE_FACTOR = 3.0
MUST_PROVE = 0.5  # a stage proven in fewer than half of the runs is refused
BEYOND = 6.0  # times its deadline: so far a stage is simulated, to say how long it would have to be
BEYOND_UNITS = 4000.0  # canary units, where that is more
WIDER = (1.5, 2.0, 3.0, 5.0)  # margins that are tried for a stage that cannot prove its own


@dataclass(frozen=True, slots=True)
class StageForecast:
    """What to expect of one stage with a harmless canary; requests and seconds of this stage alone."""

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
    slowest_gate: str | None  # the gate that was proven last, most often; None: nothing has to be proven
    finds: tuple[Finding, ...]
    refusal: str | None  # one line: what cannot be proven, and the remedy; None: the stage can be run
    cut_at: float | None = None  # canary requests after which a run was ended undecided; None: none was

    @property
    def proven_ratio(self) -> float:
        """Of the runs, by the deadline."""
        return self.proven_runs / self.runs


def simulate_plan(
    policy: GatePolicy,
    stages: Sequence[StagePlan],
    traffic: TrafficModel,
    *,
    durations_s: Sequence[float] | None = None,
    deadlines_s: Sequence[float] | None = None,
    reps: int = MOST_RUNS,
    seed: int = 0,
) -> tuple[StageForecast, ...]:
    """A forecast for each stage. durations_s: how long each is held at least; None: not at all.

    Each stage stands alone, so that what an earlier one has accumulated is a bonus. A stage's deadline is
    `deadlines_s`, else three times what its canary requests take, or its duration if that is longer. reps:
    at most so many runs; fewer where the first all say the same, or are long. Raises ValueError for a length
    of either that is not the stages'.
    """
    held = [0.0] * len(stages) if durations_s is None else list(durations_s)
    if len(held) != len(stages):
        raise ValueError(f"{len(held)} durations for {len(stages)} stages; give one for each")
    ends = [None] * len(stages) if deadlines_s is None else list(deadlines_s)
    if len(ends) != len(stages):
        raise ValueError(f"{len(ends)} deadlines for {len(stages)} stages; give one for each")
    return tuple(
        _Stage(policy, stage, traffic, held[index], ends[index]).forecast(index, reps, seed)
        for index, stage in enumerate(stages)
    )


class _Stage:
    """One stage under its traffic."""

    def __init__(
        self, policy: GatePolicy, stage: StagePlan, traffic: TrafficModel, held_s: float, ends_s: float | None
    ) -> None:
        self.policy, self.stage, self.traffic, self.held_s = policy, stage, traffic, held_s
        self.canary_per_s = traffic.requests_per_s * stage.weight
        usual_s = max(DEADLINE_FACTOR * stage.min_canary / self.canary_per_s, held_s, 60.0)
        self.deadline_s = usual_s if ends_s is None else ends_s
        self.margins, _ = stage_margins(policy, stage)
        self.gates = tuple(g for g in policy.gates if g.name in self.margins)
        # A session counts no more than its first requests.
        self.floor_units = stage.min_canary / counted(traffic.unit_requests, policy.session_requests)
        self.floor_s = max(traffic.seconds_to(self.floor_units / stage.weight), held_s)

    def forecast(self, index: int, reps: int, seed: int) -> StageForecast:
        """The stage's forecast."""
        runs = self.runs(self.gates, [seed, index], reps)
        ends_s = sorted(self.end_s(run.proofs) for run in runs)
        proven = sum(end_s <= self.deadline_s for end_s in ends_s)
        good = [run.proofs for run in runs if self.end_s(run.proofs) <= self.deadline_s]
        in_time = sorted(map(self.requests, good))
        many = len(runs)
        # What was not simulated could still prove it.
        cut = [run.units for run in runs if run.is_cut and run.units < self.units_by(self.deadline_s)]
        refusal = None
        if self.gates and proven < MUST_PROVE * many and not cut:
            refusal = _refusal(self, runs, [seed, index])
        return StageForecast(
            index,
            self.stage.weight,
            self.stage.min_canary,
            self.deadline_s,
            many,
            proven,
            _quantile(in_time, many, 0.5),
            _quantile(in_time, many, 0.9),
            _quantile(ends_s[:proven], many, 0.5),
            _quantile(ends_s[:proven], many, 0.9),
            self.slowest(runs),
            self.finds(),
            refusal,
            max(cut) * self.traffic.unit_requests if cut else None,
        )

    def runs(self, gates: tuple[Gate, ...], seed: Sequence[int], reps: int) -> list[Run]:
        """Runs in which these gates are to be proven, each a little beyond the deadline."""
        if not gates:
            return [Run({}, 0.0, 0, is_cut=False)]
        asked = replace(self.policy, gates=gates)
        # As if new users kept coming: how many it takes is asked for, also where there are not so many.
        most = max(self.stage.weight * self.traffic.came_by(BEYOND * self.deadline_s), BEYOND_UNITS)
        runs: list[Run] = []
        while len(runs) < reps:
            runs.append(one_run(asked, self.stage, self.traffic, most, [*seed, len(runs)]))
            if len(runs) == SURE_RUNS and self.are_alike(runs):
                break
            if len(runs) >= LEAST_RUNS and sum(run.rows for run in runs) >= STAGE_ROWS:
                break
        return runs

    def are_alike(self, runs: Sequence[Run]) -> bool:
        """Nothing was proven in time, or all was before the stage could end anyway."""
        ends_s = [self.end_s(run.proofs) for run in runs]
        return max(ends_s) <= self.floor_s or min(ends_s) > self.deadline_s

    def units_by(self, seconds: float) -> float:
        """Canary units that have come by then."""
        return self.stage.weight * self.traffic.drawn_by(seconds)

    def proof_s(self, gate: Gate, units: float) -> float:
        """When a proof of so many canary units is there, with what the gate waits for by its rules."""
        lag_s = self.policy.session_s if self.traffic.is_sticky else 0.0
        if self.traffic.judged_of(gate.metric) < 1:
            lag_s += gate.deadline_s  # a score that never comes is waited for
        return self.traffic.seconds_to(units / self.stage.weight) + lag_s

    def end_s(self, proofs: Mapping[str, float]) -> float:
        """When the stage can end with these proofs; inf: not all are there."""
        found = [self.proof_s(gate, proofs.get(gate.name, math.inf)) for gate in self.gates]
        return max(self.floor_s, *found, 0.0)

    def requests(self, proofs: Mapping[str, float]) -> float:
        """Canary requests until the last of these proofs, of those that the stage needs at least."""
        units = max((proofs[gate.name] for gate in self.gates), default=0.0)
        return max(float(self.stage.min_canary), round(units * self.traffic.unit_requests))

    def slowest(self, runs: Sequence[Run]) -> str | None:
        """The gate that came last in most runs; one that was never proven comes after all that were."""
        names = [gate.name for gate in self.gates]
        last = [max(names, key=lambda name: run.proofs.get(name, math.inf)) for run in runs if names]
        return max(names, key=last.count, default=None)

    def finds(self) -> tuple[Finding, ...]:
        """The smallest harm that each gate finds while the stage is held."""
        held_s = max(self.held_s, self.stage.min_canary / self.canary_per_s)
        size = self.traffic.unit_requests
        out: list[Finding] = []
        for gate in self.policy.gates:
            out += findings(
                replace(self.policy, gates=(gate,)),
                w=self.stage.weight,
                canary_requests=self.units_by(held_s) * size * self.traffic.judged_of(gate.metric),
                unit_requests=size,
                baseline=self.traffic.baseline,
            )
        return tuple(out)


def _quantile(times: Sequence[float], reps: int, q: float) -> float | None:
    place = math.ceil(q * reps) - 1
    return times[place] if place < len(times) else None


# --- refusals


def _refusal(stage: _Stage, runs: Sequence[Run], seed: Sequence[int]) -> str:
    """What cannot be proven, in how many runs, and what would help, with numbers."""
    traffic, many, within = stage.traffic, len(runs), f"within {_duration(stage.deadline_s)}"
    who = f"{traffic.users} returning users" if traffic.users is not None else "its units"
    at = f"at {stage.stage.weight * 100:g} % {who}"
    in_time = {gate: sum(_is_in_time(stage, gate, run) for run in runs) for gate in stage.gates}
    short = [gate for gate in stage.gates if in_time[gate] < MUST_PROVE * many]
    if not short and stage.floor_s <= stage.deadline_s:
        short = [min(stage.gates, key=lambda gate: in_time[gate])]
    ways: list[str] = []
    if not short:
        sees = math.floor(stage.units_by(stage.deadline_s) * stage.stage.min_canary / stage.floor_units)
        what = f"{at} send {sees} canary requests that count {within}, min_canary is {stage.stage.min_canary}"
        ways.append(f"lower it to {sees}")
    else:
        worst = min(short, key=lambda gate: in_time[gate])
        what = f"{at} prove {worst.name} in {in_time[worst]} of {many} runs {within}"
        judged = traffic.judged_of(worst.metric)
        if judged < 1 - stage.policy.max_missing:
            least = f"score at least {1 - stage.policy.max_missing:.0%}"
            return f"{what}: {judged:.0%} of the answers get a score; {least}"
    units = sorted(max([_most_units(stage, run), stage.floor_units]) for run in runs)
    nine = math.ceil(0.9 * many) - 1
    ways += _more(stage, sorted(stage.end_s(run.proofs) for run in runs)[nine], units[nine])
    if short and stage.floor_s <= stage.deadline_s:
        wider = [_wider(stage, gate, [*seed, place]) for place, gate in enumerate(short)]
        if None not in wider:
            ways.append(f"widen its margins to {', '.join(str(one) for one in wider)}")
    if traffic.is_sticky:
        ways.append("let each request be its own unit, for a user counts once")
    return f"{what}; {', or '.join(ways or ['ask for a proof that fewer units can carry'])}"


def _most_units(stage: _Stage, run: Run) -> float:
    """Canary units of the last proof; inf: one is not there."""
    return max((run.proofs.get(gate.name, math.inf) for gate in stage.gates), default=0.0)


def _more(stage: _Stage, end_s: float, units: float) -> list[str]:
    """The deadline and the weight that would do. end_s, units: when nine runs in ten have their proofs."""
    ways = []
    if math.isfinite(end_s):
        ways.append(f"give it a deadline of {_duration(_round_up(end_s))}")
    drawn = stage.traffic.drawn_by(stage.deadline_s)
    weight = _round_up(units / drawn * 100) / 100 if math.isfinite(units) and drawn > 0 else math.inf
    if stage.stage.weight < weight <= 0.5:
        ways.append(f"raise its weight to {weight * 100:g} %")
    return ways


def _is_in_time(stage: _Stage, gate: Gate, run: Run) -> bool:
    return stage.proof_s(gate, run.proofs.get(gate.name, math.inf)) <= stage.deadline_s


def _wider(stage: _Stage, gate: Gate, seed: Sequence[int]) -> str | None:
    """The narrowest margin of those tried that nine runs in ten prove in time, as `gate: margin`."""
    margin = stage.margins[gate.name]
    for factor in WIDER:
        wide = margin * factor if gate.kind is Kind.SCORE else 1 + (max(margin, 1.0) - 1) * factor
        if gate.kind is Kind.SCORE and wide >= stage.traffic.baseline.score_mean:
            return None
        asked = replace(stage.stage, margins={gate.name: wide})
        tried = _Stage(stage.policy, asked, stage.traffic, stage.held_s, stage.deadline_s)
        runs = tried.runs(tried.gates, seed, LEAST_RUNS)
        if sum(_is_in_time(tried, gate, run) for run in runs) >= 0.9 * len(runs):
            return f"{gate.name}: {wide:.2g}"
    return None


def _round_up(value: float) -> float:
    """Up to two digits: what is asked for should be enough."""
    size = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / size - 1e-9) * size


def _duration(seconds: float) -> str:
    for size, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"

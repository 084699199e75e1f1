"""The trials of `make bench-gate`: what must stay, what must be promoted, what never, what must be found.

Each name is also the seed. Twins: both arms are alike, so a rollback or an INVALID is the gate's error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from benchmarks.gate.ab_trials import AbRun
from benchmarks.gate.alike_trials import alike_trials
from benchmarks.gate.changing_trials import (
    burst_trials,
    differing_trials,
    drifting_trials,
    returning_trials,
)
from benchmarks.gate.covariate_trials import covariate_trials
from benchmarks.gate.guard_trials import DeadCanary, OneBadClient, SharedFailures
from benchmarks.gate.hidden_trials import hidden_trials
from benchmarks.gate.margin_trials import not_proven_trials
from benchmarks.gate.mirrored import Mirrored
from benchmarks.gate.shared_trials import shared_trials
from benchmarks.gate.survivor_trials import survivor_trials
from benchmarks.gate.tail_trials import tail_trials
from benchmarks.gate.trials import (
    HARMED,
    ROLLBACK_LIMIT,
    ROLLBACK_USUAL,
    UNITS,
    Better,
    Found,
    Goal,
    Quantile,
    Ratio,
    Share,
    Stays,
    Trial,
)
from benchmarks.gate.worlds import Arm, World

VALUES = ("latency_ms", "ttft_ms")


def _stays(name: str, says: str, world: World, **more: object) -> Trial:
    measure = Stays(name, world, **more)  # type: ignore[arg-type]
    words = frozenset({"rollback"}) if measure.by else HARMED
    goals = {preset: Share(preset, words, ROLLBACK_LIMIT, ROLLBACK_USUAL) for preset in measure.presets}
    return Trial(name, "stays", says, measure, goals)


def _for_both(name: str, says: str, world: World, **more: object) -> list[Trial]:
    return [
        _stays(f"{name}, {units}", says, replace(world, sticky=sticky), **more)
        for units, sticky in UNITS.items()
    ]


_TWIN = World(sticky=True)


def _longer(before: float, after: float) -> World:
    return replace(_TWIN, stable=Arm(turns=before), canary=Arm(turns=after))


def _twins() -> list[Trial]:
    return [
        *_for_both(
            "half never stream",
            "half of the units have no time to first token",
            replace(_TWIN, users_without_stream=0.5),
        ),
        *_for_both("3 % of units always fail", "on both arms alike", replace(_TWIN, users_failing=0.03)),
        *_for_both(
            "a judge samples 30 % of units",
            "all answers of a sampled unit have a score, no others",
            replace(_TWIN, users_judged=0.3),
        ),
        *_for_both("half of the answers judged", "quality has a score at random", replace(_TWIN, judged=0.5)),
        *_for_both(
            "5 % of units always fall back",
            "stable answers for them: no rollback below 10 % (a hold above 2 % is due)",
            replace(
                _TWIN,
                stable=Arm(turns=10.0),
                canary=Arm(turns=10.0),
                users_falling_back=0.05,
                metrics=(*_TWIN.metrics, "fell_back"),
            ),
            by=("served",),
        ),
        *(
            _stays(
                f"turns {before:g} -> {after:g}",
                "the canary makes people ask more; each answer is as good",
                _longer(before, after),
            )
            for before, after in ((3, 4.5), (3, 6), (1.3, 8))
        ),
        *(
            trial
            for seconds in (1, 10)
            for trial in _for_both(
                f"time stamps of {seconds} s",
                "equal time stamps come sorted by arm",
                replace(_TWIN, resolution_s=float(seconds), rate_per_s=60.0),
            )
        ),
        *(
            trial
            for share in (0.002, 0.01, 0.05)
            for trial in _for_both(
                f"{share:.1%} spurious 4xx",
                "both arms reject requests at this rate",
                replace(_TWIN, stable=Arm(rejected=share), canary=Arm(rejected=share)),
            )
        ),
        *(
            trial
            for rate in (0.01, 0.05)
            for trial in _for_both(
                f"errors {rate:.0%} -> {rate * 1.2:.1%}",
                "a tolerated excess of errors is not latency's business",
                replace(_TWIN, stable=Arm(error=rate), canary=Arm(error=rate * 1.2)),
                presets=("default",),
                by=VALUES,
            )
        ),
        *_for_both("coarse latency", "all latencies in steps of 500 ms", replace(_TWIN, step_ms=500.0)),
        *_for_both("coarse scores", "quality is 0 or 1", replace(_TWIN, score_step=1.0)),
        _stays(
            "turns 1.3 -> 8, sigma 1",
            "longer conversations with a heavy tail",
            replace(_longer(1.3, 8), sigma=1.0),
        ),
        _stays(
            "errors 5 -> 1 %",
            "a canary that fixes errors has more scores, not better ones",
            replace(_TWIN, sticky=False, stable=Arm(error=0.05)),
        ),
    ]


def _better() -> list[Trial]:
    worlds: dict[str, World] = {}
    base = World(sticky=True, w=0.25, canary_requests=10_000)
    for share in (0.005, 0.02, 0.05):
        worlds[f"fixes {share:.1%} errors"] = replace(
            base, stable=Arm(error=0.005 + share), canary=Arm(error=0.005)
        )
        worlds[f"answers the slowest {share:.1%}"] = replace(base, stable=Arm(fails_slowest=share))
    worlds["faster x0.8"] = replace(base, canary=Arm(latency_scale=0.8))
    worlds["shorter answers"] = replace(base, canary=Arm(after_first_token=0.7))
    worlds["answers hard prompts"] = replace(base, stable=Arm(fails_hard=True), hard=0.05)
    says = {
        "fixes": "errors of stable that the canary does not make",
        "answers the": "stable's slowest requests end in a time-out, the canary answers them",
        "faster": "all times are shorter",
        "shorter": "less time after the first token",
        "answers hard": "stable fails on 5 % hard prompts, the canary answers them slower and worse",
    }
    trials = []
    for name, world in worlds.items():
        line = next(text for start, text in says.items() if name.startswith(start))
        for units, sticky in UNITS.items():
            full = f"{name}, {units}"
            goals: dict[str, Goal] = {
                preset: Share(preset, HARMED, ROLLBACK_LIMIT, ROLLBACK_USUAL)
                for preset in ("strict", "default")
            }
            promoted = frozenset({"promote"})
            for preset in ("strict", "default"):
                goals[f"promoted {preset}"] = Share(preset, promoted, 0.95, 0.97, at_least=True)
            measure = Better(full, replace(world, sticky=sticky))
            trials.append(Trial(full, "promoted", line, measure, goals))
    return trials


def _power() -> list[Trial]:
    judged = World(
        sticky=True,
        stable=Arm(turns=5.0),
        canary=Arm(quality=0.60, turns=5.0),
        users_judged=0.3,
        w=0.1,
        canary_requests=1500,
    )
    late_fallback = World(
        sticky=False,
        canary=Arm(falls_back=0.5),
        w=0.5,
        canary_requests=21_500,
        late=20_000,
        metrics=("error", "fell_back"),
    )
    trials = [
        Trial(
            "judged users, quality -0.15",
            "power",
            "a judge samples 30 % of 3000 users, 10 % of them on the canary",
            Found("judged users, quality -0.15", judged),
            {p: Share(p, frozenset({"rollback"}), 0.9, 0.92, at_least=True) for p in ("strict", "default")},
            runs=200,
        ),
        Trial(
            "fallback from request 20,001 on",
            "power",
            "stable answers half of the canary's requests after 20,000 good ones",
            Found("fallback from request 20,001 on", late_fallback, presets=("default",)),
            {"requests": Quantile("default_at", 150)},
            runs=100,
            quick_runs=10,
        ),
    ]
    for units, sticky in UNITS.items():
        for late in (0, 1000):
            name = f"404 to everything, {'from mid-stage on' if late else 'from the start'}, {units}"
            world = World(
                sticky=sticky,
                canary=Arm(rejected=1.0, error=0.0),
                w=0.1,
                canary_requests=late + 400,
                late=late,
            )
            goals = {p: Quantile(f"{p}_at", 50 * (3 if sticky else 1), 1.0) for p in ("strict", "default")}
            says = "rolled back within 50 units (sticky: of three requests)"
            trials.append(Trial(name, "power", says, Found(name, world), goals, runs=200))
    return trials


def _coarse() -> list[Trial]:
    """Twins whose latencies are coarse, in steps below the margin: the proof must be possible."""
    trials = []
    for text, step, sigma in (("in steps of 50 ms", 50.0, 0.5), ("in steps of 100 ms", 100.0, 0.5)):
        for units, sticky in UNITS.items():
            name = f"latencies {text}, {units}"
            world = World(sticky=sticky, w=0.25, canary_requests=10_000, step_ms=step, sigma=sigma)
            world = replace(world, metrics=("error", "rejected", "latency_ms", "quality", "hallucinated"))
            goals: dict[str, Goal] = {
                f"promoted {preset}": Share(preset, frozenset({"promote"}), 0.95, 0.97, at_least=True)
                for preset in ("strict", "default")
            }
            says = "identical versions, few distinct values"
            trials.append(Trial(name, "promoted", says, Better(name, world), goals, runs=200))
    return trials


def _guards_and_pairs() -> list[Trial]:
    trials = []
    for heavy in (0.1, 0.3):
        name = f"guard: a client with {heavy:.0%} of the requests always fails"
        goal = Share("guard", frozenset({"rollback"}), ROLLBACK_LIMIT, ROLLBACK_USUAL)
        says = "on whichever arm: no guard rolls back for one client"
        trials.append(Trial(name, "stays", says, OneBadClient(name, heavy), {"guard": goal}, runs=1000))
    shared = {
        "guard: an outage of both arms, w = 1 %": SharedFailures("", outage=20, w=0.01, canary_requests=250),
        "guard: an outage of both arms, w = 5 %": SharedFailures("", outage=20),
        "guard: an outage of both arms, w = 10 %": SharedFailures("", outage=20, w=0.1),
        "guard: an outage of both arms, sticky": SharedFailures("", outage=20, users=4000),
        "guard: both arms fail 15 %": SharedFailures("", steady=0.15, w=0.1, canary_requests=2000),
        "guard: both arms fail 22 %": SharedFailures("", steady=0.22, w=0.1, canary_requests=2000),
        "guard: both arms reject 22 %": SharedFailures(
            "", steady=0.22, w=0.1, canary_requests=2000, kind="rejected"
        ),
    }
    for name, world in shared.items():
        goal = Share("guard", frozenset({"rollback"}), ROLLBACK_LIMIT, 0.001)
        says = "identical versions: hold and page, never roll back"
        trials.append(Trial(name, "stays", says, replace(world, name=name), {"guard": goal}, runs=400))
    for w, most in ((0.01, 22), (0.1, 22), (0.5, 25), (0.9, 120)):
        name = f"guard: every canary request fails, w = {w:.0%}"
        measure_dead = DeadCanary(name, w, before=round(1000 * w))
        says = "rolled back in time, after some good requests"
        goals_dead: dict[str, Goal] = {"guard": Quantile("guard_at", most)}
        trials.append(Trial(name, "power", says, measure_dead, goals_dead, runs=200))
    for metric, harmless, harmful in (
        ("quality", ((0.75, 0.75), (0.75, 0.85)), (0.75, 0.60)),
        ("hallucinated", ((0.10, 0.10), (0.10, 0.03)), (0.03, 0.14)),
    ):
        for stable, canary in harmless:
            name = f"mirrored pairs, {metric} {stable:g} -> {canary:g}"
            goals: dict[str, Goal] = {
                p: Share(p, frozenset({"rollback"}), ROLLBACK_LIMIT, 0.005) for p in ("strict", "default")
            }
            measure = Mirrored(name, metric, stable, canary)
            trials.append(Trial(name, "stays", "pairs of no harm stay", measure, goals, runs=1000))
        name = f"mirrored pairs, {metric} {harmful[0]:g} -> {harmful[1]:g}"
        goals = {
            p: Share(p, frozenset({"rollback"}), 0.95, 0.97, at_least=True) for p in ("strict", "default")
        }
        measure = Mirrored(name, metric, *harmful)
        trials.append(Trial(name, "power", "600 pairs show the harm", measure, goals, runs=200))
    return trials


def _ab() -> list[Trial]:
    trials = []
    for a, b, units in ((0.10, 0.12, 40_000), (0.50, 0.55, 16_000)):
        name = f"A/B {a:.2f} -> {b:.2f}"
        goals: dict[str, Goal] = {
            "units over mSPRT's": Ratio("ours", "msprt", 1.2),
            "interval agrees": Share("interval", frozenset({"agrees"}), 1.0, 1.0, at_least=True),
        }
        says = "alpha 0.05, half of the units each; mSPRT is tuned to this effect"
        trials.append(Trial(name, "power", says, AbRun(name, a, b, units), goals, runs=200, quick_runs=10))
    name = "A/B without a difference"
    wrong = frozenset({"a better", "b better"})
    goals = {
        "false winners": Share("verdict", wrong, 0.05, 0.05),
        "interval agrees": Share("interval", frozenset({"agrees"}), 1.0, 1.0, at_least=True),
    }
    trials.append(
        Trial(name, "stays", "alpha 0.05, 5000 units", AbRun(name, 0.2, 0.2, 5000), goals, runs=400)
    )
    return trials


TRIALS: Mapping[str, Trial] = {
    trial.name: trial
    for trial in (
        *_twins(),
        *_guards_and_pairs(),
        *_better(),
        *_coarse(),
        *not_proven_trials(),
        *returning_trials(),
        *survivor_trials(),
        *shared_trials(),
        *drifting_trials(),
        *burst_trials(),
        *differing_trials(),
        *alike_trials(),
        *tail_trials(),
        *_power(),
        *covariate_trials(),
        *hidden_trials(),
        *_ab(),
    )
}

"""Trials of what has no value: unscored answers, failures, rejections, lost records, conversations."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.gate.trials import (
    HARMED,
    PRESETS,
    ROLLBACK_LIMIT,
    ROLLBACK_USUAL,
    UNITS,
    Better,
    Found,
    Goal,
    NotProven,
    Quantile,
    Share,
    Stays,
    Trial,
    stays_goals,
)
from benchmarks.gate.worlds import Arm, World

PROMOTED = frozenset({"promote"})


def hidden_trials() -> list[Trial]:
    """All of them, in the order of the table."""
    return [*_stays(), *_promoted(), *_hanging(), *_leaving(), *_not_proven()]


def _stays() -> list[Trial]:
    hard = World(sticky=True, stable=Arm(fails_hard=True), hard=0.05, worst_hard=True)
    worlds = {
        f"answers 5 % hard prompts as badly as possible, {units}": (
            "stable fails on them; the canary's answers score 0 and are hallucinated",
            replace(hard, sticky=sticky),
        )
        for units, sticky in UNITS.items()
    }
    for after in (3.0, 4.5):
        for which in ("first", "last"):
            worlds[f"one score a conversation, of its {which} answer, turns 3 -> {after:g}"] = (
                "a longer conversation has no more scores",
                World(sticky=True, canary=Arm(turns=after), one_score=which),
            )
    for units, sticky in UNITS.items():
        worlds[f"8 % of the latencies lost, {units}"] = (
            "at random on both arms, below the limit of 10 %",
            World(sticky=sticky, lost=0.08),
        )
        worlds[f"clients leave after 10 s in the mean, {units}"] = (
            "8 % of the requests are cancelled, on both arms",
            World(sticky=sticky, patience_s=10.0),
        )
    goals = stays_goals()
    return [Trial(n, "stays", says, Stays(n, world), goals) for n, (says, world) in worlds.items()]


def _promoted() -> list[Trial]:
    trials = []
    for before, after, quality in ((0.20, 0.01, 0.75), (0.12, 0.01, 0.5)):
        name = f"errors {before:.0%} -> {after:.0%}, quality {quality:g}, per request"
        stable, canary = Arm(error=before, quality=quality), Arm(error=after, quality=quality)
        world = World(sticky=False, stable=stable, canary=canary, w=0.25, canary_requests=10_000)
        goals: dict[str, Goal] = {
            f"promoted {preset}": Share(preset, PROMOTED, 0.95, 0.97, at_least=True) for preset in PRESETS
        }
        says = "a canary that fixes most errors of stable, and answers as well"
        trials.append(Trial(name, "promoted", says, Better(name, world), goals, runs=200))
    for units, sticky in UNITS.items():
        name = f"faster x0.7, clients leave after 10 s, {units}"
        canary = Arm(latency_scale=0.7)
        world = World(sticky=sticky, canary=canary, patience_s=10.0, w=0.25, canary_requests=10_000)
        goals = {f"stays {p}": Share(p, HARMED, ROLLBACK_LIMIT, ROLLBACK_USUAL) for p in PRESETS}
        for preset in PRESETS:
            goals[f"promoted {preset}"] = Share(preset, PROMOTED, 0.95, 0.97, at_least=True)
        trials.append(Trial(name, "promoted", "fewer clients give up", Better(name, world), goals, runs=200))
    return trials


def _hanging() -> list[Trial]:
    """A canary that does not answer some requests until the client leaves."""
    trials = []
    for units, sticky in UNITS.items():
        base = World(sticky=sticky, patience_s=20.0, w=0.25, canary_requests=4000)
        name = f"hangs for 15 %, {units}"
        world = replace(base, canary=Arm(hangs=0.15))
        found: dict[str, Goal] = {p: Quantile(f"{p}_at", 900, 0.9) for p in PRESETS}
        trials.append(Trial(name, "power", "until the client leaves", Found(name, world), found, runs=200))
        name = f"hangs for 5 %, {units}"
        world = replace(base, canary=Arm(hangs=0.05), canary_requests=10_000)
        goals: dict[str, Goal] = {f"promoted {p}": Share(p, PROMOTED, 0.05, 0.05) for p in PRESETS}
        says = "4 % of stable's requests are cancelled, 9 % of the canary's"
        trials.append(Trial(name, "not proven", says, Better(name, world), goals, runs=200))
    return trials


def _leaving() -> list[Trial]:
    """Clients that leave a late first token or a late answer, after a time that is recorded."""
    trials = []
    p99 = {"latency_p99": 1.2}
    for units, sticky in UNITS.items():
        base = World(sticky=sticky, w=0.2, canary_requests=4000, metrics=("error", "latency_ms", "ttft_ms"))
        for first_token, within_s, stable, canary in ((0.8, 0.5, 4.5, 1.8), (0.5, 0.38, 12.0, 0.7)):
            name = f"first token x{first_token:g}, clients leave after {within_s:g} s without one, {units}"
            world = replace(base, canary=Arm(first_token=first_token), first_token_within_s=within_s)
            says = f"{stable:g} % leave stable and {canary:g} % the canary, whose answers take as long"
            measure = Stays(name, world, rows=16_000)
            trials.append(Trial(name, "stays", says, measure, stays_goals(), 200))
        for within_s, stable, canary in ((2.3, 1.7, 3.0), (2.15, 2.4, 3.0)):
            name = f"p99 at 1.3x, clients leave after {within_s:g} s, {units}"
            world = replace(base, canary=Arm(slowest=1.3), answer_within_s=within_s)
            says = f"of the canary's slowest 3 %: {stable:g} % leave stable and {canary:g} % the canary"
            unproven: dict[str, Goal] = {"proven": Share("proven", PROMOTED, 0.05, 0.05)}
            trials.append(Trial(name, "not proven", says, NotProven(name, world, p99), unproven, 200))
        twin = replace(base, canary_requests=6000 * (2 if sticky else 1))
        for how, world in (
            ("0.5 s without a first token", replace(twin, first_token_within_s=0.5)),
            ("1.8 s", replace(twin, answer_within_s=1.8, canary_requests=2 * twin.canary_requests)),
        ):
            name = f"p99 of a twin, clients leave after {how}, {units}"
            says = "5 % leave, on both arms; p99 < 1.2x is to be proven"
            limit = 0.95 if "token" in how else 0.85
            proven: dict[str, Goal] = {
                "proven": Share("proven", PROMOTED, limit, limit + 0.02, at_least=True)
            }
            trials.append(Trial(name, "promoted", says, NotProven(name, world, p99), proven, 200))
    return trials


def _not_proven() -> list[Trial]:
    trials = []
    proven: dict[str, Goal] = {"promoted": Share("proven", PROMOTED, 0.05, 0.05)}
    for units, sticky in UNITS.items():
        base = World(sticky=sticky, w=0.25, canary_requests=2000)
        for judged in (0.7, 0.3):
            name = (
                f"quality at the margin, the worst 5 % unscored, {judged:.0%} of the others judged, {units}"
            )
            canary = Arm(quality=0.70, unscored_below=0.296)
            world = replace(base, canary=canary, judged=judged, metrics=("error", "quality"))
            says = "what the judge leaves out on the canary alone are its worst answers"
            trials.append(
                Trial(name, "not proven", says, NotProven(name, world, {"quality": 0.05}), proven, 400)
            )
        name = f"hallucination at the margin, half of the events without a value, {units}"
        canary = Arm(hallucinated=0.09, unscored_events=0.5)
        world = replace(base, canary=canary, judged=0.5, metrics=("error", "hallucinated"))
        says = "a judge of half of the answers that misses half of the canary's hallucinations"
        measure = NotProven(name, world, {"hallucination": 3.0})
        trials.append(Trial(name, "not proven", says, measure, proven, 400))
    for before, after in ((0.002, 0.02), (0.005, 0.03)):
        name = f"rejects {before:.1%} -> {after:.1%}, per request"
        stable, canary = Arm(rejected=before), Arm(rejected=after)
        world = World(sticky=False, stable=stable, canary=canary, w=0.25, canary_requests=10_000)
        goals: dict[str, Goal] = {f"promoted {p}": Share(p, PROMOTED, 0.05, 0.05) for p in PRESETS}
        trials.append(
            Trial(name, "not proven", "4xx that stable does not give", Better(name, world), goals, 200)
        )
    return trials

"""Trials of what changes: later in a conversation, once every user was seen, by kind of user, or on both arms
alike."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.gate.margin_trials import AT_MARGIN, never
from benchmarks.gate.trials import (
    TWIN_ROWS,
    Found,
    Goal,
    NotProven,
    Quantile,
    Share,
    Stays,
    Trial,
    stays_goals,
)
from benchmarks.gate.worlds import Arm, Batches, Differing, Drifting, Returning, World


def _stays(name: str, says: str, world: World, rows: int = TWIN_ROWS) -> Trial:
    goals = stays_goals()
    return Trial(name, "stays", says, Stays(name, world, rows=rows), goals)


#: Conversations of some thirty turns, and a closed group of 600 users: most requests come after a session.
_LONG = Returning(sticky=True, stable=Arm(turns=30.0), canary=Arm(turns=30.0))


def _turns(turns: float, canary: Arm) -> Returning:
    """Conversations of some so many turns."""
    return replace(_LONG, stable=Arm(turns=turns), canary=replace(canary, turns=turns))


_CLOSED = Returning(sticky=True, people=600, rate_per_s=0.5)
_UNDER_WAY = Returning(
    sticky=True, people=3000, rate_per_s=50.0, w=0.2, stable_first=9000, canary_requests=3000, cold=1.5
)
_HARM = Arm(error=0.1, latency_scale=2.0, quality=0.45)


def returning_trials() -> list[Trial]:
    """What units ask after their first session, of ten requests or ten minutes."""
    long_harm = replace(_LONG, canary=replace(_HARM, turns=30.0), from_turn=10, canary_requests=4000)
    deep_harm = replace(_turns(40.0, _HARM), from_turn=20, canary_requests=10_000, rate_per_s=10.0)
    deepest_harm = replace(_turns(100.0, _HARM), from_turn=60, canary_requests=20_000, rate_per_s=20.0)
    closed_harm = replace(_CLOSED, canary=_HARM, late=2000, canary_requests=4000)
    trials = [
        _stays("conversations of 30 turns", "two thirds of the requests come after the session", _LONG),
        _stays(
            "conversations of 60 turns",
            "two thirds of the requests come after the twentieth",
            _turns(60.0, Arm()),
            rows=15_000,
        ),
        _stays("a closed group of 600", "every user is drawn early, and comes back for hours", _CLOSED),
        _stays(
            "conversations under way at the raise",
            "of 3000; the first request on the canary takes 1.5x, as its prefix cache is cold",
            _UNDER_WAY,
        ),
        _stays(
            "a judge that works in batches",
            "300 requests an hour, of which it scores those of the first 18 minutes",
            Batches(sticky=False, rate_per_s=300.0 / 3600.0, metrics=("error", "quality")),
        ),
    ]
    for name, says, world, most in (
        ("harm from the 11th turn on", "each conversation's first ten answers are as good", long_harm, 1500),
        ("harm from the 21st turn on", "each conversation's first twenty are as good", deep_harm, 4300),
        ("harm from the 61st turn on", "each conversation's first sixty are as good", deepest_harm, 14_000),
        ("harm after every user was seen", "a group of 600, harm after 2000 good requests", closed_harm, 500),
    ):
        goals: dict[str, Goal] = {p: Quantile(f"{p}_at", most, 0.9) for p in ("strict", "default")}
        trials.append(Trial(name, "power", says, Found(name, world), goals, runs=200))
    for gate in AT_MARGIN:
        trials.append(
            never(
                f"{gate} at the margin from the 11th turn on",
                "each conversation's first ten answers are as good as stable's",
                gate,
                replace(_LONG, from_turn=10, w=0.25, canary_requests=6000),
                turns=30.0,
            )
        )
    for gate in ("error", "quality"):
        trials.append(
            never(
                f"{gate} at the margin from the 21st turn on",
                "each conversation's first twenty answers are as good as stable's",
                gate,
                replace(_turns(40.0, Arm()), from_turn=20, w=0.25, canary_requests=8000),
                turns=40.0,
            )
        )
    return trials


def drifting_trials() -> list[Trial]:
    """A p99 at 1.3x, and a proof of less than 1.2x, while latency changes on both arms."""
    base = Drifting(sticky=False, w=0.25, canary_requests=3000, tail=1.3, canary=Arm(), stable_first=6000)
    base = replace(base, metrics=("error", "latency_ms"))
    worlds = {
        "as before": base,
        "x1.35 at once": replace(base, step=1.35),
        "spread 0.5 to 0.8": replace(base, spread=0.8),
        "rising to x1.35": replace(base, rise=1.35),
        "rising to x3": replace(base, rise=3.0, stable_first=0),
    }
    trials = []
    for how, world in worlds.items():
        name = f"p99 at 1.3x, both arms {how}"
        says = "the slowest 2 % of the canary's answers are 1.3x as slow; margin 1.2x"
        goal = Share("proven", frozenset({"promote"}), 0.05, 0.05)
        measure = NotProven(name, world, {"latency_p99": 1.2})
        trials.append(Trial(name, "not proven", says, measure, {"promoted": goal}, runs=400))
    return trials


#: Requests of both arms in a period, of which half is the burst: at ten a second, 400 s.
_BURSTS = Drifting(
    sticky=False,
    stable=Arm(error=0.0),
    canary=Arm(error=0.0),
    w=0.25,
    canary_requests=4000,
    stable_first=6000,
    metrics=("error", "latency_ms"),
    tail=1.2,
)
_PROVEN = frozenset({"promote"})
_CHAT = Arm(error=0.0, turns=10.0)


def burst_trials() -> list[Trial]:
    """A p99 exactly at 1.2x, and an equal one, while latency goes up and down on both arms."""
    worlds = {
        "x1.3 for 4000 requests in 8000": replace(_BURSTS, burst=1.3),
        "x1.4 for 4000 requests in 8000": replace(_BURSTS, burst=1.4),
        "x1.3 for 8000 requests in 16,000, w = 5 %": replace(_BURSTS, burst=1.3, period=16_000, w=0.05),
        "a wave to x2": replace(_BURSTS, burst=2.0, is_wave=True, slow=0.03),
    }
    trials = []
    for how, world in worlds.items():
        name = f"p99 at the margin, both arms {how}"
        says = f"the slowest {world.slow:.0%} of the canary's answers are exactly 1.2x as slow; margin 1.2x"
        measure = NotProven(name, world, {"latency_p99": 1.2})
        goals: dict[str, Goal] = {"promoted": Share("proven", _PROVEN, 0.05, 0.05)}
        trials.append(Trial(name, "not proven", says, measure, goals, runs=400))
    for how in list(worlds)[:3]:
        name = f"equal p99, both arms {how}"
        measure = NotProven(name, replace(worlds[how], tail=1.0), {"latency_p99": 1.2})
        goals = {"promoted": Share("proven", _PROVEN, 0.9, 0.93, at_least=True)}
        says = "identical versions prove p99 < 1.2x within 4000 canary requests"
        trials.append(Trial(name, "promoted", says, measure, goals, runs=400))
    return trials


def differing_trials() -> list[Trial]:
    """Half of the users ask once and wait longer, half ask some ten times: a document against a chat."""
    trials = []
    for once in (1.5, 3.0):
        world = Differing(
            sticky=True,
            once=once,
            stable=_CHAT,
            canary=_CHAT,
            w=0.25,
            canary_requests=20_000,
            stable_first=6000,
            rate_per_s=5.0,
            metrics=("error", "latency_ms"),
        )
        name = f"equal p99, who asks once waits x{once:g}"
        measure = NotProven(name, world, {"latency_p99": 1.2})
        goals: dict[str, Goal] = {"promoted": Share("proven", _PROVEN, 0.95, 0.97, at_least=True)}
        says = "identical versions prove p99 < 1.2x within some 11,000 canary requests"
        trials.append(Trial(name, "promoted", says, measure, goals, runs=400))
        at_margin = {
            "all": replace(world, canary=replace(_CHAT, latency_scale=1.2)),
            "the slowest 2 %": replace(world, tail=1.2),
        }
        for which, slower in at_margin.items():
            name = f"p99 at the margin, {which}, who asks once waits x{once:g}"
            measure = NotProven(name, slower, {"latency_p99": 1.2})
            goals = {"promoted": Share("proven", _PROVEN, 0.05, 0.05)}
            says = f"{which} of the canary's answers are exactly 1.2x as slow"
            trials.append(Trial(name, "not proven", says, measure, goals, runs=400))
    return trials

"""Judged answers until a rollback, and what a judge that changes in mid-rollout does to a good canary.

    python -m benchmarks.judged --runs 40 --drift-runs 40 --out benchmarks/results/judged.json

(a) Answers go from 3 % to 14 % wrong; the judge finds 80 % of them and calls 5 % of the right ones wrong.
    Every fifth answer is judged, the canary has 5 %. `wald`: the sequential likelihood ratio of the coin with
    both arms known exactly, at the alpha of the gate, against the worst canary that `default` tolerates: the
    limit of any method that must not roll that one back.
(b) Both arms are one model. In the middle of the rollout the judge changes. Records and verdicts go through
    the controller's own feed: counted are canaries rolled back, and runs in which the drift is named.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from controller.evidence.feed import Feed
from controller.evidence.reader import JoinedPage
from controller.evidence.records import GateConfig
from controller.evidence.score_join import Joined
from controller.planning.judged import with_judge
from controller.planning.unjudged import Unjudged, without
from controller.rollout.judge_plan import JudgeFound, JudgeState
from controller.rollout.machine import begin
from controller.rollout.plan import Plan, Stage, VersionRef
from controller.rollout.state import Phase, RolloutState
from controller.spec.judge import JudgeSpec
from controller.spec.service import parse_policy
from evaluation.evaluator import Evaluator
from evaluation.judging.anchors import AnchorWatch
from evaluation.policy.alpha_split import gate_alpha
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.records import Draw, Score
from serving.judge_messages import JudgeRecord
from serving.messages import RequestRecord

SEED = 20_260_101
WRONG = 0.03, 0.14  # share of wrong answers, of stable and of a bad canary
TOLERATED = 0.025  # of score, by `default`
WEIGHT = 0.05
SHARE = 0.2
RATE_S = 0.1  # between two requests
MOST_REQUESTS = 120_000
CHUNK = 4_000
ANCHOR_EVERY = 20
ANCHORS_BAD = 0.6  # share of them, as of the plants
ANCHORS_BEFORE, MOST_ANCHORS = 200, 1000
DRIFT_REQUESTS, DRIFT_SHARE, DRIFT_WEIGHT = 8_000, 0.5, 0.2
ROLLOUT, REVISION = "r-00000001", "000000000001"


@dataclass(frozen=True, slots=True)
class Says:
    """A judge: probability that it calls a wrong answer, and a right one, wrong."""

    found: float
    false: float

    def bad_rate(self, wrong: float) -> float:
        """Share of the answers that it calls wrong, of which a share is."""
        return wrong * self.found + (1.0 - wrong) * self.false


JUDGE = Says(0.8, 0.05)
CHANGES = {
    "unchanged": JUDGE,
    "stricter": Says(0.95, 0.2),
    "laxer": Says(0.5, 0.01),
    "always yes": Says(1.0, 1.0),
    "nonsense": Says(0.5, 0.5),
}


def policy_with(share: float) -> GatePolicy:
    """`default` as a rollout with a judge has it: the alpha of hallucination, unjudged, is shared out."""
    spec = parse_policy({})
    spec = without(spec, [Unjudged("hallucination", "hallucinated", "reason", 1000)])
    judge = JudgeSpec(url="http://127.0.0.1:8000", model="judge", share=f"{share:.0%}")  # type: ignore[arg-type]
    return with_judge(spec, judge).gate_policy()


# --- (a) answers until a rollback


@dataclass(frozen=True, slots=True)
class Until:
    """Judged answers of the canary until the decision; None: there was none."""

    gate: int | None
    wald: int | None


def until_rollback(policy: GatePolicy, seed: int, wrong: tuple[float, float] = WRONG) -> Until:
    """One run through the evaluator."""
    rng = np.random.default_rng(seed)
    arm = rng.random(MOST_REQUESTS) < WEIGHT
    sampled = rng.random(MOST_REQUESTS) < SHARE
    is_wrong = rng.random(MOST_REQUESTS) < np.where(arm, wrong[1], wrong[0])
    bad = rng.random(MOST_REQUESTS) < np.where(is_wrong, JUDGE.found, JUDGE.false)
    judged_canary = np.cumsum(arm & sampled)
    wald = _wald(policy, arm[sampled], bad[sampled], wrong)
    evaluator = Evaluator.start(policy, stages=(StagePlan(WEIGHT, 0),), seed_latency_ms={})
    latency = rng.lognormal(6.0, 0.4, MOST_REQUESTS)
    for start in range(0, MOST_REQUESTS, CHUNK):
        for n in range(start, start + CHUNK):
            at_s = RATE_S * n
            draw = Draw(
                f"q{n}", f"u{n}", at_s, int(arm[n]), WEIGHT, "request", error=False,
                latency_ms=float(latency[n]), flags={"rejected": False, "cancelled": False},
            )  # fmt: skip
            evaluator.add(draw)
            if sampled[n]:
                evaluator.add(Score(f"q{n}", "quality", 0.0 if bad[n] else 1.0, at_s + 2.0))
        through_s = RATE_S * (start + CHUNK)
        evaluator.advance(through_s, through_s + 1000.0)
        gate = evaluator.report().rollback
        if gate is not None and gate.decided_at_s is not None:
            last = min(round(gate.decided_at_s / RATE_S), MOST_REQUESTS - 1)
            return Until(int(judged_canary[last]) if gate.gate == "quality" else None, wald)
    return Until(None, wald)


def _wald(policy: GatePolicy, arm: Any, bad: Any, wrong: tuple[float, float]) -> int | None:
    """Judged canary answers until the likelihood ratio of the coin reaches the gate's alpha."""
    stable, canary = JUDGE.bad_rate(wrong[0]), JUDGE.bad_rate(wrong[1])
    worst = min(canary, stable + TOLERATED)

    def chances(rate: float) -> Any:
        """P(canary) after a bad verdict, and after a good one."""
        of = np.array([[rate, 1.0 - rate], [stable, 1.0 - stable]])
        return WEIGHT * of[0] / (WEIGHT * of[0] + (1.0 - WEIGHT) * of[1])

    under, limit = np.where(bad, 0, 1), -math.log(gate_alpha(policy, policy.gates_for("quality")[0]))
    harm, none = chances(canary)[under], chances(worst)[under]
    logs = np.cumsum(np.where(arm, np.log(harm / none), np.log((1.0 - harm) / (1.0 - none))))
    reached = np.flatnonzero(logs >= limit)
    return int(np.cumsum(arm)[reached[0]]) if len(reached) else None


def answers_needed(runs: int) -> dict[str, Any]:
    """Figures of (a)."""
    policy = policy_with(SHARE)
    found = [until_rollback(policy, SEED + run) for run in range(runs)]
    gate, wald = [one.gate for one in found], [one.wald for one in found]
    alpha = gate_alpha(policy, policy.gates_for("quality")[0])
    return {
        "runs": runs,
        "wrong": list(WRONG),
        "judge": {"found": JUDGE.found, "false": JUDGE.false},
        "called_wrong": [round(JUDGE.bad_rate(share), 4) for share in WRONG],
        "weight": WEIGHT,
        "share": SHARE,
        "alpha": round(alpha, 6),
        "rolled_back": sum(one is not None for one in gate),
        "judged_canary_median": _median(gate),
        "judged_canary_p90": _quantile(gate, 0.9),
        "wald_tolerated_median": _median(wald),
    }


# --- (b) a judge that changes


def drifting(config: GateConfig, after: Says, seed: int) -> tuple[bool, bool, bool]:
    """Whether the canary was rolled back, the drift named, and the gate INVALID at the end."""
    rng = np.random.default_rng(seed)
    feed, state = Feed(ROLLOUT, config), _in_stage()
    is_back = False
    for start in range(0, DRIFT_REQUESTS, CHUNK // 8):
        now_s = 1e9 + RATE_S * (start + CHUNK // 8)
        says = JUDGE if start < DRIFT_REQUESTS // 2 else after
        events, verdicts = [], []
        for n in range(start, start + CHUNK // 8):
            is_sampled, arm = bool(rng.random() < DRIFT_SHARE), int(rng.random() < DRIFT_WEIGHT)
            record = _record(n, arm, is_sampled, float(rng.lognormal(6.0, 0.4)))
            events.append(Joined(record, True, ()))
            if not is_sampled:
                continue
            verdicts.append(_verdict(record.at_s, says, bool(rng.random() < WRONG[0]), rng, f"q{n}"))
            if rng.random() < 1.0 / ANCHOR_EVERY:
                verdicts.append(_verdict(record.at_s, says, bool(rng.random() < ANCHORS_BAD), rng, ""))
        feed.follow(state, None, now_s)
        feed.on_page(JoinedPage(events, (), now_s, True, (), verdicts), now_s + 1000.0)
        status = feed.status()
        is_back |= status is not None and status.rollback is not None
    status = feed.status()
    assert status is not None
    assert status.judge is not None
    gate = next(one for one in status.gates if one.gate == "quality")
    return is_back, status.judge.drift is not None, gate.verdict == "INVALID"


def anchors_until_named(after: Says, seed: int) -> int | None:
    """Anchors after the change until the drift is named; None: it is not within `MOST_ANCHORS`. Before the
    change there are `ANCHORS_BEFORE`."""
    rng, watch = np.random.default_rng(seed), AnchorWatch()
    for n in range(ANCHORS_BEFORE + MOST_ANCHORS):
        says, is_bad = JUDGE if n < ANCHORS_BEFORE else after, bool(rng.random() < ANCHORS_BAD)
        if watch.add(is_bad=is_bad, called_bad=bool(rng.random() < (says.found if is_bad else says.false))):
            return max(0, n + 1 - ANCHORS_BEFORE)
    return None


def _in_stage() -> RolloutState:
    plan = Plan("medium", (), (Stage(round(1e4 * DRIFT_WEIGHT), 0.0, 0, 1e6, 1),), 500, 0.0)
    state = begin(ROLLOUT, "chat", stable=VersionRef("v-1"), canary=VersionRef("v-2"), plan=plan, now_s=1e9)
    judge = JudgeState(1, JudgeFound("admitted", 1, "", REVISION))
    weight_bp = plan.stages[0].weight_bp
    return replace(state, phase=Phase.STAGE, weight_bp=weight_bp, acked_at_s=1e9, exposed=True, judge=judge)


def _record(n: int, arm: int, is_sampled: bool, latency_ms: float) -> RequestRecord:
    at_s = 1e9 + RATE_S * n
    return RequestRecord(
        seq=n + 1, request_id=f"q{n}", answer_id=None, unit=f"u{n}", bucket=n % 10_000, arm=arm,
        w=DRIFT_WEIGHT, assigned_by="request", stage=0, rollout=ROLLOUT, at_s=at_s, done_at_s=at_s + 0.05,
        status=200, outcome="answered", served_arm=arm, error=False, cause=None, latency_ms=latency_ms,
        ttft_ms=None, itl_ms=None, prompt_tokens=9, completion_tokens=9, finish_reason="stop", empty=False,
        path="/v1/chat/completions", router="one", epoch=1, revision=1, rejected=False, judged=is_sampled,
    )  # fmt: skip


def _verdict(at_s: float, says: Says, is_wrong: bool, rng: np.random.Generator, request: str) -> JudgeRecord:
    bad = bool(rng.random() < (says.found if is_wrong else says.false))
    label = None if request else is_wrong
    return JudgeRecord(0, ROLLOUT, REVISION, at_s + 2.0, request, label, bad, None, 300, "one")


def drifts(runs: int) -> list[dict[str, Any]]:
    """Figures of (b), one entry a change."""
    stages = (StagePlan(DRIFT_WEIGHT, 0),)
    config = GateConfig(policy_with(DRIFT_SHARE), stages, "quality")
    table = []
    for name, after in CHANGES.items():
        found = [drifting(config, after, SEED + 1000 + run) for run in range(runs)]
        back, named, invalid = (sum(one[at] for one in found) for at in range(3))
        table.append(
            {
                "judge": name,
                "found": after.found,
                "false": after.false,
                "runs": runs,
                "rolled_back": back,
                "drift_named": named,
                "invalid_at_end": invalid,
                "anchors_until_named_median": _median(
                    [anchors_until_named(after, SEED + 2000 + run) for run in range(runs)]
                ),
            }
        )
    return table


def _median(values: Sequence[int | None]) -> float | None:
    known = [math.inf if one is None else float(one) for one in values]
    middle = statistics.median(known) if known else math.inf
    return middle if math.isfinite(middle) else None


def _quantile(values: Sequence[int | None], share: float) -> float | None:
    known = sorted(math.inf if one is None else float(one) for one in values)
    found = known[min(len(known) - 1, math.floor(share * len(known)))] if known else math.inf
    return found if math.isfinite(found) else None


def main(arguments: Sequence[str] | None = None) -> Mapping[str, Any]:
    """Measure, print and, with --out, write."""
    parser = argparse.ArgumentParser(prog="benchmarks.judged", description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--drift-runs", type=int, default=40)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    report = {
        "seed": SEED,
        "answers": answers_needed(given.runs),
        "drift": {
            "requests": DRIFT_REQUESTS,
            "share": DRIFT_SHARE,
            "weight": DRIFT_WEIGHT,
            "wrong": WRONG[0],
            "changes": drifts(given.drift_runs),
        },
    }
    show(report, given.out)
    return report


def show(report: Mapping[str, Any], out: Path | None) -> None:
    """Print the report as JSON, and write it to a file; None: to none."""
    text = json.dumps(report, indent=1) + "\n"
    sys.stdout.write(text)
    if out is not None:
        out.write_text(text)


if __name__ == "__main__":
    main()

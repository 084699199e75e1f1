"""The judge of a rollout in its plan: what the gates say of it, how many answers it is asked of."""

from __future__ import annotations

import math
from dataclasses import replace

from controller.errors import BadSpec
from controller.planning.baseline import MeasuredBaseline
from controller.planning.forecast import TrafficOverrides, traffic_model
from controller.planning.judge_engine import ServedJudge, engine_line
from controller.quantities import FULL_BP, duration, figure, percent
from controller.rollout.judge_plan import JudgePlan
from controller.rollout.plan import MirrorPlan, Plan
from controller.spec.fields import FieldError
from controller.spec.judge import JudgeSpec, judged_gates
from controller.spec.policy import PolicySpec
from controller.spec.service import derived_policy, dump
from evaluation.forecast.simulation import TrafficModel

SETTLED_S = 180.0  # from the last copy to the verdicts on its pair, and their turn in the test
ANCHORS = 0.05  # of the questions are answers with known labels
MAX_VARIANCE_RATIO = 0.98  # as of measured scores: a Beta's variance is below that of yes and no


def with_judge(policy: PolicySpec, judge: JudgeSpec | None) -> PolicySpec:
    """The policy whose gates on the judge's metric state the share that is judged. Raises BadSpec."""
    if judge is None:
        return policy
    try:
        changes = judged_gates(judge, policy)
    except FieldError as exc:
        raise BadSpec([f"policy.{exc}"]) from exc
    return derived_policy(policy, {"gates": {**(dump(policy).get("gates") or {}), **changes}})


def judge_plan(judge: JudgeSpec | None, served: ServedJudge | None = None) -> JudgePlan | None:
    """What a rollout pins of its service's judge; None: it has none. served: the judge as an engine."""
    if judge is None:
        return None
    return JudgePlan(
        url=judge.url or "",
        model=judge.title if served is None else served.model,
        engine=None if served is None else served.engine,
        share_bp=judge.share,
        metric=judge.metric,
        per_minute=judge.per_minute,
        api_key_env=judge.api_key_env,
        api_key_file=judge.api_key_file,
    )


def judged_traffic(traffic: TrafficModel, judge: JudgeSpec, *, is_measured: bool) -> TrafficModel:
    """The traffic with the judge's share of scores, which are yes or no. is_measured: scores of its metric
    were, so that their spread is known."""
    share = judge.share / FULL_BP
    traffic = replace(traffic, judged={**traffic.judged, judge.metric: share})
    if is_measured:
        return traffic
    mean = traffic.baseline.score_mean
    sd = math.sqrt(MAX_VARIANCE_RATIO * mean * (1.0 - mean))
    return replace(traffic, baseline=replace(traffic.baseline, score_sd=sd))


def rollout_traffic(
    policy: PolicySpec,
    measured: MeasuredBaseline,
    rate: float | None,
    overrides: TrafficOverrides,
    judge: JudgeSpec | None,
) -> TrafficModel | None:
    """The traffic that a plan meets; None: its rate is not known."""
    if rate is None:
        return None
    traffic = traffic_model(policy, measured, rate, overrides)
    if judge is None:
        return traffic
    return judged_traffic(traffic, judge, is_measured=measured.score(judge.metric) is not None)


def why_not_asked(given: JudgeSpec | None, judge: JudgeSpec | None) -> str | None:
    """Why the service's judge is not the rollout's; None: it is, or there is none. judge: the rollout's."""
    if given is None or given.share == 0 or judge is not None:
        return None
    return f"judge {given.title} is not asked: no gate of the policy tests {given.metric}"


def judge_line(
    judge: JudgeSpec, plan: Plan, requests_per_s: float | None, served: ServedJudge | None = None
) -> str:
    """Of how many answers it is asked, and what its engine takes. requests_per_s None: not known."""
    asked = _asked_line(judge, plan, requests_per_s)
    return asked if served is None else f"{asked}; {engine_line(served)}"


def _asked_line(judge: JudgeSpec, plan: Plan, requests_per_s: float | None) -> str:
    share = percent(judge.share)
    what = f"judge {judge.title} is asked of {share} of both versions' answers, for {judge.metric}"
    if requests_per_s is None or not plan.stages:
        return f"{what}; it is examined before the first stage"
    a_minute = 60.0 * requests_per_s * judge.share / FULL_BP
    canary = a_minute * plan.stages[0].weight_bp / FULL_BP
    return (
        f"{what}: {figure(a_minute, 2)} a minute, {figure(canary, 2)} of the canary's in stage 1; "
        "it is examined before the first stage"
    )


def judge_cautions(judge: JudgeSpec, requests_per_s: float | None, routers: int) -> tuple[str, ...]:
    """A line where its budget cannot suffice at this traffic; empty: it can, or the rate is not known."""
    if requests_per_s is None:
        return ()
    asked, limit = 60.0 * requests_per_s * judge.share / FULL_BP / (1.0 - ANCHORS), judge.per_minute * routers
    if asked <= limit:
        return ()
    return (
        f"judge: {figure(asked, 2)} questions a minute exceed per_minute {judge.per_minute} of {routers} "
        f"router(s): the rest has no verdict, so {judge.metric} would be INVALID; raise per_minute to "
        f"{math.ceil(asked / routers)}, or lower share to {percent(math.floor(judge.share * limit / asked))}",
    )


def pair_cautions(judge: JudgeSpec, mirror: MirrorPlan | None, routers: int) -> tuple[str, ...]:
    """A line where its budget cannot judge the mirrored pairs that the first stage waits for, in time."""
    if mirror is None:
        return ()
    a_minute = judge.per_minute * routers * (1.0 - ANCHORS) / 2.0
    most = math.floor(a_minute * max(mirror.deadline_s - SETTLED_S, 0.0) / 60.0)
    if most >= mirror.min_pairs:
        return ()
    needed_s = 60.0 * math.ceil(SETTLED_S / 60.0 + mirror.min_pairs / a_minute)
    return (
        f"judge: per_minute {judge.per_minute} of {routers} router(s) judges {most:,} mirrored pairs within "
        f"mirror.deadline {duration(round(mirror.deadline_s))}, min_pairs is {mirror.min_pairs:,}: the first "
        f"stage would be held; raise per_minute, or the deadline to {duration(round(needed_s))}",
    )

"""Plans by risk and policy, and what their load ratios mean for latency."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.errors import BadSpec
from controller.planning.ladder import gate_stages, latency_lines, make_plan, slow_stages
from controller.planning.replica_load import load_ratio
from controller.planning.risk import Assessment, Risk
from controller.rollout.plan import Plan
from controller.spec.policy import PolicySpec
from controller.spec.service import parse_policy, parse_yaml
from evaluation.evaluator import Evaluator
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.policy.stage_proofs import stage_margins
from evaluation.records import Draw
from evaluation.report import GateReport


def shares(risk: Risk, **policy: object) -> list[tuple[int, float, int]]:
    plan = make_plan(Assessment(risk, (), (), ()), parse_policy(policy), replicas=1)
    return [(stage.weight_bp, stage.duration_s / 3600, stage.min_canary) for stage in plan.stages]


def test_the_ladder_begins_where_the_risk_says() -> None:
    top = [(2500, 1, 5000), (5000, 2, 10_000)]

    assert shares(Risk.LOW) == [(1000, 0.5, 2000), *top]
    assert shares(Risk.MEDIUM) == [(1000, 1, 2000), *top]
    assert shares(Risk.HIGH) == [(500, 4, 500), (1000, 1, 2000), *top]
    assert shares(Risk.CRITICAL) == [(200, 24, 200), (500, 0.5, 500), (1000, 1, 2000), *top]


def test_a_full_ladder_starts_every_risk_at_two_percent() -> None:
    assert shares(Risk.LOW, ladder="full") == shares(Risk.CRITICAL, ladder="full")
    assert shares(Risk.LOW, ladder="full")[0] == (200, 0.5, 200)


def test_the_vendor_preset_starts_at_a_tenth_of_a_percent() -> None:
    assert [weight for weight, *_ in shares(Risk.LOW, preset="vendor")] == [10, 100, 500, 2500]


def test_a_policy_may_give_its_own_stages_and_the_bake_as_the_last() -> None:
    policy = parse_policy(
        {
            "stages": [
                {"weight": "10%", "duration": "20s", "min_canary": 40},
                {
                    "weight": "50%",
                    "duration": "20s",
                    "min_canary": 80,
                    "deadline": "5m",
                    "on_missing": "rollback",
                },
                {"weight": "100%", "duration": "15s"},
            ],
            "holdback": "10%",
        }
    )
    plan = make_plan(Assessment(Risk.CRITICAL, (), (), ()), policy, replicas=4)

    assert [(stage.weight_bp, stage.deadline_s, stage.replicas) for stage in plan.stages] == [
        (1000, 60.0, 1),
        (5000, 300.0, 2),
    ]
    assert (plan.bake_s, plan.holdback_bp, plan.stages[1].on_missing) == (15.0, 1000, "rollback")


def test_known_traffic_extends_the_deadline_until_min_canary_is_reached() -> None:
    plan = make_plan(Assessment(Risk.MEDIUM, (), (), ()), parse_policy({}), replicas=1, requests_per_s=1.0)

    # 2000 canary requests at 10 % of 1 request/s take 20,000 s; three times that is the deadline.
    assert plan.stages[0].deadline_s == pytest.approx(60_000)


def test_a_stage_has_the_replicas_for_its_weight() -> None:
    plan = make_plan(Assessment(Risk.CRITICAL, (), (), ()), parse_policy({}), replicas=10)

    assert [stage.replicas for stage in plan.stages] == [1, 1, 1, 3, 5]


def test_a_high_holdback_cuts_the_ladder() -> None:
    assert [weight for weight, *_ in shares(Risk.MEDIUM, holdback="50%")] == [1000, 2500]


def test_the_evaluator_gets_the_stages_and_the_bake() -> None:
    policy = parse_policy(
        {"stages": [{"weight": "10%", "min_canary": 40, "margins": {"error": 8.0}, "floor": 0.02}]}
    )
    plan = make_plan(Assessment(Risk.MEDIUM, (), (), ()), policy, replicas=1)
    stages = gate_stages(plan, policy)

    assert [(stage.weight, stage.min_canary) for stage in stages] == [(0.1, 40), (0.95, 0)]
    assert stages[0].margins == {"error": 8.0}


def test_without_a_holdback_the_evaluator_gets_no_stage_for_the_bake() -> None:
    policy = parse_policy({"holdback": 0})
    plan = make_plan(Assessment(Risk.MEDIUM, (), (), ()), policy, replicas=1)

    assert [stage.weight for stage in gate_stages(plan, policy)] == [0.1, 0.25, 0.5]


# --- load ratios


def planned(replicas: int, stable: int | None = None, **policy: object) -> tuple[Plan, PolicySpec]:
    spec = parse_policy(policy)
    stable = replicas if stable is None else stable
    assessment = Assessment(Risk.MEDIUM, (), (), ())
    return make_plan(assessment, spec, replicas=replicas, stable_replicas=stable), spec


def latency_margins(plan: Plan, policy: PolicySpec) -> list[set[str]]:
    gates = policy.gate_policy()
    demanded = [stage_margins(gates, stage)[0] for stage in gate_stages(plan, policy)]
    return [{name for name in names if name.startswith("latency")} for names in demanded]


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 10, 64])
def test_the_default_ladder_proves_latency_at_fifty_percent_with_any_equal_replicas(replicas: int) -> None:
    assert latency_margins(*planned(replicas))[2] == {"latency_shape", "latency_p99"}


def test_with_one_replica_all_but_latency_must_be_proven_below_fifty_percent() -> None:
    plan, policy = planned(1)

    stages = gate_stages(plan, policy)

    assert latency_margins(plan, policy)[:2] == [set(), set()]
    without = {"error", "rejected", "hallucination", "quality"}
    assert [set(stage.margins or ()) for stage in stages[:2]] == [without] * 2


@pytest.mark.slow
def test_no_stage_loads_a_canary_replica_beyond_the_load_ratio() -> None:
    for replicas in range(1, 65):
        plan, _ = planned(replicas)
        for index in range(len(plan.stages)):
            ratio = load_ratio(plan, index)
            assert ratio is not None
            assert ratio.at_start <= 1.25


@pytest.mark.slow
def test_latency_at_a_higher_load_does_not_roll_back() -> None:
    plan, policy = planned(1, 4)
    last, bake = gate_stages(plan, policy)[2:]
    gates = policy.gate_policy().only("latency_ms")

    assert rolled_back(gates, StagePlan(0.5, 0)) is not None
    assert rolled_back(gates, last) is None
    assert rolled_back(gates, bake) is None


def rolled_back(gates: GatePolicy, stage: StagePlan) -> GateReport | None:
    evaluator = Evaluator.start(gates, stages=[stage], seed_latency_ms={})
    for n in range(800):
        arm = n % 2
        evaluator.add(Draw(f"q{n}", f"u{n}", float(n), arm, 0.5, "request", latency_ms=100.0 * (1 + 3 * arm)))
    evaluator.advance(10_000.0, 10_000.0)
    return evaluator.report().rollback


def test_a_margin_that_the_replicas_make_unprovable_is_refused_with_the_remedy() -> None:
    stages = [{"weight": "20%", "margins": {"error": 5.0, "latency_shape": 1.2}}, {"weight": "50%"}]

    with pytest.raises(BadSpec) as caught:
        planned(1, stages=stages)

    assert caught.value.lines == (
        "policy.stages.0.margins.latency_shape cannot be proven at 20 %: a canary replica gets 0.25x the "
        "load of stable's; leave it out here, or prove it in a last stage at 50 %",
    )


def test_latency_lines_name_where_latency_is_proven_and_where_not() -> None:
    assert latency_lines(*planned(1)) == (
        "latency can be proven at 50 % (1x stable's load)",
        "latency can roll back, but not be proven, at 10 % (0.11x stable's load), 25 % (0.33x stable's load)",
        "latency is ignored at the bake's 95 % (19x stable's load)",
    )
    assert latency_lines(*planned(1, stages=[{"weight": "10%"}]))[-1] == (
        "latency is proven at no stage; prove it in a last stage at 50 %"
    )


def test_the_demos_latency_is_proven_where_the_policy_demands_it() -> None:
    policy = parse_policy(parse_yaml(Path("examples/demo-policy.yaml").read_text(), "demo"))
    plan = make_plan(Assessment(Risk.MEDIUM, (), (), ()), policy, replicas=1, stable_replicas=1)

    assert latency_margins(plan, policy) == [set(), {"latency_shape"}, set()]


def test_the_load_of_an_external_endpoint_is_unknown() -> None:
    policy = parse_policy({})
    plan = make_plan(Assessment(Risk.CRITICAL, (), (), ()), policy, replicas=1)

    assert all(latency_margins(plan, policy)[:-1])
    assert "not known" in latency_lines(plan, policy)[0]


@pytest.mark.parametrize("path", sorted(Path("examples").glob("*policy*.yaml")), ids=lambda path: path.stem)
def test_every_policy_among_the_examples_makes_a_plan(path: Path) -> None:
    policy = parse_policy(parse_yaml(path.read_text(), path.name))
    plan = make_plan(Assessment(Risk.MEDIUM, (), (), ()), policy, replicas=1)

    assert plan.stages
    assert policy.gate_policy().alpha <= 0.01


def test_a_plan_without_a_stage_is_refused() -> None:
    policy = parse_policy({}).model_copy(update={"holdback": 9500})

    with pytest.raises(BadSpec, match="no stage below the bake's 5 %"):
        make_plan(Assessment(Risk.MEDIUM, (), (), ()), policy, replicas=1)


def test_a_stage_that_takes_weeks_at_this_traffic_is_warned_of() -> None:
    """At 0.01 requests/s the first stage had a deadline of 69 days, and nothing was said of it."""
    plan = make_plan(Assessment(Risk.MEDIUM, (), (), ()), parse_policy({}), replicas=1, requests_per_s=0.01)

    assert [line.partition(":")[0] for line in slow_stages(plan, 0.01)] == ["stage 1", "stage 2", "stage 3"]
    assert slow_stages(plan, 0.01)[0] == (
        "stage 1: its 2000 canary requests take 23 d 3 h at 0.01 requests/s (deadline 69 d 10 h); lower its "
        "min_canary or raise its weight: policy.stages"
    )
    assert slow_stages(plan, 1.0) == ()
    assert slow_stages(plan, 0.0) == ()

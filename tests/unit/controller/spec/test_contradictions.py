"""A policy that contradicts itself is refused, with one line: value, limit, remedy."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from controller.errors import BadSpec
from controller.spec.fields import STORED
from controller.spec.policy import PolicySpec
from controller.spec.service import parse_policy

FIRST: Mapping[str, object] = {"weight": "5%"}
P50, P95 = {"p50": [300, 420]}, {"p95": [100, 200]}


def ranges(**given: Mapping[str, object]) -> dict[str, object]:
    """A policy with these observed ranges of latency, whose shares of alpha fit."""
    entries = {name: {"metric": "latency_ms", "alpha_share": 0.01, **one} for name, one in given.items()}
    return {"observed_ranges": entries, "gates": {"error": {"alpha_share": 0.1}}}


REFUSED = [
    (
        {"stages": [{**FIRST, "min_canary": 100_000, "deadline": "1m"}]},
        "policy.stages.0.min_canary 100000 at 5 % within the deadline, 1 min, needs 33333 requests/s, "
        "limit 10000; lower it, or raise the deadline",
    ),
    (
        {"mirror": {"share": "2%", "min_pairs": 100_000, "deadline": "1m"}},
        "policy.mirror.min_pairs 100000 at 2 % within the deadline, 1 min, needs 83333 requests/s, "
        "limit 10000; lower it, or raise the deadline",
    ),
    (
        {"stages": [{"weight": "5%", "audience_bp": {"staff": 100}}]},
        "policy.stages.0.audience_bp.staff 100 has no effect: it is below 500, the stage's weight; raise it, "
        "or leave it out",
    ),
    *(
        (
            {"stages": [FIRST, {"weight": "100%", key: value}]},
            f"policy.stages.1.{key} is for stages below 100 %, the promotion itself; leave it out",
        )
        for key, value in (
            ("min_canary", 5),
            ("margins", {"error": 2.0}),
            ("floor", 0.01),
            ("deadline", "1h"),
            ("on_missing", "rollback"),
        )
    ),
    (
        {"stages": [FIRST, {"weight": "100%", "duration": "1h"}], "bake": "3h"},
        "policy.bake 3 h contradicts stages.1.duration, 1 h, which is the bake's at 100 %; leave one out",
    ),
    (
        {"gates": {"error": None}, "stages": [{**FIRST, "margins": {"error": 2.0}}]},
        "policy.stages.0.margins.error proves a gate that gates.error: null removes; leave one of both out",
    ),
    (
        {"gates": {"quality": None}, "rungs": [{"min_canary": 0, "margins": {"quality": 0.1}}]},
        "policy.rungs.0.margins.quality proves a gate that gates.quality: null removes; leave one of "
        "both out",
    ),
    (
        {"rungs": [{"min_canary": 0, "margins": {"error": 1.5}, "own": {"error": 1.2}}]},
        "policy.rungs.0.own.error 1.2 is below 1.5, the margin of the whole rollout; own ones are wider: "
        "raise it",
    ),
    (
        {"stages": [{**FIRST, "margins": {}, "floor": 0.01}]},
        "policy.stages.0.floor 0.01 has no effect: margins has no rate; leave it out, or give one, such as "
        "error",
    ),
    ({"stages": [{**FIRST, "floor": 1}]}, "policy.stages.0.floor 1 is not below 1; lower it"),
    (
        {"preset": "vendor", "stages": [FIRST]},
        "policy.preset vendor has no effect: stages gives the weights; leave one out",
    ),
    (
        {"gates": {"error": {"alpha_share": 0, "required": True}}},
        "policy.gates.error.required true has no effect: alpha_share 0 makes the gate an alarm, which "
        "decides nothing; give it a share, or leave required out",
    ),
    (
        {
            "gates": {
                "error": {"alpha_share": 0.1},
                "mine": {"metric": "error", "kind": "rate", "threshold": 0.5, "alpha_share": 0.1},
            }
        },
        "policy.gates.mine tests the same as gates.error: error by rate, threshold 0.5; leave one out",
    ),
    (
        ranges(one={"ranges": P50 | P95}),
        "policy.observed_ranges.one.ranges.p95 ends at 200, below 300, where observed_ranges.one.ranges.p50 "
        "begins; no latency_ms can be in both: correct one",
    ),
    (
        ranges(one={"ranges": P50}, two={"ranges": {"p50": [500, 600]}}),
        "policy.observed_ranges.one.ranges.p50 ends at 420, below 500, where observed_ranges.two.ranges.p50 "
        "begins; no latency_ms can be in both: correct one",
    ),
    (
        ranges(one={"ranges": P50, "since": "2026-05-02", "until": "2026-05-01"}),
        "policy.observed_ranges.one.until 2026-05-01 is not after since, 2026-05-02; swap them",
    ),
    (
        ranges(error={"ranges": P50}),
        "policy.observed_ranges.error is the name of another gate; give each gate its own",
    ),
]


@pytest.mark.parametrize(("data", "line"), REFUSED)
def test_a_contradiction_is_one_line(data: Mapping[str, object], line: str) -> None:
    with pytest.raises(BadSpec) as caught:
        parse_policy(data)

    assert caught.value.lines == (line,)


@pytest.mark.parametrize(
    "data",
    [
        {"stages": [{**FIRST, "min_canary": 20_000, "deadline": "1m"}]},
        {"stages": [FIRST, {"weight": "100%", "duration": "1h"}]},
        {"stages": [FIRST, {"weight": "100%", "duration": "1h"}], "bake": "1h"},
        {"stages": [{**FIRST, "floor": 0.01}]},  # of the rung's margins
        {"stages": [{**FIRST, "audience_bp": {"staff": 5000}}, {"weight": "60%"}]},
        {"units": "sticky", "session": "5m"},
        {"gates": {"error": {"alpha_share": 0}}},
        ranges(one={"ranges": P50 | P95, "sides": "above"}),
        ranges(one={"ranges": P50 | {"p95": [400, 500]}, "since": "yesterday", "until": "today"}),
    ],
)
def test_what_is_no_contradiction_is_accepted(data: Mapping[str, object]) -> None:
    parse_policy(data)


def test_a_stored_policy_is_read_whatever_it_contradicts() -> None:
    data = {"preset": "vendor", "stages": [{"weight": "5%", "min_canary": 100_000, "deadline": "1m"}]}

    assert PolicySpec.model_validate(data, context=STORED).preset == "vendor"

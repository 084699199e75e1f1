"""Gates whose metric never came in stable's traffic: who is asked, and where their alpha goes."""

from __future__ import annotations

import math

import pytest

from controller.planning.baseline import MeasuredBaseline, ScoreStats
from controller.planning.unjudged import awaited, unjudged, without
from controller.spec.service import parse_policy

SCORED = {name: ScoreStats(400, 0.9, 0.1, 1.0) for name in ("quality", "hallucinated")}
STREAMED = {"latency_ms": 5000, "ttft_ms": 5000}


def stable(**changes: object) -> MeasuredBaseline:
    """5000 requests, streamed and scored, but for the changes."""
    events = {"error": 50, "rejected": 0, "truncated": 1, "empty": 0, "cancelled": 0}
    known = {"requests": 5000, "settled": 4500, "events": events, "scores": SCORED, "values": STREAMED}
    return MeasuredBaseline(**{**known, **changes})  # type: ignore[arg-type]


def needs(policy: object, measured: MeasuredBaseline) -> dict[str, str]:
    return {one.metric: one.needs for one in unjudged(parse_policy(policy), measured)}


def test_what_arrives_is_judged() -> None:
    assert needs({}, stable()) == {}


def test_a_presets_gate_without_scores_needs_a_reason() -> None:
    assert needs({}, stable(scores={"quality": SCORED["quality"]})) == {"hallucinated": "reason"}


def test_the_time_to_the_first_token_needs_none_where_nothing_streams() -> None:
    assert needs({}, stable(values={"latency_ms": 5000})) == {"ttft_ms": "nothing"}


@pytest.mark.parametrize(
    "policy",
    [
        {"gates": {"hallucination": {"threshold": 0.4}}},
        {"stages": [{"weight": "10%", "margins": {"hallucination": 3}}]},
    ],
    ids=["gate", "margin"],
)
def test_a_gate_that_the_user_named_needs_a_source(policy: object) -> None:
    found = unjudged(parse_policy(policy), stable(scores={"quality": SCORED["quality"]}))

    assert [(one.metric, one.needs) for one in found] == [("hallucinated", "source")]
    assert without(parse_policy(policy), found) == parse_policy(policy)


@pytest.mark.parametrize("measured", [MeasuredBaseline(0), stable(requests=199, settled=0, scores={})])
def test_too_few_requests_say_nothing(measured: MeasuredBaseline) -> None:
    assert needs({}, measured) == {}


def test_requests_too_young_for_a_score_say_nothing() -> None:
    assert needs({}, stable(settled=0, scores={})) == {}


def test_an_alarm_is_not_reported() -> None:
    policy = {"gates": {"hallucination": {"alpha_share": 0}}}

    assert needs(policy, stable(scores={"quality": SCORED["quality"]})) == {}


def test_the_alpha_of_a_gate_that_is_left_out_goes_to_the_others() -> None:
    policy = parse_policy({})
    before = {gate.name: gate.alpha_share for gate in policy.gate_policy().gates if not gate.is_alarm}

    left = without(policy, unjudged(policy, stable(scores={"quality": SCORED["quality"]})))

    after = {gate.name: gate.alpha_share for gate in left.gate_policy().gates if not gate.is_alarm}
    assert set(before) - set(after) == {"hallucination"}
    assert math.isclose(math.fsum(after.values()), math.fsum(before.values()), abs_tol=1e-5)
    ratios = [after[name] / before[name] for name in after]
    assert max(ratios) - min(ratios) < 1e-4


def test_the_line_names_gate_cause_and_remedy() -> None:
    [one] = unjudged(parse_policy({}), stable(scores={"quality": SCORED["quality"]}))

    assert one.text == (
        "hallucination NOT JUDGED: none of stable's 4,500 requests has hallucinated; send hallucinated "
        "scores: POST /v1/feedback, or deploy without this gate: --allow-unjudged REASON"
    )


def test_where_stable_answers_nobody_the_line_says_that_and_advises_no_waiver() -> None:
    """The metric lacks because its requests failed: to go on without the gate would hide that."""
    found = unjudged(parse_policy({}), stable(events={"error": 5000}, values={}))

    [latency] = {one.text for one in found if one.gate == "latency_p99"}
    assert latency == (
        "latency_p99 NOT JUDGED: 5,000 of stable's 5,000 requests failed, and none has latency_ms; find out "
        "first why stable answers nobody: canaryctl status"
    )


NO_QUALITY = (
    "quality: no score of quality has come yet; nothing can be promoted without it, so the rollout would end "
    "as not proven (hold_limit); send quality scores: "
    "POST /v1/feedback, or leave the gate out of the policy: gates: {quality: null}"
)


@pytest.mark.parametrize(
    "measured", [MeasuredBaseline(0), stable(settled=0, scores={}), stable(settled=199, scores={})]
)
def test_a_gate_whose_first_score_may_never_come_is_named_before_it_is_known(
    measured: MeasuredBaseline,
) -> None:
    """In the first minutes it is too early to say that a grader is missing, and too late afterwards."""
    lines = awaited(parse_policy({}), measured)

    assert [line.partition(":")[0] for line in lines] == ["quality", "hallucination"]
    assert lines[0] == NO_QUALITY


@pytest.mark.parametrize(
    ("policy", "measured"),
    [
        ({}, stable(settled=20, scores=SCORED)),  # some have come
        ({}, stable(scores={})),  # known to be missing: NOT JUDGED
        ({"gates": {"quality": None, "hallucination": None}}, MeasuredBaseline(0)),
        ({"gates": {"quality": {"alpha_share": 0}, "hallucination": None}}, MeasuredBaseline(0)),
    ],
    ids=["scored", "not judged", "left out", "alarm"],
)
def test_no_first_score_is_awaited_where_none_is_missing(policy: object, measured: MeasuredBaseline) -> None:
    assert awaited(parse_policy(policy), measured) == ()

"""Every broken rule of a policy or service in one answer, and none that only follows from another."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from controller.api.proposal import as_twin
from controller.errors import BadSpec
from controller.planning.judged import with_judge
from controller.planning.unjudged import Unjudged, without
from controller.spec.judge import JudgeSpec
from controller.spec.service import parse_policy, parse_service


def lines(parse: Callable[[object], object], data: object) -> tuple[str, ...]:
    with pytest.raises(BadSpec) as caught:
        parse(data)
    return caught.value.lines


def test_gates_are_checked_although_a_stage_is_wrong() -> None:
    found = lines(
        parse_policy,
        {
            "gates": {"latency": {"threshold": 1.2}, "errors": None, "quality": {"alpha_share": 3}},
            "stages": [
                {"weight": 10, "duration": "1m"},
                {"weight": 0.5, "min_canary": "100 requests"},
                {"weight": "5%"},
            ],
            "holdback": "60%",
        },
    )

    assert [line.partition(" ")[0] for line in found] == [
        "policy.stages.1.weight:",
        "policy.stages.1.min_canary",
        "policy.holdback",
        "policy.gates.latency",
        "policy.gates.errors",
        "policy.gates.quality.alpha_share",
    ]


def test_rules_of_one_kind_are_each_named() -> None:
    found = lines(
        parse_policy,
        {
            "stages": [
                {"weight": "10%", "margins": {"qualty": 0.05}},
                {"weight": "5%"},
                {"weight": "4%", "margins": {"eror": 2.0}},
            ],
            "drain_timeout": 0,
            "bake": "soon",
        },
    )

    assert [line.partition(" ")[0] for line in found] == [
        "policy.bake:",
        "policy.drain_timeout",
        "policy.stages.1.weight",
        "policy.stages.2.weight",
        "policy.stages.0.margins.qualty",
        "policy.stages.2.margins.eror",
    ]


def test_unknown_keys_hide_nothing() -> None:
    found = lines(
        parse_policy, {"alhpa": 0.1, "bakes": "1h", "holdback": "60%", "stages": [{"weigth": "5%"}]}
    )

    assert [line.partition(";")[0] for line in found] == [
        "policy: unknown key 'alhpa'",
        "policy: unknown key 'bakes'",
        "policy.stages.0: unknown key 'weigth'",
        "policy.holdback 60 % exceeds 50 %",
    ]


def test_the_policy_of_a_service_is_checked_to_its_end_too() -> None:
    found = lines(
        parse_service,
        {
            "service": "Chat!",
            "model": "/m",
            "replicas": 0,
            "tensor_parallel_size": 2,
            "gpus": 0.5,
            "policy": {"bake": "soon", "holdback": "60%"},
            "engine": {"port": 1, "api_key": "x"},
        },
    )

    assert [line.partition(" ")[0].rstrip(":") for line in found] == [
        "service.replicas",
        "service.service",
        "service.policy.bake",
        "service.policy.holdback",
        "service.engine.port",
        "service.engine.api_key",
        "service.gpus",
    ]


@pytest.mark.parametrize(
    ("parse", "data", "count"),
    [
        # A margin of a gate whose own key is wrong is no unknown margin.
        (
            parse_policy,
            {
                "gates": {"own": {"metric": "qualty", "kind": "score", "threshold": 0.1}},
                "stages": [{"weight": "5%", "margins": {"own": 0.1}}],
            },
            1,
        ),
        (parse_policy, {"holdback": "x", "stages": [{"weight": "96%"}]}, 1),  # 96 % may be below it
        (parse_service, {"service": "chat", "url": 5, "api_key_env": "KEY", "model": "gpt"}, 1),
        (parse_service, {"service": "chat", "model": 5}, 1),
        (parse_service, {"service": "chat"}, 1),
        (
            parse_service,
            {
                "service": "chat",
                "model": "/m",
                "clients": {"keys": 5},
                "policy": {"stages": [{"weight": "5%", "audience_bp": {"staff": 900}}]},
            },
            1,
        ),
    ],
)
def test_what_only_follows_from_another_error_is_not_reported(
    parse: Callable[[object], object], data: object, count: int
) -> None:
    assert len(lines(parse, data)) == count


def test_a_misspelt_key_of_a_stage_does_not_hide_its_margins() -> None:
    """`durration` was named, and `eror` only once that was mended."""
    found = lines(
        parse_policy,
        {"stages": [{"weight": "10%", "durration": "1h", "margins": {"eror": 2.0}}, {"weight": "5%"}]},
    )

    assert [line.partition(";")[0] for line in found] == [
        "policy.stages.0: unknown key 'durration'",
        "policy.stages.1.weight 5 % is not above 10 %, the stage before",
        "policy.stages.0.margins.eror is not a gate",
    ]


def test_a_spec_with_thousands_of_errors_is_answered_soon_and_shortly() -> None:
    """142 kB took 4 s and 2.6 MB of answer; eight of them held up a rollback for 3 s."""
    keys = {f"key{number}": 1 for number in range(4000)}
    gates = {f"gate{number}": {"margin": 0.1} for number in range(4000)}
    began_s = time.process_time()
    found = lines(parse_policy, {**keys, "gates": gates})

    assert time.process_time() - began_s < 2.0
    assert len(found) == 101
    assert found[-1] == "policy: more is wrong than these 100 lines; correct these first"


@pytest.mark.parametrize(
    "spec",
    [
        {"model": "/m", "clients": {"keys": [{"name": "x", "key": "sk-live-SECRET"}]}},
        {"model": "/m", "clients": {"keys": [{"name": "x", "sha256": "sk-live-SECRET"}]}},
        {"url": "https://h/v1?api_key=SECRET"},
        {"url": "https://user:SECRET@h/v1"},
    ],
    ids=["key of a client", "digest", "query of a url", "password of a url"],
)
def test_a_secret_in_a_wrong_place_is_not_shown(spec: dict[str, object]) -> None:
    found = lines(parse_service, {"service": "chat", **spec})

    assert found
    assert not [line for line in found if "SECRET" in line or "Extra inputs" in line]


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("parse", "data", "expected"),
    [
        (
            parse_policy,
            {"gates": {f"g{i}": {"margin": 0.1} for i in range(5_000)}},
            "policy.gates has 5000 keys, at most 40",
        ),
        (
            parse_policy,
            {"stages": [{"weight": "1%", "margins": {f"g{i}": 0.1 for i in range(5_000)}}]},
            "policy.stages.0.margins has 5000 keys, at most 500",
        ),
        (
            parse_service,
            {"service": "chat", "model": "/m", "engine": {f"k{i}": i for i in range(5_000)}},
            "service.engine has 5000 keys, at most 500",
        ),
    ],
)
def test_a_mapping_of_thousands_is_refused_before_each_of_its_keys_is_looked_up(
    parse: Callable[[object], object], data: object, expected: str
) -> None:
    """20,000 engine arguments took 6.7 s of the controller's processor, for a suggestion on each."""
    assert [line for line in lines(parse, data) if "keys" in line] == [f"{expected}; leave some out"]


def test_a_policy_has_as_many_gates_as_a_tick_can_read_and_no_more() -> None:
    """480 gates took 35 ms of CPU for each request, in the tick that a rollback waits for."""
    gates = {f"g{i}": {"metric": "error", "kind": "rate", "threshold": 0.5} for i in range(41)}

    assert any("gates has 41 keys, at most 40" in line for line in lines(parse_policy, {"gates": gates}))


def test_the_limit_is_on_the_gates_that_a_person_wrote() -> None:
    """A policy of 40 passed `validate`, and no plan: the judge's gate and those left out counted, too."""
    gate = {"metric": "latency_ms", "kind": "shape", "threshold": 0.5, "alpha_share": 0}
    policy = parse_policy({"gates": {f"l{i}": gate for i in range(40)}})
    gone = [Unjudged("quality", "quality", "reason", 1000)]

    judged = with_judge(policy, JudgeSpec(url="http://127.0.0.1:1", model="m"))

    assert len(judged.gates) == 41
    assert as_twin(judged, {"twin": True}).twin
    assert "quality" not in [one.name for one in without(policy, gone).gate_policy().gates]

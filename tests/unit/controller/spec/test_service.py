"""Invalid specs are refused in one line each: path, value, limit, remedy. Valid ones round-trip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from controller.errors import BadSpec
from controller.spec.policy import PolicySpec
from controller.spec.service import (
    ServiceSpec,
    dump,
    parse_policy,
    parse_service,
    parse_version,
    parse_yaml,
    stored_service,
    stored_version,
)
from evaluation.policy.gates import Rung, Sampling
from evaluation.policy.parsing import _GATE_KEYS, _POLICY_KEYS
from evaluation.policy.policy import GatePolicy
from serving.credentials import KeyReference


def lines(parse: Callable[[object], object], data: object) -> tuple[str, ...]:
    with pytest.raises(BadSpec) as caught:
        parse(data)
    return caught.value.lines


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (
            {"stages": [{"weight": "10%"}, {"weight": "5%"}]},
            "policy.stages.1.weight 5 % is not above 10 %, the stage before; raise it",
        ),
        (
            {"stages": [{"weight": "10%"}, {"weight_bp": 1000}]},
            "policy.stages.1.weight 10 % is not above 10 %, the stage before; raise it",
        ),
        (
            {"stages": [{"weight": "120%"}]},
            "policy.stages.0.weight: 120 % is outside 0 to 100 %; write a share of the traffic, such as 25%",
        ),
        ({"stages": [{"weight_bp": 12_000}]}, "policy.stages.0.weight_bp 12000 exceeds 10000; lower it"),
        (
            {"stages": [{"weight": "5%"}, {"weight": "96%"}]},
            "policy.stages.1.weight 96 % reaches the bake's weight, 95 %; lower it, or holdback",
        ),
        (
            {"stages": [{"weight": "5%"}, {"weight": "100%"}, {"weight": "100%"}]},
            "policy.stages.1.weight 100 % must be the last stage; it is the promotion itself",
        ),
        (
            {"stages": [{"weight": "100%"}]},
            "policy.stages has no stage below 100 %, the promotion; give one, or leave it out",
        ),
        (
            {"stages": []},
            "policy.stages has no stage below 100 %, the promotion; give one, or leave it out",
        ),
        (
            {"stages": [{"weight": 0}]},
            "policy.stages.0.weight 0 % gives the canary no traffic; start at 0.01% or above",
        ),
        (
            {"stages": [{"weight": "5%", "weight_bp": 500}]},
            "policy.stages.0: needs exactly one of weight (2.5%) and weight_bp (250)",
        ),
        (
            {"stages": [{"weight": "5%", "duration": "1h", "deadline": "1m"}]},
            "policy.stages.0.deadline 60 s is before duration 3600 s; raise it",
        ),
        ({"holdbak": "5%"}, "policy: unknown key 'holdbak'; did you mean holdback?"),
        ({"holdback": "60%"}, "policy.holdback 60 % exceeds 50 %; leave most to the promoted version"),
        ({"preset": "fast"}, "policy.preset 'fast' is unknown; use one of 'default', 'strict' or 'vendor'"),
        *(
            ({name: 0}, f"policy.{name} is 0 s, over before it begins; give some, such as {example}")
            for name, example in (
                ("load_timeout", "15min"),
                ("warm_timeout", "5min"),
                ("smoke_timeout", "2min"),
                ("promote_timeout", "1min30s"),
                ("drain_timeout", "30s"),
                ("unload_timeout", "2min"),
                ("unreadable_timeout", "1min"),
                ("unready_timeout", "30s"),
                ("hold_limit", "3d"),
            )
        ),
        (
            {"preset": "vendor", "ladder": "full"},
            "policy.ladder full has no effect: preset vendor gives the weights; leave one out",
        ),
        (
            {"ladder": "full", "stages": [{"weight": "5%"}]},
            "policy.ladder full has no effect: stages gives the weights; leave one out",
        ),
        (
            {"stages": [{"weight": 0.1}]},
            "policy.stages.0.weight: 0.1 may mean 0.1 % or 10 %; write 0.1% or 10%",
        ),
        (
            {"gates": {"eror": {"threshold": 0.2}}},
            "policy.gates.eror is no gate of the preset, lacks metric and kind: a gate of its own "
            "needs all three; did you mean error?",
        ),
        (
            {"gates": {"qualty": None}},
            "policy.gates.qualty is no gate of the preset, null removes a gate of the "
            "preset; did you mean quality?",
        ),
        (
            {"gates": {"mine": {"metric": "latency", "kind": "rate", "threshold": 0.2}}},
            "policy.gates.mine.metric 'latency' is unknown; did you mean latency_ms?",
        ),
        ({"holdback": 10**400}, "policy.holdback: a number of over 40 digits is not a percent; write 2.5%"),
        (
            {"bake": 10**400},
            "policy.bake: a number of over 40 digits is not a duration; write 30s, 10m, 1h30m or 3d",
        ),
        (
            {"rungs": [{"margins": {"error": True}}]},
            "policy.rungs.0.margins holds true or false, which is not a number; write one",
        ),
        ({"alpha": True}, "policy.alpha true is not a number; write one"),
        ({"bake": "soon"}, "policy.bake: 'soon' is not a duration; write 30s, 10m, 1h30m or 3d"),
        ({"bake": -5}, "policy.bake: -5 s is outside 0 s to 366 d; write a duration within that range"),
        (
            {"gates": {"quality": {"alpha_share": 1.0}}},
            "policy.gates.*.alpha_share add up to 1.8, limit 1; lower them, they are parts of alpha",
        ),
        ({"alpha": 3}, "policy.alpha 3.0 is outside (0, 0.5); it is a probability"),
        (
            {"units": "user"},
            "policy.units 'user' is unknown; use one of 'auto', 'request' or 'sticky'",
        ),
        ({"proof_canary": -1}, "policy.proof_canary -1 is below 0; raise it"),
        ({"rungs": []}, "policy.rungs must begin with min_canary 0; add the rung of the first stage"),
        (
            {"rungs": [{"min_canary": 0, "margins": {"eror": 2.0}}]},
            "policy.rungs.0.margins.eror is not a gate; did you mean error?",
        ),
        (
            {"rungs": [{"margins": {"error": 0}}]},
            "policy.rungs.0.margins.error 0 is not above 0; raise it",
        ),
        (
            {
                "rungs": [
                    {"margins": {}},
                    {"min_canary": 800, "margins": {}},
                    {"min_canary": 800, "margins": {}},
                ]
            },
            "policy.rungs.2.min_canary 800 is not above 800, the rung before; raise it",
        ),
        ({"rungs": [{"min_canary": 0}]}, "policy.rungs.0.margins is missing; give it"),
        (
            {"stages": [{"weight": "5%", "margins": {"speed": 1.2}}], "gates": {"hallucination": None}},
            "policy.stages.0.margins.speed is not a gate; use one of error, hallucination, latency_p99, "
            "latency_shape, quality, rejected, ttft_shape",
        ),
        (
            {"gates": {"quality": {"sampling": {"stabel": 0.2}}}},
            "policy.gates.quality.sampling: unknown key 'stabel'; did you mean stable?",
        ),
        (
            {"gates": {"quality": {"sampling": {"canary": 0}}}},
            "policy.gates.quality.sampling.canary 0.0 is outside (0, 1]; it is the probability "
            "of being judged",
        ),
        (
            {"gates": {"quality": {"sampling": {"stable": 20}}}},
            "policy.gates.quality.sampling.stable 20.0 is outside (0, 1]; it is the probability "
            "of being judged",
        ),
        (
            {"gates": {"latency_p99": {"sampling": {"canary": 0.2}}}},
            "policy.gates.latency_p99.sampling is for judged metrics; latency_ms comes with every request; "
            "leave it out",
        ),
        (
            {
                "gates": {
                    "quality": {"sampling": {"canary": 0.2}},
                    "grade": {"metric": "quality", "kind": "score", "threshold": 0.1},
                }
            },
            "policy.gates.grade.sampling differs from that of gates.quality, and both test quality; "
            "give both the same",
        ),
        (
            {"gates": {"latency_shape": {"mirrored": True}}},
            "policy.gates.latency_shape.mirrored is for rates and scores; a mirrored answer's latency_ms is "
            "never gated; leave it out",
        ),
        (
            {"gates": {"quality": {"presence_gated": "perhaps"}}},
            "policy.gates.quality.presence_gated 'perhaps' is not true or false; write one of them",
        ),
        (
            {"gates": {"quality": {"deadline": 5, "deadline_s": 5}}},
            "policy.gates.quality.deadline is given twice, once by its alias; leave one out",
        ),
        (
            {"stages": [{"weight": "5%", "margins": {"error": -5}}]},
            "policy.stages.0.margins.error -5.0 is outside 1..1000; it is a ratio, as 1.5",
        ),
        (
            {"stages": [{"weight": "5%", "margins": {"quality": 1.5}}]},
            "policy.stages.0.margins.quality 1.5 is outside (0, 1); it is a loss of score, as 0.05",
        ),
        ({"max_missing": 5}, "policy.max_missing 5.0 is outside 0..1; it is a share of values, as 0.1"),
        ({"max_missing": float("nan")}, "policy.max_missing nan is not a finite number; write one"),
        ({"restart_share": 1}, "policy.restart_share 1.0 is outside [0, 1); use 0.3, or 0 for no restarts"),
        ({"load_ratio": 0.5}, "policy.load_ratio 0.5 is below 1; use 1.25"),
        ({"promotion_alpha": 0.5}, "policy.promotion_alpha 0.5 is outside (0, 0.5); it is a probability"),
        ({"served_share_alpha": 0}, "policy.served_share_alpha 0.0 is outside (0, 0.5); it is a probability"),
        (
            {"served_rate_rollback": 0.99},
            "policy.served_rate_rollback 0.99 is above served_rate_hold 0.98; use 0.90 and 0.98",
        ),
        ({"session_requests": 2.5}, "policy.session_requests 2.5 is not a whole number; write one"),
        ({"session": 0}, "policy.session_s 0.0 is not above 0; use 600"),
        (
            {"stages": [{"weight": "5%"}, {"weight": "100%", "promote_if_point_ok": True}]},
            "policy.stages.1.promote_if_point_ok is for stages below 100 %; leave it out",
        ),
        (
            {"stages": [{"weight": "5%", "margins": {}, "promote_if_point_ok": True}]},
            "policy.stages.0.promote_if_point_ok needs margins to compare estimates with; give some",
        ),
        (
            {"twin": True, "promote_if_point_ok": True},
            "policy.promote_if_point_ok cannot be combined with twin, which times the proofs; leave one out",
        ),
        ([1], "policy is not a mapping; write its settings as key: value"),
    ],
)
def test_a_bad_policy_is_refused_by_path_value_limit_and_remedy(data: object, line: str) -> None:
    assert lines(parse_policy, data) == (line,)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({}, "version: needs model (a checkpoint directory) or url (an endpoint); give one"),
        ({"model": "/m", "url": "http://x"}, "version.model /m is a directory; with url it is"),
        (
            {"url": "http://me:pw@x"},
            "version.url 'http://…@x' holds a user name or password",
        ),
        (
            {"url": "http://x/v1/chat/completions"},
            "version.url 'http://x/v1/chat/completions' is the address",
        ),
        ({"url": "http://x", "api_key": "sk-1"}, "version: unknown key 'api_key'; did you mean api_key_env?"),
        (
            {"url": "http://x", "api_key_env": "sk-1"},
            "version.api_key_env is no name of a variable; name",
        ),
        ({"model": "m", "api_key_env": "KEY"}, "version.api_key_env belongs to an endpoint; give its url"),
        (
            {"url": "http://x", "api_key_env": "KEY", "api_key_file": "k"},
            "version.api_key_file and api_key_env",
        ),
        ({"url": "ftp://x"}, "version.url 'ftp://x' is not http(s)://host[:port][/path]"),
        ({"model": "m", "replicas": 0}, "version.replicas 0 is below 1; raise it"),
        ({"model": "m", "replicas": "two"}, "version.replicas 'two' is not a whole number; write one"),
        (
            {"model": "m", "gpu_memory_utilization": 1.5},
            "version.gpu_memory_utilization 1.5 exceeds 1; lower it",
        ),
        (
            {"model": "m", "dtype": "f8"},
            "version.dtype 'f8' is unknown; use one of 'auto', 'float32', 'float16'",
        ),
        (
            {"model": "m", "engine": {"port": 1}},
            "version.engine.port is set by canaryctl itself; leave it out",
        ),
        ({"model": "m", "engine": {"--max-model-len": 9}}, "version.engine.max_model_len has its own key"),
        (
            {"model": "m", "engine": {"a": [1]}},
            "version.engine.a is unknown to the engine; `vllm serve --help`",
        ),
        (
            {"model": "m", "engine": {"max_num_seq": 64}},
            "version.engine.max_num_seq is unknown to the engine; did you mean max_num_seqs?",
        ),
        (
            {"model": "m", "engine": {"enforce": True}},
            "version.engine.enforce is unknown to the engine; did you mean enforce_eager?",
        ),
        (
            {"model": "m", "engine": {"temperature": 0.7}},
            "version.engine.temperature is a sampling parameter, no engine argument; set its default with "
            "override_generation_config: {temperature: ...}",
        ),
        (
            {"model": "m", "engine": {"no_enforce_eager": True}},
            "version.engine.no_enforce_eager is unknown to the engine; write enforce_eager: false",
        ),
        (
            {"model": "m", "engine": {"max_num_seqs": "many"}},
            "version.engine.max_num_seqs 'many' is not a whole number; write one",
        ),
        (
            {"model": "m", "engine": {"enforce_eager": "on"}},
            "version.engine.enforce_eager 'on' is not true or false; write one of them",
        ),
        (
            {"model": "m", "engine": {"kv_cache_dtype": "fp9"}},
            "version.engine.kv_cache_dtype 'fp9' is unknown to the engine; use one of auto, bfloat16",
        ),
        (
            {"model": "m", "engine": {"tp": 2}},
            "version.engine.tensor_parallel_size has its own key; write tensor_parallel_size: 2",
        ),
        (
            {"model": "m", "engine": {"max-num-seqs": 1, "max_num_seqs": 2}},
            "version.engine.max_num_seqs is given twice, by two of its names",
        ),
        (
            {"model": "m", "engine": {"seed": 10**400}},
            "version.engine.seed: a whole number is beyond 64 bits",
        ),
        (
            {"model": "m", "engine": {"hf_overrides": {"a": {1: 2}}}},
            "version.engine.hf_overrides: key 1 is not text",
        ),
        ({"model": "m", "replicas": True}, "version.replicas true is not a number; write one"),
        ({"model": "m", "gpus": True}, "version.gpus true is not a number; write one"),
        (
            {"model": "m", "gpus": 1, "tensor_parallel_size": 4},
            "version.gpus 1 is too little for tensor_parallel_size 4; give 4",
        ),
        ({"model": "m", "gpus": 2.5}, "version.gpus 2.5 is no whole number; shares of a GPU end at 1"),
        (
            {"url": "http://x/v1", "replicas": 3},
            "version.replicas is for engines that canaryctl runs; an endpoint (url) has none of it: leave it "
            "out",
        ),
        ({"url": "http://x/v1", "engine": {"seed": 1}}, "version.engine is for engines that canaryctl runs"),
        (
            {"url": "http://x/v1", "max_model_len": 512},
            "version.max_model_len is for engines that canaryctl runs",
        ),
        (
            {"model": "m", "kv_cache_memory_bytes": "4 gibs"},
            "version.kv_cache_memory_bytes: '4 gibs' is not a number of bytes; write 4GiB",
        ),
        ({"model": "m", (1, 2): 3}, "version: unknown key (1, 2); use one of"),
        ({"model": "m", "replicas": 10**400}, "version.replicas "),
        ({"model": "m", "gpus": 10**400}, "version.gpus "),
        ({"model": "m", "gpus": 0.5, "tensor_parallel_size": 2}, "version.gpus 0.5 is too little"),
    ],
)
def test_a_bad_version_is_refused_by_name(data: object, line: str) -> None:
    (found,) = lines(parse_version, data)

    assert found.startswith(line)
    assert "sk-1" not in found
    assert "me:pw" not in found


def test_an_endpoint_keeps_its_model_name_and_gets_an_absolute_key_file() -> None:
    spec = parse_version({"url": "https://x/v1beta/openai", "model": "org/large", "api_key_file": "k"})
    located = spec.located(Path("/srv"))

    assert (located.model, located.checkpoint, located.api_key_file) == ("org/large", None, "/srv/k")
    assert located.api_key == KeyReference("file", "/srv/k")


def test_every_broken_rule_has_its_own_line() -> None:
    assert lines(parse_service, {"service": "Chat!", "model": "m", "replicas": 0}) == (
        "service.replicas 0 is below 1; raise it",
        "service.service 'Chat!' is not a name; use lower-case letters, digits, dots and dashes, at most 40",
    )


def test_a_key_given_twice_is_refused_instead_of_the_last_one_winning() -> None:
    with pytest.raises(BadSpec, match=r"^p.yaml line 2: key 'bake' is given twice; correct it$"):
        parse_yaml("bake: 1h\nbake: 2h\n", "p.yaml")


def test_text_that_is_not_yaml_is_refused_with_its_line() -> None:
    with pytest.raises(BadSpec, match=r"^p.yaml line 3: expected"):
        parse_yaml("stages:\n  - [1\n", "p.yaml")


def test_a_service_round_trips_through_its_dump() -> None:
    spec = parse_service(
        {
            "service": "chat",
            "model": "/models/a",
            "dtype": "float32",
            "engine": {"enforce-eager": True},
            "policy": {
                "stages": [{"weight": "2.5%", "duration": "90s"}, {"weight_bp": 5000, "min_canary": 100}],
                "gates": {"quality": {"threshold": 0.1}, "hallucination": None},
                "holdback": "0.5%",
            },
        }
    )

    assert parse_service(yaml.safe_load(yaml.safe_dump(dump(spec)))) == spec


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"kv_cache_memory_bytes": "4GiB"}, {"kv_cache_memory_bytes": 4 << 30}),
        ({"kv_cache_memory_bytes": 1 << 30}, {"kv_cache_memory_bytes": 1 << 30}),
        ({"engine": {"max-num-seqs": 8}}, {"engine": {"max_num_seqs": 8}}),
        ({"engine": {"max_num_seqs": None, "seed": 1}}, {"engine": {"seed": 1}}),
        ({"max_model_len": None, "dtype": None}, {"max_model_len": None, "dtype": "auto"}),
        (
            {"engine": {"hf_overrides": {"rope": {"factor": 2.0}}, "lora_modules": ["a=/a"]}},
            {"engine": {"hf_overrides": {"rope": {"factor": 2.0}}, "lora_modules": ["a=/a"]}},
        ),
        ({"gpus": 8, "tensor_parallel_size": 4, "engine": {"pp": 1}}, {"gpus": 8.0}),
    ],
)
def test_what_is_right_is_accepted(given: dict[str, object], read: dict[str, object]) -> None:
    spec = parse_version({"model": "m", **given})

    assert {name: getattr(spec, name) for name in read} == read
    assert parse_version(dump(spec)) == spec


@pytest.mark.parametrize("name", ["llama-3.1", "a", "qwen2.5-7b-instruct"])
def test_a_service_is_named_as_models_are(name: str) -> None:
    assert parse_service({"service": name, "model": "m"}).service == name


def test_a_service_names_a_preset_as_its_policy() -> None:
    spec = parse_service({"service": "chat", "model": "m", "policy": "strict"})

    assert spec.policy == parse_policy("strict")
    assert parse_service(dump(spec)) == spec


def test_what_the_store_holds_is_not_refused_by_a_newer_rule() -> None:
    old = {
        "service": "chat",
        "model": "m",
        "gpus": 1,
        "tensor_parallel_size": 4,
        "engine": {"max_num_seq": 8},
    }

    assert stored_service({**old, "policy": {"unready_timeout": 0}}).engine == {"max_num_seq": 8}
    assert stored_version({"url": "http://x", "replicas": 3}).replicas == 3


def test_a_template_placeholder_that_was_not_filled_in_is_named_with_its_line() -> None:
    text = "stages:\n  - weight: {{ canary_weight }}\n    duration: {{ args.wait }}\n"

    with pytest.raises(BadSpec, match=r"^p.yaml line 2: .*a template placeholder .* was not filled in"):
        parse_yaml(text, "p.yaml")


def test_a_percent_and_basis_points_mean_the_same() -> None:
    stages = parse_policy({"stages": [{"weight": "2.5%"}, {"weight": 5}, {"weight_bp": 1000}]}).stages

    assert stages is not None
    assert [stage.bp for stage in stages] == [250, 500, 1000]


def test_gates_start_from_the_preset_and_null_removes_one() -> None:
    policy = parse_policy(
        {"preset": "strict", "gates": {"hallucination": None, "quality": {"tolerance": 0.01}}}
    ).gate_policy()

    assert [gate.name for gate in policy.gates] == [
        "error",
        "rejected",
        "latency_p99",
        "latency_shape",
        "ttft_shape",
        "quality",
    ]
    assert policy.gate("quality").tolerance == 0.01
    assert policy.gate("error").tolerance == 0.0


def test_units_proofs_and_rungs_reach_the_gate_policy_and_round_trip() -> None:
    spec = parse_policy(
        {
            "units": "sticky",
            "proof_canary": 40,
            "rungs": [
                {"margins": {"error": 5.0}, "floor": 0.02},
                {"min_canary": 500, "margins": {"error": 2.0, "quality": 0.05}},
            ],
        }
    )
    policy = spec.gate_policy()

    assert (policy.units, policy.proof_canary) == ("sticky", 40)
    assert policy.rungs == (
        Rung(0, {"error": 5.0}, floor=0.02),
        Rung(500, {"error": 2.0, "quality": 0.05}),
    )
    assert parse_policy(yaml.safe_load(yaml.safe_dump(dump(spec)))) == spec


# A value that no preset has, for every key of the evaluation's policy.
OTHER = {
    "base": "strict",
    "name": "ours",
    "units": "sticky",
    "alpha": 0.02,
    "promotion_alpha": 0.04,
    "served_share_alpha": 0.002,
    "served_rate_hold": 0.97,
    "served_rate_rollback": 0.8,
    "proof_canary": 90,
    "session_requests": 9,
    "session_s": 500,
    "restart_share": 0.2,
    "max_missing": 0.2,
    "load_ratio": 1.5,
    "gates": {"quality": {"threshold": 0.1}},
    "rungs": [{"min_canary": 0, "margins": {"error": 4.0}, "floor": 0.02}],
}
OTHER_GATE = {
    "metric": "thumbs",
    "kind": "score",
    "alpha_share": 0.1,
    "threshold": 0.1,
    "tolerance": 0.01,
    "percentile": None,
    "deadline_s": 900,
    "sampling": {"stable": 0.2, "canary": 0.4},
    "presence_gated": True,
    "mirrored": True,
    "required": False,
    "covariates": ["body_bytes"],
}


@pytest.mark.parametrize("key", sorted(_POLICY_KEYS - {"observed_ranges"}))
def test_every_key_of_the_gate_policy_is_accepted_and_effective(key: str) -> None:
    changed = parse_policy({key: OTHER[key]})

    assert changed.gate_policy().digest() != GatePolicy.default().digest()
    assert parse_policy(yaml.safe_load(yaml.safe_dump(dump(changed)))) == changed


@pytest.mark.parametrize("key", _GATE_KEYS)
def test_every_key_of_a_gate_is_accepted_and_effective(key: str) -> None:
    tail = {"metric": "latency_ms", "kind": "percentile", "threshold": 0.1, "percentile": 0.95}
    mean = {"metric": "accepted", "kind": "score", "threshold": 0.2}
    given = {
        "percentile": tail | {"percentile": 0.9},
        "kind": tail | {"kind": "shape", "percentile": None},
    }.get(key, mean | {key: OTHER_GATE[key]})
    begun = tail if key in ("percentile", "kind") else mean
    before = parse_policy({"gates": {"own": begun, "hallucination": None}})

    changed = parse_policy({"gates": {"own": given, "hallucination": None}})

    assert changed.gate_policy().digest() != before.gate_policy().digest()
    assert parse_policy(yaml.safe_load(yaml.safe_dump(dump(changed)))) == changed


@pytest.mark.parametrize("preset", ["default", "strict"])
def test_a_dumped_gate_policy_is_a_valid_policy_file(preset: str) -> None:
    written = GatePolicy.named(preset).to_mapping()

    assert parse_policy(written).gate_policy() == GatePolicy.named(preset)


def test_a_judged_gate_has_a_sampling_ratio_for_each_arm() -> None:
    spec = parse_policy({"gates": {"quality": {"sampling": {"stable": 0.2, "canary": 0.2}}}})

    assert spec.gate_policy().gate("quality").sampling == Sampling(0.2, 0.2)


def test_a_service_with_a_twin_policy_is_refused() -> None:
    assert lines(parse_service, {"service": "chat", "model": "m", "policy": {"twin": True}}) == (
        "service.policy.twin belongs to one rollout, not to a service; give it to deploy",
    )


def test_a_policy_file_may_be_only_the_name_of_a_preset() -> None:
    assert parse_policy("strict") == PolicySpec(preset="strict")


def test_engine_arguments_have_the_engines_own_names() -> None:
    spec = parse_version({"model": "m", "max_model_len": 512, "engine": {"--enforce-eager": True}})

    assert spec.engine_arguments() == {
        "tensor_parallel_size": 1,
        "dtype": "auto",
        "max_model_len": 512,
        "enforce_eager": True,
    }


def test_a_relative_checkpoint_is_resolved_from_the_commands_directory() -> None:
    assert parse_version({"model": "models/a"}).located(Path("/srv")).model == "/srv/models/a"


def test_the_schema_forbids_what_the_parser_refuses() -> None:
    schema = ServiceSpec.model_json_schema()

    assert schema["additionalProperties"] is False
    assert schema["$defs"]["StageSpec"]["properties"]["weight"]["anyOf"][0]["type"] == ["string", "number"]


@pytest.mark.parametrize(
    ("policy", "line"),
    [
        ({"name": "\x1b[31mred"}, "policy.name '\\x1b[31mred' is not one printable line"),
        ({"name": "two\nlines"}, "policy.name 'two\\nlines' is not one printable line"),
        (
            {"gates": {"a\nb": {"metric": "error", "kind": "rate", "threshold": 0.5}}},
            "policy.gates 'a\\nb' is not one printable line",
        ),
        (
            {"stages": [{"weight": f"{one / 2}%", "duration": "30s"} for one in range(1, 52)]},
            "policy.stages are 51, at most 50; leave some out",
        ),
    ],
)
def test_a_policy_of_unshowable_names_or_too_many_stages_is_refused(
    policy: dict[str, object], line: str
) -> None:
    with pytest.raises(BadSpec) as refused:
        parse_policy(policy)

    assert any(one.startswith(line) for one in refused.value.lines)

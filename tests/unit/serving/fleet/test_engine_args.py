"""vLLM's command line of a launch, and the checks of a checkpoint before its engine starts."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from controller.errors import BadSpec
from controller.spec.service import parse_version
from serving.files.engine_arguments import OWNED_ARGUMENTS
from serving.fleet.engine_args import (
    CheckpointError,
    EngineArgsError,
    check_checkpoint,
    command_line,
    cpu_kv_cache_bytes,
    environment,
    kv_bytes_per_token,
)
from serving.fleet.types import Launch, one_line

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 128,
    "max_position_embeddings": 2048,
}

UNSIZED_CONTEXT = {name: value for name, value in CONFIG.items() if name != "max_position_embeddings"}


def write_weights(file: Path, *, payload: int = 16, lost: int = 0) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, payload]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(payload - lost))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write_weights(tmp_path / "model.safetensors")
    return tmp_path


def launch(model: Path, **changes: Any) -> Launch:
    return Launch(**{"service": "chat", "version": "v-1", "secret": "s", "model_dir": str(model), **changes})


def value_of(words: list[str], flag: str) -> str | None:
    return words[words.index(flag) + 1] if flag in words else None


def test_the_model_is_served_under_the_name_of_the_service(model: Path) -> None:
    words = command_line(launch(model), on_cpu=True)

    assert value_of(words, "--served-model-name") == "chat"
    assert value_of(words, "--model") == str(model)


def test_cpu_defaults_are_float32_eager_and_a_small_kv_cache(model: Path) -> None:
    words = command_line(launch(model), on_cpu=True)

    assert (value_of(words, "--dtype"), "--enforce-eager" in words) == ("float32", True)
    assert value_of(words, "--kv-cache-memory-bytes") == str(64 << 20)


def test_arguments_of_the_launch_override_the_defaults(model: Path) -> None:
    args = {"dtype": "bfloat16", "enforce-eager": False, "max_model_len": 512}
    words = command_line(launch(model, engine_args=args), on_cpu=True)

    assert value_of(words, "--dtype") == "bfloat16"
    assert "--no-enforce-eager" in words
    assert "--enforce-eager" not in words
    assert value_of(words, "--max-model-len") == "512"


@pytest.mark.parametrize("name", ["max_model_len", "max-model-len", "--max-model-len"])
@pytest.mark.parametrize("length", [100_000, "100000", "100k"])
def test_the_kv_cache_holds_two_whole_contexts(model: Path, name: str, length: object) -> None:
    words = command_line(launch(model, engine_args={name: length}), on_cpu=True)

    assert value_of(words, "--kv-cache-memory-bytes") == str(2 * 100_000 * 2048)


def test_mappings_and_lists_reach_the_engine_as_it_reads_them(model: Path) -> None:
    given = {"hf_overrides": {"rope": {"factor": 2}}, "lora_modules": ["a=/a", "b=/b"]}
    words = command_line(launch(model, engine_args=given), on_cpu=True)

    assert value_of(words, "--hf-overrides") == '{"rope": {"factor": 2}}'
    assert words[words.index("--lora-modules") :][:3] == ["--lora-modules", "a=/a", "b=/b"]


@pytest.mark.parametrize(
    ("config", "expected_bytes"),
    [
        ({**CONFIG, "max_position_embeddings": 100_000}, 2 * 100_000 * 2048),
        ({**CONFIG, "max_position_embeddings": None}, 4096 << 20),  # malformed: the maximum
        (UNSIZED_CONTEXT | {"num_hidden_layers": 40}, 2 * 4096 * 20_480),
        ({"max_position_embeddings": 2048}, 4096 << 20),  # sizes are missing: the maximum
    ],
)
def test_the_kv_cache_depends_on_config_json(model: Path, config: Any, expected_bytes: int) -> None:
    (model / "config.json").write_text(json.dumps(config))

    assert cpu_kv_cache_bytes(str(model), None) == expected_bytes


def test_kv_bytes_per_token_has_its_reference_value() -> None:
    assert kv_bytes_per_token(CONFIG, value_bytes=4) == 2048


def test_a_share_of_a_gpu_limits_the_memory_that_vllm_takes(model: Path) -> None:
    half = command_line(launch(model, gpus_per_replica=0.5), on_cpu=False)
    whole = command_line(launch(model, gpus_per_replica=1), on_cpu=False)

    assert value_of(half, "--gpu-memory-utilization") == "0.45"
    assert value_of(whole, "--gpu-memory-utilization") is None


def test_on_gpus_ray_places_the_tensor_parallel_workers(model: Path) -> None:
    words = command_line(launch(model, gpus_per_replica=4, tensor_parallel=4), on_cpu=False)

    assert value_of(words, "--tensor-parallel-size") == "4"
    assert value_of(words, "--distributed-executor-backend") == "ray"


@pytest.mark.parametrize("name", ["port", "served-model-name", "api_key", "tensor_parallel_size"])
def test_arguments_owned_by_canaryctl_are_refused(model: Path, name: str) -> None:
    with pytest.raises(EngineArgsError, match=f"{name.replace('-', '_')}' is set by canaryctl"):
        command_line(launch(model, engine_args={name: "x"}), on_cpu=True)


@pytest.mark.parametrize("name", sorted(OWNED_ARGUMENTS))
def test_a_service_file_refuses_the_same_arguments(name: str) -> None:
    with pytest.raises(BadSpec) as refused:
        parse_version({"model": "/m", "engine": {name: "x"}})

    assert any(
        line.startswith(f"version.engine.{name} is set by canaryctl itself; ") for line in refused.value.lines
    )


def test_each_of_two_engines_gets_half_of_the_cores() -> None:
    plain = Launch(service="chat", version="v-1", secret="s", model_dir="/m")

    assert environment(plain, on_cpu=True, cores=8)["OMP_NUM_THREADS"] == "4"
    assert environment(plain, on_cpu=True, cores=1)["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in environment(plain, on_cpu=False, cores=8)


def test_a_complete_checkpoint_is_accepted(model: Path) -> None:
    check_checkpoint(str(model))


def test_a_missing_directory_is_reported() -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at /nowhere/at/all"):
        check_checkpoint("/nowhere/at/all")


def test_a_directory_without_a_config_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        check_checkpoint(str(tmp_path))


def test_a_malformed_config_is_reported(model: Path) -> None:
    (model / "config.json").write_text("{")

    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        check_checkpoint(str(model))


def test_truncated_weights_are_detected_by_their_header(model: Path) -> None:
    write_weights(model / "model.safetensors", lost=3)

    with pytest.raises(CheckpointError, match="truncated"):
        check_checkpoint(str(model))


def test_a_file_that_is_not_safetensors_is_reported(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"<html>404</html>")

    with pytest.raises(CheckpointError, match="truncated inside its header"):
        check_checkpoint(str(model))


def test_missing_weights_are_reported(model: Path) -> None:
    (model / "model.safetensors").unlink()

    with pytest.raises(CheckpointError, match=r"no \*\.safetensors weights"):
        check_checkpoint(str(model))


def test_a_missing_shard_of_the_index_is_reported(model: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(CheckpointError, match=r"lacks 1 of 2 weight files, model-00002\.safetensors"):
        check_checkpoint(str(model))


@pytest.mark.parametrize(
    "changes",
    [
        {"url": "http://127.0.0.1:1"},
        {"model_dir": None},
        {"replicas": 0},
        {"tensor_parallel": 0},
        {"gpus_per_replica": 2},
        {"gpus_per_replica": -1},
    ],
)
def test_an_invalid_launch_is_refused(model: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="version v-1"):
        launch(model, **changes)


def test_a_launch_survives_json_and_shows_no_secret(model: Path) -> None:
    one = launch(model, engine_args={"dtype": "float32", "enforce_eager": True}, secret="hidden")

    assert Launch.from_json(one.to_json()) == one
    assert "hidden" not in repr(one)


def test_a_multi_line_error_becomes_its_last_line() -> None:
    assert one_line(ValueError("Traceback:\n  x\n\nthe reason\n")) == "the reason"


def test_pydantics_link_and_input_are_removed_from_an_error() -> None:
    text = "1 validation error for C\n  Value error, too long [type=value_error, input_value={}]\n"
    text += "    For further information visit https://errors.pydantic.dev"

    assert one_line(text) == "Value error, too long"

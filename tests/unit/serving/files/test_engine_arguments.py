"""The table of vLLM's arguments, against the pinned engine; the classes of risk, against the table."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path

import pytest

from controller.planning.engine_risk import PARTS, SAMPLING, THROUGHPUT
from serving.files import engine_arguments
from serving.files.engine_arguments import (
    OWNED_ARGUMENTS,
    argument_error,
    canonical_name,
    canonical_value,
    is_admins,
)

KNOWN = json.loads(Path(engine_arguments.__file__).with_name("engine_arguments.json").read_text())

# Fields of the engine's arguments that no option of `vllm serve` sets.
NO_OPTION = {
    *(
        "_api_process_count",
        "_api_process_rank",
        "enable_mm_processor_stats",
        "mamba_config",
        "model_weights",
    ),
}


def fields_of(module: str, name: str) -> set[str]:
    """Fields of a dataclass in vLLM's source, read without importing it: that takes ten seconds."""
    engine = importlib.util.find_spec("vllm")
    assert engine is not None
    tree = ast.parse((Path(str(engine.origin)).parent / module).read_text())
    found = next(one for one in ast.walk(tree) if isinstance(one, ast.ClassDef) and one.name == name)
    annotated = [one for one in found.body if isinstance(one, ast.AnnAssign)]
    return {ast.unparse(one.target) for one in annotated if "ClassVar" not in ast.unparse(one)}


def test_the_table_holds_the_arguments_of_the_pinned_engine() -> None:
    fields = fields_of("engine/arg_utils.py", "EngineArgs") | fields_of(
        "engine/arg_utils.py", "AsyncEngineArgs"
    )

    assert fields - set(KNOWN) == NO_OPTION


@pytest.mark.parametrize("names", [THROUGHPUT, SAMPLING, set(PARTS), OWNED_ARGUMENTS - {"model_tag"}])
def test_a_class_of_arguments_names_only_what_the_engine_takes(names: set[str]) -> None:
    assert sorted(names - set(KNOWN)) == []


@pytest.mark.parametrize(
    ("option", "name"),
    [("--max-num-seqs", "max_num_seqs"), ("tp", "tensor_parallel_size"), ("n", "n"), ("acme", "acme")],
)
def test_an_argument_is_known_by_each_of_its_names(option: str, name: str) -> None:
    assert canonical_name(option) == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_num_seqs", 8),
        ("max_num_seqs", "8"),
        ("max_num_batched_tokens", "8k"),
        ("enforce_eager", True),
        ("gpu_memory_utilization", 0.5),
        ("hf_overrides", {"a": 1}),
        ("hf_overrides", '{"a": 1}'),
        ("lora_modules", ["a=/a"]),
        ("lora_modules", "a=/a"),
        ("kv_cache_dtype", "fp8"),
        ("chat_template", "/a.jinja"),
        ("cudagraph_capture_sizes", [1, 2]),
        ("compilation_config", 3),
    ],
)
def test_what_vllm_takes_is_no_error(name: str, value: object) -> None:
    assert argument_error(name, value) is None


def test_json_text_is_compared_by_its_values() -> None:
    assert canonical_value("hf_overrides", '{"b": 1,  "a": 2}') == {"a": 2, "b": 1}
    assert canonical_value("chat_template", "{{ x }}") == "{{ x }}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chat_template", "templates/chat.jinja"),
        ("chat_template", "./chat.jinja"),
        ("tool_parser_plugin", "parser.py"),
        ("generation_config", "./defaults"),
        ("tokenizer", "~/tokenizer"),
        ("lora_modules", ["a=/adapters/a", "b=../b"]),
    ],
)
def test_a_relative_path_is_refused(name: str, value: object) -> None:
    """Each process would look it up in its own folder, and its content would be no part of the version."""
    assert argument_error(name, value) == (
        f"{value!r} is a relative path, and engines run in folders of their own; give the absolute path"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chat_template", "{% include 'a' %}.txt"),
        ("tokenizer", "acme/tokenizer"),
        ("generation_config", "vllm"),
        ("lora_modules", ["a=acme/adapter", '{"name": "b", "path": "/b"}']),
    ],
)
def test_a_repository_or_a_text_is_no_relative_path(name: str, value: object) -> None:
    assert argument_error(name, value) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("middleware", ["mod.fn"]),
        ("worker_extension_cls", "mod.Class"),
        ("kv_transfer_config", {"kv_connector_module_path": "mod"}),
        ("trust_remote_code", True),
        ("tool_parser_plugin", "/x.py"),
        ("logits_processors", ["mod:fn"]),
        ("allowed_local_media_path", "/"),
        ("distributed_executor_backend", "mod.Class"),
        ("spec_method", "custom_class"),
        ("load_format", "tensorizer"),
        ("log_level", "DEBUG"),
        ("an_argument_of_a_newer_engine", 1),
    ],
)
def test_what_loads_code_or_reads_a_file_belongs_to_an_admin(name: str, value: object) -> None:
    assert is_admins(name, value)


@pytest.mark.parametrize(
    ("name", "value"), [("max_num_seqs", 4), ("spec_method", "ngram"), ("load_format", "safetensors")]
)
def test_what_only_tunes_an_engine_is_an_operators(name: str, value: object) -> None:
    assert not is_admins(name, value)


@pytest.mark.parametrize("name", ["hf_token", "kv_events_config", "enable_log_outputs", "enable_log_deltas"])
def test_what_would_store_a_secret_or_hand_out_answers_is_refused(name: str) -> None:
    assert "; " in str(argument_error(name, "x"))


@pytest.mark.parametrize(
    "name", ["pipeline_parallel_size", "data_parallel_size", "prefill_context_parallel_size"]
)
def test_a_replica_spans_no_more_gpus_than_it_reserves(name: str) -> None:
    assert argument_error(name, 4) == "4 is not supported; raise tensor_parallel_size, or replicas"
    assert argument_error(name, 1) is None

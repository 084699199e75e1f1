"""Fingerprints of real files: what changes them, what does not, and what is refused."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from controller.errors import BadCheckpoint
from controller.planning.checkpoint_files import cached, file_digest
from controller.planning.fingerprint import (
    Fingerprint,
    fingerprint_checkpoint,
    fingerprint_external,
    known_architectures,
)
from controller.planning.risk import assess
from controller.spec.version import VersionSpec
from controller.store.row_specs import fingerprint_of, version_row
from tests.fakes.checkpoints import replace_keeping_time

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "vocab_size": 8,
    "rope_theta": 10000.0,
    "eos_token_id": 2,
    "torch_dtype": "float32",
    "transformers_version": "5.1",
}
TENSORS = {"a.weight": [1.0, 2.0], "b.weight": [3.0, 4.0, 5.0]}


def safetensors(tensors: dict[str, list[float]]) -> bytes:
    header, body = {}, b""
    for name, values in tensors.items():
        data = struct.pack(f"<{len(values)}f", *values)
        header[name] = {
            "dtype": "F32",
            "shape": [len(values)],
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def checkpoint(
    path: Path, tensors: dict[str, list[float]] | None = None, config: dict[str, object] | None = None
) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    (path / "model.safetensors").write_bytes(safetensors(tensors or TENSORS))
    (path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    (path / "tokenizer_config.json").write_text('{"eos_token": "</s>", "chat_template": "{{ x }}"}')
    (path / "generation_config.json").write_text('{"temperature": 0.0, "eos_token_id": 2}')
    return path


def changed(before: Fingerprint, after: Fingerprint) -> set[str]:
    old, new = dict(before.parts), dict(after.parts)
    return {name for name in old if old[name] != new[name]}


def test_the_same_files_elsewhere_are_the_same_version(tmp_path: Path) -> None:
    one, two = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two")

    assert fingerprint_checkpoint(one) == fingerprint_checkpoint(two)
    assert len(fingerprint_checkpoint(one).version_id) == 12


def test_sharding_does_not_change_the_fingerprint(tmp_path: Path) -> None:
    whole, shards = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "shards")
    (shards / "model.safetensors").unlink()
    names = {name: f"model-0000{index}-of-00002.safetensors" for index, name in enumerate(TENSORS, 1)}
    for name, file in names.items():
        (shards / file).write_bytes(safetensors({name: TENSORS[name]}))
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))

    assert fingerprint_checkpoint(shards) == fingerprint_checkpoint(whole)


@pytest.mark.parametrize(
    ("file", "text", "parts"),
    [
        ("tokenizer.json", '{"model": {"vocab": {"b": 0}}}', {"tokenizer"}),
        ("tokenizer_config.json", '{"eos_token": "</s>", "chat_template": "{{ y }}"}', {"template"}),
        ("tokenizer_config.json", '{"eos_token": "<e>", "chat_template": "{{ x }}"}', {"special_tokens"}),
        ("chat_template.jinja", "{{ z }}", {"template"}),
        ("generation_config.json", '{"temperature": 0.0, "eos_token_id": 3}', {"special_tokens"}),
        ("generation_config.json", '{"temperature": 1.0, "eos_token_id": 2}', set()),
        (
            "tokenizer_config.json",
            '{"eos_token": "</s>", "chat_template": "{{ x }}", "is_local": true, "local_files_only": false}',
            set(),
        ),
    ],
)
def test_each_file_changes_only_its_own_part(tmp_path: Path, file: str, text: str, parts: set[str]) -> None:
    before, after = checkpoint(tmp_path / "before"), checkpoint(tmp_path / "after")
    (after / file).write_text(text)

    assert changed(fingerprint_checkpoint(before), fingerprint_checkpoint(after)) == parts


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({"rope_theta": 5.0}, {"rope"}),
        ({"rope_scaling": {"factor": 2}}, {"rope"}),
        ({"torch_dtype": "bfloat16"}, {"dtype"}),
        ({"quantization_config": {"bits": 4}}, {"quantization"}),
        ({"hidden_size": 8}, {"sizes"}),
        ({"hidden_act": "gelu"}, {"config"}),
        ({"eos_token_id": 7}, {"special_tokens"}),
        ({"transformers_version": "6.0"}, set()),
    ],
)
def test_each_setting_changes_only_its_own_part(
    tmp_path: Path, config: dict[str, object], parts: set[str]
) -> None:
    before, after = checkpoint(tmp_path / "before"), checkpoint(tmp_path / "after", config=config)

    assert changed(fingerprint_checkpoint(before), fingerprint_checkpoint(after)) == parts


def test_one_bit_of_one_tensor_is_another_version(tmp_path: Path) -> None:
    other = {**TENSORS, "b.weight": [3.0, 4.0, 5.0000005]}
    before, after = checkpoint(tmp_path / "before"), checkpoint(tmp_path / "after", other)

    assert changed(fingerprint_checkpoint(before), fingerprint_checkpoint(after)) == {"tensors"}


def test_engine_arguments_are_part_of_a_version(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "one")
    short = fingerprint_checkpoint(path, engine_arguments={"max_model_len": 512})

    assert (
        short.version_id != fingerprint_checkpoint(path, engine_arguments={"max_model_len": 1024}).version_id
    )


def test_bytes_and_parameters_are_counted(tmp_path: Path) -> None:
    found = fingerprint_checkpoint(checkpoint(tmp_path / "one"))

    assert (found.tensor_bytes, found.parameters) == (20, 5)


def test_an_unchanged_file_is_taken_from_the_cache(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "one")
    cache: dict[str, str] = {}
    fingerprint_checkpoint(path, cache=cache)
    poisoned = {key: json.dumps({"x": ["F32", [1], "00", 4, 1]}) for key in cache}

    assert fingerprint_checkpoint(path, cache=poisoned).tensor_bytes == 4
    assert len(cache) == 1


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "one")
    cache: dict[str, str] = {}
    before = fingerprint_checkpoint(path, cache=cache)
    (path / "model.safetensors").write_bytes(safetensors({**TENSORS, "c.weight": [6.0]}))

    assert fingerprint_checkpoint(path, cache=cache) != before


@pytest.mark.parametrize("is_replaced", [True, False])
def test_other_weights_of_the_same_size_and_time_are_read_again(tmp_path: Path, is_replaced: bool) -> None:
    """As `cp -p` and image layers leave them: replaced by another file, or written over in place."""
    weights = checkpoint(tmp_path / "one") / "model.safetensors"
    cache: dict[str, str] = {}
    before = fingerprint_checkpoint(weights.parent, cache=cache)
    replace_keeping_time(weights, safetensors({**TENSORS, "a.weight": [9.0, 8.0]}), is_replaced=is_replaced)
    after = fingerprint_checkpoint(weights.parent, cache=cache)

    assert changed(before, after) == {"tensors"}
    assert after == fingerprint_checkpoint(weights.parent)


def test_a_cache_of_older_keys_is_ignored(tmp_path: Path) -> None:
    weights = checkpoint(tmp_path / "one") / "model.safetensors"
    stat = weights.stat()
    older = {f"{weights}|{stat.st_mtime_ns}|{stat.st_size}": json.dumps({"x": ["F32", [1], "00", 4, 1]})}

    assert fingerprint_checkpoint(weights.parent, cache=older) == fingerprint_checkpoint(weights.parent)


def test_a_file_that_changes_while_it_is_read_is_not_cached(tmp_path: Path) -> None:
    file, cache = tmp_path / "data.bin", dict[str, str]()
    file.write_bytes(b"old")

    def read(path: Path) -> str:
        path.write_bytes(b"newer")
        return "digest"

    assert cached(file, "", cache, read) == "digest"
    assert cache == {}


def test_an_endpoint_is_identified_by_its_url() -> None:
    assert fingerprint_external("http://a/v1/") == fingerprint_external("http://a/v1")
    assert fingerprint_external("http://a:81") == fingerprint_external("http://a:81/v1")  # as it is asked
    assert fingerprint_external("http://a/v1").version_id != fingerprint_external("http://b/v1").version_id


def test_a_fingerprint_round_trips_through_the_store(tmp_path: Path) -> None:
    found = fingerprint_checkpoint(checkpoint(tmp_path / "one"), engine_arguments={"a": True})
    row = version_row("chat", VersionSpec(model="/m", gpus=None), found, 1.0)

    assert fingerprint_of(row) == found


def refusal(path: Path) -> str:
    with pytest.raises(BadCheckpoint) as caught:
        fingerprint_checkpoint(path, architectures=known_architectures())
    return str(caught.value).replace(f"{path}/", "").replace(str(path), "DIR")


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    expected = "checkpoint DIR is not a directory; give the folder that holds config.json"

    assert refusal(tmp_path / "nowhere") == expected


@pytest.mark.parametrize(
    ("file", "data", "line"),
    [
        ("config.json", None, "checkpoint DIR has no config.json; give a complete checkpoint"),
        ("config.json", b"{", "config.json is not JSON"),
        ("config.json", b"[]", "config.json is not a JSON object; copy the checkpoint again"),
        ("config.json", b"\xff", "config.json cannot be read"),
        ("config.json", b"{}", "config.json lists no architectures; add the model's class name"),
        (
            "config.json",
            b'{"architectures": ["MambaNineForever"]}',
            "config.json: architecture 'MambaNineForever' is unknown to the engine, which supports 262;",
        ),
        ("tokenizer.json", None, "checkpoint DIR has no tokenizer; add tokenizer.json, tokenizer.model,"),
        ("model.safetensors", None, "checkpoint DIR holds no tensors; convert it to safetensors"),
        ("model.safetensors", b"abc", "model.safetensors is truncated inside its header"),
        (
            "model.safetensors",
            b"\x04" + b"\0" * 7 + b"nope",
            "model.safetensors has no valid safetensors header",
        ),
        ("model.safetensors", safetensors(TENSORS)[:-3], "model.safetensors is truncated: "),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": "x.safetensors"}}',
            "checkpoint DIR lacks 1 of 1",
        ),
        ("adapter_config.json", b"{}", "checkpoint DIR is a LoRA adapter; merge it into its base first"),
    ],
)
def test_a_broken_checkpoint_is_refused_in_one_line(
    tmp_path: Path, file: str, data: bytes | None, line: str
) -> None:
    path = checkpoint(tmp_path / "one")
    if data is None:
        (path / file).unlink()
    else:
        (path / file).write_bytes(data)

    found = refusal(path)

    assert found.startswith(line)
    assert "\n" not in found


def test_a_pickled_checkpoint_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "one")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")

    assert refusal(path) == "checkpoint DIR holds only pytorch_model.bin; convert it to safetensors"


def special_tokens(path: Path, of_map: Mapping[str, object] | None, of_config: Mapping[str, object]) -> str:
    path = checkpoint(path)
    (path / "tokenizer_config.json").write_text(json.dumps(of_config))
    if of_map is not None:
        (path / "special_tokens_map.json").write_text(json.dumps(of_map))
    return fingerprint_checkpoint(path).part("special_tokens")


@pytest.mark.parametrize("of_config", [{"eos_token": "<e1>"}, {"eos_token": None}, {}])
def test_another_eos_in_either_file_of_special_tokens_is_seen(
    tmp_path: Path, of_config: dict[str, object]
) -> None:
    before = special_tokens(tmp_path / "before", {"eos_token": "<e1>"}, of_config)
    after = special_tokens(tmp_path / "after", {"eos_token": "<e2>"}, of_config)

    assert before != after


def test_a_map_of_special_tokens_that_repeats_the_config_has_no_effect(tmp_path: Path) -> None:
    tokens = {"eos_token": "<e1>", "bos_token": {"content": "<s>"}}

    without = special_tokens(tmp_path / "without", None, tokens)
    with_map = special_tokens(tmp_path / "with", {**tokens, "bos_token": "<s>"}, tokens)

    assert without == with_map


@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens"])
def test_both_lists_of_further_special_tokens_count(tmp_path: Path, key: str) -> None:
    both: dict[str, object] = {"additional_special_tokens": ["<a>"], "extra_special_tokens": ["<a>"]}

    before = special_tokens(tmp_path / "before", None, both)
    after = special_tokens(tmp_path / "after", None, {**both, key: ["<b>"]})

    assert before != after


@pytest.mark.parametrize(("has_code", "differs"), [(True, True), (False, False)])
def test_a_trainers_record_counts_beside_code_that_may_read_it(
    tmp_path: Path, has_code: bool, differs: bool
) -> None:
    before, after = checkpoint(tmp_path / "before"), checkpoint(tmp_path / "after")
    for path, steps in ((before, 1), (after, 2)):
        (path / "training.json").write_text(json.dumps({"steps": steps}))
        if has_code:
            (path / "modeling_x.py").write_text("open('training.json')")

    assert (fingerprint_checkpoint(before) != fingerprint_checkpoint(after)) is differs


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({"id2label": {"0": "spam", "1": "ham"}}, {"config"}),
        ({"problem_type": "multi_label_classification"}, {"config"}),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}, set()),
    ],
)
def test_labels_of_a_classifier_are_part_of_its_config(
    tmp_path: Path, config: dict[str, object], parts: set[str]
) -> None:
    before, after = checkpoint(tmp_path / "before"), checkpoint(tmp_path / "after", config=config)

    assert changed(fingerprint_checkpoint(before), fingerprint_checkpoint(after)) == parts


def test_values_of_an_odd_kind_are_no_bug(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "odd", config={"layer_types": [[1]]})
    (path / "tokenizer.json").write_text('{"model": {"vocab": [[1]]}}')

    assert fingerprint_checkpoint(path).vocabulary


def a_pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


@pytest.mark.parametrize(
    "template",
    [lambda folder: Path("/dev/zero"), lambda folder: a_pipe(folder / "pipe")],
    ids=["device", "pipe"],
)
def test_a_named_device_or_pipe_is_refused_and_not_read(
    tmp_path: Path, template: Callable[[Path], Path]
) -> None:
    path = checkpoint(tmp_path / "one")

    with pytest.raises(BadCheckpoint, match="is not a regular file"):
        fingerprint_checkpoint(path, engine_arguments={"chat_template": str(template(tmp_path))})


def test_a_pipe_in_a_checkpoint_is_refused_and_not_read(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "one")
    a_pipe(path / "vocab.json")

    with pytest.raises(BadCheckpoint, match=r"vocab\.json is not a regular file"):
        fingerprint_checkpoint(path)


def test_a_file_that_becomes_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="is not a regular file"):
        cached(a_pipe(tmp_path / "pipe"), "file|", {}, file_digest)


def test_a_folder_of_the_kernel_is_refused_and_not_read(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "one")

    with pytest.raises(BadCheckpoint):
        fingerprint_checkpoint(path, engine_arguments={"tokenizer": "/proc"})


def test_a_template_of_over_a_mebibyte_is_refused(tmp_path: Path) -> None:
    path, template = checkpoint(tmp_path / "one"), tmp_path / "big.jinja"
    template.write_text("x" * (1 << 20) + "y")

    with pytest.raises(BadCheckpoint, match=r"has 1,048,577 bytes, over 1,048,576"):
        fingerprint_checkpoint(path, engine_arguments={"chat_template": str(template)})


@pytest.mark.parametrize("way", ["named", "linked", "a folder", "the checkpoint itself"])
def test_no_version_holds_or_names_a_file_of_the_state_folder(tmp_path: Path, way: str) -> None:
    private = tmp_path / "state"
    path = checkpoint(private if way == "the checkpoint itself" else tmp_path / "one")
    private.mkdir(exist_ok=True)
    (private / "admin.token").write_text("s3cret")
    arguments: dict[str, object] = {}
    if way == "named":
        arguments = {"chat_template": str(private / "admin.token")}
    elif way == "a folder":
        arguments = {"tokenizer": str(private)}
    elif way == "linked":
        (path / "chat_template.jinja").symlink_to(private / "admin.token")

    with pytest.raises(BadCheckpoint, match="canaryctl's state folder"):
        fingerprint_checkpoint(path, engine_arguments=arguments, private=private)


def test_a_checkpoint_may_lie_in_the_state_folder(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "model")

    assert fingerprint_checkpoint(path, private=tmp_path) == fingerprint_checkpoint(path)


@pytest.mark.parametrize("name", ["a\0b", "a" * 300])
def test_a_folder_that_no_file_system_has_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadCheckpoint):
        fingerprint_checkpoint(tmp_path / name)


def test_a_plan_shows_nothing_of_a_file_that_only_calls_itself_generation_config(tmp_path: Path) -> None:
    """It is a link, by whoever may ask for a plan, to what only the controller may read."""
    secret = tmp_path / "application_default_credentials.json"
    secret.write_text(json.dumps({"client_secret": "GCLOUD-1", "scopes": ["GCLOUD-2"], "temperature": 0.5}))
    stable, canary = checkpoint(tmp_path / "1"), checkpoint(tmp_path / "2")
    (canary / "generation_config.json").unlink(missing_ok=True)
    (canary / "generation_config.json").symlink_to(secret)
    found = fingerprint_checkpoint(canary)
    assert dict(found.sampling)["temperature"] == "0.5"
    shown = assess(fingerprint_checkpoint(stable), found)
    assert "GCLOUD" not in repr(shown) + repr(found)
    assert any(change.name == "client_secret" for change in shown.sampling)


def test_generation_defaults_may_not_be_a_link_into_the_state_folder(tmp_path: Path) -> None:
    home, named = tmp_path / "home", tmp_path / "named"
    for folder in (home, named):
        folder.mkdir()
    (home / "cluster.json").write_text('{"token": "secret"}')
    (named / "generation_config.json").symlink_to(home / "cluster.json")
    with pytest.raises(BadCheckpoint, match="state folder"):
        fingerprint_checkpoint(
            checkpoint(tmp_path / "1"),
            engine_arguments={"generation_config": str(named)},
            private=home,
        )

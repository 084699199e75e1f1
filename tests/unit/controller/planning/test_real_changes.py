"""Risk of real-world changes, as file trees: layouts, tokenizers, side files, engine arguments, families.

The expected risks follow the table of risks (README, "Risk"); NONE means the same version with the same id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from controller.planning.fingerprint import Fingerprint, fingerprint_checkpoint, fingerprint_external
from controller.planning.risk import Risk, assess
from tests.fakes import checkpoint_trees as trees
from tests.fakes.checkpoint_trees import Tree, edited, llama, other_family, without, write_tree

NONE, LOW, MEDIUM, HIGH, CRITICAL = Risk.NONE, Risk.LOW, Risk.MEDIUM, Risk.HIGH, Risk.CRITICAL
CHATML = "{% for m in messages %}{{ m.content }}{% endfor %}"


@dataclass(frozen=True, slots=True)
class Change:
    """Two trees with their engine arguments and release."""

    risk: Risk
    after: Tree
    before: Tree = field(default_factory=llama)
    engine: Mapping[str, Any] = field(default_factory=dict)  # of the canary; stable has engine_before
    engine_before: Mapping[str, Any] = field(default_factory=dict)
    release: str = "vllm 0.32.0"
    # Files that arguments name, under the folder NAMED; those of the canary are written over stable's.
    named_before: Tree = field(default_factory=dict)
    named: Tree = field(default_factory=dict)


def with_engine(risk: Risk, before: Mapping[str, Any] | None = None, **arguments: Any) -> Change:
    return Change(risk, llama(), engine=arguments, engine_before=before or {})


def sidecar(name: str, before: Any, after: Any, risk: Risk = MEDIUM) -> Change:
    return Change(risk, {**llama(), name: after}, before={**llama(), name: before})


def with_defaults(risk: Risk, before: Any, after: Any, **own: Any) -> Change:
    """Other generation defaults. own: the checkpoint's; before, after: the argument, or a folder's values."""
    tree = edited(llama(), "generation_config.json", **own)
    folders: Tree = {}
    arguments = []
    for name, value in (("before", before), ("after", after)):
        if isinstance(value, Mapping):
            folders[f"{name}/generation_config.json"] = value
        arguments.append(f"NAMED/{name}" if isinstance(value, Mapping) else value)
    engine_before, engine = ({"generation_config": value} if value else {} for value in arguments)
    return Change(risk, tree, tree, engine, engine_before, named_before=folders)


def in_place(risk: Risk, name: str, before: Any, after: Any, **engine: Any) -> Change:
    """A file that the same arguments name on both sides, and that changes where it is."""
    return Change(
        risk, llama(), engine=engine, engine_before=engine, named_before={name: before}, named={name: after}
    )


def _quantised() -> Tree:
    """AWQ as AutoAWQ writes it: packed integers beside scales, float16, norms that absorbed scales."""
    packed = {
        "model.embed_tokens.weight": trees.tensor(0, 8, 4, dtype="F16"),
        "model.layers.0.self_attn.q_proj.qweight": trees.tensor(9, 4, 1, dtype="I32"),
        "model.layers.0.self_attn.q_proj.scales": trees.tensor(8, 4, 1, dtype="F16"),
        "model.layers.0.input_layernorm.weight": trees.tensor(7, 4, dtype="F16"),
    }
    awq = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
    tree = edited(llama(), "config.json", quantization_config=awq, torch_dtype="float16")
    return {**tree, "model.safetensors": trees.safetensors(packed), "quant_config.json": awq}


def _resaved(seed: int) -> Tree:
    """Llama 2 as transformers 5 saves it: two shards, defaults written out, `dtype`, `rope_parameters`."""
    tree = edited(
        llama(seed=seed),
        "config.json",
        torch_dtype=None,
        dtype="float32",
        transformers_version="5.1.0",
        head_dim=2,
        num_key_value_heads=2,
        hidden_act="silu",
        attention_bias=False,
        attention_dropout=0.0,
        mlp_bias=False,
        pretraining_tp=1,
        rms_norm_eps=1e-06,
        initializer_range=0.02,
        tie_word_embeddings=False,
        use_cache=True,
        rope_parameters={"rope_theta": 10000.0, "rope_type": "default"},
    )
    return trees.sharded(tree, trees.tensors(seed), 2)


def _mistral() -> Tree:
    return other_family("mistral", "MistralForCausalLM", trees.MISTRAL_WORDS)


def _qwen2() -> Tree:
    return other_family("qwen2", "Qwen2ForCausalLM", trees.QWEN_WORDS, seed=20)


def _qwen3() -> Tree:
    return other_family("qwen3", "Qwen3ForCausalLM", trees.QWEN_3_WORDS, seed=30, hidden=8)


def _sentencepiece(data: bytes) -> Tree:
    return {**without(llama(), "tokenizer.json"), "tokenizer.model": data}


def _tekken(pattern: str) -> Tree:
    content = {"config": {"pattern": pattern}, "vocab": [{"rank": 0, "token_bytes": "YQ=="}]}
    return {**without(_mistral(), "tokenizer.json"), "tekken.json": content, "params.json": {"dim": 4}}


def _vocab_and_merges(merges: str) -> Tree:
    tree = without(_qwen2(), "tokenizer.json")
    return {**tree, "vocab.json": {"a": 0, "b": 1}, "merges.txt": merges}


def _tiktoken(data: bytes) -> Tree:
    return {**without(_qwen2(), "tokenizer.json"), "qwen.tiktoken": data}


def _two_parts(**values: tuple[Any, Any]) -> Tree:
    """Of two models in one: settings of the whole, and of its text_config."""
    whole, text = ({key: pair[place] for key, pair in values.items()} for place in (0, 1))
    config = {"torch_dtype": None, "text_config": {"model_type": "llama", **text}, **whole}
    return edited(llama(), "config.json", **config)


def _gemma3(layer_types: list[str] | None, pattern: int | None = None) -> Tree:
    config = {"num_hidden_layers": 6, "layer_types": layer_types, "_sliding_window_pattern": pattern}
    return edited(
        other_family("gemma3_text", "Gemma3ForCausalLM", trees.GEMMA_3_WORDS), "config.json", **config
    )


def _index_of(file: str) -> Tree:
    """Two files with tensors of the same names, of which the index names one."""
    index = {"metadata": {}, "weight_map": dict.fromkeys(trees.tensors(0), f"{file}.safetensors")}
    files = {f"{name}.safetensors": trees.safetensors(trees.tensors(ord(name))) for name in "ab"}
    return {**without(llama(), "model.safetensors"), **files, "model.safetensors.index.json": index}


JINJA = {
    **edited(llama(), "tokenizer_config.json", chat_template=None),
    "chat_template.jinja": "{{ messages }}",
}
KV = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None}}
KV_FP8 = {
    "producer": {"name": "modelopt"},
    "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
}
TEMPLATE_FILE = "templates/chat.jinja"
WARM = {"temperature": 1.0, "eos_token_id": 2}
CUTTING = {"temperature": 1.0, "max_new_tokens": 5, "eos_token_id": [13]}

CHANGES: dict[str, Change] = {
    # --- the same version
    "copied elsewhere": Change(NONE, llama()),
    "the same tensors in two shards with an index": Change(NONE, trees.sharded(llama(), trees.tensors(0), 2)),
    "re-saved by transformers 5, same tensors": Change(NONE, _resaved(0)),
    "defaults of the config class written out": Change(
        NONE, edited(llama(), "config.json", hidden_act="silu", rms_norm_eps=1e-06, pretraining_tp=1)
    ),
    "rope_theta's default written out": Change(NONE, edited(llama(), "config.json", rope_theta=10000.0)),
    "rope_theta moved into rope_parameters": Change(
        NONE,
        edited(llama(), "config.json", rope_parameters={"rope_theta": 500000.0, "rope_type": "default"}),
        before=edited(llama(), "config.json", rope_theta=500000.0, rope_scaling=None),
    ),
    "key-value heads equal to the heads written out": Change(
        NONE, edited(llama(), "config.json", num_key_value_heads=2, head_dim=2)
    ),
    "a README, a licence, a picture and .gitattributes": Change(
        NONE, {**llama(), "README.md": "x", "LICENSE": "y", "figures/loss.png": b"z", ".gitattributes": "*"}
    ),
    "what a trainer leaves behind": Change(
        NONE,
        {**llama(), "training_args.bin": b"a", "trainer_state.json": {"step": 3}, "optimizer.pt": b"b"},
    ),
    "pictures and logs, in folders of any name": Change(
        NONE,
        {
            **llama(),
            "images/a.PNG": b"x",
            "logs/train.log": "y",
            "docs/report.pdf": b"z",
            "a/LICENSE.txt": "w",
        },
    ),
    "a trainer's folders": Change(
        NONE,
        {
            **llama(),
            "checkpoint-100/trainer_state.json": {"step": 100},
            "checkpoint-100/model.safetensors": b"x",
            "runs/a/events.out.tfevents.1": b"y",
            "wandb/run-1/files/config.yaml": "z",
            ".cache/huggingface/download/config.json.metadata": "w",
        },
    ),
    "Meta's original weights in a folder of their own": Change(
        NONE, {**llama(), "original/consolidated.00.pth": b"x", "original/params.json": {"dim": 4}}
    ),
    "the template moved from tokenizer_config.json to a file": Change(NONE, JINJA),
    "tokenizer.json written with other white space": Change(
        NONE, {**llama(), "tokenizer.json": json.dumps(llama()["tokenizer.json"], indent=4)}
    ),
    "special tokens written as objects": Change(
        NONE,
        edited(
            llama(), "tokenizer_config.json", eos_token={"content": "</s>", "lstrip": False, "rstrip": False}
        ),
    ),
    # --- low: other sampling defaults, and arguments that change throughput alone
    "another temperature by default": Change(LOW, edited(llama(), "generation_config.json", temperature=1.0)),
    "engine: max_num_seqs": with_engine(LOW, max_num_seqs=64),
    "engine: max_num_batched_tokens": with_engine(LOW, max_num_batched_tokens=8192),
    "engine: gpu_memory_utilization": with_engine(LOW, gpu_memory_utilization=0.8),
    "engine: kv_cache_memory_bytes": with_engine(LOW, kv_cache_memory_bytes=1 << 30),
    "engine: tensor_parallel_size": with_engine(LOW, {"tensor_parallel_size": 1}, tensor_parallel_size=2),
    "engine: enforce_eager": with_engine(LOW, enforce_eager=True),
    "engine: enable_prefix_caching": with_engine(LOW, enable_prefix_caching=False),
    "engine: sampling defaults overridden": with_engine(LOW, override_generation_config={"temperature": 1.2}),
    "engine: the checkpoint's sampling defaults ignored": with_engine(LOW, generation_config="vllm"),
    # --- medium: the weights
    "a fine-tune": Change(MEDIUM, llama(seed=5)),
    "a fine-tune with another record of its training": Change(
        MEDIUM,
        {**llama(seed=5), "training.json": {"steps": 40}},
        before={**llama(), "training.json": {"steps": 240}},
    ),
    **{
        f"a fine-tune with another {name}, which no engine reads": Change(
            MEDIUM, {**llama(seed=5), name: b"after"}, before={**llama(), name: b"before"}
        )
        for name in ("notes.bin", "README-train.txt", "eval/scores.npz", "losses.json", "data.jsonl", "NOTES")
    },
    **{
        f"a fine-tune with another {name}, which an engine may read": Change(
            HIGH, {**llama(seed=5), name: b'{"a": 1}'}, before={**llama(), name: b'{"a": 2}'}
        )
        for name in (
            *("params.json", "modules.json", "1_Pooling/config.json", "adapters/a/adapter_model.bin"),
            *("model-q4.gguf", "pytorch_model.bin", "consolidated.00.pth", "modeling_acme.py"),
        )
    },
    "a fine-tune with another data file beside code of its own, which may read it": Change(
        HIGH,
        {**llama(seed=5), "modeling_acme.py": "x", "notes.bin": b"after"},
        before={**llama(), "modeling_acme.py": "x", "notes.bin": b"before"},
    ),
    "a fine-tune re-saved in other shards by transformers 5": Change(MEDIUM, _resaved(5)),
    "converted to bfloat16": Change(
        MEDIUM,
        {
            **edited(llama(), "config.json", torch_dtype="bfloat16"),
            "model.safetensors": trees.safetensors(trees.tensors(0, dtype="BF16")),
        },
    ),
    "AWQ of the same model": Change(MEDIUM, _quantised()),
    # --- medium: the same tensors with other side files
    "another token in tokenizer.json": Change(
        MEDIUM, {**llama(), "tokenizer.json": trees.tokenizer_json(trees.LLAMA_2_WORDS + " new")}
    ),
    "another sentencepiece model": Change(
        MEDIUM, _sentencepiece(b"\x0a\x02b"), before=_sentencepiece(b"\x0a\x01a")
    ),
    "another tekken.json": Change(MEDIUM, _tekken("[^a]"), before=_tekken("[^b]")),
    "other merges.txt": Change(MEDIUM, _vocab_and_merges("a b"), before=_vocab_and_merges("")),
    "another tiktoken file": Change(MEDIUM, _tiktoken(b"YQ== 1"), before=_tiktoken(b"YQ== 0")),
    "another added_tokens.json": sidecar("added_tokens.json", {"<a>": 1}, {"<b>": 1}),
    "another chat template in tokenizer_config.json": Change(
        MEDIUM, edited(llama(), "tokenizer_config.json", chat_template=CHATML)
    ),
    "another chat_template.jinja": Change(MEDIUM, {**JINJA, "chat_template.jinja": CHATML}, before=JINJA),
    "another chat_template.json": sidecar(
        "chat_template.json", {"chat_template": "a"}, {"chat_template": "b"}
    ),
    "another named template": sidecar("additional_chat_templates/tool_use.jinja", "a", "b"),
    "another EOS in generation_config.json": Change(
        MEDIUM, edited(llama(), "generation_config.json", eos_token_id=[2, 3])
    ),
    "another EOS in config.json": Change(MEDIUM, edited(llama(), "config.json", eos_token_id=3)),
    "a shorter default length of answers": Change(
        MEDIUM, edited(llama(), "generation_config.json", max_new_tokens=256)
    ),
    "another rope_theta": Change(MEDIUM, edited(llama(), "config.json", rope_theta=500000.0)),
    "a rope scaling": Change(
        MEDIUM, edited(llama(), "config.json", rope_scaling={"rope_type": "yarn", "factor": 4.0})
    ),
    "another sliding window": Change(
        MEDIUM, edited(_mistral(), "config.json", sliding_window=1024), before=_mistral()
    ),
    "FP8 key-value cache in hf_quant_config.json": sidecar("hf_quant_config.json", KV, KV_FP8),
    "other settings in quantize_config.json": sidecar("quantize_config.json", {"bits": 8}, {"bits": 4}),
    "another image size in preprocessor_config.json": sidecar(
        "preprocessor_config.json", {"size": 336}, {"size": 448}
    ),
    "another processor_config.json": sidecar("processor_config.json", {"n": 1}, {"n": 2}),
    "another video_preprocessor_config.json": sidecar(
        "video_preprocessor_config.json", {"fps": 1}, {"fps": 2}
    ),
    "other code of the model": sidecar("modeling_acme.py", "x = 1", "x = 2"),
    "another params.json": sidecar("params.json", {"dim": 4}, {"dim": 4, "max_seq_len": 1}),
    "another pooling of sentence-transformers": sidecar("1_Pooling/config.json", {"mean": 1}, {"cls": 1}),
    "other modules of sentence-transformers": sidecar("modules.json", [{"idx": 0}], [{"idx": 1}]),
    "another adapter in a folder": sidecar("adapters/a/adapter_config.json", {"r": 8}, {"r": 16}),
    "another GGUF file": sidecar("model-q4.gguf", b"GGUF1", b"GGUF2"),
    **{
        f"a new file {name}": Change(MEDIUM, {**llama(), name: "x = 1"})
        for name in (
            *("images/processor.py", "logs/modeling.py", "original/modeling.py", "checkpoint-5/head.py"),
            *("notice_head.py", "readme_model.py", "license_modeling.py", ".hidden.py", "zero_to_fp32.py"),
            *("requirements_model.txt", "notice_vocab.txt", "acknowledge_tokens.json", "changelog.yaml"),
            *("citation_head.safetensors.dat", "license.bin", "figures/projector.pt", "images/prompts.json"),
            *("flax/chat.jinja", "README.JINJA", "tokenizer.index.json", "original/consolidated.safetensors"),
        )
    },
    "another adapter's weights beside an index": Change(
        MEDIUM,
        {**trees.sharded(llama(), trees.tensors(0), 2), "citation_head.safetensors": b"b"},
        before={**trees.sharded(llama(), trees.tensors(0), 2), "citation_head.safetensors": b"a"},
    ),
    "a file that nobody knows": sidecar("mystery.dat", b"1", b"2"),
    # --- medium: engine arguments that can change or cut an answer
    "engine: quantization": with_engine(MEDIUM, quantization="fp8"),
    "engine: dtype": with_engine(MEDIUM, {"dtype": "auto"}, dtype="bfloat16"),
    "engine: kv_cache_dtype": with_engine(MEDIUM, kv_cache_dtype="fp8"),
    "engine: tokenizer": with_engine(MEDIUM, tokenizer="/models/other"),
    "engine: chat_template": with_engine(MEDIUM, chat_template="/models/chat.jinja"),
    "engine: hf_overrides": with_engine(MEDIUM, hf_overrides='{"rope_theta": 1}'),
    "engine: load_format": with_engine(MEDIUM, load_format="dummy"),
    "engine: half of max_model_len": with_engine(MEDIUM, {"max_model_len": 8192}, max_model_len=4096),
    "engine: twice the max_model_len": with_engine(MEDIUM, {"max_model_len": 4096}, max_model_len=8192),
    "engine: speculative_config": with_engine(MEDIUM, speculative_config='{"num_speculative_tokens": 3}'),
    "engine: reasoning_parser": with_engine(MEDIUM, reasoning_parser="qwen3"),
    "engine: tool_call_parser": with_engine(MEDIUM, tool_call_parser="hermes"),
    "engine: lora_modules": with_engine(MEDIUM, lora_modules="a=/adapters/a"),
    "engine: seed": with_engine(MEDIUM, seed=7),
    "engine: an argument that nobody knows": with_engine(MEDIUM, brand_new_argument=1),
    "engine: a default length of answers": with_engine(
        MEDIUM, override_generation_config={"max_new_tokens": 64}
    ),
    # --- changes that look like none
    "special tokens that take the spaces beside them": Change(
        MEDIUM, edited(llama(), "tokenizer_config.json", eos_token={"content": "</s>", "lstrip": True})
    ),
    "a second architecture": Change(
        MEDIUM, edited(llama(), "config.json", architectures=["LlamaForCausalLM", "LlamaModel"])
    ),
    "the dtypes of two parts exchanged": Change(
        MEDIUM, _two_parts(dtype=("float32", "float16")), before=_two_parts(dtype=("float16", "float32"))
    ),
    "another quantisation of one part": Change(
        MEDIUM,
        _two_parts(quantization_config=({"bits": 8}, {"bits": 2})),
        before=_two_parts(quantization_config=({"bits": 8}, {"bits": 4})),
    ),
    "full attention in layers of a sliding window": Change(
        MEDIUM, _gemma3(["full_attention"] * 6), before=_gemma3(None)
    ),
    "another pattern of sliding windows, written out": Change(
        MEDIUM,
        _gemma3((["sliding_attention"] * 2 + ["full_attention"]) * 2, 3),
        before=_gemma3(["sliding_attention"] * 5 + ["full_attention"], 6),
    ),
    "a second file with the same tensors' names, loaded before": Change(
        MEDIUM, {**llama(), "a.safetensors": trees.safetensors(trees.tensors(7))}
    ),
    "another second file with the same tensors' names": Change(
        MEDIUM,
        {**llama(), "a.safetensors": trees.safetensors(trees.tensors(8))},
        before={**llama(), "a.safetensors": trees.safetensors(trees.tensors(7))},
    ),
    "an index that points to other shards": Change(HIGH, _index_of("b"), before=_index_of("a")),
    "consolidated weights beside the others, which the engine then loads instead": Change(
        HIGH, {**llama(), "consolidated.safetensors": trees.safetensors(trees.tensors(9))}
    ),
    "engine: an executor of one's own": with_engine(MEDIUM, distributed_executor_backend="acme.Executor"),
    "engine: an executor of vLLM's": with_engine(LOW, distributed_executor_backend="mp"),
    "engine: dashes in a name": with_engine(MEDIUM, {"--max-model-len": 8192}, max_model_len=4096),
    "engine: dashes or none": Change(
        NONE, llama(), engine={"--max-num-seqs": 64}, engine_before={"max_num_seqs": 64}
    ),
    "engine: nested hf_overrides": with_engine(
        MEDIUM, {"hf_overrides": {"text_config": {"a": 1}}}, hf_overrides='{"text_config": {"a": 2}}'
    ),
    "engine: overrides as text or as a mapping": Change(
        NONE, llama(), engine={"hf_overrides": '{"a": 1}'}, engine_before={"hf_overrides": {"a": 1}}
    ),
    "engine: tokenizer_mode": with_engine(MEDIUM, tokenizer_mode="slow"),
    "engine: the backend of structured outputs": with_engine(
        MEDIUM, structured_outputs_config={"backend": "guidance"}
    ),
    "engine: another EOS by an override": with_engine(MEDIUM, override_generation_config={"eos_token_id": 5}),
    "engine: stop strings by an override": with_engine(
        MEDIUM, override_generation_config={"stop_strings": ["a"]}
    ),
    "engine: a template written inline": with_engine(
        MEDIUM, {"chat_template": "{{ a }}"}, chat_template="{{ b }}"
    ),
    "engine: the file of a template, in place": in_place(
        MEDIUM, "t.jinja", "a", "b", chat_template="NAMED/t.jinja"
    ),
    "engine: a template in a folder with an equals sign": in_place(
        MEDIUM, "a=b/t.jinja", "a", "b", chat_template="NAMED/a=b/t.jinja"
    ),
    "engine: an adapter's weights, in place": in_place(
        MEDIUM, "a/adapter_model.safetensors", b"a", b"b", lora_modules=["a=NAMED/a"]
    ),
    "engine: an adapter's weights, named in JSON, in place": in_place(
        MEDIUM,
        "a/adapter_model.safetensors",
        b"a",
        b"b",
        lora_modules=['{"name": "a", "path": "NAMED/a"}'],
    ),
    "engine: an adapter's settings, in place": in_place(
        MEDIUM, "a/adapter_config.json", {"alpha": 8}, {"alpha": 16}, lora_modules="a=NAMED/a"
    ),
    "engine: the draft model, in place": in_place(
        MEDIUM, "d/model.safetensors", b"a", b"b", speculative_config='{"model": "NAMED/d"}'
    ),
    "engine: the code of a tool parser, in place": in_place(
        MEDIUM, "parser.py", "a", "b", tool_parser_plugin="NAMED/parser.py"
    ),
    "engine: files in the folder of downloads": in_place(NONE, "x.json", "a", "b", download_dir="NAMED"),
    # --- generation defaults that arguments put in the place of the checkpoint's
    "engine: the checkpoint's length of answers ignored": with_defaults(
        MEDIUM, None, "vllm", max_new_tokens=256
    ),
    "engine: defaults of a folder with another temperature": with_defaults(LOW, None, WARM),
    "engine: defaults of another folder with another temperature": with_defaults(
        LOW, WARM, {**WARM, "temperature": 0.1}
    ),
    "engine: defaults of a folder that cut answers": with_defaults(MEDIUM, None, CUTTING),
    "engine: defaults of another folder that cut answers": with_defaults(MEDIUM, WARM, CUTTING),
    "engine: defaults of a folder with another EOS": with_defaults(
        MEDIUM, WARM, {**WARM, "eos_token_id": 13}
    ),
    "engine: defaults of a folder without the checkpoint's EOS": with_defaults(
        MEDIUM, None, {"temperature": 1.0}, eos_token_id=[2, 3]
    ),
    "engine: the checkpoint's length, in a folder that makes it a limit": with_defaults(
        MEDIUM, None, {"temperature": 0.6, "eos_token_id": 2, "max_new_tokens": 256}, max_new_tokens=256
    ),
    "engine: defaults of a repository that is not here": with_defaults(MEDIUM, None, "acme/defaults"),
    "engine: another temperature in the folder, in place": in_place(
        LOW, "g/generation_config.json", WARM, {**WARM, "temperature": 0.1}, generation_config="NAMED/g"
    ),
    "engine: a length in the folder, in place": in_place(
        MEDIUM, "g/generation_config.json", WARM, CUTTING, generation_config="NAMED/g"
    ),
    "engine: the checkpoint's length overridden away": Change(
        MEDIUM,
        edited(llama(), "generation_config.json", max_new_tokens=256),
        before=edited(llama(), "generation_config.json", max_new_tokens=256),
        engine={"override_generation_config": {"max_new_tokens": None}},
    ),
    "engine: an override that is no mapping": with_engine(MEDIUM, override_generation_config="max_tokens=5"),
    "another length in a checkpoint whose defaults are ignored": Change(
        NONE,
        edited(llama(), "generation_config.json", max_new_tokens=256),
        engine={"generation_config": "vllm"},
        engine_before={"generation_config": "vllm"},
    ),
    "another EOS in a checkpoint whose defaults are ignored": Change(
        MEDIUM,
        edited(llama(), "generation_config.json", eos_token_id=[2, 3]),
        engine={"generation_config": "vllm"},
        engine_before={"generation_config": "vllm"},
    ),
    "another engine release": Change(MEDIUM, llama(), release="vllm 0.33.0"),
    # --- high: a new version or size of the same family
    "a bigger size": Change(HIGH, llama(seed=9, hidden=8)),
    "fine-tuned tensors and another template": Change(
        HIGH, edited(llama(seed=5), "tokenizer_config.json", chat_template=CHATML)
    ),
    "Qwen 2 to Qwen 3": Change(HIGH, _qwen3(), before=_qwen2()),
    "Qwen 3 to its mixture of experts": Change(
        HIGH,
        other_family("qwen3_moe", "Qwen3MoeForCausalLM", trees.QWEN_3_WORDS, num_experts=4),
        before=_qwen3(),
    ),
    "Gemma 2 to Gemma 3": Change(
        HIGH,
        other_family("gemma3_text", "Gemma3ForCausalLM", trees.GEMMA_3_WORDS, seed=40),
        before=other_family("gemma2", "Gemma2ForCausalLM", trees.GEMMA_2_WORDS, seed=41),
    ),
    "Llama 2 to Llama 3": Change(
        HIGH, llama(seed=60, words=trees.LLAMA_3_WORDS, hidden=8, vocab_size=128256, rope_theta=500000.0)
    ),
    "Mistral to Mixtral": Change(
        HIGH,
        other_family("mixtral", "MixtralForCausalLM", trees.MISTRAL_WORDS, num_local_experts=8),
        before=_mistral(),
    ),
    # --- critical: another family
    "Llama to Qwen 2": Change(CRITICAL, _qwen2()),
    "another family that borrows llama's model type": Change(
        CRITICAL, llama(seed=70, words=trees.YI_WORDS, hidden=8, vocab_size=64000)
    ),
    "another family of the same size that borrows llama's model type": Change(
        CRITICAL, llama(seed=70, words=trees.YI_WORDS)
    ),
    "another architecture under llama's model type": Change(
        CRITICAL, other_family("llama", "Phi3ForCausalLM", trees.LLAMA_2_WORDS)
    ),
    "GPT-2 to GPT-NeoX, which share a prefix": Change(
        CRITICAL,
        other_family("gpt_neox", "GPTNeoXForCausalLM", trees.QWEN_WORDS),
        before=other_family("gpt2", "GPT2LMHeadModel", trees.LLAMA_3_WORDS),
    ),
}


def fingerprints(folder: Path, change: Change) -> tuple[Fingerprint, Fingerprint]:
    before = write_tree(folder / "before", change.before)
    after = write_tree(folder / "after", change.after)
    named = write_tree(folder / "named", change.named_before)
    stable = fingerprint_checkpoint(
        before, engine_arguments=_located(change.engine_before, named), engine_release="vllm 0.32.0"
    )
    write_tree(named, change.named)
    canary = fingerprint_checkpoint(
        after, engine_arguments=_located(change.engine, named), engine_release=change.release
    )
    return stable, canary


def _located(arguments: Mapping[str, Any], named: Path) -> dict[str, Any]:
    """The arguments with the folder's own path for NAMED."""
    text = json.dumps(dict(arguments)).replace("NAMED", str(named))
    return dict(json.loads(text))


@pytest.mark.parametrize("name", CHANGES)
def test_a_real_change_has_the_risk_of_the_table(tmp_path: Path, name: str) -> None:
    change = CHANGES[name]
    before, after = fingerprints(tmp_path, change)

    assert (assess(before, after).risk, before.version_id == after.version_id) == (
        change.risk,
        change.risk is NONE,
    )


def test_a_cache_snapshot_of_links_is_the_same_version_as_its_files(tmp_path: Path) -> None:
    files = fingerprint_checkpoint(write_tree(tmp_path / "files", llama()))
    links = fingerprint_checkpoint(trees.write_snapshot(tmp_path / "hub", llama()))

    assert files == links


def test_a_linked_folder_counts_by_what_it_holds(tmp_path: Path) -> None:
    """os.walk alone passes over linked folders; a link to a folder above ends there."""
    folder = write_tree(tmp_path / "m", llama())
    shared = write_tree(tmp_path / "shared", {"tool_use.jinja": "a"})
    (folder / "additional_chat_templates").symlink_to(shared)
    (shared / "loop").symlink_to(folder)
    before = fingerprint_checkpoint(folder)
    write_tree(shared, {"tool_use.jinja": "b"})

    assert assess(before, fingerprint_checkpoint(folder)).risk is MEDIUM


def test_links_that_now_point_to_other_weights_are_another_version(tmp_path: Path) -> None:
    one, two = (write_tree(tmp_path / str(seed), llama(seed=seed)) for seed in (0, 5))
    folder, cache = write_tree(tmp_path / "m", without(llama(), "model.safetensors")), dict[str, str]()
    link = folder / "model.safetensors"
    link.symlink_to(one / "model.safetensors")
    before = fingerprint_checkpoint(folder, cache=cache)
    link.unlink()
    link.symlink_to(two / "model.safetensors")

    assert assess(before, fingerprint_checkpoint(folder, cache=cache)).risk is MEDIUM


def test_the_content_of_a_template_file_that_an_argument_names_is_part_of_the_version(tmp_path: Path) -> None:
    folder, template = write_tree(tmp_path / "m", llama()), tmp_path / "chat.jinja"
    template.write_text("a")
    before = fingerprint_checkpoint(folder, engine_arguments={"chat_template": str(template)})
    template.write_text("b")
    after = fingerprint_checkpoint(folder, engine_arguments={"chat_template": str(template)})

    assert assess(before, after).risk is MEDIUM


def test_going_to_an_external_endpoint_is_critical(tmp_path: Path) -> None:
    stable = fingerprint_checkpoint(write_tree(tmp_path / "m", llama()))

    assert assess(stable, fingerprint_external("http://a/v1")).risk is CRITICAL

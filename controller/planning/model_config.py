"""Normal form of config.json: two files that describe the same model give equal values.

Defaults of the model's configuration class are left out (written by one release of transformers, omitted by
another), values that follow from others too, and the two spellings of rope and dtype become one. The defaults
come from config_defaults.json, not from an installed library: ids must not depend on what is installed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

Values: TypeAlias = Mapping[str, Any]

# How a file was saved, or how Python uses it: they change with every save and alter no answer.
NOISE = frozenset(
    {
        *("transformers_version", "_name_or_path", "name_or_path", "use_cache", "_from_model_config"),
        *("_commit_hash", "_attn_implementation", "_attn_implementation_autoset", "is_local", "cache_dir"),
        *("local_files_only", "tokenizer_file", "return_dict", "output_attentions", "output_hidden_states"),
        *(
            "initializer_range",
            "attention_dropout",
            "is_encoder_decoder",
        ),
        *(
            "chunk_size_feed_forward",
            "torchscript",
            "pruned_heads",
            "gradient_checkpointing",
            "unsloth_version",
        ),
        *("unsloth_fixed", "torch_compile_cache_dir", "qk_head_dim", "_sliding_window_pattern"),
    }
)
SPECIAL = frozenset(
    {"bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "sep_token_id"}
)
_SIZES = {
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "num_experts", "num_local_experts", "n_routed_experts"),
    *("moe_intermediate_size", "n_embd", "n_layer", "n_head", "d_model"),
}
_ROPE = ("rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq", "partial_rotary_factor")
_PATTERNS = {
    "gemma2": 2,
    "gemma3_text": 6,
    "cohere2": 4,
    "gpt_oss": 2,
}  # every n-th layer attends to everything
_NO_LABELS: tuple[Any, ...] = (
    None,
    {},
    {"0": "LABEL_0", "1": "LABEL_1"},
    {"LABEL_0": 0, "LABEL_1": 1},
)
_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The parts of a normalised config.json that can change independently; nested keys are dotted."""

    model_type: str
    sizes: Values
    rope: Values
    special: Values
    quantization: Any  # None: not quantised
    dtype: str
    rest: Values


def read_config(raw: Values) -> ModelConfig:
    """The normal form of the values of config.json."""
    parts: dict[str, dict[str, Any]] = {name: {} for name in ("sizes", "rope", "special", "rest", "dtype")}
    found = {"quantization": raw.get("quantization_config")}
    _split(raw, str(raw.get("model_type", "")), "", parts, found)
    return ModelConfig(
        str(raw.get("model_type", "")),
        parts["sizes"],
        parts["rope"],
        parts["special"],
        found["quantization"],
        _dtype(parts["dtype"]),
        parts["rest"],
    )


def _dtype(found: Values) -> str:
    """One dtype if all parts have it, else that of each part: `float32, text_config.: bfloat16`."""
    if len(kinds := set(found.values())) <= 1:
        return "".join(kinds)
    return ", ".join(f"{part}: {kind}" if part else kind for part, kind in sorted(found.items()))


def _split(
    raw: Values, model_type: str, prefix: str, parts: Mapping[str, dict[str, Any]], found: dict[str, Any]
) -> None:
    known = _defaults().get(model_type, {})
    defaults: Values = known.get("defaults", {})
    values = _with_derived(raw, defaults, model_type)
    nested: Values = known.get("nested", {})
    for key, value in sorted(values.items()):
        path = f"{prefix}{key}"
        if key == "model_type":
            if prefix:  # the type of a part; that of the whole is the family
                parts["rest"][path] = value
        elif key in NOISE or key in _ROPE or key in ("architectures", "quantization_config"):
            if key == "quantization_config" and found["quantization"] is None:
                found["quantization"] = value
            elif key == "quantization_config" and prefix and value != found["quantization"]:
                parts["rest"][path] = value
        elif key == "torch_dtype" and values.get("dtype") is not None:
            continue  # the older name; the library takes the newer one
        elif key in ("torch_dtype", "dtype"):
            if value not in (None, "auto"):
                parts["dtype"][prefix] = str(value).removeprefix("torch.")
        elif isinstance(value, Mapping) and (key in nested or "model_type" in value):
            inner = str(value.get("model_type") or nested[key])
            _split({**value, "model_type": inner}, inner, f"{path}.", parts, found)
        elif value != defaults.get(key) and not (value == [] and defaults.get(key) is None):
            part = "sizes" if key in _SIZES else "special" if key in SPECIAL else "rest"
            parts[part][path] = value
    if rope := _rope(values, known.get("theta"), known.get("rope")):
        parts["rope"][prefix] = rope


def _with_derived(raw: Values, defaults: Values, model_type: str) -> Values:
    """The values with those left out that the class would compute from the others."""
    values = dict(raw)

    def of(key: str) -> Any:
        return values.get(key, defaults.get(key))

    heads, hidden = of("num_attention_heads"), of("hidden_size")
    if defaults.get("num_key_value_heads") is None and values.get("num_key_value_heads") == heads:
        values.pop("num_key_value_heads", None)
    is_split = isinstance(heads, int) and isinstance(hidden, int) and heads > 0
    if defaults.get("head_dim") is None and is_split and values.get("head_dim") == hidden // heads:
        values.pop("head_dim", None)
    if values.get("head_dim") is not None and values["head_dim"] == of("qk_rope_head_dim"):
        values.pop("head_dim")
    if values.get("num_local_experts") is not None and values["num_local_experts"] == of("num_experts"):
        values.pop("num_local_experts")
    for key in ("id2label", "label2id"):  # `/classify` answers with them, unless they are those of the class
        if values.get(key) in _NO_LABELS:
            values.pop(key, None)
    if of("use_sliding_window") is False:
        for key in ("sliding_window", "max_window_layers"):
            values.pop(key, None)
    if isinstance(types := values.get("layer_types"), list):
        step = of("sliding_window_pattern") or _PATTERNS.get(model_type)
        if isinstance(step, int):
            usual = [_FULL if (i + 1) % step == 0 else _SLIDING for i in range(len(types))]
            has_windows = True
        else:
            given = of("max_window_layers") if step is None and of("use_sliding_window") is True else None
            full_layers = given if isinstance(given, int) else len(types)
            usual = [_FULL if i < full_layers else _SLIDING for i in range(len(types))]
            has_windows = full_layers < len(types)
        is_windowed = has_windows and of("sliding_window") is not None
        is_full = bool(types) and all(one == _FULL for one in types)
        if types == usual or (is_full and not is_windowed):
            del values["layer_types"]
    return values


def _rope(values: Values, theta: Any, default: Any) -> Values:
    """Rope as transformers 5 writes it; the defaults where nothing is written, empty for another encoding."""
    if default and not any(values.get(key) is not None for key in _ROPE):
        return _rope({"rope_parameters": default}, theta, None)
    # As the library: what is written under the older name, often by hand, replaces the newer one.
    given = values.get("rope_scaling") or values.get("rope_parameters")
    kinds = {key for key in given if isinstance(given[key], Mapping)} if isinstance(given, Mapping) else set()
    if isinstance(given, Mapping) and kinds:
        return {kind: _rope_of(given[kind], None, None) for kind in sorted(kinds)}
    partial = values.get("partial_rotary_factor", (default or {}).get("partial_rotary_factor"))
    if isinstance(theta, Mapping):  # one rope for full attention, another for the sliding window
        full = _rope_of(given, values.get("rope_theta", theta.get("global")), partial)
        local = _rope_of(None, values.get("rope_local_base_freq", theta.get("local")), None)
        return {_FULL: full, _SLIDING: local}
    if theta is None and not any(key in values for key in _ROPE):
        return {}
    return _rope_of(given, values.get("rope_theta", theta), partial)


def _rope_of(scaling: Any, theta: Any, partial: Any) -> dict[str, Any]:
    found = {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": partial}
    if isinstance(scaling, Mapping):
        found |= {("rope_type" if key == "type" else key): value for key, value in scaling.items()}
    if found["partial_rotary_factor"] == 1.0:
        del found["partial_rotary_factor"]
    return {key: value for key, value in found.items() if value is not None}


@cache
def _defaults() -> Mapping[str, Any]:
    return json.loads((Path(__file__).parent / "config_defaults.json").read_text())  # type: ignore[no-any-return]

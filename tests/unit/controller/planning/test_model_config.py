"""Normal form of config.json, against the configuration classes of the installed transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from controller.planning.model_config import read_config

# Saved by the pinned transformers from the fewest settings; each must have the normal form of those settings.
TYPES = (
    *(
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "gemma",
        "gemma2",
        "gemma3_text",
    ),
    *(
        "phi",
        "phi3",
        "olmo2",
        "granite",
        "starcoder2",
        "stablelm",
        "cohere2",
        "gpt_oss",
        "gpt_neox",
        "exaone4",
    ),
    *("ernie4_5", "nemotron"),
)
SETTINGS = {
    "architectures": ["X"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 60_000,
    "torch_dtype": "bfloat16",
}
_SAVE = """
import json, sys
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
settings, types = json.loads(sys.argv[1])
print(json.dumps({name: CONFIG_MAPPING[name].from_dict(dict(settings)).to_dict() for name in types}))
"""


@pytest.fixture(scope="module")
def saved() -> dict[str, Any]:
    """config.json of each type as transformers writes it. In a process of its own: it takes half a GB."""
    done = subprocess.run(
        [sys.executable, "-c", _SAVE, json.dumps([SETTINGS, TYPES])],
        check=True,
        capture_output=True,
        text=True,
        env={"HF_HUB_OFFLINE": "1", "PATH": "", "HOME": str(Path.home())},
    )
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.integration
def test_what_transformers_writes_out_is_the_same_model_as_what_it_read(saved: dict[str, Any]) -> None:
    assert {name: read_config(saved[name]) for name in TYPES} == {
        name: read_config({**SETTINGS, "model_type": name}) for name in TYPES
    }


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"num_key_value_heads": 2}, "sizes"),
        ({"head_dim": 32}, "sizes"),
        ({"rope_theta": 20_000.0}, "rope"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope"),
        ({"eos_token_id": 7}, "special"),
        ({"hidden_act": "gelu"}, "rest"),
        ({"torch_dtype": "float16"}, "dtype"),
        ({"quantization_config": {"bits": 4}}, "quantization"),
    ],
)
def test_a_value_that_is_no_default_stays(change: dict[str, Any], part: str) -> None:
    before, after = (read_config({**SETTINGS, "model_type": "llama", **one}) for one in ({}, change))

    assert [name for name in before.__slots__ if getattr(before, name) != getattr(after, name)] == [part]


def test_the_parts_of_a_model_for_text_and_images_are_read_by_their_own_defaults() -> None:
    text = {"hidden_size": 64, "rms_norm_eps": 1e-06, "torch_dtype": "bfloat16"}
    found = read_config({"model_type": "gemma3", "text_config": text, "mm_tokens_per_image": 256})

    assert found.sizes == {"text_config.hidden_size": 64}
    assert found.dtype == "bfloat16"
    assert found.rest == {"text_config.model_type": "gemma3_text"}


def test_a_model_type_without_known_defaults_keeps_all_values() -> None:
    assert read_config({"model_type": "acme", "hidden_act": "silu"}).rest == {"hidden_act": "silu"}


@pytest.mark.parametrize(
    ("before", "change", "part"),
    [
        # As the library reads them: rope_scaling, often added by hand, replaces rope_parameters.
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope",
        ),
        ({"dtype": "bfloat16", "torch_dtype": "bfloat16"}, {"dtype": "float32"}, "dtype"),
    ],
)
def test_of_two_names_of_one_setting_the_one_that_the_library_takes_counts(
    before: dict[str, Any], change: dict[str, Any], part: str
) -> None:
    both = [{**SETTINGS, "model_type": "qwen3", **before, **more} for more in ({}, change)]
    first, second = (read_config(one) for one in both)

    assert [name for name in first.__slots__ if getattr(first, name) != getattr(second, name)] == [part]


def test_full_attention_in_every_layer_counts_where_the_class_would_use_windows() -> None:
    windowed = {
        "model_type": "qwen3",
        "use_sliding_window": True,
        "sliding_window": 128,
        "max_window_layers": 2,
    }
    full = {**windowed, "layer_types": ["full_attention"] * 4}

    assert read_config({**SETTINGS, **windowed}) != read_config({**SETTINGS, **full})

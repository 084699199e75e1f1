"""Families of models: `qwen` of qwen2, qwen3 and qwen3_moe; and which share of two vocabularies is common.

A model type is no proof of a family: many models are saved as `llama`. So two checkpoints of one type whose
tensors differ belong to one family only if their tokenizers share most of their vocabulary, or if both
vocabularies are known ones of that family.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable

SKETCH_SIZE = 96
MIN_SHARED_RATIO = 0.5

# Families whose name is not the first word of the model type without its version.
_ALIASES = {
    "mixtral": "mistral",
    "ministral": "mistral",
    "pixtral": "mistral",
    "voxtral": "mistral",
    "chatglm": "glm",
    "mllama": "llama",
    "phimoe": "phi",
    "olmoe": "olmo",
    "granitemoe": "granite",
    "qwq": "qwen",
    "granitemoehybrid": "granite",
    "granitemoeshared": "granite",
    "shieldgemma": "gemma",
    "falcon_h": "falcon",
    "kimi_k": "kimi",
    "nemotron_h": "nemotron",
    "nemotron_nas": "nemotron",
    "paligemma": "gemma",
    "recurrent_gemma": "gemma",
    "codegemma": "gemma",
    "flex_olmo": "olmo",
}
# Modality, sparsity and part of a model: a version of the family, not another.
_SUFFIX = re.compile(
    r"(_?(moe|vl)|_(text|omni|thinker|talker|audio|next|vision|linear|hybrid|dense|coder|asr|mtp|multimodal))$"
)
_VERSION = re.compile(r"_?v?\d+([._p]\d+)*[a-z]?$")
# Sizes of vocabularies that a family had, by generation, where generations share their model type.
_GENERATIONS = {"llama": {"2": range(32_000, 32_065), "3": range(128_256, 128_321)}}
_ARCHITECTURE_SUFFIX = re.compile(
    r"(For(CausalLM|ConditionalGeneration|\w*Classification|\w*LM)|LMHeadModel|Model)$"
)


def family_of(model_type: str) -> str:
    """The family of a model type: `qwen` of `qwen2_5_vl`."""
    name = model_type.lower().replace("-", "_")
    before = ""
    while name != before and name not in _ALIASES:
        before = name
        name = _SUFFIX.sub("", name) or name
        # gpt2, gpt_neox, gpt_oss and gptj share a prefix and nothing else.
        if not name.startswith("gpt"):
            name = _VERSION.sub("", name) or name
    return _ALIASES.get(name, name)


def architecture_family(architecture: str) -> str:
    """The family in the name of a model class: `llama` of `LlamaForCausalLM`."""
    return family_of(_ARCHITECTURE_SUFFIX.sub("", architecture))


def vocabulary_sketch(tokens: Iterable[str | bytes]) -> tuple[int, ...]:
    """The smallest hashes of the tokens, enough to estimate which share two vocabularies have in common.

    Marks of a space (of sentencepiece and of byte-level BPE) count as a space. Empty without tokens.
    """
    hashes = {
        int.from_bytes(hashlib.blake2b(_plain(token), digest_size=6).digest(), "big") for token in tokens
    }
    return tuple(sorted(hashes)[:SKETCH_SIZE])


def shared_ratio(one: Collection[int], other: Collection[int]) -> float | None:
    """Estimated share of both vocabularies' tokens that are in both, 0-1; None: a vocabulary is not known.

    Bottom-k estimate of the Jaccard index; its standard error is at most 0.06.
    """
    if not one or not other:
        return None
    smallest = sorted(set(one) | set(other))[:SKETCH_SIZE]
    return sum(value in one and value in other for value in smallest) / len(smallest)


def are_generations(family: str, one: int, other: int) -> bool:
    """Whether these sizes of vocabularies are known ones of two generations of the family."""
    known = _GENERATIONS.get(family, {})
    found = [next((name for name, sizes in known.items() if size in sizes), None) for size in (one, other)]
    return None not in found and found[0] != found[1]


def _plain(token: str | bytes) -> bytes:
    if isinstance(token, bytes):
        return token
    return token.replace("\u2581", " ").replace("\u0120", " ").encode("utf-8", "surrogatepass")

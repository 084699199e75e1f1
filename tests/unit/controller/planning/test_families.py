"""Families of model types, and shared vocabularies in every format of a tokenizer."""

from __future__ import annotations

import base64
import json

import pytest

from controller.planning.families import family_of, shared_ratio, vocabulary_sketch
from controller.planning.tokenizer_files import tokens_in

WORDS = [f"word{index}" for index in range(5000)]


@pytest.mark.parametrize(
    ("family", "model_types"),
    [
        (
            "qwen",
            ["qwen2", "qwen2_5_vl", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "qwen2_5_omni_text"],
        ),
        ("gemma", ["gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n_text"]),
        ("llama", ["llama", "llama4", "llama4_text", "mllama"]),
        ("mistral", ["mistral", "mistral3", "mixtral", "ministral3"]),
        ("deepseek", ["deepseek_v2", "deepseek_v3"]),
        ("glm", ["chatglm", "glm", "glm4", "glm4_moe", "glm4v"]),
        ("gpt2", ["gpt2"]),
        ("gpt_neox", ["gpt_neox"]),
        ("gpt_oss", ["gpt_oss"]),
        ("starcoder", ["starcoder2"]),
    ],
)
def test_generations_of_a_model_are_one_family(family: str, model_types: list[str]) -> None:
    assert {family_of(one) for one in model_types} == {family}


@pytest.mark.parametrize("shared", [0, 1000, 2500, 4000, 5000])
def test_the_shared_ratio_of_two_vocabularies_is_estimated(shared: int) -> None:
    other = WORDS[:shared] + [f"other{index}" for index in range(5000 - shared)]
    exact = shared / (10_000 - shared)

    found = shared_ratio(vocabulary_sketch(WORDS), vocabulary_sketch(other))

    assert found == pytest.approx(exact, abs=0.12)


def test_without_a_vocabulary_nothing_is_estimated() -> None:
    assert shared_ratio((), vocabulary_sketch(WORDS)) is None


def _piece(text: str) -> bytes:
    data = text.encode()
    inner = b"\x0a" + bytes([len(data)]) + data + b"\x15\x00\x00\x80\xbf"  # the piece and its score
    return b"\x0a" + bytes([len(inner)]) + inner


@pytest.mark.parametrize(
    ("name", "data", "tokens"),
    [
        ("tokenizer.json", json.dumps({"model": {"vocab": {"a": 0, "b": 1}}}).encode(), ["a", "b"]),
        ("tokenizer.json", json.dumps({"model": {"vocab": [["a", -1.0], ["b", -2.0]]}}).encode(), ["a", "b"]),
        ("vocab.json", b'{"a": 0, "b": 1}', ["a", "b"]),
        ("tekken.json", b'{"vocab": [{"rank": 0, "token_bytes": "YQ=="}]}', [b"a"]),
        ("qwen.tiktoken", base64.b64encode(b"a") + b" 0\n" + base64.b64encode(b"b") + b" 1\n", [b"a", b"b"]),
        ("tokenizer.model", _piece("a") + _piece("\u2581b"), ["a", "\u2581b"]),
        ("tokenizer.model", base64.b64encode(b"abc") + b" 0\n", [b"abc"]),
        ("tokenizer.model", b"\xff\xff\xff", []),
        ("tokenizer.json", b"[1]", []),
    ],
)
def test_the_tokens_of_each_format_are_read(name: str, data: bytes, tokens: list[str | bytes]) -> None:
    assert tokens_in(name, data) == tokens


def test_marks_of_a_space_do_not_set_two_formats_apart() -> None:
    assert (
        vocabulary_sketch(["\u2581the"]) == vocabulary_sketch(["\u0120the"]) == vocabulary_sketch([b" the"])
    )

"""Risk of a change: every row of the table, and its reasons."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.planning.fingerprint import Fingerprint, fingerprint_external
from controller.planning.risk import Assessment, Risk, assess

PARTS = ("config", "dtype", "engine_release", "quantization", "rope", "sizes", "special_tokens", "template")
BASE = Fingerprint(
    kind="checkpoint",
    architecture="LlamaForCausalLM",
    family="llama",
    parts=tuple((name, "1") for name in sorted((*PARTS, "tensors", "tokenizer"))),
    sampling=(("temperature", "0.0"),),
    engine=(("max_num_seqs", "512"),),
    tensor_bytes=1000,
    parameters=250,
)


def other(*names: str, **fields: object) -> Fingerprint:
    parts = tuple((name, "2" if name in names else value) for name, value in BASE.parts)
    return replace(BASE, parts=parts, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("canary", "risk"),
    [
        (BASE, Risk.NONE),
        (other(engine=(("max_num_seqs", "1024"),)), Risk.LOW),
        (other(engine=(("max_num_seqs", "512"), ("max_model_len", "1024"))), Risk.MEDIUM),
        (other(sampling=(("temperature", "1.0"),)), Risk.LOW),
        (other("tensors"), Risk.MEDIUM),
        *((other(name), Risk.MEDIUM) for name in ("tokenizer", *PARTS) if name != "sizes"),
        (other("tensors", "tokenizer"), Risk.HIGH),
        (other("tensors", "sizes"), Risk.HIGH),
        (other("tensors", "sizes", family="qwen3"), Risk.CRITICAL),
        (fingerprint_external("http://a/v1"), Risk.CRITICAL),
    ],
)
def test_each_change_has_the_risk_of_the_table(canary: Fingerprint, risk: Risk) -> None:
    assert assess(BASE, canary).risk is risk


def test_the_same_endpoint_is_no_change() -> None:
    endpoint = fingerprint_external("http://a/v1")

    assert assess(endpoint, endpoint) == Assessment(Risk.NONE, ("nothing changes",), (), ())


def test_a_changed_sampling_default_is_flagged_even_beside_other_changes() -> None:
    found = assess(BASE, other("tensors", sampling=(("temperature", "1.0"), ("top_p", "0.9"))))

    assert [str(change) for change in found.sampling] == ["temperature: 0.0 -> 1.0", "top_p: not set -> 0.9"]
    assert found.risk is Risk.MEDIUM
    assert found.reasons == (
        "fine-tuned tensors on the same base",
        "sampling default temperature: 0.0 -> 1.0",
        "sampling default top_p: not set -> 0.9",
    )

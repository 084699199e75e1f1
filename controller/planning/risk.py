"""Risk of a change, from the fingerprints of stable and canary.

| change | risk |
|---|---|
| engine arguments or sampling defaults alone | low |
| fine-tuned tensors on the same base; or the same tensors with another tokenizer, template, special tokens,
  rope, quantisation, dtype, model config or engine release | medium |
| both of these, or another size of the same family | high |
| another family, or an external endpoint, whose files cannot be read | critical |
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum

from controller.planning.fingerprint import Fingerprint


class Risk(StrEnum):
    """Risk of a change. NONE: nothing changes."""

    NONE = "none"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


# By part of the fingerprint: all that can change beside the tensors.
_PART_CHANGES = {
    "tokenizer": "the tokenizer changes",
    "template": "the chat template changes",
    "special_tokens": "special tokens (BOS, EOS, padding) change",
    "config": "the model config changes",
    "rope": "the position encoding (rope) changes",
    "quantization": "the quantisation changes",
    "dtype": "the dtype changes",
    "engine_release": "the engine release changes",
}


@dataclass(frozen=True, slots=True)
class Change:
    """A setting that differs; None: not set on that side."""

    name: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        return f"{self.name}: {self.before or 'not set'} -> {self.after or 'not set'}"


@dataclass(frozen=True, slots=True)
class Assessment:
    """The risk of a change, its reasons, and the settings that differ."""

    risk: Risk
    reasons: tuple[str, ...]
    sampling: tuple[Change, ...]  # changed sampling defaults: shown as warnings
    engine: tuple[Change, ...]  # changed engine arguments


def assess(stable: Fingerprint, canary: Fingerprint) -> Assessment:
    """The risk of going from `stable` to `canary`, and why."""
    sampling, engine = _changes(stable.sampling, canary.sampling), _changes(stable.engine, canary.engine)
    risk, reasons = _grade(stable, canary)
    if risk is Risk.NONE and (sampling or engine):
        risk = Risk.LOW
    reasons += [f"sampling default {change}" for change in sampling]
    reasons += [f"engine argument {change}" for change in engine]
    return Assessment(risk, tuple(reasons or ["nothing changes"]), sampling, engine)


def _grade(stable: Fingerprint, canary: Fingerprint) -> tuple[Risk, list[str]]:
    if "external" in (stable.kind, canary.kind):
        if stable.digest == canary.digest:
            return Risk.NONE, []
        return Risk.CRITICAL, ["an external endpoint: its files cannot be compared"]
    if stable.family != canary.family:
        return Risk.CRITICAL, [f"another family: {stable.family} -> {canary.family}"]
    if stable.part("sizes") != canary.part("sizes"):
        text = f"another size of {stable.family}: {stable.parameters:,} -> {canary.parameters:,} parameters"
        return Risk.HIGH, [text]
    parts = [text for name, text in _PART_CHANGES.items() if stable.part(name) != canary.part(name)]
    if stable.part("tensors") == canary.part("tensors"):
        return (Risk.MEDIUM, parts) if parts else (Risk.NONE, [])
    if parts:
        return Risk.HIGH, [f"a new version of {stable.family}: other tensors", *parts]
    return Risk.MEDIUM, ["fine-tuned tensors on the same base"]


def _changes(before: tuple[tuple[str, str], ...], after: tuple[tuple[str, str], ...]) -> tuple[Change, ...]:
    old, new = dict(before), dict(after)
    return tuple(
        Change(name, _shown(old.get(name)), _shown(new.get(name)))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    )


def _shown(value: str | None) -> str | None:
    if value is None:
        return None
    plain = json.loads(value)
    return plain if isinstance(plain, str) else value

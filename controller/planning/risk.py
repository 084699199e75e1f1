"""Risk of a change, from the fingerprints of stable and canary. The table is `RISK_TABLE`.

Rules: the highest risk of all causes counts. Two causes of the checkpoint's own, other tensors and another
part beside them, make a new version (high). What cannot be compared is taken for the worse.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from controller.planning.checkpoint_files import group_of, may_be_read
from controller.planning.engine_risk import PARTS, SAMPLING_DEFAULTS, argument_class
from controller.planning.families import (
    MIN_SHARED_RATIO,
    architecture_family,
    are_generations,
    family_of,
    shared_ratio,
)
from controller.planning.fingerprint import Fingerprint


class Risk(StrEnum):
    """Risk of a change. NONE: nothing changes."""

    NONE = "none"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


# (change, risk), for the reference page and the README.
RISK_TABLE: tuple[tuple[str, Risk], ...] = (
    (
        "other sampling defaults, or engine arguments that change throughput alone (batch sizes, memory, "
        "parallelism)",
        Risk.LOW,
    ),
    (
        "fine-tuned or quantised tensors on the same base, also beside other data files that no engine reads",
        Risk.MEDIUM,
    ),
    (
        "the same tensors with another tokenizer, chat template, special tokens, default length, rope, model "
        "config, processor, code, dtype, quantisation or other file that the engine may read",
        Risk.MEDIUM,
    ),
    (
        "any engine argument that can change or cut an answer; an unknown one; another engine release",
        Risk.MEDIUM,
    ),
    ("another size or generation of the same family; fine-tuned tensors with another part", Risk.HIGH),
    ("another family, also under a borrowed model type; an external endpoint", Risk.CRITICAL),
)
_ORDER = tuple(Risk)
# By part of the fingerprint: all that can change beside the tensors.
_PART_CHANGES = {
    "tokenizer": "the tokenizer changes",
    "template": "the chat template changes",
    "special_tokens": "special tokens (BOS, EOS, padding) change",
    "config": "the model config changes",
    "rope": "the position encoding (rope) changes",
    "quantization": "the quantisation changes",
    "dtype": "the dtype changes",
    "processor": "the settings of the image, audio or video processor change",
    "code": "the model's own code changes",
    "files": "other files change",
    "engine_release": "the engine release changes",
}
_STORAGE = {"quantization", "dtype"}  # they change the tensors' bytes by themselves
_NAMED_PARTS = ("processor", "code", "files")


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
    engine: tuple[Change, ...]  # other changed engine arguments


def assess(stable: Fingerprint, canary: Fingerprint) -> Assessment:
    """The risk of going from `stable` to `canary`, and why."""
    sampling = list(_changes(stable.sampling, canary.sampling))
    engine: list[Change] = []
    causes = list(_sampling_causes(sampling))
    has_other_defaults = bool(sampling)  # then they tell more than the arguments that set them
    for change in _changes(stable.engine, canary.engine):
        kind = argument_class(change.name, (change.before, change.after))
        if kind == "sampling" and has_other_defaults:
            continue
        (sampling if kind == "sampling" else engine).append(change)
        text = f"engine argument {change}"
        if kind == "answers":
            causes.append((Risk.MEDIUM, f"{text}, which can change or cut answers"))
        elif kind == "sampling":
            causes.append((Risk.LOW, f"sampling default {change}"))
        else:
            causes.append((Risk.LOW, text))
    replaced = {PARTS[change.name] for change in engine if change.name in PARTS}
    risk, reasons = _grade(stable, canary, replaced)
    risk = max([risk, *(cause for cause, _ in causes)], key=_ORDER.index)
    reasons += [text for _, text in causes]
    return Assessment(risk, tuple(reasons or ["nothing changes"]), tuple(sampling), tuple(engine))


def _sampling_causes(changes: list[Change]) -> Iterator[tuple[Risk, str]]:
    for change in changes:
        if change.name in SAMPLING_DEFAULTS:
            yield Risk.LOW, f"sampling default {change}"
        else:
            yield Risk.MEDIUM, f"generation default {change}, which can change or cut answers"


def _grade(stable: Fingerprint, canary: Fingerprint, replaced: set[str]) -> tuple[Risk, list[str]]:
    """Risk and reasons by the checkpoints alone. replaced: parts that engine arguments replace."""
    if "external" in (stable.kind, canary.kind):
        if stable.digest == canary.digest:
            return Risk.NONE, []
        return Risk.CRITICAL, ["an external endpoint: its files cannot be compared"]
    has_same_tensors = stable.part("tensors") == canary.part("tensors")
    if text := _other_family(stable, canary, has_same_tensors):
        return Risk.CRITICAL, [text]
    family = family_of(canary.family)
    if stable.family != canary.family:
        return Risk.HIGH, [f"another model of the family {family}: {stable.family} -> {canary.family}"]
    if stable.part("sizes") != canary.part("sizes"):
        return Risk.HIGH, [_size_text(stable, canary)]
    changed = [name for name in _PART_CHANGES if stable.part(name) != canary.part(name)]
    parts = [_part_text(name, stable, canary) for name in changed]
    if has_same_tensors:
        return (Risk.MEDIUM, parts) if parts else (Risk.NONE, [])
    if "files" in changed and (unread := _unread_files(stable, canary)):
        changed.remove("files")
        parts.remove(_part_text("files", stable, canary))
        parts.append(f"other files that no engine reads: {_named(unread)}")
    all_changed = {*changed, *replaced}
    if all_changed and all_changed <= _STORAGE:
        return Risk.MEDIUM, ["the same model stored otherwise: other tensors", *parts]
    if all_changed:
        return Risk.HIGH, [f"a new version of {stable.family}: other tensors", *parts]
    return Risk.MEDIUM, ["fine-tuned tensors on the same base", *parts]


def _other_family(stable: Fingerprint, canary: Fingerprint, has_same_tensors: bool) -> str:
    """Why the two are of different families; empty: they are of one, as far as the files tell."""
    if family_of(stable.family) != family_of(canary.family):
        return f"another family: {stable.family} -> {canary.family}"
    if stable.family != canary.family or has_same_tensors:
        return ""
    borrowed = f"another family under the model type {canary.family}"
    built = [architecture_family(one.architecture) for one in (stable, canary)]
    if built[0] != built[1]:
        return f"{borrowed}: {stable.architecture} -> {canary.architecture}"
    shared = shared_ratio(stable.vocabulary, canary.vocabulary)
    sizes = stable.vocabulary_size, canary.vocabulary_size
    if shared is None or shared >= MIN_SHARED_RATIO or are_generations(family_of(canary.family), *sizes):
        return ""
    return f"{borrowed}: about {shared:.0%} of the vocabulary is shared, and the tensors differ"


def _size_text(stable: Fingerprint, canary: Fingerprint) -> str:
    if stable.parameters == canary.parameters:
        return f"another shape of {stable.family}, with {canary.parameters:,} parameters on both sides"
    return f"another size of {stable.family}: {stable.parameters:,} -> {canary.parameters:,} parameters"


def _part_text(name: str, stable: Fingerprint, canary: Fingerprint) -> str:
    text = _PART_CHANGES[name]
    # Of parts that are whole files, name them.
    if name in _NAMED_PARTS:
        files = _changed_files(stable, canary)
        return f"{text}: {_named(files)}" if files else text
    return text


def _changed_files(stable: Fingerprint, canary: Fingerprint) -> list[str]:
    old, new = dict(stable.files), dict(canary.files)
    return [file for file in sorted({*old, *new}) if old.get(file) != new.get(file)]


def _unread_files(stable: Fingerprint, canary: Fingerprint) -> list[str]:
    """The changed files of the group `files`, when no engine reads any of them; else none.

    A model's own code may read whatever lies beside it.
    """
    if stable.part("code") or canary.part("code"):
        return []
    files = [file for file in _changed_files(stable, canary) if group_of(file) == "files"]
    return [] if any(map(may_be_read, files)) else files


def _named(files: list[str]) -> str:
    return f"{', '.join(files[:4])}{', ...' if len(files) > 4 else ''}"


def _changes(before: tuple[tuple[str, str], ...], after: tuple[tuple[str, str], ...]) -> Iterator[Change]:
    old: Mapping[str, str] = dict(before)
    new: Mapping[str, str] = dict(after)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield Change(name, _shown(old.get(name)), _shown(new.get(name)))


def _shown(value: str | None) -> str | None:
    if value is None:
        return None
    plain = json.loads(value)
    return plain if isinstance(plain, str) else value

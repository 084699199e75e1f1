"""Building blocks of specs: weights, durations, scalars, the strict base model, errors with a path."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from controller.quantities import byte_count, duration_s, weight_bp

Weight = Annotated[
    int,
    BeforeValidator(weight_bp),
    PlainSerializer(lambda points: f"{points / 100:g}%", return_type=str),
    WithJsonSchema({"type": ["string", "number"], "description": "percent of the traffic: 2.5% or 2.5"}),
]
Bytes = Annotated[
    int,
    BeforeValidator(byte_count),
    WithJsonSchema({"type": ["string", "integer"], "description": "4GiB, 512MiB, or bytes"}),
]
Duration = Annotated[
    float,
    BeforeValidator(duration_s),
    WithJsonSchema({"type": ["string", "number"], "description": "30s, 10m, 1h30m, 3d, or seconds"}),
]


class FieldError(ValueError):
    """A broken rule of a field. `path`: from the model whose validator raises it, such as `stages.1.weight`.

    The message continues the path: ("gpus", "0.5 is too little") becomes `version.gpus 0.5 is too little`.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path} {message}")
        self.path = path


class UnknownKey(ValueError):
    """A key that the model does not have."""

    def __init__(self, key: object, hint: str) -> None:
        super().__init__(f"unknown key {key!r}; {hint}")
        self.key = str(key)


class Violations(ValueError):
    """Several broken rules of one model, each of them a ValueError."""

    def __init__(self, errors: Sequence[ValueError]) -> None:
        super().__init__("; ".join(map(str, errors)))
        self.errors = tuple(errors)


def refuse(errors: Iterable[ValueError]) -> None:
    """Raise the error, or Violations of several; nothing where there is none."""
    found = tuple(errors)
    if found:
        raise found[0] if len(found) == 1 else Violations(found)


def _engine_value(value: object) -> object:
    """The value, if JSON can hold it."""
    _refuse_non_json(value, depth=0)
    return value


def _refuse_non_json(value: object, *, depth: int) -> None:
    if depth > MAX_VALUE_DEPTH:
        raise ValueError(f"is nested over {MAX_VALUE_DEPTH} levels deep; write it flatter")
    if isinstance(value, Mapping):
        if bad := next((key for key in value if not isinstance(key, str)), None):
            raise ValueError(f"key {bad!r} is not text; put it in quotes")
        for inner in value.values():
            _refuse_non_json(inner, depth=depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            _refuse_non_json(inner, depth=depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number; write one")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("a whole number is beyond 64 bits; write a smaller one")
    elif not (value is None or isinstance(value, str | int | float)):
        raise ValueError(
            f"{type(value).__name__} is no plain value; write text, a number, a list or a mapping"
        )


MAX_VALUE_DEPTH = 20
MAX_KEYS = 500  # of a mapping in a spec, such as engine arguments or gates: each may be looked at for long
MAX_UNKNOWN = 100  # unknown keys that are named, of one mapping
EngineValue = Annotated[
    Any,
    BeforeValidator(_engine_value),
    WithJsonSchema({"description": "text, a number, true, false, a list or a mapping"}),
]
STORED = {
    "stored": True
}  # context of a spec that the store holds: accepted once, so no newer rule refuses it


DERIVED = {"derived": True}  # context of a spec that is made of an accepted one, and may be longer


def is_stored(info: ValidationInfo) -> bool:
    """Whether the spec comes from the store: rules that came after it was accepted do not apply."""
    return isinstance(info.context, Mapping) and bool(info.context.get("stored"))


def is_derived(info: ValidationInfo) -> bool:
    """Whether the spec is one that a person wrote with keys of ours added: no limit of a person's applies."""
    return isinstance(info.context, Mapping) and bool(info.context.get("derived"))


class Strict(BaseModel):
    """Base of the user-facing models: frozen, and an unknown key is refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, allow_inf_nan=False)
    # Alias -> key: the evaluation's own name, where it differs.
    ALIASES: ClassVar[Mapping[str, str]] = {}
    LIMITS: ClassVar[Mapping[str, int]] = {}  # keys of a mapping, where fewer than MAX_KEYS may be

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: object, info: ValidationInfo) -> object:
        if not isinstance(data, Mapping):
            return data
        known = sorted(cls.model_fields)
        fields: dict[object, object] = {}
        errors: list[ValueError] = []
        for key, value in data.items():
            name = cls.ALIASES.get(key, key) if isinstance(key, str) else key
            if name not in known:
                if len(errors) > MAX_UNKNOWN:
                    continue
                near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.7)
                hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"
                errors.append(UnknownKey(key, hint))
            elif (
                isinstance(value, Mapping)
                and len(value) > (limit := cls.LIMITS.get(str(name), MAX_KEYS))
                and not (is_stored(info) or is_derived(info))
            ):
                text = f"has {len(value)} keys, at most {limit}; leave some out"
                errors.append(FieldError(str(name), text))
            elif name in fields:
                errors.append(FieldError(str(name), "is given twice, once by its alias; leave one out"))
            elif not is_stored(info) and _is_flag_for_number(cls.model_fields[str(name)].annotation, value):
                shown = str(value).lower() if isinstance(value, bool) else "holds true or false, which"
                errors.append(FieldError(str(name), f"{shown} is not a number; write one"))
            fields[name] = value
        refuse(errors)
        return fields

    @classmethod
    def without(cls, data: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
        """The data without the keys of these paths, nor what cannot be checked without them: the rest of the
        rules are then looked at, too."""
        gone = {path.partition(".")[0] for path in paths}
        return {key: value for key, value in data.items() if cls.ALIASES.get(key, key) not in gone}


def _is_flag_for_number(annotation: Any, value: object) -> bool:
    """Whether true or false is given where a number is expected: pydantic would take it for 1 or 0."""
    kinds = _kinds(annotation)
    return bool(kinds & {int, float}) and bool not in kinds and _has_flag(value)


def _kinds(annotation: Any) -> set[Any]:
    """The types in an annotation, within lists and mappings too."""
    inner = get_args(annotation)
    return {annotation} if not inner else {kind for one in inner for kind in _kinds(one)}


def _has_flag(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(_has_flag(one) for one in value.values())
    if isinstance(value, list | tuple):
        return any(_has_flag(one) for one in value)
    return isinstance(value, bool)


class Checked(Strict):
    """Base of a part of a spec in which null means left out, and whose errors are all told at once."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        return {key: value for key, value in data.items() if value is not None}

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        if not is_stored(info):
            refuse(self._errors())
        return self

    def _errors(self) -> Iterator[FieldError]:
        """What is wrong between its fields."""
        return iter(())

"""Building blocks of specs: weights, durations, scalars, the strict base model, errors with a path."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, WithJsonSchema, model_validator

from controller.quantities import duration_s, weight_bp

Weight = Annotated[
    int,
    BeforeValidator(weight_bp),
    PlainSerializer(lambda points: f"{points / 100:g}%", return_type=str),
    WithJsonSchema({"type": ["string", "number"], "description": "percent of the traffic: 2.5% or 2.5"}),
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


def _scalar(value: object) -> object:
    if isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{value!r} is not a plain value; write text, a number, true or false")


Scalar = Annotated[bool | int | float | str, BeforeValidator(_scalar)]


class Strict(BaseModel):
    """Base of the user-facing models: frozen, and an unknown key is refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, allow_inf_nan=False)
    # Alias -> key: the evaluation's own name, where it differs.
    ALIASES: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        known = sorted(cls.model_fields)
        fields: dict[object, object] = {}
        for key, value in data.items():
            name = cls.ALIASES.get(key, key)
            if name not in known:
                near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.7)
                hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"
                raise ValueError(f"unknown key {key!r}; {hint}")
            if name in fields:
                raise FieldError(str(name), "is given twice, once by its alias; leave one out")
            fields[name] = value
        return fields

"""What is wrong with the values of a table file, in our own words, one line for each mistake.

Invariant: no key, no digest and no URL, which may hold one, is in a line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from serving.files.client_rules import KeySpec, TrustSpec
from serving.router.standalone.table_schema import (
    AffinitySpec,
    CanarySpec,
    JudgeSpec,
    LimitsSpec,
    TableSpec,
    UpstreamSpec,
)

_NO_MAPPING = frozenset({"model_type", "model_attributes_type", "dict_type"})
_FIRST = ("service", "stable", "canary", "weight_bp", "salt")  # in messages
_KINDS: dict[str, type[BaseModel]] = {
    "stable": UpstreamSpec,
    "canary": CanarySpec,
    "keys": KeySpec,
    "trust": TrustSpec,
    "affinity": AffinitySpec,
    "judge": JudgeSpec,
    "limits": LimitsSpec,
}
_OF_VARIABLE = "takes the NAME of a variable that holds the key (letters, digits and _), never the key itself"
_OF_SERVICE = "is no name of a service; write lower-case letters, digits, - and ., as in chat-2"
_OF_LABEL = "is no label; write up to 64 letters, digits, ., _ and -, the first a letter or digit"
START = "begin with service: NAME, or services:"
# By pydantic's kind of error; {ge} and the like are its limits.
_WORDS = {
    "bool_type": "is neither true nor false",
    "int_type": "is no whole number",
    "int_from_float": "is no whole number",
    "int_parsing": "is no whole number",
    "float_type": "is no number",
    "float_parsing": "is no number",
    "finite_number": "is no finite number",
    "greater_than": "is not above {gt}",
    "greater_than_equal": "is below {ge}",
    "less_than": "is not below {lt}",
    "less_than_equal": "is above {le}",
    "string_too_short": "is empty; write something, or leave the line out",
    "too_short": "is empty; write something, or leave the line out",
    "string_too_long": "has more than {max_length} characters",
    "literal_error": "is none of {expected}",
    "list_type": "is no list; write each with a dash, or all in [ ]",
    "missing": "is missing; add it",
}


def mistakes(error: ValidationError) -> list[str]:
    """Every mistake that the schema can see at once."""
    return [_line(one) for one in error.errors()]


def listed(names: Iterable[str]) -> str:
    """Names for a message."""
    return ", ".join(names)


def _line(error: Mapping[str, Any]) -> str:
    loc, kind = error["loc"], error["type"]
    where = ".".join(str(part) for part in loc)
    got = error.get("input")
    is_plain = isinstance(got, str | int | float | bool) and "key" not in str(loc[-1:])
    is_shown = is_plain and not {"url", "sha256"} & set(loc)  # a key must not be shown
    value = f" {got!r}" if is_shown else ""
    if kind in _NO_MAPPING:
        value = ""
    colon = f"{where}{value}: " if where else ("" if kind == "value_error" else "the file: ")
    return f"{colon}{_what(error, where)}"


def _what(error: Mapping[str, Any], where: str) -> str:
    loc, kind = error["loc"], error["type"]
    limits: Mapping[str, Any] = error.get("ctx") or {}
    if kind == "extra_forbidden":
        names = _known_at(loc)
        close = difflib.get_close_matches(str(loc[-1]), names, 1)
        remedy = _elsewhere(loc) or (f"; did you mean {close[0]}?" if close else "")
        if close and close[0].endswith("key_env"):
            remedy += f" It {_OF_VARIABLE}"
        return f"is no key here{remedy}; keys are {listed(names)}"
    if kind in _NO_MAPPING:
        if where in ("stable", "canary"):
            return f"is no mapping; write {where}: {{url: http://HOST:PORT}}"
        return "is no mapping; " + ("write NAME: VALUE below it" if where else START)
    if kind == "string_type":
        is_number = isinstance(error.get("input"), int | float)
        return "is no text; put it in quotes" if is_number else "is no text"
    if kind == "string_pattern_mismatch":
        return _OF_VARIABLE if where.endswith("key_env") else _OF_SERVICE if where == "service" else _OF_LABEL
    words = _WORDS.get(kind)
    text = error["msg"].removeprefix("Value error, ") if words is None else words.format(**limits)
    if loc and str(loc[0]).endswith("_bp") and kind != "string_pattern_mismatch":
        text += "; a weight is a whole number of basis points, 0 to 10000: 500 is 5 %"
    return text


def _elsewhere(loc: tuple[int | str, ...]) -> str:
    """Where a key that is none here belongs; empty: nowhere."""
    if len(loc) > 1 and loc[-1] in TableSpec.model_fields:
        return "; write it at the top, beside service"
    places = [place for place, kind in _KINDS.items() if loc[-1] in kind.model_fields]
    return f"; write it below {' or '.join(places)}" if places else ""


def _known_at(loc: tuple[int | str, ...]) -> list[str]:
    """The keys that the mapping around this place may have."""
    kind = _KINDS.get(str(loc[0]), TableSpec) if len(loc) > 1 else TableSpec
    fields = kind.model_fields
    names = [field.alias or name for name, field in fields.items()]
    return sorted(names, key=lambda name: name not in _FIRST)

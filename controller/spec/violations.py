"""Every broken rule of a spec as a line: path, value, limit, remedy.

A rule on several keys is looked at only once each of them can be read. So that one wrong key hides no other
rule, the spec is read again without it. What may only follow from its absence is not reported: an error on
what was left out, or one that names no key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import ValidationError

from controller.spec.fields import FieldError, Strict, UnknownKey, Violations

MAX_ROUNDS = 20
MAX_LINES = 100  # of one answer: whoever has that many reads the page on specs


@dataclass(frozen=True, slots=True)
class _Broken:
    """One broken rule. path: of the key at fault within the spec; empty: of the spec as a whole."""

    path: str
    line: str


def violations(
    kind: type[Strict],
    data: object,
    root: str,
    first: ValidationError,
    context: Mapping[str, bool] | None = None,
) -> list[str]:
    """The lines on what is wrong with `data`, which is called `root`. first: what reading it has raised."""
    found: dict[str, None] = {}
    gone = _Gone()
    error: ValidationError | None = first
    for _ in range(MAX_ROUNDS):
        if error is None:
            break
        broken = [one for item in error.errors(include_url=False) for one in _broken(item, root)]
        if gone:
            broken = [one for one in broken if one.path and not gone.is_near(one.path)]
        found |= dict.fromkeys(one.line for one in broken)
        if len(found) > MAX_LINES:
            break
        paths = [one.path for one in broken if one.path]
        if not isinstance(data, Mapping) or not paths:
            break
        found |= dict.fromkeys(_within(kind, data, root, paths, context))
        gone.add(paths)
        data = kind.without(data, paths)
        error = _error_of(kind, data, context)
    lines = list(found)
    if len(lines) <= MAX_LINES:
        return lines
    return [*lines[:MAX_LINES], f"{root}: more is wrong than these {MAX_LINES} lines; correct these first"]


def _error_of(kind: type[Strict], data: object, context: Mapping[str, bool] | None) -> ValidationError | None:
    try:
        kind.model_validate(data, context=context)
    except ValidationError as exc:
        return exc
    return None


def _within(
    kind: type[Strict],
    data: Mapping[str, Any],
    root: str,
    paths: list[str],
    context: Mapping[str, bool] | None,
) -> Iterator[str]:
    """The lines of the specs inside those keys, each looked at by itself: one wrong key of a stage or of a
    service's policy hides none of its others."""
    for key in dict.fromkeys(path.partition(".")[0] for path in paths):
        field = kind.model_fields.get(key)
        if field is None or key not in data:
            continue
        for place, inner, value in _parts(key, field.annotation, data[key]):
            if (error := _error_of(inner, value, context)) is not None:
                yield from violations(inner, value, f"{root}.{place}", error, context)


def _parts(path: str, annotation: Any, value: object) -> Iterator[tuple[str, type[Strict], object]]:
    """The specs inside a value, as its type says: one, a list of them, or a mapping of names to them."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        if isinstance(value, Mapping):
            yield path, annotation, value
        return
    for inner in get_args(annotation):
        if isinstance(value, Mapping) and get_args(annotation)[:1] == (str,):
            for name, one in value.items():
                yield from _parts(f"{path}.{name}", inner, one)
        elif isinstance(value, list):
            for index, one in enumerate(value):
                yield from _parts(f"{path}.{index}", inner, one)
        else:
            yield from _parts(path, inner, value)


class _Gone:
    """Paths that were left out of a spec."""

    def __init__(self) -> None:
        self._paths: set[str] = set()
        self._around: set[str] = set()  # of everything that contains one of them

    def add(self, paths: Sequence[str]) -> None:
        for path in paths:
            self._paths.add(path)
            self._around.update(_containing(path))

    def __bool__(self) -> bool:
        return bool(self._paths)

    def is_near(self, path: str) -> bool:
        """Whether an error there may follow from what was left out: on it, within it or around it."""
        is_within = any(one in self._paths for one in (path, *_containing(path)))
        return is_within or path in self._around


def _containing(path: str) -> Iterator[str]:
    """`a.b`, `a` of `a.b.c`."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


_REMEDIES = {
    "missing": "is missing; give it",
    "extra_forbidden": "is unknown; remove it, or correct its name",
    "int_type": "is not a whole number; write one",
    "int_parsing": "is not a whole number; write one",
    "int_from_float": "is not a whole number; write one",
    "float_type": "is not a number; write one",
    "float_parsing": "is not a number; write one",
    "bool_type": "is not true or false; write one of them",
    "bool_parsing": "is not true or false; write one of them",
    "finite_number": "is not a finite number; write one",
    "string_type": "is not text; put it in quotes",
    "model_type": "is not a mapping; write its settings as key: value",
    "model_attributes_type": "is not a mapping; write its settings as key: value",
    "dict_type": "is not a mapping; write its settings as key: value",
    "tuple_type": "is not a list; write its items with dashes",
    "string_pattern_mismatch": "is not a name; use lower-case letters, digits, dots and dashes, at most 40",
}
_LIMITS = {
    "greater_than_equal": ("ge", "is below {}; raise it"),
    "greater_than": ("gt", "is not above {}; raise it"),
    "less_than_equal": ("le", "exceeds {}; lower it"),
    "less_than": ("lt", "is not below {}; lower it"),
}


def _broken(error: Any, root: str) -> Iterator[_Broken]:
    """What one of pydantic's errors says: several rules, where a model's own check found several."""
    place = ".".join(str(part) for part in error["loc"])
    path = ".".join(filter(None, (root, place)))
    kind, value, context = error["type"], error["input"], error.get("ctx") or {}
    if kind == "value_error":
        exc = context["error"]
        for one in exc.errors if isinstance(exc, Violations) else (exc,):
            yield _of_rule(one, place, path)
        return
    # What stands under a key that nobody knows may be anything, a secret too.
    is_hidden = kind in ("missing", "extra_forbidden") or isinstance(value, Mapping | list)
    shown = "" if is_hidden else f" {value!r}"
    if kind in _LIMITS:
        name, text = _LIMITS[kind]
        yield _Broken(place, f"{path}{shown} {text.format(f'{context[name]:g}')}")
    elif kind == "literal_error":
        yield _Broken(place, f"{path}{shown} is unknown; use one of {context['expected']}")
    else:
        yield _Broken(place, f"{path}{shown} {_REMEDIES.get(kind, error['msg'] + '; correct it')}")


def _of_rule(error: ValueError, place: str, path: str) -> _Broken:
    if isinstance(error, FieldError):
        return _Broken(".".join(filter(None, (place, error.path))), f"{path}.{error}")
    if isinstance(error, UnknownKey):
        return _Broken(".".join(filter(None, (place, error.key))), f"{path}: {error}")
    return _Broken(place, f"{path}: {error}")

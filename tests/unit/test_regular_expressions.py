"""No regular expression of ours takes exponential time: text of engines and clients is matched by them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

FUNCTIONS = {"compile", "match", "fullmatch", "search", "sub", "split", "findall", "finditer", "subn"}
PACKAGES = ("serving", "controller", "evaluation", "benchmarks")
REPEATS = (_constants.MAX_REPEAT, _constants.MIN_REPEAT)


def expressions() -> Iterator[tuple[str, str | bytes]]:
    """Where each regular expression that is written out stands, and its text."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield from _in(path)


def _in(path: Path) -> Iterator[tuple[str, str | bytes]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="re"), attr=name), args=[ast.Constant(value=text), *_]
            ) if name in FUNCTIONS and isinstance(text, str | bytes):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", text


def ambiguous(parsed: Any, *, is_repeated: bool = False) -> bool:
    """True where an unbounded repeat stands in another, and nothing tells where one round of it ends.

    A possessive repeat is never tried in another way, and a round that begins with a character that the inner
    repeat does not take begins in one place only.
    """
    items = list(parsed)
    for index, (kind, value) in enumerate(items):
        parts: list[Any] = []
        is_unbounded = kind in REPEATS and value[1] is _constants.MAXREPEAT
        if kind in REPEATS:
            parts = [value[2]]
            if is_unbounded and is_repeated and not (index and _is_apart(items[0], value[2])):
                return True
        elif kind is _constants.SUBPATTERN:
            parts = [value[3]]
        elif kind is _constants.BRANCH:
            parts = value[1]
        if any(ambiguous(part, is_repeated=is_unbounded or is_repeated) for part in parts):
            return True
    return False


def _is_apart(first: Any, inner: Any) -> bool:
    """Whether `first` takes one character, and none that `inner`, of one character, takes."""
    taken = [one for item in (first, *inner) if (one := _taken(item)) is not None]
    return len(inner) == 1 and len(taken) == 2 and not taken[0] & taken[1]


def _taken(item: Any) -> set[int] | None:
    """The characters (below 256) that this takes; None: it is not of one character."""
    kind, value = item
    if kind is _constants.LITERAL:
        return {value}
    if kind is _constants.NOT_LITERAL:
        return set(range(256)) - {value}
    if kind is not _constants.IN:
        return None
    members: set[int] = set()
    for one, what in value:
        if one is _constants.LITERAL:
            members.add(what)
        elif one is _constants.RANGE:
            members.update(range(what[0], min(what[1], 255) + 1))
        elif one is _constants.CATEGORY:
            word = {_constants.CATEGORY_DIGIT: r"\d", _constants.CATEGORY_SPACE: r"\s"}.get(what, r"\w")
            members.update(code for code in range(256) if re.match(word, chr(code)))
    return set(range(256)) - members if value[0][0] is _constants.NEGATE else members


@pytest.mark.parametrize("text", ["(a+)*", "(?:a|b+)*b", r"(?:[^\"\\]+|\\.)*", "(a*b*)*", "(?:(?:x+)y?)+"])
def test_exponential_ones_are_found(text: str) -> None:
    assert ambiguous(_parser.parse(text))


@pytest.mark.parametrize(
    "text", ["a+b*", r"(?:/[a-z]+)*", r'"[^"\\]*(?:\\.[^"\\]*)*"', "(?:[^a]++|ab)*+", r"(_\d+)*"]
)
def test_others_are_not(text: str) -> None:
    assert not ambiguous(_parser.parse(text))


@pytest.mark.slow
def test_none_of_ours_is_exponential() -> None:
    found = dict(expressions())
    assert len(found) > 50
    assert [where for where, text in found.items() if ambiguous(_parser.parse(text))] == []

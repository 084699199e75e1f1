"""A client's JSON Schema: what conforms, and what it may not do to the router."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from serving.judging.schema_check import SchemaChecks

ORDER: dict[str, Any] = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "items": {"type": "array", "items": {"$ref": "#/$defs/item"}}},
    "required": ["id"],
    "$defs": {
        "item": {"type": "object", "properties": {"count": {"type": "integer"}}, "required": ["count"]}
    },
}


def conforms(schema: Any, value: Any) -> bool | None:
    return SchemaChecks().conforms(schema, value)


def test_a_value_conforms_or_does_not() -> None:
    assert conforms(ORDER, {"id": "a", "items": [{"count": 2}]}) is True
    assert conforms(ORDER, {"id": "a", "items": [{"count": "two"}]}) is False
    assert conforms(ORDER, {"items": []}) is False
    assert conforms(True, {"anything": 1}) is True


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, "a text", [], 3, {"$ref": "#/$defs/missing"}])
def test_what_is_no_schema_is_not_checked(schema: Any) -> None:
    assert conforms(schema, {"id": "a"}) is None


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/x.json", "file:///etc/hostname"])
def test_no_reference_is_fetched(address: str) -> None:
    """`jsonschema-rs` reads both unless it is told not to."""
    assert conforms({"$ref": address}, {}) is None
    assert conforms({"$schema": address}, {}) is None


def test_a_pattern_that_backtracks_is_not_checked() -> None:
    assert conforms({"pattern": "^(?=(a+)+$)b"}, "a" * 40) is None
    assert conforms({"pattern": "(a+)+$"}, "a" * 40 + "!") is False


def test_a_schema_that_doubles_with_each_reference_is_not_checked() -> None:
    """40 levels of two references each would take days."""
    parts: dict[str, Any] = {"a0": {"type": "string"}}
    for level in range(1, 41):
        below = {"$ref": f"#/$defs/a{level - 1}"}
        parts[f"a{level}"] = {"anyOf": [below, below]}
    began = time.process_time()
    assert conforms({"$defs": parts, "$ref": "#/$defs/a40"}, 1) is None
    assert time.process_time() - began < 20  # an end, no measurement


def test_a_schema_that_names_itself_is_not_checked() -> None:
    assert conforms({"properties": {"next": {"$ref": "#"}}}, {"next": {}}) is None


def test_a_large_value_of_a_large_schema_is_not_checked() -> None:
    many = {"items": {"anyOf": [{"const": number} for number in range(1000)]}}
    assert conforms(many, [0.5] * 10) is False
    assert conforms(many, [0.5] * 5000) is None


def _doubling(name: Callable[[int], dict[str, Any]], levels: int) -> dict[str, Any]:
    """A schema of two references a level, each made by `name`, with what names the parts."""
    parts: dict[str, Any] = {f"a{n}": {"allOf": [name(n + 1), name(n + 1)]} for n in range(levels)}
    parts[f"a{levels}"] = {"type": "object"}
    for n in range(levels + 1):
        parts[f"a{n}"] |= {"$anchor": f"a{n}", "$dynamicAnchor": f"d{n}"}
    return {"$id": "http://a/", "$defs": parts, **name(0)}


@pytest.mark.parametrize(
    "name",
    [
        lambda n: {"$ref": f"#/%24defs/a{n}"},
        lambda n: {"$ref": f"http://a/#/$defs/a{n}"},
        lambda n: {"$ref": f"#a{n}"},
        lambda n: {"$dynamicRef": f"#d{n}"},
    ],
)
def test_parts_that_are_named_in_another_way_are_not_checked(name: Callable[[int], dict[str, Any]]) -> None:
    """29 levels of them held up the router for 20 s: they were not counted."""
    began = time.process_time()
    assert conforms(_doubling(name, 40), {"a": 1}) is None
    plain = _doubling(name, 40)
    plain.pop("$id")
    for part in plain["$defs"].values():
        part.pop("$anchor"), part.pop("$dynamicAnchor")
    assert conforms(plain, {"a": 1}) is None
    assert time.process_time() - began < 20  # an end, no measurement


@pytest.mark.parametrize("hiding", ["definitions", "$defs", "default", "title", "examples"])
def test_a_property_with_the_name_of_a_keyword_is_counted(hiding: str) -> None:
    below = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)}
    schema = {"$defs": {**below, "a40": {}}, "properties": {hiding: {"$ref": "#/$defs/a0"}}}
    began = time.process_time()
    assert conforms(schema, {hiding: 1}) is None
    assert time.process_time() - began < 20  # an end, no measurement


def test_usual_names_and_keywords_are_checked() -> None:
    """Properties may be called as a keyword is, and annotations may hold anything."""
    properties: dict[str, Any] = {
        name: {"type": "integer"} for name in ("id", "$ref", "title", "definitions")
    }
    schema: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "T"}
    schema |= {"default": {"id": "x"}, "properties": properties, "additionalProperties": False}
    assert conforms(schema, {"id": 1, "$ref": 2, "title": 3, "definitions": 4}) is True
    assert conforms(schema, {"id": "one"}) is False
    assert conforms({"properties": {"kind": {"const": {"id": "x"}}}}, {"kind": {"id": "y"}}) is False


@pytest.mark.parametrize(
    "pattern",
    ["(a|b)*a(a|b){400}c", "[ab]*a[ab]{800}c", "(?i)[ab]*a[ab]{500}c", "([ab]{1,30}){1,30}c", r"\w*a\w{20}c"],
)
def test_a_costly_pattern_is_not_matched_against_a_long_text_or_key(pattern: str) -> None:
    """One on a key of 50 KB took 1.9 s."""
    text = "ab" * 12_500
    assert conforms({"propertyNames": {"pattern": pattern}}, {text: 1}) is None
    assert conforms({"patternProperties": {pattern: {}}}, {text: 1}) is None
    assert conforms({"pattern": pattern}, text) is None


def test_usual_patterns_are_matched() -> None:
    date = {"type": "array", "items": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"}}
    assert conforms(date, ["2026-11-30"] * 100) is True
    assert conforms(date, ["2026-11-30", "today"]) is False
    assert conforms({"pattern": r"^\+?\d{3}-\d{4}$"}, "555-1234") is True

"""A client's JSON Schema: what conforms, and what it may not do to the router."""

from __future__ import annotations

import time
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

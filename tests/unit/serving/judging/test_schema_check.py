"""A client's JSON Schema: what conforms, and what it may not do to the router."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest

from serving.judging.schema_check import WORK_LIMIT, SchemaChecks
from serving.judging.schema_cost import Work, cost_of

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
    assert conforms(many, ["a"] * 10) is False
    assert conforms(many, ["a"] * 5000) is None
    assert conforms(many, [0.5] * 10) is None  # a fraction costs 3 us a number that it is compared with


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


def test_a_part_that_is_named_often_is_counted_once() -> None:
    """A request of 1.3 kB whose 16 parts each name the next one twice held up the router for 1.4 s."""
    work = Work(10**9)
    assert cost_of(_plain(16), work).size > 1 << 16
    assert 10**9 - work.left < WORK_LIMIT // 20


def test_what_counting_cost_is_paid_and_paid_once() -> None:
    checks, schemas = SchemaChecks(), [_plain(level) for level in range(20, 28)]
    lefts = [WORK_LIMIT]
    for schema in schemas:
        assert checks.conforms(schema, {}) is None
        lefts.append(checks.work.left)
        assert checks.conforms(schema, {}) is None
        assert checks.work.left == lefts[-1]
    assert all(after < before for before, after in itertools.pairwise(lefts))


def test_a_schema_is_counted_no_further_than_its_answer_may_pay() -> None:
    large: dict[str, Any] = {"anyOf": [{"anyOf": [{"not": {}}] * 3}] * 5000}
    for schema in (large, {"type": "object", "$defs": {"d": large}}, {"enum": [{"a": 1}] * 20_000}):
        assert SchemaChecks().conforms(schema, {}) is None


@pytest.mark.parametrize("number", [1e300, 5e-324, 2**64, -(2**70), 10**300])
def test_numbers_that_cost_too_much_are_not_checked(number: float) -> None:
    """60 KB of 1e300 under `multipleOf` took 2.5 s; 190 unique integers of 300 digits 0.2 s."""
    for schema in ({"items": {"multipleOf": 0.1}}, {"uniqueItems": True}, {"type": "object"}):
        assert conforms(schema, [number]) is None
    assert conforms({"const": number}, 1) is None


@pytest.mark.parametrize("step", [1e-300, 1e-20, 0, -1, "1", 1e300])
def test_a_step_of_almost_nothing_is_not_checked(step: Any) -> None:
    assert conforms({"multipleOf": step}, 1) is None


def test_usual_steps_and_bounds_are_checked() -> None:
    price = {"items": {"multipleOf": 0.01, "minimum": 0.0, "maximum": 1e6}}
    assert conforms(price, [0.5, 19.99, 3] * 60) is True
    assert conforms(price, [0.5, 19.995]) is False
    assert conforms({"multipleOf": 5, "maximum": 2**64 - 1}, 15) is True
    assert conforms({"uniqueItems": True}, [2**60, 2**60]) is False
    assert conforms({"items": {"type": "integer"}}, [2**63 - 1, -(2**63)]) is True


def test_many_numbers_that_are_compared_as_fractions_are_not_checked() -> None:
    assert conforms({"items": {"allOf": [{"multipleOf": 0.1}] * 20}}, [0.5] * 1000) is None
    assert conforms({"uniqueItems": True}, [2**62 + n for n in range(2000)]) is None


def test_a_long_pattern_is_not_made() -> None:
    """240 of one pattern's counts, of 1,000 digits each, took 0.2 s to multiply."""
    assert conforms({"pattern": "a|" * 600}, "a") is None
    assert conforms({"pattern": "a{99999}{99999}{99999}"}, "a") is None
    assert conforms({"allOf": [{"pattern": f"^{n}[a-z]*$"} for n in range(400)]}, "a") is None


def _plain(levels: int) -> dict[str, Any]:
    parts = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(levels)}
    return {"$ref": "#/$defs/a0", "$defs": {**parts, f"a{levels}": {"type": "object"}}}

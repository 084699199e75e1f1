"""Text that can be stored and shown everywhere."""

from __future__ import annotations

import json

import pytest

from serving.files.plain_text import plain_text, storable, storable_json, storable_values
from serving.fleet.types import one_line


@pytest.mark.parametrize("text", ["plain", "Größe…", "two\nlines\tand a tab", "\U0001f600", ""])
def test_other_text_is_kept(text: str) -> None:
    assert storable(text) == text


@pytest.mark.parametrize("bad", ["\x00", "\x1b", "\r", "\x7f", "\x9b", "\ud83d"])
def test_a_character_that_cannot_be_stored_or_shown_is_replaced(bad: str) -> None:
    assert storable(f"a{bad}b") == "a\N{REPLACEMENT CHARACTER}b"
    assert one_line(f"CUDA {bad}error") == "CUDA \N{REPLACEMENT CHARACTER}error" or bad == "\r"


def test_the_texts_of_a_document_are_replaced_however_deep() -> None:
    document = {"a\x00": ["\ud800", ("x", {"b": "\x1b"})], "n": 1, "none": None}

    assert json.dumps(storable_values(document), ensure_ascii=False).encode() == (
        '{"a\N{REPLACEMENT CHARACTER}": ["\N{REPLACEMENT CHARACTER}", ["x", '
        '{"b": "\N{REPLACEMENT CHARACTER}"}]], "n": 1, "none": null}'.encode()
    )


@pytest.mark.slow
def test_the_json_of_a_document_has_storable_texts_alone() -> None:
    codes = (*range(0x2FF), *range(0xD7F0, 0xE010), 0xFFFD, 0x1F600)
    documents = [{f"a{chr(code)}": [f"{chr(code)}\\u0000"]} for code in codes]

    read = [json.loads(storable_json(document)) for document in documents]
    assert read == [storable_values(document) for document in documents]


@pytest.mark.parametrize("bad", ["\0", "\ud800", "\x1b", "\n", "\u2028", "\u202e", "\x7f"])
def test_what_cannot_be_stored_or_shown_is_replaced(bad: str) -> None:
    assert plain_text(f"a{bad}é", limit=9) == "a\ufffdé"


def test_a_long_text_is_cut_at_its_limit() -> None:
    assert (plain_text("x" * 10, limit=10), plain_text("x" * 11, limit=10)) == ("x" * 10, "x" * 9 + "…")


def test_the_line_of_an_error_can_be_stored() -> None:
    line = one_line(ValueError("first\nengine died: \ud800\0" + "x" * 1000))

    assert line.startswith("engine died: \ufffd\ufffdxxx")
    assert (len(line), line.encode().decode()) == (400, line)

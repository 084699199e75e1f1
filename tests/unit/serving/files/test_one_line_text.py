from __future__ import annotations

import pytest

from serving.files.plain_text import plain_text
from serving.fleet.types import one_line


@pytest.mark.parametrize("bad", ["\0", "\ud800", "\x1b", "\n", "\u2028", "\u202e", "\x7f"])
def test_what_cannot_be_stored_or_shown_is_replaced(bad: str) -> None:
    assert plain_text(f"a{bad}é", limit=9) == "a\ufffdé"


def test_a_long_text_is_cut_at_its_limit() -> None:
    assert (plain_text("x" * 10, limit=10), plain_text("x" * 11, limit=10)) == ("x" * 10, "x" * 9 + "…")


def test_the_line_of_an_error_can_be_stored() -> None:
    line = one_line(ValueError("first\nengine died: \ud800\0" + "x" * 1000))

    assert line.startswith("engine died: \ufffd\ufffdxxx")
    assert (len(line), line.encode().decode()) == (400, line)

"""Pages that list cases name tests that exist: `path::test`, then more of that file, and `[parameters]`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGES = ("public_reports.md", "faults.md")
NAMED = re.compile(r"(?:(?P<file>[\w/]+\.py)::)?(?P<test>test_\w+)?(?:\[(?P<case>[^\]]+)\])?")


def named(page: str) -> Iterator[tuple[str, str, str | None]]:
    """File, function and parameters of each test in the last column of the page's table."""
    for line in (TESTS / page).read_text().splitlines():
        if not line.startswith("| ") or "::" not in line:
            continue
        file = test = ""
        for one in re.split(r", (?=test_|\[|[\w/]+\.py::)", line.rsplit(" | ", 1)[1].removesuffix(" |")):
            found = NAMED.fullmatch(one)
            assert found is not None, f"{page}: {one}"
            file, test = found["file"] or file, found["test"] or test
            yield file, test, found["case"]


def problem(file: str, test: str, case: str | None) -> str | None:
    if not (TESTS / file).is_file():
        return f"{file} does not exist"
    text = (TESTS / file).read_text()
    if re.search(rf"^(?:async )?def {test}\(", text, re.MULTILINE) is None:
        return f"{file}::{test} does not exist"
    if case is None or case in text or (TESTS / file).with_name(f"{case}.txt").is_file():  # of a transcript
        return None
    return f"{file}::{test}[{case}] does not exist"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_exists(page: str) -> None:
    tests = list(named(page))

    assert len(tests) > 100
    assert [why for one in tests if (why := problem(*one)) is not None] == []


def test_a_wrong_name_is_noticed() -> None:
    here = "unit/test_named_tests.py"

    assert problem(here, "test_a_wrong_name_is_noticed", None) is None
    assert problem(here, "test_a_wrong_name", None) is not None
    assert problem("unit/test_no_file.py", "test_x", None) is not None
    assert problem("scenarios/test_transcripts.py", "test_the_transcripts_are_found", "no such") is not None


@pytest.mark.parametrize("page", PAGES)
def test_every_row_of_a_page_names_a_test(page: str) -> None:
    rows = [line for line in (TESTS / page).read_text().splitlines() if line.startswith("| ")]

    assert [row for row in rows[1:] if ".py::test_" not in row] == []

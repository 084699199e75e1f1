"""Of a test's cases `make check` runs a sample, evenly spread; `make test` runs all."""

from __future__ import annotations

from typing import Any

import pytest

from tests.samples import leave_to_make_test


class Case:
    """A collected test with its marks."""

    def __init__(self, nodeid: str, *marks: pytest.MarkDecorator) -> None:
        self.nodeid = nodeid
        self.marks = {mark.name: mark.mark for mark in marks}

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        return self.marks.get(name)

    def add_marker(self, mark: pytest.MarkDecorator) -> None:
        self.marks[mark.name] = mark.mark


def run_by_make_check(cases: list[Any]) -> list[str]:
    leave_to_make_test(cases)
    return [case.nodeid for case in cases if not {"slow", "integration"} & set(case.marks)]


def test_a_sample_is_spread_over_the_cases_that_make_check_runs() -> None:
    sample, after = pytest.mark.sample(2), pytest.mark.integration
    cases = [Case(f"f.py::test_a[{n}]", sample, *((after,) if n in (0, 3) else ())) for n in range(6)]

    assert run_by_make_check(cases) == ["f.py::test_a[1]", "f.py::test_a[4]"]


def test_each_test_has_its_own_sample_and_one_without_runs_whole() -> None:
    sample = pytest.mark.sample(1)
    cases = [Case(f"f.py::test_{name}[{n}]", sample) for name in "ab" for n in range(3)]
    others = [Case(f"f.py::test_c[{n}]") for n in range(2)]

    assert run_by_make_check([*cases, *others]) == [
        *("f.py::test_a[0]", "f.py::test_b[0]"),
        *("f.py::test_c[0]", "f.py::test_c[1]"),
    ]

"""Seeds of a simulation as parameters of its test: a few in `make check`, all in `make test`."""

from __future__ import annotations

import pytest


def seeds(count: int, *, first: int = 0, quick: int = 1) -> pytest.MarkDecorator:
    """`count` values of the parameter `seed`, from `first`; those after the first `quick` are slow tests."""
    numbers = range(first, first + count)
    marks = [() if number < first + quick else (pytest.mark.slow,) for number in numbers]
    return pytest.mark.parametrize(
        "seed", [pytest.param(number, marks=mark) for number, mark in zip(numbers, marks, strict=True)]
    )

"""The tree of errors: exit codes, problems, and the drawing in the docstring."""

from __future__ import annotations

import controller.errors as errors
from controller.errors import LINE_LIMIT, BadInput, CanaryctlError


def test_every_error_has_one_of_six_exit_codes_and_a_unique_problem() -> None:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CanaryctlError)
    ]

    assert {kind.exit_code for kind in kinds} == {1, 2, 3, 4, 5, 6}
    assert len({kind.problem for kind in kinds}) == len(kinds)


def test_the_tree_in_the_docstring_is_complete() -> None:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CanaryctlError)
    ]
    drawn = {
        tuple(line.strip("|`- ").split()[:3]) for line in (errors.__doc__ or "").splitlines() if "  " in line
    }

    assert {(kind.__name__, str(kind.exit_code), kind.problem) for kind in kinds} <= drawn


def test_a_reason_with_a_very_long_value_keeps_its_beginning_and_its_remedy() -> None:
    """An unknown key of 0.9 MB came back as an answer of 1.6 MB."""
    error = BadInput([f"policy: unknown key '{'x' * 900_000}'; use one of bake, stages", "short"])

    first, second = error.details
    assert (len(first) < LINE_LIMIT + 100, second, len(str(error)) < 5_000) == (True, "short", True)
    assert first.startswith("policy: unknown key 'xxx")
    assert first.endswith("xxx'; use one of bake, stages")

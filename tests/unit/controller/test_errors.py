"""The tree of errors: exit codes, problems, and the drawing in the docstring."""

from __future__ import annotations

import controller.errors as errors
from controller.errors import CanaryctlError


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

"""A rollout's golden set: read and pinned by its digest with the plan, and read again when it is asked.

Invariant: its texts stay in the file; the plan holds its path and digest alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from controller.errors import BadInput
from controller.rollout.plan import PreflightPlan
from controller.settings import state_folder
from serving.judging.golden import MAX_BYTES, BadGolden, GoldenSet, golden_set


def pinned(plan: PreflightPlan | None) -> PreflightPlan | None:
    """The plan with the digest of its golden set. Raises BadInput for a set that cannot be used."""
    if plan is None or plan.golden is None:
        return plan
    return replace(plan, golden_digest=read_golden(plan.golden).digest)


def read_golden(name: str) -> GoldenSet:
    """The set in a file. Raises BadInput, with a line for each line of the file that cannot be used."""
    path = Path(name)
    if not path.is_absolute():
        raise BadInput(
            f"policy.preflight.golden {name} is not absolute; the controller reads it: give all of it"
        )
    try:
        path = path.resolve()  # not the link: it may lead into the state folder
        if path.is_relative_to(state_folder().resolve()):
            raise BadInput(f"{name} is in canaryctl's state folder; move the golden set out of it")
        if path.exists() and not path.is_file():  # a pipe would block the controller
            raise BadInput(f"{name} is not a regular file; write the golden set into one")
        with path.open("rb") as file:
            return golden_set(file.read(MAX_BYTES + 1), name=name)
    except OSError as exc:
        raise BadInput(f"{name}: {exc.strerror or exc}; name a file that the controller may read") from exc
    except BadGolden as exc:
        raise BadInput(exc.lines) from exc

"""Base of every shape of the read model, and its numbers."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict


def finite(value: float | None) -> float | None:
    """The value; None for NaN and infinity, which JSON cannot express."""
    return value if value is not None and math.isfinite(value) else None


Real = Annotated[float | None, BeforeValidator(finite)]


class View(BaseModel):
    # from_attributes: a view whose fields are those of a domain object is validated from the object itself.
    # extra: an older command line reads the answers of a newer controller.
    # defer_build: a command uses few of these shapes, and building them all takes longer than it runs.
    model_config = ConfigDict(frozen=True, extra="ignore", from_attributes=True, defer_build=True)

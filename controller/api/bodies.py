"""Request and answer bodies of the API that are no views."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Body
from pydantic import BaseModel

from controller.spec.policy import PolicySpec
from controller.spec.service import VersionSpec

# A body that the handler parses itself, so that every error is one of canaryctl's own.
JsonBody = Annotated[Any, Body()]


class Health(BaseModel):
    """The controller process is alive. `leading`: it holds the lease."""

    status: str
    pid: int
    leading: bool
    version: str


class FeedbackResult(BaseModel):
    """Number of scores that were accepted."""

    taken: int


class DeployBody(BaseModel):
    """A deploy, for the documentation; commands.py validates it and names what is wrong."""

    version: VersionSpec | None = None  # null: of a twin run, which has none
    policy: PolicySpec | str | None = None
    twin: bool = False  # stable against itself; without a version
    retry: bool = False
    reason: str = ""
    allow_unproven: str | None = None  # reason to run stages that can prove nothing


class PlanBody(DeployBody):
    """A deploy to be planned, and the traffic to forecast it for (default: as measured)."""

    rate: float | None = None
    unit_requests: float | None = None
    users: int | None = None  # distinct returning users; null: new users keep coming
    quick: bool = False


class FeedbackItem(BaseModel):
    """One score of one answer. `id`: the answer's id or its x-canaryctl-request-id."""

    id: str
    metric: str = "quality"
    score: float


class RollbackBody(BaseModel):
    """The reason for a rollback, kept in the log."""

    reason: str = ""

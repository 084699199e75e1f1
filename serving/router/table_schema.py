"""What the table file of the standalone router may hold, as people write it."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from serving.credentials import ENV_NAME
from serving.files.client_rules import ClientFields
from serving.messages import FULL_BP
from serving.router.health import FAILURES
from serving.router.types import Limits
from serving.targets import RESERVED_NAMES, Endpoint

SHARED = (
    "keys",
    "keys_required",
    "trust",
    "affinity",
    "limits",
)  # keys of a file that hold for several services


class UpstreamSpec(BaseModel):
    """An OpenAI-compatible server."""

    model_config = ConfigDict(extra="forbid")
    url: str
    version: str = ""
    model: str | None = Field(None, min_length=1)
    api_key_env: str | None = Field(None, pattern=ENV_NAME)
    api_key_file: str | None = Field(None, min_length=1)

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        Endpoint.parsed(url)
        return url.rstrip("/")

    @model_validator(mode="after")
    def _has_one_key(self) -> Self:
        if self.api_key_env is not None and self.api_key_file is not None:
            raise ValueError("api_key_env and api_key_file are both given; keep one")
        return self


class CanarySpec(UpstreamSpec):
    """The canary: another server, or the same one with another model."""

    # Another text at each putting-in ends the tokens of the last.
    since: str | None = Field(None, min_length=1)
    # False: out of service for everybody, whatever weights, audiences, categories and forced arms say.
    enabled: bool = Field(default=True, strict=True)


class AffinitySpec(BaseModel):
    """How affinity tokens are signed and carried."""

    model_config = ConfigDict(extra="forbid")
    key_env: str | None = Field(None, pattern=ENV_NAME)
    key_file: str | None = Field(None, min_length=1)
    cookie: bool = Field(default=False, strict=True)

    @model_validator(mode="after")
    def _has_one_key(self) -> Self:
        if self.key_env is not None and self.key_file is not None:
            raise ValueError("key_env and key_file are both given; keep one")
        return self


Seconds = Annotated[float, Field(gt=0, le=86_400)]


class LimitsSpec(BaseModel):
    """Time-outs of the port, in seconds, and when a canary is set aside; defaults as in `Limits`."""

    model_config = ConfigDict(extra="forbid")
    connect_s: Seconds = 5.0
    canary_stream_s: Seconds = 60.0
    canary_whole_s: Seconds = 300.0
    stable_s: Seconds = 600.0
    stall_s: Seconds = 30.0
    idle_s: Seconds = 300.0
    drain_s: Seconds = 120.0
    # Between two requests of a client's connection. More than the balancer in front keeps its own: one that
    # sends a request while it is closed answers 502.
    client_idle_s: float = Field(default=75.0, ge=1, le=3600, strict=True)
    upstream_age_s: float = Field(default=60.0, ge=1, le=3600, strict=True)  # of a kept one
    failures: Annotated[int, Field(ge=0, le=1000, strict=True)] = FAILURES

    def limits(self) -> Limits:
        """These limits, for a router."""
        return Limits(**self.model_dump(exclude={"failures", "client_idle_s", "upstream_age_s"}))


class TableSpec(ClientFields):
    """One service."""

    service: str = Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")
    stable: UpstreamSpec
    canary: CanarySpec | None = None
    weight_bp: int = Field(0, ge=0, le=FULL_BP, strict=True)
    salt: str = ""
    affinity: AffinitySpec | None = None
    limits: LimitsSpec = LimitsSpec()

    @property
    def weights(self) -> tuple[str, ...]:
        """Every key that gives the canary requests, with its value."""
        named = [("weight_bp", self.weight_bp)]
        named += [(f"audience_bp.{name}", bp) for name, bp in self.audience_bp.items()]
        named += [(f"category_bp.{name}", bp) for name, bp in self.category_bp.items()]
        return tuple(f"{name} {bp}" for name, bp in named if bp)

    @field_validator("service")
    @classmethod
    def _is_no_route(cls, service: str) -> str:
        if service in RESERVED_NAMES:
            raise ValueError(f"is the beginning of a route, /{service}; choose another name")
        return service

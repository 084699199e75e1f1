"""What the table file of the standalone router may hold, as people write it."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from serving.credentials import ENV_NAME
from serving.files.client_rules import ClientFields
from serving.messages import FULL_BP
from serving.router.types import Limits
from serving.router.upstreams.health import FAILURES
from serving.targets import RESERVED_NAMES, Endpoint

VERSION_LIMIT = 128  # characters
# It becomes a header of every answer, which any proxy and any client must read as one value.
_VERSION = re.compile(r"[!-~](?:[ -~]*[!-~])?")
# Keys of a file that hold for several services.
SHARED = ("keys", "keys_required", "trust", "affinity", "limits")


def _one_of(**keys: str | None) -> None:
    """Raises ValueError when more than one is given."""
    given = [name for name, value in keys.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are both given; keep one")


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

    @field_validator("version")
    @classmethod
    def _is_header(cls, version: str) -> str:
        if version and (len(version) > VERSION_LIMIT or not _VERSION.fullmatch(version)):
            raise ValueError(
                f"becomes a header of answers; write up to {VERSION_LIMIT} ASCII characters without "
                "line ends, tabs and outer blanks"
            )
        return version

    @model_validator(mode="after")
    def _has_one_key(self) -> Self:
        _one_of(api_key_env=self.api_key_env, api_key_file=self.api_key_file)
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
        _one_of(key_env=self.key_env, key_file=self.key_file)
        return self


Seconds = Annotated[float, Field(gt=0, le=86_400, strict=True, allow_inf_nan=False)]
KeptSeconds = Annotated[float, Field(ge=1, le=3600, strict=True, allow_inf_nan=False)]
_DEFAULTS = Limits()


class JudgeSpec(BaseModel):
    """Who judges a share of the answers of both upstreams, while the canary is in."""

    model_config = ConfigDict(extra="forbid")
    url: str
    model: str = Field(min_length=1)
    api_key_env: str | None = Field(None, pattern=ENV_NAME)
    api_key_file: str | None = Field(None, min_length=1)
    share_bp: int = Field(2000, ge=1, le=FULL_BP, strict=True)  # of the units
    per_minute: int = Field(60, ge=1, le=6000, strict=True)
    # True: the address may be outside of this network; what is sent there is redacted.
    off_cluster: bool = Field(default=False, strict=True)

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        Endpoint.parsed(url)
        return url.rstrip("/")

    @model_validator(mode="after")
    def _is_allowed(self) -> Self:
        _one_of(api_key_env=self.api_key_env, api_key_file=self.api_key_file)
        if not (self.off_cluster or Endpoint.parsed(self.url).is_inside):
            raise ValueError(
                "its address is not in this network, and it is sent what users write; "
                "add off_cluster: true to allow that (redacted), or name a judge inside"
            )
        return self


class LimitsSpec(BaseModel):
    """Limits of the port, in seconds (see `Limits`), and when a canary is set aside."""

    model_config = ConfigDict(extra="forbid")
    connect_s: Seconds = _DEFAULTS.connect_s
    canary_stream_s: Seconds = _DEFAULTS.canary_stream_s
    canary_whole_s: Seconds = _DEFAULTS.canary_whole_s
    stable_s: Seconds = _DEFAULTS.stable_s
    stall_s: Seconds = _DEFAULTS.stall_s
    idle_s: Seconds = _DEFAULTS.idle_s
    drain_s: Seconds = _DEFAULTS.drain_s
    # More than the balancer in front keeps its own: one that sends a request while it is closed answers 502.
    client_idle_s: KeptSeconds = _DEFAULTS.client_idle_s
    upstream_age_s: KeptSeconds = _DEFAULTS.connection_age_s
    failures: Annotated[int, Field(ge=0, le=1000, strict=True)] = FAILURES

    def limits(self) -> Limits:
        """These limits, for a router."""
        values = self.model_dump(exclude={"failures"})
        return Limits(connection_age_s=values.pop("upstream_age_s"), **values)


class TableSpec(ClientFields):
    """One service."""

    service: str = Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=128)
    stable: UpstreamSpec
    canary: CanarySpec | None = None
    weight_bp: int = Field(0, ge=0, le=FULL_BP, strict=True)
    salt: str = ""
    affinity: AffinitySpec | None = None
    judge: JudgeSpec | None = None
    limits: LimitsSpec = LimitsSpec()

    @property
    def weights(self) -> tuple[str, ...]:
        """Every key that gives the canary requests, with its value."""
        named = [("weight_bp", self.weight_bp)]
        named += [(f"audience_bp.{name}", bp) for name, bp in self.audience_bp.items()]
        named += [(f"category_bp.{name}", bp) for name, bp in self.category_bp.items()]
        return tuple(f"{name} {bp}" for name, bp in named if bp)

    @property
    def is_canary_in(self) -> bool:
        """Whether there is a canary that is to get requests."""
        return self.canary is not None and self.canary.enabled and bool(self.weights)

    @field_validator("service")
    @classmethod
    def _is_no_route(cls, service: str) -> str:
        if service in RESERVED_NAMES:
            raise ValueError(f"is the beginning of a route, /{service}; choose another name")
        return service

"""What a rollout wants done: complete values ("split = 100 bp"), idempotent, each returns within 50 ms."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class ProbeKind(StrEnum):
    PREFLIGHT = "preflight"  # the checkpoint is readable, stable is ready, the second engine fits
    WARM = "warm"  # warmup_tokens, then a short load at stable's rate
    SMOKE = "smoke"  # a few answers, asked of the canary itself


@dataclass(frozen=True, slots=True)
class EnsureVersion:
    """Have so many replicas of the version, under its pinned name; revives it when it was draining."""

    version: str
    replicas: int
    kind: Literal["ensure"] = "ensure"


@dataclass(frozen=True, slots=True)
class SetSplit:
    """Publish this table. canary None: all traffic, affinity and force included, is stable's."""

    stable: str
    canary: str | None
    weight_bp: int
    stage: int
    kind: Literal["split"] = "split"


@dataclass(frozen=True, slots=True)
class DrainVersion:
    """Take it out of rotation and let its requests end."""

    version: str
    kind: Literal["drain"] = "drain"


@dataclass(frozen=True, slots=True)
class CancelVersion:
    """End its in-flight requests; the router finishes them on the other arm."""

    version: str
    kind: Literal["cancel"] = "cancel"


@dataclass(frozen=True, slots=True)
class StopVersion:
    """Unload it and free its memory."""

    version: str
    kind: Literal["stop"] = "stop"


@dataclass(frozen=True, slots=True)
class RunProbe:
    """Start the probe, or look how it stands."""

    probe: ProbeKind
    version: str
    warmup_tokens: int = 0
    kind: Literal["probe"] = "probe"


@dataclass(frozen=True, slots=True)
class Notify:
    """Deliver the notice; the same key is delivered once."""

    key: str
    severity: Literal["info", "page"]
    text: str
    kind: Literal["notify"] = "notify"


Action = EnsureVersion | SetSplit | DrainVersion | CancelVersion | StopVersion | RunProbe | Notify

"""Actions of a rollout: complete values ("split = 100 bp"), idempotent, each returns at once."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from controller.rollout.judge_plan import JudgeAsked, JudgePlan


class ProbeKind(StrEnum):
    PREFLIGHT = "preflight"  # the checkpoint is readable, stable is ready, the second engine fits
    WARM = "warm"  # warmup_tokens, then a short load at stable's request rate
    SMOKE = "smoke"  # a few prompts, sent to the canary itself


@dataclass(frozen=True, slots=True)
class EnsureVersion:
    """Run this many replicas of the version, under its pinned name. Ends a drain."""

    version: str
    replicas: int
    kind: Literal["ensure"] = "ensure"


@dataclass(frozen=True, slots=True)
class SetSplit:
    """Publish this route table. canary None: stable gets all traffic."""

    stable: str
    canary: str | None
    weight_bp: int
    stage: int
    mirror_bp: int = 0  # share of stable's requests of which the canary gets a copy
    kind: Literal["split"] = "split"
    audience_bp: tuple[tuple[str, int], ...] = ()  # weights of audiences, by name
    judge: JudgeAsked | None = None  # None: says nothing of a judge, and none is asked


@dataclass(frozen=True, slots=True)
class DrainVersion:
    """Take the version out of rotation; its in-flight requests go on."""

    version: str
    kind: Literal["drain"] = "drain"


@dataclass(frozen=True, slots=True)
class CancelVersion:
    """End the version's in-flight requests; the router finishes them on the other arm."""

    version: str
    kind: Literal["cancel"] = "cancel"


@dataclass(frozen=True, slots=True)
class StopVersion:
    """Unload the version and release its memory."""

    version: str
    kind: Literal["stop"] = "stop"


@dataclass(frozen=True, slots=True)
class RunProbe:
    """Start the probe, or read its status if it is started."""

    probe: ProbeKind
    version: str
    warmup_tokens: int = 0
    kind: Literal["probe"] = "probe"


@dataclass(frozen=True, slots=True)
class ExamineJudge:
    """Start the examination of the rollout's judge, or read its result."""

    judge: JudgePlan
    attempt: int  # 1, 2, ... within the rollout
    kind: Literal["judge"] = "judge"


@dataclass(frozen=True, slots=True)
class Notify:
    """Deliver the notice; each key is delivered once."""

    key: str
    severity: Literal["info", "page"]
    text: str
    kind: Literal["notify"] = "notify"


Action = (
    EnsureVersion | SetSplit | DrainVersion | CancelVersion | StopVersion | RunProbe | ExamineJudge | Notify
)

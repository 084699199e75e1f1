"""The judge of a rollout as values: what is pinned of it, and what its examination showed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from controller.quantities import duration

AGAIN_S = 600.0  # after an examination without a verdict
# For which the first stage waits for one that the examiner says nothing of; its own limit is half of that.
UNHEARD_S = 600.0
LOAD_LIMIT_S = 900.0  # of an engine of ours


@dataclass(frozen=True, slots=True)
class JudgeEngine:
    """The judge as a version that canaryctl runs itself while a rollout needs it."""

    version: str  # its id, of its fingerprint
    spec: str  # the version's, as JSON
    need_bytes: int  # memory of its engine on each device, as planned


@dataclass(frozen=True, slots=True)
class JudgePlan:
    """The judge as the service's spec names it when the rollout starts."""

    url: str  # '' for an engine of ours, whose address changes with every load
    model: str  # its name there; of an engine of ours with the digest of its fingerprint
    share_bp: int  # of both arms' units
    metric: str
    per_minute: int
    api_key_env: str | None = None
    api_key_file: str | None = None
    engine: JudgeEngine | None = None  # None: an endpoint


@dataclass(frozen=True, slots=True)
class JudgeAsked:
    """Part of a split: this judge is asked. revision '': none is, any more."""

    plan: JudgePlan
    revision: str


@dataclass(frozen=True, slots=True)
class JudgeFound:
    """Result of one examination. silent: no verdict came, or too few to tell.

    Shares from 0 to 1; None: nothing of that kind.
    """

    outcome: Literal["admitted", "refused", "silent"]
    attempt: int
    text: str  # with figures, or why there is no verdict
    revision: str = ""
    found: float | None = None  # of the bad plants
    false_alarms: float | None = None  # of the good ones
    same: float | None = None  # in both orders
    first: float | None = None  # wins of the first position
    missing: float | None = None
    at_s: float = 0.0  # of the tick that read it


@dataclass(frozen=True, slots=True)
class JudgeState:
    """What is known of the rollout's judge. Stored with the rollout."""

    attempts: int = 0  # examinations that have ended
    result: JudgeFound | None = None  # of the last one; None: none has ended
    drift: str | None = None  # what changed since; it stays

    @property
    def is_admitted(self) -> bool:
        """Whether it may be asked."""
        return self.result is not None and self.result.outcome == "admitted" and self.drift is None

    @property
    def void(self) -> str | None:
        """Why its metric is not judged, in words; None: it is."""
        if self.drift is not None:
            return f"NOT JUDGED: {self.drift}; its verdicts are void"
        match self.result:
            case None:
                return "NOT JUDGED: the judge is being examined"
            case JudgeFound(outcome="refused", text=text):
                return f"NOT JUDGED: the judge was refused: {text}"
            case JudgeFound(outcome="silent", text=text):
                again = duration(round(AGAIN_S))
                return f"NOT JUDGED: the judge is silent: {text}; it is examined again every {again}"
            case _:
                return None

"""Plan of a rollout: versions, stages and time limits. Pinned when the rollout starts.

Weights are integer basis points (`*_bp`, 10,000 = 100 %), times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from controller.quantities import FULL_BP, NEVER_CANARY
from controller.rollout.judge_plan import JudgePlan
from controller.spec.label import title

ROLLOUT_PREFIX, UNDO_PREFIX = "r-", "u-"


def is_undo_id(rollout: str) -> bool:
    """True: the rollout with this id is an undo. The route table holds ids alone, and no plans."""
    return rollout.startswith(UNDO_PREFIX)


def ending_command(service: str, rollout: str, *, before: str | None) -> str:
    """What ends this running rollout. before: the version that it replaces; None: not known.

    `rollback` leaves an undo alone, for a second one must not take back the first.
    """
    if is_undo_id(rollout):
        return f"canaryctl undo {service} --to {before or 'VERSION'}"
    return f"canaryctl rollback {service}"


@dataclass(frozen=True, slots=True)
class VersionRef:
    """One arm of a rollout. external: an endpoint that we do not load, stop or fence."""

    id: str
    replicas: int = 1
    external: bool = False
    label: str = ""  # what people call it (`spec.label`), as of the rollout's start; empty: not known

    @property
    def title(self) -> str:
        """Id and label, for people."""
        return title(self.id, self.label)


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the canary's weight, below 100 %."""

    weight_bp: int  # share of the canary, 1..9999
    duration_s: float  # minimum, counted from the acknowledgement of the weight
    min_canary: int  # minimum of canary units settled in this stage
    deadline_s: float  # after that without PASS: held as not proven, and a page
    replicas: int  # canary replicas that must be ready before this weight is set
    on_missing: Literal["hold", "rollback"] = "hold"  # when metrics are missing at the deadline
    promote_if_point_ok: bool = False  # unproven at the deadline: promote if the estimates are within margins
    audience_bp: tuple[tuple[str, int], ...] = ()  # weights of audiences; none ever falls


@dataclass(frozen=True, slots=True)
class MirrorPlan:
    """Copies of stable's requests to the canary before the first stage; nobody is shown their answers."""

    share_bp: int  # of stable's requests, 1..10000
    min_pairs: int  # answers of both arms to one request; with a judge: that it judged
    # Counted from the acknowledgement of the share; then the first stage begins, unless a judge alone lacks.
    deadline_s: float


@dataclass(frozen=True, slots=True)
class PreflightPlan:
    """What the canary is asked beside stable in its smoke test, before it gets a user."""

    smoke: bool = True  # the shipped cases
    golden: str | None = None  # absolute path of a golden set; None: none
    golden_digest: str | None = None  # SHA-256 of its bytes when the rollout was planned; None: no set
    require: tuple[str, ...] = ()  # kinds of shipped cases that it must pass, whatever stable does


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything decided before the first request; a changed spec is another rollout."""

    risk: str
    reasons: tuple[str, ...]
    stages: tuple[Stage, ...]
    holdback_bp: int  # share kept on stable while the promoted canary bakes
    bake_s: float
    preflight_s: float = 60.0
    load_s: float = 900.0
    warm_s: float = 300.0
    smoke_s: float = 120.0
    promote_s: float = 90.0  # from ready capacity to the last router's acknowledgement
    drain_s: float = 30.0
    count_lag_s: float = 1.0  # maximum age of an in-flight count (engines report twice a second)
    cancel_s: float = 10.0  # for cancelled requests to be taken over
    unload_s: float = 120.0  # after that, unreleased memory needs a person
    unreadable_s: float = 60.0  # of an unreadable data plane before a rollback
    unready_s: float = 30.0  # without a ready canary replica before a rollback
    steady_s: float = 10.0  # that the number of ready canary replicas must last before a weight rises
    hold_limit_s: float = 259_200.0  # of being held as not proven before a rollback
    warmup_tokens: int = 256
    replicas: int | None = None  # of the canary at full traffic; None: an endpoint that we do not scale
    stable_replicas: int | None = None
    twin: bool = False  # stable against itself: goes through all stages, and is never promoted
    mirror: MirrorPlan | None = None  # None: no copies
    preflight: PreflightPlan | None = None  # None: the smoke test asks for any answer at all
    undo: bool = False  # a version that served before returns: no stages, no proof; its smoke test decides
    judge: JudgePlan | None = None  # None: no judge is asked

    @property
    def promoted_bp(self) -> int:
        """Weight of the promoted canary until it is stable."""
        return FULL_BP - self.holdback_bp

    @property
    def is_ab_test(self) -> bool:
        """True: the plan of an A/B test, held until it is ended manually, and never promoted by itself."""
        return any(stage.min_canary >= NEVER_CANARY for stage in self.stages)

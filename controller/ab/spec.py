"""A/B test specification: metric, mode, split and duration, and the rollout that runs it.

A test is a rollout of B that is never promoted by itself: one stage at the requested share, with nothing to
prove, watched by a policy's gates and the guards.

Invariant: no clock, no network, no database here.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from controller.ab.outcomes import MAX_OUTCOMES, REQUEST_METRICS
from controller.planning.baseline import JUDGED
from controller.quantities import FULL_BP, NEVER_CANARY
from controller.spec.fields import Duration, FieldError, Strict, Weight
from controller.spec.policy import PolicySpec
from controller.spec.service import dump, parse_as
from evaluation.ab.comparison import AbQuestion, Scale
from evaluation.metrics import CATALOGUE, VALUES

END_GRACE_S = 3600.0

#: Metrics that can be compared live: those of a request's record, and those scored by feedback.
LIVE_METRICS = REQUEST_METRICS | JUDGED


class AbSpec(Strict):
    """Body of `canaryctl ab create`. `version` is B, in the format of a deploy."""

    version: dict[str, Any]
    metric: str = "quality"
    mode: Literal["sequential", "fixed"] = "sequential"
    split: Weight = Field(default=FULL_BP // 2, validate_default=False, description="share of B")
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    sample_size: int | None = Field(default=None, ge=30, le=MAX_OUTCOMES // 2, description="units a side")
    score_wait: Duration = Field(default=600.0, description="how long to wait for a score", gt=0)
    duration: Duration = Field(default=604_800.0, description="B is removed after this", gt=0)
    retry: bool = Field(default=False, description="allow a version that was rolled back before")
    allow_unjudged: str | None = Field(
        default=None, description="reason to run without the gates whose metric never came"
    )
    policy: PolicySpec | None = Field(
        default=None,
        description="its gates watch B, its stages and holdback are ignored; default: the service's own",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.metric not in LIVE_METRICS:
            known = "is not measured live" if self.metric in CATALOGUE else "is unknown"
            raise FieldError(
                "metric", f"{self.metric!r} {known}; use one of {', '.join(sorted(LIVE_METRICS))}"
            )
        if not 0 < self.split < FULL_BP:
            raise ValueError(f"split {self.split / 100:g} % leaves one side empty; use 50%")
        if (self.mode == "fixed") != (self.sample_size is not None):
            raise ValueError("sample_size is required by mode fixed, and only by it; see canaryctl ab size")
        if self.policy is not None and self.policy.twin:
            raise FieldError("policy", "has twin, which runs A against itself; leave it out")
        return self

    @property
    def question(self) -> AbQuestion:
        """The comparison to make of the outcomes."""
        return question_of(self.metric, self.alpha)

    def deploy_body(self) -> dict[str, object]:
        """Body of the deploy that gives B its share: one stage without margins, for the test's duration."""
        stage: dict[str, object] = {"weight_bp": self.split, "min_canary": NEVER_CANARY, "margins": {}}
        # The test itself ends when its duration is over; the stage's deadline is for one that cannot.
        stage |= {"duration": self.duration, "deadline": self.duration + END_GRACE_S}
        test = {
            "name": "ab-test",
            "ladder": "risk",
            "holdback": "0%",
            "stages": [stage],
            "promote_if_point_ok": False,
        }
        policy = dump(self.policy or PolicySpec()) | test
        reason = f"A/B test of {self.metric}"
        waiver = {} if self.allow_unjudged is None else {"allow_unjudged": self.allow_unjudged}
        body = {"version": self.version, "policy": policy, "reason": reason, "retry": self.retry}
        return body | waiver


def parse_ab(body: object) -> AbSpec:
    """The spec in a request body. Raises BadSpec, with one line for each broken rule."""
    return parse_as(AbSpec, body, "ab")


def question_of(metric: str, alpha: float) -> AbQuestion:
    """The comparison for a metric of the catalogue. Raises ValueError for an alpha outside (0, 1).

    Feedback of people or judges is a score, 0.5 included; only an observed event is 0 or 1.
    """
    known = CATALOGUE[metric]
    if metric in VALUES:
        scale = Scale.VALUE
    else:
        scale = Scale.SCORE if known.arrives_later else Scale.RATE
    return AbQuestion(scale, higher_is_better=not known.lower_is_better, alpha=alpha)

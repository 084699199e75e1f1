"""A/B tests of a running service: what is asked, what the outcomes say, what is shown.

A test is a rollout of B that is never promoted by itself: one stage at the asked share, nothing that could be
proven, the gates of a policy and the guards still on watch. Which requests are its outcomes: `ab_book.py`.

Invariant: no clock, no network, no database here. A broken experiment (`evaluation/ab_validity.py`) names no
winner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from controller.ab.outcomes import MAX_OUTCOMES, REQUEST_METRICS, Outcome
from controller.quantities import FULL_BP
from controller.rollout.plan import NEVER_CANARY
from controller.rollout.state import Phase, RolloutState
from controller.spec.service import Duration, PolicySpec, Strict, Weight, dump, parse_as
from evaluation.ab.comparison import AbQuestion, AbResult, AbVerdict, Scale, SequentialTest, fixed_horizon
from evaluation.ab.validity import AbValidity
from evaluation.metrics import CATALOGUE, VALUES

#: What can be compared live: what a record holds, and what comes by feedback.
LIVE_METRICS = REQUEST_METRICS | {metric.name for metric in CATALOGUE.values() if metric.arrives_later}


class AbSpec(Strict):
    """What `canaryctl ab create` asks. `version` is B, as a deploy takes it."""

    version: dict[str, Any]
    metric: str = "quality"
    mode: Literal["sequential", "fixed"] = "sequential"
    split: Weight = Field(default=FULL_BP // 2, validate_default=False, description="share of B")
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    sample_size: int | None = Field(default=None, ge=30, le=MAX_OUTCOMES // 2, description="units a side")
    score_wait: Duration = Field(default=600.0, description="how long a score is waited for", gt=0)
    duration: Duration = Field(default=604_800.0, description="B is taken away after this", gt=0)
    retry: bool = Field(default=False, description="also a version that was rolled back before")
    policy: PolicySpec | None = Field(
        default=None,
        description="whose gates watch B, its stages and holdback do not count; default: the service's own",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.metric not in LIVE_METRICS:
            known = "is not measured live" if self.metric in CATALOGUE else "is unknown"
            raise ValueError(f"metric {self.metric!r} {known}; use one of {', '.join(sorted(LIVE_METRICS))}")
        if not 0 < self.split < FULL_BP:
            raise ValueError(f"split {self.split / 100:g} % leaves one side empty; use 50%")
        if (self.mode == "fixed") != (self.sample_size is not None):
            raise ValueError(
                "sample_size belongs to the mode fixed, and that needs it; see canaryctl ab size"
            )
        if self.policy is not None and self.policy.twin:
            raise ValueError("policy has twin, which runs A against itself; leave it out")
        return self

    @property
    def question(self) -> AbQuestion:
        """What is asked of the outcomes."""
        return question_of(self.metric, self.alpha)

    def deploy_body(self) -> dict[str, object]:
        """The deploy that gives B its share: one stage without a proof, held for the test's duration."""
        stage = {
            "weight_bp": self.split,
            "duration": self.duration,
            "deadline": self.duration,
            "min_canary": NEVER_CANARY,
            "margins": {},
        }
        test = {"name": "ab-test", "holdback": "0%", "stages": [stage], "promote_if_point_ok": False}
        policy = dump(self.policy or PolicySpec()) | test
        reason = f"A/B test of {self.metric}"
        return {"version": self.version, "policy": policy, "reason": reason, "retry": self.retry}


def parse_ab(body: object) -> AbSpec:
    """The test that a body asks for. Raises BadSpec, one line for each rule broken."""
    return parse_as(AbSpec, body, "ab")


def question_of(metric: str, alpha: float) -> AbQuestion:
    """The question for a metric of the catalogue. Raises ValueError for an alpha outside (0, 1).

    Whatever people or judges hand in is a score, 0.5 included; only what is observed is 0 or 1.
    """
    known = CATALOGUE[metric]
    if metric in VALUES:
        scale = Scale.VALUE
    else:
        scale = Scale.SCORE if known.arrives_later else Scale.RATE
    return AbQuestion(scale, higher_is_better=not known.lower_is_better, alpha=alpha)


class AbView(BaseModel):
    """An A/B test as it is shown. Sides: A is what serves, B is the version under test."""

    id: str
    service: str
    rollout: str
    phase: str  # loading, running, ending or ended
    why: str | None  # why B is not (or no longer) served; None: it is
    version_a: str | None  # None: the rollout is not known any more
    version_b: str | None
    metric: str
    higher_is_better: bool
    mode: str
    split_percent: float
    alpha: float
    verdict: str
    note: str | None  # why the test is invalid, or what it waits for; None: nothing to add
    n_a: int
    n_b: int
    mean_a: float | None
    mean_b: float | None
    difference: float | None
    interval: tuple[float, float] | None
    interval_of: str
    win_rate: float | None
    cohens_d: float | None
    p_value: float | None  # None: a fixed test is not judged yet
    missing_a: int
    missing_b: int
    sample_size: int | None
    created_at_s: float
    ended_at_s: float | None


class AbEvaluator:
    """The outcomes of one test and what they say. A fixed test is judged once, when both sides are full."""

    def __init__(self, spec: AbSpec, outcomes: Sequence[Outcome] = ()) -> None:
        self._spec = spec
        self._sequential = SequentialTest(spec.question)
        self._sides: tuple[list[float], list[float]] = ([], [])
        self._validity = AbValidity()
        self.missing = [0, 0]
        self.add(outcomes)

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Take units in order; the same answer however they are cut."""
        values = [self._value(outcome) for outcome in outcomes]
        has_outcome = [value is not None for value in values]
        self._validity.add([one.is_b for one in outcomes], [one.w for one in outcomes], has_outcome)
        for outcome, value in zip(outcomes, values, strict=True):
            if value is None:
                self.missing[outcome.is_b] += 1
            elif self._spec.mode == "sequential":
                self._sequential.add(value, is_b=outcome.is_b, w=outcome.w)
            elif self.is_open:
                self._sides[outcome.is_b].append(value)

    def _value(self, outcome: Outcome) -> float | None:
        """The outcome on its scale; what is none, as a negative latency, counts as missing."""
        if outcome.y is None:
            return None
        try:
            self._spec.question.check(outcome.y)
        except ValueError:
            return None
        return outcome.y

    @property
    def is_open(self) -> bool:
        """True while a fixed test lacks units; a sequential one never does."""
        if self._spec.sample_size is None:
            return False
        return min(len(side) for side in self._sides) < self._spec.sample_size

    def note(self) -> str | None:
        """Why the test is invalid, or what it waits for."""
        if reason := self._validity.reason() or self._validity.missing_outcomes():
            return reason
        if self.is_open:
            counts = " and ".join(str(len(side)) for side in self._sides)
            return f"judged once, at {self._spec.sample_size} units a side; it has {counts}"
        return None

    def result(self) -> AbResult:
        """What is shown now."""
        if self._spec.mode == "sequential":
            result = self._sequential.result()
        else:
            result = fixed_horizon(*self._sides, self._spec.question)
        if self.is_open:
            # Before both sides are full a p-value would be a look, and looks break a fixed test's alpha.
            hidden = {"verdict": AbVerdict.TOO_FEW, "p_value": 1.0, "interval": None, "win_rate": None}
            result = AbResult(**(_fields(result) | hidden))
        if self._validity.reason() is not None:
            result = AbResult(**(_fields(result) | {"verdict": AbVerdict.INVALID}))
        return result


def _fields(result: AbResult) -> dict[str, Any]:
    return {name: getattr(result, name) for name in AbResult.__slots__}


def ab_view(
    row: Mapping[str, Any], spec: AbSpec, evaluator: AbEvaluator, rollout: RolloutState | None
) -> AbView:
    """The test as it is shown. row: id, service, rollout, created_at_s, ended_at_s."""
    shown = _fields(evaluator.result()) | {"alpha": spec.alpha}
    shown["verdict"] = str(shown["verdict"].value)
    shown.pop("method")
    if evaluator.is_open:
        shown["p_value"] = None
    phase, why = _standing(rollout, has_ended=row["ended_at_s"] is not None)
    return AbView(
        **row,
        **shown,
        phase=phase,
        why=why,
        version_a=rollout.stable.id if rollout is not None else None,
        version_b=rollout.canary.id if rollout is not None else None,
        metric=spec.metric,
        higher_is_better=spec.question.higher_is_better,
        mode=spec.mode,
        split_percent=spec.split / 100,
        note=evaluator.note(),
        sample_size=spec.sample_size,
        missing_a=evaluator.missing[0],
        missing_b=evaluator.missing[1],
    )


def _standing(rollout: RolloutState | None, *, has_ended: bool) -> tuple[str, str | None]:
    """The test's phase, and why B is not served; None where it is."""
    if rollout is None:
        return ("ended" if has_ended else "running"), None
    why = rollout.cause.text if rollout.cause is not None else rollout.reason
    if rollout.is_final:
        return "ended", why
    if rollout.departure is not None or has_ended:
        return "ending", why
    if rollout.phase is Phase.STAGE and rollout.acked_at_s is not None:
        return "running", None
    return "loading", f"{rollout.phase.value}: {rollout.reason}"

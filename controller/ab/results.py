"""A/B test results: the evaluator of one test's outcomes, and the view shown by the API and the CLI.

Invariant: no clock, no network, no database here. An invalid experiment (`evaluation/ab/validity.py`) never
names a winner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from pydantic import BaseModel

from controller.ab.spec import AbSpec
from controller.rollout.state import Phase, RolloutState
from controller.store.rows import AbOutcome, AbRow
from evaluation.ab.comparison import AbResult, AbVerdict
from evaluation.ab.fixed import fixed_by_split
from evaluation.ab.sequential import SequentialTest
from evaluation.ab.units import MAX_CROSSINGS, MAX_SHARE
from evaluation.ab.validity import AbValidity

_ROW_FIELDS = ("id", "service", "rollout", "created_at_s", "ended_at_s")


class AbView(BaseModel):
    """An A/B test as shown. Side A is the stable version, B the version under test."""

    id: str
    service: str
    rollout: str
    phase: str  # loading, running, ending or ended
    why: str | None  # why B is not (or no longer) served; None: it is served
    version_a: str | None  # None: the rollout no longer exists
    version_b: str | None
    metric: str
    higher_is_better: bool
    mode: str
    split_percent: float
    alpha: float
    verdict: str
    note: str | None  # why the test is invalid, or what it is waiting for; None: neither
    n_a: int
    n_b: int
    mean_a: float | None
    mean_b: float | None
    difference: float | None
    interval: tuple[float, float] | None
    interval_of: str
    win_rate: float | None
    cohens_d: float | None
    p_value: float | None  # None: a fixed test has not been evaluated yet
    missing_a: int
    missing_b: int
    left_out: int = 0  # later answers of users who count by their first, since the controller started
    sample_size: int | None
    created_at_s: float
    ended_at_s: float | None


class AbEvaluator:
    """Statistics of one test's outcomes. A fixed test is evaluated once, when both sides are full."""

    def __init__(self, spec: AbSpec, outcomes: Sequence[AbOutcome] = ()) -> None:
        self.spec = spec
        self._sequential = SequentialTest(spec.question)
        self._sides: tuple[list[float], list[float]] = ([], [])  # of a fixed test: outcomes of A and of B
        self._weights: tuple[list[float], list[float]] = ([], [])  # and the split at their draws
        self._crossed = 0  # units on both sides, since the controller started
        self._units = 0
        self._validity = AbValidity()
        self.missing = [0, 0]
        self.add(outcomes)

    def add(self, outcomes: Sequence[AbOutcome]) -> None:
        """Add units in order; how they are batched does not change the result."""
        values = [self._value(outcome) for outcome in outcomes]
        has_outcome = [value is not None for value in values]
        self._validity.add([one.is_b for one in outcomes], [one.w for one in outcomes], has_outcome)
        self._units += len(outcomes)
        found = [
            (value, one.is_b, one.w) for one, value in zip(outcomes, values, strict=True) if value is not None
        ]
        for outcome, value in zip(outcomes, values, strict=True):
            self.missing[outcome.is_b] += value is None
        if self.spec.mode == "sequential":
            y, is_b, w = ([row[i] for row in found] for i in range(3))
            self._sequential.add_all([float(value) for value in y], is_b, w)
            return
        for value, side, weight in found:
            if self.is_open:
                self._sides[side].append(value)
                self._weights[side].append(weight)

    def note_crossed(self, units: int) -> None:
        """Take note of the number of units that were seen on both sides."""
        self._crossed = units

    def _invalid(self) -> str | None:
        """Why the experiment itself is broken, in one line; None: it is valid so far."""
        if self._crossed > max(MAX_CROSSINGS, MAX_SHARE * self._units):
            return (
                f"{self._crossed} of {self._units} units are on both sides; the split is not by these units"
            )
        return self._validity.reason()

    def _value(self, outcome: AbOutcome) -> float | None:
        """The outcome; None: it is missing or off its scale, such as a negative latency."""
        if outcome.y is None:
            return None
        try:
            self.spec.question.check(outcome.y)
        except ValueError:
            return None
        return outcome.y

    @property
    def is_open(self) -> bool:
        """True while a fixed test lacks units; a sequential one never does."""
        if self.spec.sample_size is None:
            return False
        return min(len(side) for side in self._sides) < self.spec.sample_size

    def note(self) -> str | None:
        """Why the test is invalid, or what it is waiting for; None: neither."""
        if reason := self._invalid() or self._validity.missing_outcomes():
            return reason
        if self._crossed:
            return f"{self._crossed} of {self._units} units are on both sides; each counts on its first"
        if self.is_open:
            counts = " and ".join(str(len(side)) for side in self._sides)
            return f"evaluated once, at {self.spec.sample_size} units a side; it has {counts}"
        return None

    def result(self) -> AbResult:
        """The current result."""
        if self.spec.mode == "sequential":
            result = self._sequential.result()
        else:
            y, w = [*self._sides[0], *self._sides[1]], [*self._weights[0], *self._weights[1]]
            is_b = [False] * len(self._sides[0]) + [True] * len(self._sides[1])
            result = fixed_by_split(y, is_b, w, self.spec.question)
        if self.is_open:
            # A p-value before both sides are full is an interim look, which breaks a fixed test's alpha.
            result = replace(result, verdict=AbVerdict.TOO_FEW, p_value=1.0, interval=None, win_rate=None)
        if self._invalid() is not None:
            result = replace(result, verdict=AbVerdict.INVALID)
        return result


def ab_view(row: AbRow, evaluator: AbEvaluator, rollout: RolloutState | None, *, left_out: int = 0) -> AbView:
    """View of a stored test. rollout None: it no longer exists. left_out: later answers of counted users."""
    spec = evaluator.spec
    shown = asdict(evaluator.result()) | {"alpha": spec.alpha}
    shown["verdict"] = str(shown["verdict"].value)
    shown.pop("method")
    if evaluator.is_open:
        shown["p_value"] = None
    phase, why = _phase(rollout, has_ended=row.ended_at_s is not None)
    return AbView(
        **{name: getattr(row, name) for name in _ROW_FIELDS},
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
        left_out=left_out,
    )


def _phase(rollout: RolloutState | None, *, has_ended: bool) -> tuple[str, str | None]:
    """The test's phase, and why B is not served; None: it is served, or its rollout no longer exists."""
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

"""A/B tests of a running service: what is asked, how outcomes are gathered, what is shown.

A test is a rollout of B that is never promoted by itself: one stage at the asked share, nothing that could be
proven, the default gates and guards still on watch. Its outcomes are read from the service's own log, one a
unit, in the order of assignment and only after every earlier request has been told, so that a version which
answers faster is not heard sooner.

Invariant: no clock, no network, no database here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from controller.errors import BadSpec
from controller.spec import Duration, Weight
from controller.state import FULL_BP
from evaluation.ab_test import AbQuestion, AbResult, AbVerdict, Scale, SequentialTest, fixed_horizon
from evaluation.metrics import CATALOGUE, VALUES
from evaluation.units import HELD, LEFT_OUT, kind_of, unit_hash

NEVER_CANARY = 1_000_000_000  # settled canary requests that no stage of an A/B test reaches
SCORE_WAIT_S = 600.0
SETTLE_S = 60.0
MAX_OUTCOMES = 200_000
MAX_PENDING = 200_000
REQUEST_METRICS = frozenset({"error", "latency_ms", "ttft_ms", "itl_ms", "tokens", "truncated", "empty"})


class AbSpec(BaseModel):
    """What `canaryctl ab create` asks. `version` is B, as a deploy takes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: dict[str, Any]
    metric: str = "quality"
    mode: Literal["sequential", "fixed"] = "sequential"
    split: Weight = Field(default=FULL_BP // 2, validate_default=False, description="share of B")
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    sample_size: int | None = Field(default=None, ge=30, le=MAX_OUTCOMES // 2, description="units a side")
    duration: Duration = 604_800.0

    @model_validator(mode="after")
    def _check(self) -> AbSpec:
        if self.metric not in CATALOGUE:
            raise ValueError(f"metric {self.metric!r} is unknown; use one of {', '.join(sorted(CATALOGUE))}")
        if not 0 < self.split < FULL_BP:
            raise ValueError(f"split {self.split / 100:g} % leaves one side empty; use 50%")
        if (self.mode == "fixed") != (self.sample_size is not None):
            raise ValueError(
                "sample_size belongs to the mode fixed, and that needs it; see canaryctl ab size"
            )
        return self

    @property
    def question(self) -> AbQuestion:
        """What is asked of the outcomes."""
        metric = CATALOGUE[self.metric]
        scale = Scale.VALUE if self.metric in VALUES else Scale.RATE
        if metric.unit.startswith("score"):
            scale = Scale.SCORE
        return AbQuestion(scale, higher_is_better=not metric.lower_is_better, alpha=self.alpha)

    def deploy_body(self) -> dict[str, object]:
        """The deploy that gives B its share: one stage without a proof, held for the test's duration."""
        stage = {
            "weight_bp": self.split,
            "duration": self.duration,
            "deadline": self.duration,
            "min_canary": NEVER_CANARY,
            "margins": {},
        }
        policy = {"name": "ab-test", "holdback": "0%", "stages": [stage]}
        return {"version": self.version, "policy": policy, "reason": f"A/B test of {self.metric}"}


def parse_ab(body: object) -> AbSpec:
    """The test that a body asks for. Raises BadSpec, one line for each rule broken."""
    try:
        return AbSpec.model_validate(body)
    except ValidationError as exc:
        lines = []
        for error in exc.errors():
            where = ".".join(str(part) for part in error["loc"])
            text = str(error["msg"]).removeprefix("Value error, ")
            lines.append(f"ab.{where}: {text}" if where else f"ab: {text}")
        raise BadSpec(lines) from exc


class AbView(BaseModel):
    """An A/B test as it is shown."""

    id: str
    service: str
    rollout: str
    metric: str
    mode: str
    split_percent: float
    alpha: float
    verdict: str
    n_a: int
    n_b: int
    mean_a: float | None
    mean_b: float | None
    difference: float | None
    interval: tuple[float, float] | None
    interval_of: str
    win_rate: float | None
    cohens_d: float | None
    p_value: float
    missing_a: int
    missing_b: int
    sample_size: int | None
    created_at_s: float
    ended_at_s: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """One unit's outcome. `y` None: it never came; shown by arm, never counted."""

    unit: int
    is_b: bool
    w: float
    y: float | None
    at_s: float


class Request(Protocol):
    """What a test reads of a request's record."""

    @property
    def seq(self) -> int: ...
    @property
    def request_id(self) -> str: ...
    @property
    def answer_id(self) -> str | None: ...
    @property
    def unit(self) -> str: ...
    @property
    def rollout(self) -> str: ...
    @property
    def arm(self) -> int: ...
    @property
    def w(self) -> float: ...
    @property
    def assigned_by(self) -> str: ...
    @property
    def at_s(self) -> float: ...
    @property
    def error(self) -> bool | None: ...


@dataclass(slots=True)
class _Waiting:
    seq: int
    names: tuple[str, ...]
    unit: int
    is_b: bool
    w: float
    at_s: float
    y: float | None


@dataclass(slots=True)
class Book:
    """Requests of one test that wait for their turn or their score, and which units have been counted."""

    rollout: str
    metric: str
    settled_through_s: float = 0.0  # everything assigned before this has been given out
    seen: set[int] = field(default_factory=set)
    _waiting: dict[str, _Waiting] = field(default_factory=dict)  # by request id
    _names: dict[str, str] = field(default_factory=dict)  # answer id -> request id
    _scores: dict[str, float] = field(default_factory=dict)  # scores that came before their request

    def add_request(self, record: Request, value: float | None) -> None:
        """Take a request; `value`: the metric's, for metrics that a record itself holds."""
        is_ours = record.rollout == self.rollout and 0 < record.w < 1
        if not is_ours or record.at_s < self.settled_through_s or len(self._waiting) >= MAX_PENDING:
            return
        if kind_of(record.assigned_by) in (LEFT_OUT, HELD):
            return
        names = tuple(name for name in (record.request_id, record.answer_id) if name is not None)
        y = next((self._scores.pop(name) for name in names if name in self._scores), value)
        self._waiting[record.request_id] = _Waiting(
            record.seq, names, unit_hash(record.unit), record.arm == 1, record.w, record.at_s, y
        )
        for name in names:
            self._names[name] = record.request_id

    def add_score(self, name: str, metric: str, value: float) -> None:
        """Take a score by the request's or the answer's id."""
        if metric != self.metric:
            return
        found = self._waiting.get(self._names.get(name, ""))
        if found is not None:
            found.y = value
        elif len(self._scores) < MAX_PENDING:
            self._scores[name] = value

    def drop_span(self, since_s: float, until_s: float) -> None:
        """Forget both arms of a span in which records may be lost."""
        for waiting in [w for w in self._waiting.values() if since_s <= w.at_s < until_s]:
            self._forget(waiting)

    def settle(self, through_s: float, now_s: float) -> list[Outcome]:
        """Outcomes that are due, in order of assignment, each unit once.

        through_s: every request assigned before it has been told. A score is waited for; what a record holds
        itself is due at once.
        """
        wait_s = 0.0 if self.metric in REQUEST_METRICS else SCORE_WAIT_S
        due_s = min(through_s, now_s - wait_s)
        due = sorted((w for w in self._waiting.values() if w.at_s < due_s), key=lambda w: (w.at_s, w.seq))
        out = []
        for waiting in due:
            self._forget(waiting)
            if waiting.unit not in self.seen and len(self.seen) < MAX_OUTCOMES:
                self.seen.add(waiting.unit)
                out.append(Outcome(waiting.unit, waiting.is_b, waiting.w, waiting.y, waiting.at_s))
        self.settled_through_s = max(self.settled_through_s, due_s)
        return out

    def resume_seq(self, read_seq: int) -> int:
        """Where a restarted controller has to read from: before the oldest request that still waits."""
        return min((w.seq - 1 for w in self._waiting.values()), default=read_seq)

    def _forget(self, waiting: _Waiting) -> None:
        del self._waiting[waiting.names[0]]
        for name in waiting.names:
            self._names.pop(name, None)


class Judge:
    """The outcomes of one test and what they say. A fixed test is judged once, when both sides are full."""

    def __init__(self, spec: AbSpec, outcomes: Iterable[Outcome] = ()) -> None:
        self._spec = spec
        self._sequential = SequentialTest(spec.question)
        self._sides: tuple[list[float], list[float]] = ([], [])
        self.missing = [0, 0]
        for outcome in outcomes:
            self.add(outcome)

    def add(self, outcome: Outcome) -> None:
        """Take one unit."""
        if outcome.y is None:
            self.missing[outcome.is_b] += 1
        elif self._spec.mode == "sequential":
            self._sequential.add(outcome.y, is_b=outcome.is_b, w=outcome.w)
        elif self._open:
            self._sides[outcome.is_b].append(outcome.y)

    @property
    def _open(self) -> bool:
        size = self._spec.sample_size or 0
        return min(len(side) for side in self._sides) < size

    def result(self) -> AbResult:
        """What is shown now."""
        if self._spec.mode == "sequential":
            return self._sequential.result()
        result = fixed_horizon(*self._sides, self._spec.question)
        if not self._open:
            return result
        # Before both sides are full a p-value would be a look, and looks break a fixed test's alpha.
        hidden = {"verdict": AbVerdict.TOO_FEW, "p_value": 1.0, "interval": None}
        return AbResult(**(_fields(result) | hidden))


def _fields(result: AbResult) -> dict[str, Any]:
    return {name: getattr(result, name) for name in AbResult.__slots__}


def request_value(record: object, metric: str) -> float | None:
    """The metric's value that a request's record itself holds; None: it holds none."""
    if metric not in REQUEST_METRICS:
        return None
    if metric == "truncated":
        return float(getattr(record, "finish_reason", None) == "length")
    value = getattr(record, {"tokens": "completion_tokens"}.get(metric, metric))
    return None if value is None else float(value)


def ab_view(row: Mapping[str, Any], spec: AbSpec, judge: Judge) -> AbView:
    """The test as it is shown. row: id, service, rollout, created_at_s and ended_at_s."""
    shown = _fields(judge.result()) | {"alpha": spec.alpha}
    shown["verdict"] = str(shown["verdict"].value)
    shown.pop("method")
    return AbView(
        **row,
        **shown,
        metric=spec.metric,
        mode=spec.mode,
        split_percent=spec.split / 100,
        sample_size=spec.sample_size,
        missing_a=judge.missing[0],
        missing_b=judge.missing[1],
    )

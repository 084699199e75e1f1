"""Shapes of the read model: the API's answers, which the command line and the dashboard show.

Always valid JSON (NaN and infinity become null), with `view` as its version: fields, and values of a field
such as `phase`, may be added under the same number, never removed. So a reader ignores a field that it does
not know, and shows a value that it does not know as it is.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

from controller.views.cost_models import CostView
from controller.views.shape import Real
from controller.views.shape import View as _View


class GateView(_View):
    """One gate. `progress_ratio`: its evidence over what a decision takes, 1: decided."""

    gate: str
    metric: str
    side: str
    verdict: str  # of evaluation.report.Verdict: PASS, FAIL, UNDECIDED or INVALID
    log_e: Real
    limit: Real
    progress_ratio: float
    reason: str
    n_canary: int
    n_stable: int
    canary: Real
    stable: Real
    low: Real
    high: Real
    source: str = "arrives"  # arrives, never or stopped: whether the metric's values come
    last_value_s: Real = None  # when the request of the last value was assigned
    statistic: str = "mean"  # that stable and canary estimate: mean, p50, p99, ...
    # Of values: shares of the requests without an answer, which count as slowest. A percentile among these is
    # null, as one that is not known.
    unanswered_stable: Real = None
    unanswered_canary: Real = None
    limits: str = ""  # what this side asks: `above 1.1x` is worse, `< 1.2x` is proven


class AudienceView(_View):
    """The weight of an audience. A list of these, and no mapping: a newer release may add a field."""

    name: str
    weight_bp: int


class StageView(_View):
    number: int  # from 1
    weight_bp: int
    duration_s: float
    min_canary: int
    deadline_s: float
    replicas: int
    status: str  # done, now or ahead
    promote_if_point_ok: bool = False  # unproven at its deadline: promoted if estimates are within margins
    audiences: tuple[AudienceView, ...] = ()  # those with a weight of their own


class ProofView(_View):
    """What one gate had shown of its margin when its stage was left."""

    gate: str
    metric: str
    is_proven: bool
    text: str  # the margin, whether it is proven, and the figures
    stable: Real
    canary: Real
    n_stable: int
    n_canary: int
    statistic: str = "mean"
    decided_canary: int | None = None  # canary requests settled at the proof; null: not proven


class PassView(_View):
    """How a stage was passed. Counts are of the whole rollout; null: not known, or nothing to prove."""

    number: int  # from 1
    weight_bp: int
    how: str  # proven, waived or point_estimates; only `proven` is a proof
    at_s: float
    held_s: float
    canary_requests: int | None
    proven_canary: int | None
    proven_after_s: float | None
    last_gate: str | None
    nearest_gate: str | None  # the rollback gate with the most evidence of harm
    nearest_ratio: float | None
    proofs: tuple[ProofView, ...] = ()  # of each gate that the stage had to prove; empty: none, or not kept


class HoldView(_View):
    kind: str
    actor: str
    reason: str
    since_s: float


class AlarmView(_View):
    """Harm in one segment of the traffic; it decides nothing."""

    gate: str
    segment: str
    text: str
    canary_requests: int
    at_s: float


class CauseView(_View):
    kind: str
    text: str
    actor: str


class StepsView(_View):
    """The version that is being drained and unloaded; a time is null until its step is done."""

    leaving: str
    staying: str
    step: str
    cancelled: bool
    traffic_shift_ms: Real
    drain_ms: Real
    unload_ms: Real
    total_ms: Real


class LogView(_View):
    seq: int
    at_s: float
    actor: str
    text: str


class JudgeView(_View):
    """The judge of a rollout. Pairs are of stable and of the canary; null: not known yet."""

    model: str
    metric: str
    share_bp: int  # of both versions' answers
    state: str  # being examined, admitted, refused, silent or drifted
    text: str  # in one line: the state with its figures, how many answers are judged and missing
    revision: str = ""
    found: float | None = None  # of the bad answers of its examination
    false_alarms: float | None = None  # of the good ones
    verdicts: tuple[int, int] | None = None
    missing: tuple[int, int] | None = None
    unanswered: tuple[int, int] | None = None  # sampled requests without an answer to judge
    anchors: int | None = None  # verdicts on answers with known labels
    anchors_wrong: int | None = None
    engine: str = ""  # of a judge served here: whether it runs, in words; empty: it does not, or need not


class RolloutView(_View):
    """A rollout with its evidence and log."""

    view: Literal[1] = 1
    rollout: str
    service: str
    stable: str
    canary: str
    stable_name: str = ""  # what people call it: the given name, else folder or URL; empty: not known
    canary_name: str = ""
    source: str | None = None  # of the canary: checkpoint directory or URL
    actor: str | None = None  # who deployed it
    message: str | None = None  # why, in their words
    serving: str
    phase: str  # of rollout.state.Phase
    stage: int | None  # from 1; null: in no stage
    stages: tuple[StageView, ...]
    weight_bp: int
    holdback_bp: int
    twin: bool = False  # stable against itself: never promoted
    undo: bool = False  # a version that served before returns, without proof
    ab_test: bool = False  # the rollout of an A/B test, which ends with B leaving, whichever is better
    passed: tuple[PassView, ...] = ()
    risk: str
    risk_reasons: tuple[str, ...]
    reason: str
    waiting_for: tuple[str, ...]
    started_at_s: float
    entered_at_s: float
    acked_at_s: float | None
    deadline_at_s: float | None
    is_final: bool
    exit_code: int | None
    holds: tuple[HoldView, ...]
    verdict: str | None  # as a gate's; null: no evidence was read
    canary_requests: int
    stable_requests: int
    gates: tuple[GateView, ...]
    missing: tuple[str, ...]
    guards: tuple[str, ...]
    notes: tuple[str, ...]
    judge: JudgeView | None = None  # null: the rollout has none
    costs: CostView | None = None  # null: nothing was counted
    warnings: tuple[str, ...] = ()  # of a deploy, in its answer alone; the log keeps them
    alarms: tuple[AlarmView, ...] = ()  # of segments: shown and notified once, never deciding
    cause: CauseView | None
    decisive: GateView | None
    # Canary requests settled at the newest PASS, or when a gate fired; null: neither, or an older controller.
    decided_canary: int | None = None
    steps: StepsView | None
    log: tuple[LogView, ...]

    def as_it_stands(
        self, problem: str | None, *, waits: str = "the controller, which can decide nothing"
    ) -> RolloutView:
        """The rollout of a controller with this problem; None: none. While it can decide nothing, a running
        one waits for that alone: neither its time nor its deadline ends anything."""
        if problem is None or self.is_final:
            return self
        return self.model_copy(update={"waiting_for": (waits,), "deadline_at_s": None})


class VersionView(_View):
    version: str
    name: str = ""  # the given name, else folder or URL; empty: not known
    source: str | None = None
    actor: str | None = None  # who brought it
    message: str | None = None  # why, in their words
    phase: str
    ready_replicas: int
    in_flight: int
    memory_bytes: int | None
    last_error: str | None


class MissingKeyView(_View):
    """A version whose endpoint cannot be asked, because its API key cannot be read."""

    version: str
    role: str  # stable, canary or `earlier version`, to which undo could return
    text: str  # version, variable or file, and the command that mends it; never the key
    variable: str | None = None  # `canaryctl up` mends it where this one is set; null: it does not


class ServiceView(_View):
    """A service: its endpoint, loaded versions and newest rollout."""

    view: Literal[1] = 1
    service: str
    url: str
    stable: str
    stable_name: str = ""
    weight_bp: int | None  # null: the route table cannot be read
    routed: str | None = None  # its version in the route table, while that is another than `stable`
    versions: tuple[VersionView, ...] | None  # null: the fleet cannot be read
    rollout: RolloutView | None  # the newest; null: there has been none
    missing_keys: tuple[MissingKeyView, ...] = ()  # without them a way back is cut
    unreadable: str | None = None  # why this release cannot read the newest rollout; null: it can
    problem: str | None = None  # why the controller can decide nothing now; null: it can, or is older
    outage: str | None = None  # what users do not get of stable now; null: no outage is known


class CommandResult(_View):
    """Outcome of a command: `asked` (accepted, the ticks do it), `done`, or `already` (done, or under way).

    `rollout`: follow this one to see it done; null: nothing is left to be done. `serves`: the version that
    then serves; null: it is not known.
    """

    outcome: str
    text: str
    rollout: str | None = None
    serves: str | None = None


class ForecastView(_View):
    """Forecast of one stage with a harmless canary. Seconds from its start; null: after its deadline."""

    number: int  # from 1
    weight_bp: int
    proven_ratio: float  # of simulated runs, by the deadline
    requests_median: float | None
    requests_p90: float | None
    seconds_median: float | None
    seconds_p90: float | None
    slowest_gate: str | None
    finds: tuple[str, ...]  # minimum detectable effect by gate, at 90 % power
    refusal: str | None  # why the stage can prove nothing, and the remedy
    runs: int = 0  # simulated
    proven_runs: int = 0  # of them, by the deadline
    simulated_requests: float | None = None  # canary requests at which runs were cut off; null: none was


class AttemptView(_View):
    """An earlier rollout of the version that a plan is about."""

    rollout: str
    started_at_s: float
    ended_at_s: float | None = None  # null: it runs
    phase: str  # of rollout.state.Phase
    reason: str
    actor: str | None = None
    message: str | None = None


class UnjudgedView(_View):
    """A gate that stable's traffic gives nothing to judge by, so that the rollout runs without it."""

    gate: str
    metric: str
    needs: str  # nothing, reason (--allow-unjudged) or source (the user named it: it blocks promotion)
    text: str


class RefusalView(_View):
    """Why a deploy of this plan is refused as things stand, with the remedy, and its exit code."""

    text: str
    exit_code: int


class PlanView(_View):
    """A plan: what a rollout would do, and its forecast."""

    view: Literal[1] = 1
    twin: bool = False  # stable against itself: ends after its last stage, never promoted
    service: str
    stable: str
    canary: str
    stable_name: str = ""
    canary_name: str = ""
    attempts: tuple[AttemptView, ...] = ()  # earlier rollouts of this canary, newest first
    risk: str
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]  # shown in red
    stages: tuple[StageView, ...]
    holdback_bp: int
    bake_s: float
    shortest_s: float  # all stages and the bake, if every proof is in time
    alpha: float
    gates: tuple[str, ...]
    not_judged: tuple[UnjudgedView, ...] = ()
    judge: str = ""  # which judge is asked of how many answers; empty: none is
    refusals: tuple[RefusalView, ...] = ()  # in the deploy's order; empty: it would begin
    latency: tuple[str, ...] = ()  # at which stages it can be proven, at which not, and why
    mirror: str = ""  # what is copied to the canary before the first stage; empty: nothing
    preflight: str = ""  # what the canary is asked before it gets a user; empty: any answer at all
    fits: bool
    capacity: str
    requests_per_s: Real = None  # the forecast's traffic; null: not known
    unit_requests: float | None = None  # mean requests of one randomised unit
    forecast: tuple[ForecastView, ...] | None = None  # null: not made; `forecast_note` says why
    forecast_runs: int | None = None  # simulated runs of a stage, the maximum
    forecast_note: str | None = None
    users: int | None = None  # distinct users who return; null: new ones keep coming
    basis: tuple[str, ...] = ()  # which figures were measured on stable, and which are typical ones

    @property
    def decision_s(self) -> tuple[float | None, float | None]:
        """Seconds of all stages: sum of the medians, and of the 90th percentiles. None: not known."""
        stages = self.forecast or ()
        return _sum([one.seconds_median for one in stages]), _sum([one.seconds_p90 for one in stages])


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if known and len(known) == len(values) else None


@cache
def build_views() -> None:
    """Build every shape now, in a process of several threads that would otherwise build them at first use."""
    for view in _View.__subclasses__():
        view.model_rebuild(force=True)

"""A judge's verdicts on mirrored pairs: whether the canary's answers, which no user had, are worse.

Rules:
1. Pairs are bet on in order of assignment, `WAIT_S` after it, so that which of them is judged soon decides
   nothing; one that comes later is bet on when it comes. One pair a unit.
2. The test is the gates' own (`PairLoss`), with the part of their alpha that `mirrored` reserves. It is no
   part of the live evidence: a pair was never drawn.
3. A pair with one verdict says nothing of harm. What is missing is counted by version.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from evaluation.evaluator import Evaluator
from evaluation.judging.sampled import ArmVerdicts, SampledVerdicts
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.records import Pair
from evaluation.report import GateReport
from evaluation.units.units import unit_hash

WAIT_S = 90.0  # from a request to the verdicts on its pair: both answers, and the judge's
MAX_WAITING = 10_000  # pairs that wait for their turn
_NO_STAGE = (StagePlan(0.5, 0, {}),)  # pairs have no weight


@dataclass(frozen=True, slots=True)
class _Waiting:
    at_s: float
    stable: float
    canary: float


class MirroredVerdicts:
    """The judged pairs of one rollout. Not thread-safe."""

    def __init__(self, policy: GatePolicy, metric: str) -> None:
        """metric: of the scores that verdicts are: 1 right, 0 wrong."""
        gates = tuple(gate for gate in policy.gates if gate.metric == metric)
        self._policy = replace(policy, gates=gates)
        self._metric = metric
        self._max_missing = policy.max_missing
        self._evaluator = Evaluator.start(self._policy, stages=_NO_STAGE, seed_latency_ms={})
        self._waiting: dict[str, _Waiting] = {}  # by unit
        self._sampled = SampledVerdicts()
        self._through_s = 0.0
        self.wrong = [0, 0]  # of the judged pairs: stable's answers and the canary's
        self.rollback: GateReport | None = None  # not None: the pairs show harm; it stays

    @property
    def judged(self) -> int:
        """Pairs that were bet on."""
        return self._evaluator.pair_count

    @property
    def missing(self) -> tuple[int, int]:
        """Answers of stable and of the canary that were asked about, and have no verdict."""
        stable, canary = self._sampled.arms
        return stable.missing, canary.missing

    @property
    def too_many(self) -> str | None:
        """Why too many verdicts are missing; None: they are not."""
        return self._sampled.too_many(self._max_missing)

    def add(
        self, unit: str, at_s: float, bad: tuple[bool | None, bool | None], cause: str | None = None
    ) -> None:
        """One pair, assigned at `at_s`: whether stable's answer is wrong, and the canary's. None: no verdict,
        by this cause."""
        if unit in self._waiting or unit_hash(f"{self._metric}/{unit}") in self._evaluator.paired:
            return
        stable, canary = bad
        for arm, verdict in enumerate(bad):
            self._sampled.add(arm, None if verdict is not None else cause or "no cause given")
        if stable is not None and canary is not None and len(self._waiting) < MAX_WAITING:
            self._waiting[unit] = _Waiting(at_s, 1.0 - stable, 1.0 - canary)

    def advance(self, now_s: float) -> None:
        """Bet on the pairs whose time has come."""
        self._through_s = max(self._through_s, now_s - WAIT_S)
        due = [(unit, pair) for unit, pair in self._waiting.items() if pair.at_s < self._through_s]
        if not due:
            return
        for unit, pair in due:
            del self._waiting[unit]
            self._evaluator.add(Pair(unit, self._metric, pair.stable, pair.canary, pair.at_s))
            self.wrong[0] += pair.stable < 0.5
            self.wrong[1] += pair.canary < 0.5
        self._evaluator.advance(self._through_s, now_s)
        found = self._evaluator.report().rollback
        if self.rollback is None and found is not None:
            self.rollback = self._with_counts(found)

    def _with_counts(self, report: GateReport) -> GateReport:
        """The report, with the figures of the pairs in place of those of requests."""
        n = self.judged
        stable, canary = (1.0 - wrong / n for wrong in self.wrong)
        return replace(report, n_stable=n, n_canary=n, stable=stable, canary=canary)

    def to_mapping(self) -> dict[str, Any]:
        """JSON values for a snapshot."""
        return {
            "evaluator": base64.b64encode(self._evaluator.snapshot()).decode(),
            "waiting": [[unit, *asdict(pair).values()] for unit, pair in self._waiting.items()],
            "arms": [asdict(arm) for arm in self._sampled.arms],
            "causes": self._sampled.causes,
            "through_s": self._through_s,
            "wrong": self.wrong,
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        """Go on from `to_mapping`. Errors: SnapshotMismatch of another policy."""
        state = base64.b64decode(data["evaluator"])
        self._evaluator = Evaluator.restore(self._policy, _NO_STAGE, state)
        self._waiting = {unit: _Waiting(*pair) for unit, *pair in data["waiting"]}
        stable, canary = (ArmVerdicts(**arm) for arm in data["arms"])
        self._sampled = SampledVerdicts((stable, canary), dict(data["causes"]))
        self._through_s, self.wrong = data["through_s"], list(data["wrong"])
        found = self._evaluator.report().rollback
        self.rollback = self._with_counts(found) if found is not None else None

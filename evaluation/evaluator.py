"""One rollout's evidence, from the first record to the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evaluation.gate import EvaluationReport, GateReport, Verdict
from evaluation.policy import GatePolicy, StagePlan
from evaluation.records import Draw, Score

__all__ = ["EvaluationReport", "Evaluator", "GateReport", "SnapshotMismatch", "Verdict"]


class SnapshotMismatch(ValueError):
    """A snapshot of another policy, other stages or an unknown version; the message holds both digests."""


class Evaluator:
    """Feed it records (`add`), tell it the time (`advance`), ask it (`report`). Not shared between
    threads."""

    @classmethod
    def start(
        cls,
        policy: GatePolicy,
        *,
        stages: Sequence[StagePlan],
        seed_latency_ms: Mapping[str, Sequence[float]],
    ) -> Evaluator:
        """An evaluator without evidence. `seed_latency_ms`: stable's own values before the canary, by
        metric."""
        raise NotImplementedError

    def add(self, event: Draw | Score) -> None:
        """Take one record, in any order within the settlement window. Errors: EvidenceError, and nothing
        has changed."""
        raise NotImplementedError

    def advance(self, through_s: float, now_s: float) -> None:
        """Settle: no draw assigned before `through_s` is still missing, and no score received before
        `now_s` either."""
        raise NotImplementedError

    def enter_stage(self, stage: int, at_s: float) -> None:
        """The stage's weight was acknowledged at `at_s`: its own proofs begin with units assigned from then
        on."""
        raise NotImplementedError

    def report(self) -> EvaluationReport:
        """What the evidence says now."""
        raise NotImplementedError

    def snapshot(self) -> bytes:
        """Everything, to be restored with the same policy and stages; JSON in UTF-8, with a version."""
        raise NotImplementedError

    @classmethod
    def restore(cls, policy: GatePolicy, stages: Sequence[StagePlan], data: bytes) -> Evaluator:
        """The evaluator that made `data`, to the last bit. Errors: SnapshotMismatch."""
        raise NotImplementedError

"""Verdicts of a rollout's judge as evidence: joined to the sampled requests, counted, watched for drift.

Rules:
1. A verdict on an answer is a score of the judge's metric: 1 right, 0 wrong. Scores of that metric from
   others are left out, and counted: whoever sends them chooses of which answers.
2. A verdict by another revision than the one that was examined, or of another rollout, is not read.
3. A sampled answer without a verdict when its time is over is missing, whatever comes later. The evaluator
   knows which were sampled: nothing is proven unless it holds with each missing one as the worst, too.
4. Verdicts on anchors, whose labels are known, are no evidence of the rollout: they watch the judge. Once it
   has drifted, everything it said of this metric is void for the rest of the rollout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from controller.evidence.records import GateConfig, score_of
from controller.rollout.judge_plan import JudgeState
from controller.rollout.observation import JudgeEvidence
from evaluation.judging.anchors import AnchorWatch, RateChange
from evaluation.judging.sampled import ArmVerdicts, SampledVerdicts
from evaluation.records import Score
from evaluation.report import EvaluationReport, GateReport, Source, Verdict
from evaluation.verdict import rollback_of
from serving.judge_messages import JudgeRecord
from serving.messages import RequestRecord, ScoreRecord

MAX_OPEN = 100_000  # sampled answers, or verdicts, that wait for the other
LATE, LOST = "too late", "lost"


class JudgedAnswers:
    """The sampled answers of one rollout, and the verdicts of its judge. Without a judge there are none."""

    @classmethod
    def of(cls, rollout: str, config: GateConfig) -> JudgedAnswers:
        """Those of a rollout under its pinned policy."""
        metric = config.judged_metric
        deadlines = [gate.deadline_s for gate in config.policy.gates if gate.metric == metric]
        max_missing = config.policy.max_missing
        return cls(rollout, metric, deadline_s=max(deadlines, default=0.0), max_missing=max_missing)

    def __init__(self, rollout: str, metric: str | None, *, deadline_s: float, max_missing: float) -> None:
        """metric: of the scores; None: the rollout has no judge. deadline_s: from a request to its verdict.
        max_missing: share of the sampled answers."""
        self._rollout = rollout
        self._metric = metric
        self._deadline_s = deadline_s
        self._max_missing = max_missing
        self._judge = JudgeState()
        self._open: dict[str, tuple[int, float]] = {}  # sampled request -> arm, when it was assigned
        self._early: dict[str, tuple[str | None, float]] = {}  # request to come -> cause, when it was judged
        self._sampled = SampledVerdicts()
        self._watch = AnchorWatch()
        self._anchors = [0, 0]  # verdicts, wrong ones
        self._others = 0  # scores of the metric that are no verdicts

    def follow(self, judge: JudgeState) -> None:
        """Note what the rollout knows of its judge, at each look."""
        self._judge = judge

    def sample(self, record: RequestRecord) -> None:
        """Count one of the rollout's own requests, if it is sampled."""
        if self._metric is None or not record.judged:
            return
        if record.error is not False or record.rejected or record.outcome == "cancelled":
            self._early.pop(record.request_id, None)
            self._sampled.arms[record.arm].unanswered += 1
            return
        early = self._early.pop(record.request_id, None)
        if early is not None:
            cause, at_s = early
            is_late = at_s > record.at_s + self._deadline_s
            self._sampled.add(record.arm, LATE if cause is None and is_late else cause)
            return
        self._open[record.request_id] = record.arm, record.at_s
        if len(self._open) > MAX_OPEN:
            arm, _ = self._open.pop(next(iter(self._open)))
            self._sampled.add(arm, LOST)

    def metrics_of(self, record: RequestRecord) -> tuple[str, ...]:
        """The metrics of which a score of this request was drawn for, whatever the answer: the judge's."""
        return (self._metric,) if self._metric is not None and record.judged else ()

    def score_of(self, score: ScoreRecord, request: RequestRecord) -> Score | None:
        """The score of a request that somebody sent; None: it is none of its arm, or the judge's to give."""
        if score.metric == self._metric:  # None without a judge, as no score has
            self._others += request.rollout == self._rollout
            return None
        return score_of(score, request)

    def is_own(self, verdict: JudgeRecord) -> bool:
        """Whether the rollout's judge said it, as it was examined."""
        result = self._judge.result
        is_of_judge = result is not None and verdict.revision == result.revision
        return self._metric is not None and is_of_judge and verdict.rollout == self._rollout

    def take(self, verdict: JudgeRecord) -> Score | None:
        """The score that a verdict is; None: it is none, or not of this rollout's judge."""
        if self._metric is None or not self.is_own(verdict):
            return None
        if verdict.label is not None:
            if verdict.bad is not None:
                self._watch.add(is_bad=verdict.label, called_bad=verdict.bad)
                self._anchors[0] += 1
                self._anchors[1] += verdict.bad is not verdict.label
            return None
        cause = None if verdict.bad is not None else verdict.cause or "no cause given"
        sampled = self._open.pop(verdict.request_id, None)
        if sampled is None:
            self._early[verdict.request_id] = cause, verdict.at_s
            if len(self._early) > MAX_OPEN:
                del self._early[next(iter(self._early))]
        else:
            arm, at_s = sampled
            is_late = verdict.at_s > at_s + self._deadline_s
            self._sampled.add(arm, LATE if cause is None and is_late else cause)
        if verdict.bad is None:
            return None
        return Score(verdict.request_id, self._metric, 0.0 if verdict.bad else 1.0, verdict.at_s)

    def expire(self, through_s: float, now_s: float) -> None:
        """Count as missing what was sampled so long ago that no verdict counts any more.

        through_s: everything that was assigned before it has been read.
        """
        before_s = min(through_s, now_s - self._deadline_s)
        for request_id in [one for one, (_, at_s) in self._open.items() if at_s < before_s]:
            self._sampled.add(self._open.pop(request_id)[0], LOST)
        for request_id in [one for one, (_, at_s) in self._early.items() if at_s < before_s]:
            del self._early[request_id]

    def status(self) -> JudgeEvidence | None:
        """The counts, and whether the judge drifted or leaves too many answers without a verdict; None: the
        rollout has no judge."""
        if self._metric is None:
            return None
        stable, canary = self._sampled.arms
        causes = sorted(self._sampled.causes.items(), key=lambda one: (-one[1], one[0]))
        return JudgeEvidence(
            verdicts=(stable.verdicts, canary.verdicts),
            missing=(stable.missing, canary.missing),
            unanswered=(stable.unanswered, canary.unanswered),
            anchors=self._anchors[0],
            anchors_wrong=self._anchors[1],
            causes=tuple(causes),
            drift=self._judge.drift or self._watch.drift,
            too_many=self._sampled.too_many(self._max_missing),
            others=self._others,
            metric=self._metric,
        )

    def applied_to(self, report: EvaluationReport) -> EvaluationReport:
        """The report, with the gates on the judge's metric INVALID while it is not judged."""
        why = self.void
        return report if self._metric is None or why is None else without_judge(report, self._metric, why)

    @property
    def judge_void(self) -> str | None:
        """Why the judge may not vote now; None: it may, or the rollout has none."""
        if self._metric is None:
            return None
        return replace(self._judge, drift=self._judge.drift or self._watch.drift).void

    @property
    def void(self) -> str | None:
        """Why the metric is not judged now; None: it is."""
        if (why := self.judge_void) is not None:
            return why
        too_many = self._sampled.too_many(self._max_missing)
        return None if too_many is None else f"NOT JUDGED: {too_many}"

    def to_mapping(self) -> dict[str, Any] | None:
        """JSON values for the snapshot; None: the rollout has no judge."""
        if self._metric is None:
            return None
        return {
            "open": [[request_id, *of] for request_id, of in self._open.items()],
            "early": [[request_id, *of] for request_id, of in self._early.items()],
            "arms": [asdict(arm) for arm in self._sampled.arms],
            "causes": self._sampled.causes,
            "watch": asdict(self._watch),
            "anchors": self._anchors,
            "others": self._others,
        }

    def restore(self, data: Mapping[str, Any] | None) -> None:
        """Go on from `to_mapping`; None: there was no judge, as in every snapshot of an older release."""
        if data is None:
            return
        self._open = {request_id: (arm, at_s) for request_id, arm, at_s in data["open"]}
        self._early = {request_id: (cause, at_s) for request_id, cause, at_s in data["early"]}
        stable, canary = (ArmVerdicts(**arm) for arm in data["arms"])
        self._sampled = SampledVerdicts((stable, canary), dict(data["causes"]))
        watch = data["watch"]
        self._watch = AnchorWatch(
            watch["alpha"], _rate(watch["misses"]), _rate(watch["alarms"]), watch["drift"]
        )
        self._anchors = list(data["anchors"])
        self._others = data.get("others", 0)  # of a snapshot of an older release there are none


def _rate(data: Mapping[str, Any]) -> RateChange:
    moments = [(n, k, number) for n, k, number in data["moments"]]
    return RateChange(data["n"], data["events"], data["every"], moments, data["born"])


def without_judge(report: EvaluationReport, metric: str, why: str) -> EvaluationReport:
    """The report with the gates on a metric INVALID: they neither promote nor roll back.

    why: the reason, for people. Harm that another gate shows stays, also what this metric's was ahead of.
    """
    void = {gate.gate for gate in report.gates if gate.metric == metric and not gate.is_alarm}
    if not void:
        return report
    gates = tuple(_void(gate, why) if gate.gate in void else gate for gate in report.gates)
    rollback = rollback_of(gates)
    others = (line for line in report.missing if line.partition(":")[0] not in void)
    return replace(
        report,
        gates=gates,
        rollback=rollback,
        stage_verdict=Verdict.FAIL if rollback is not None else Verdict.INVALID,
        missing=(*(f"{name}: {why}" for name in sorted(void)), *others),
        only_load=False,
    )


def _void(gate: GateReport, why: str) -> GateReport:
    return replace(
        gate,
        verdict=Verdict.INVALID,
        reason=why,
        decided_at_s=None,
        decided_canary=None,
        source=Source.ARRIVES,
    )

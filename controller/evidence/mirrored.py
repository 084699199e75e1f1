"""A rollout's mirrored copies, from the records log: their counts, and its judge's verdicts on their pairs.

Pairs decide in no live gate: they have their own test, with their own part of alpha. They say nothing while
the judge may not vote, or leaves too many of them without a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from controller.evidence.records import GateConfig
from controller.rollout.observation import MirrorStatus
from evaluation.judging.mirrored import MirroredVerdicts
from evaluation.report import GateReport
from serving.judge_messages import JudgeRecord
from serving.messages import MirrorRecord


class MirroredAnswers:
    """The copies of one rollout, and the verdicts on the pairs that they make."""

    def __init__(self, rollout: str, config: GateConfig) -> None:
        self._rollout = rollout
        self._config = config
        self._counts = MirrorStatus()
        self._verdicts: MirroredVerdicts | None = None  # None: none has come

    def count(self, record: MirrorRecord) -> None:
        """Count a copy, if it is of this rollout."""
        if record.rollout == self._rollout:
            self._counts = counted(self._counts, record)

    def take(self, verdict: JudgeRecord) -> None:
        """Take what the rollout's own judge said of a pair."""
        metric = self._config.judged_metric
        if metric is None or verdict.pair is None:
            return
        if self._verdicts is None:
            self._verdicts = MirroredVerdicts(self._config.policy, metric)
        self._verdicts.add(verdict.unit, verdict.assigned_at_s, verdict.pair, verdict.cause)

    def advance(self, now_s: float) -> None:
        """Bet on the pairs whose time has come."""
        if self._verdicts is not None:
            self._verdicts.advance(now_s)

    def status(self, void: str | None) -> MirrorStatus:
        """The counts. void: why the judge's verdicts count for nothing; None: they count."""
        found = self._verdicts
        if found is None:
            return replace(self._counts, void=void)
        return replace(
            self._counts,
            judged=found.judged,
            wrong=(found.wrong[0], found.wrong[1]),
            missing=found.missing,
            void=void or (f"NOT JUDGED: {found.too_many}" if found.too_many is not None else None),
        )

    def rollback(self, void: str | None) -> GateReport | None:
        """The harm that the pairs show; None: none, or the judge's verdicts count for nothing."""
        is_void = self._verdicts is None or self.status(void).void is not None
        return None if is_void or self._verdicts is None else self._verdicts.rollback

    def to_mapping(self) -> dict[str, Any]:
        """JSON values for the snapshot."""
        verdicts = self._verdicts.to_mapping() if self._verdicts is not None else None
        return {**mirror_to_mapping(self._counts), "verdicts": verdicts}

    def restore(self, data: Mapping[str, Any] | None) -> None:
        """Go on from `to_mapping`; None, or without verdicts: of an older release."""
        self._counts = mirror_of(data)
        metric, verdicts = self._config.judged_metric, (data or {}).get("verdicts")
        if verdicts is not None and metric is not None:
            self._verdicts = MirroredVerdicts(self._config.policy, metric)
            self._verdicts.restore(verdicts)


def counted(status: MirrorStatus, record: MirrorRecord) -> MirrorStatus:
    """The counts with one more copy."""
    match record.outcome:
        case "ok":
            same = status.same_text + (record.same_text is True)
            return replace(status, pairs=status.pairs + 1, same_text=same)
        case "failed":
            return replace(status, failed=status.failed + 1, cause=record.cause)
        case _:  # withheld, or a word of a later router: says nothing about the version
            return status


def mirror_to_mapping(status: MirrorStatus) -> dict[str, Any]:
    """JSON values of the counts of copies, for the snapshot."""
    copies = ("pairs", "failed", "same_text", "cause")
    return {name: value for name, value in asdict(status).items() if name in copies}


def mirror_of(data: Mapping[str, Any] | None) -> MirrorStatus:
    """The counts of `mirror_to_mapping`; None: none, or of an older release."""
    known = {one.name for one in fields(MirrorStatus)}
    return MirrorStatus(**{key: value for key, value in (data or {}).items() if key in known})

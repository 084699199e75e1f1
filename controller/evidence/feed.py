"""From the ordered log of a service's requests and scores to one rollout's evaluator, and back after a crash.

Invariants: the log is read in order and only forwards; the snapshot names how far it was read, so a restart
goes on after exactly that event; a score finds its request by either id, before or after it.
"""

from __future__ import annotations

import base64
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from controller import telemetry
from controller.evidence.live_load import LiveLoad
from controller.evidence.point_estimates import point_estimates
from controller.evidence.score_join import ScoreJoin
from controller.evidence.segment_alarms import SegmentFeed, metric_alarms
from controller.evidence.snapshot import feed_in, pack
from controller.rollout.observation import EvidenceStatus, GuardStatus, VersionPhase, VersionStatus
from controller.rollout.state import LIVE, RolloutState
from evaluation.evaluator import Evaluator
from evaluation.guards import ErrorGuard, GuardAction
from evaluation.policy.gates import StagePlan
from evaluation.policy.parsing import parse_gate_policy
from evaluation.policy.policy import GatePolicy
from evaluation.records import Draw, EvidenceError, Score
from evaluation.snapshot import SnapshotMismatch
from serving.messages import CANARY, LostSpan, RecordPage, RequestRecord, ScoreRecord

PAGE_EVENTS = 5_000
PAGES_A_TICK = 4
SEED_VALUES = 4_000  # of stable's own, per metric, before the canary's first unit
SEED_METRICS = ("latency_ms", "ttft_ms", "itl_ms")
LOST_SPANS = 1_000
JOIN_WINDOW_S = 900.0  # how long after its request a score finds it, or longer where a gate waits longer


class RecordsLog(Protocol):
    """The one replayable stream of a service. None: it cannot be read now."""

    def read(self, service: str, *, after_seq: int, limit: int) -> RecordPage | None: ...


class Snapshots(Protocol):
    """Where the last committed snapshot of a rollout is."""

    def evidence(self, rollout: str) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class GateConfig:
    """What a rollout's evidence is judged by: pinned when the rollout starts."""

    policy: GatePolicy
    stages: tuple[StagePlan, ...]


def gate_config(request: str) -> GateConfig:
    """What was pinned when the rollout began, from its stored request: a newer default changes nothing."""
    pinned = json.loads(request)
    stages = tuple(StagePlan(**stage) for stage in pinned["stages"])
    return GateConfig(parse_gate_policy(pinned["gate"]), stages)


def draw_of(record: RequestRecord) -> Draw:
    """The draw that a settled request is evidence of."""
    flags = {
        "truncated": record.finish_reason == "length",
        "empty": record.empty,
        "cancelled": record.outcome == "cancelled",
    }
    if record.outcome == "open":
        flags["censored"] = True
    # Whose client left before anybody answered might still have been served by the canary.
    if record.arm == CANARY and (record.served_arm is not None or record.outcome != "cancelled"):
        flags["fell_back"] = record.served_arm != CANARY
    return Draw(
        request_id=record.request_id,
        unit=record.unit,
        at_s=record.at_s,
        arm=record.arm,
        w=record.w,
        assigned_by=record.assigned_by,
        stage=record.stage,
        error=record.error,
        latency_ms=record.latency_ms,
        ttft_ms=record.ttft_ms,
        itl_ms=record.itl_ms,
        tokens=record.completion_tokens,
        flags=flags,
    )


class Feed:
    """One rollout's way through the log. `seq` is the last event that it took in."""

    def __init__(self, rollout: str, config: GateConfig) -> None:
        self._rollout = rollout
        self._config = config
        self._evaluator: Evaluator | None = None  # None until the first unit of this rollout
        self._seed: dict[str, list[float]] = {metric: [] for metric in SEED_METRICS}
        self._join = ScoreJoin()
        self._window: OrderedDict[int, float] = (
            OrderedDict()
        )  # seq -> at_s of requests that scores may still name
        self._guard = ErrorGuard()
        self._load = LiveLoad(config.policy.load_ratio)
        self._segments = SegmentFeed(config.policy)
        # How long after its request a score still finds it, after a restart too.
        self._join_s = max((JOIN_WINDOW_S, *(gate.deadline_s for gate in config.policy.gates)))
        self._lost: list[tuple[float, float]] = []  # spans of assignment that have not settled yet
        self._entered = self._stage = -1
        self._acked_at_s = 0.0
        self._through_s = 0.0
        self.seq = 0
        self.refused = 0

    @classmethod
    def restore(
        cls, rollout: str, config: GateConfig, data: bytes, log: RecordsLog, service: str
    ) -> Feed | None:
        """The feed that made `data`, its joins read again from the log; None: the log cannot be read now."""
        saved = feed_in(data)
        feed = cls(rollout, config)
        if saved["evaluator"] is not None:
            state = base64.b64decode(saved["evaluator"])
            feed._evaluator = feed._heard(Evaluator.restore(config.policy, config.stages, state))
        feed._seed = saved["seed"] or feed._seed
        feed._guard = ErrorGuard.from_mapping(saved["guard"])
        feed._entered = feed._stage = saved["entered"]
        feed._through_s = saved["through_s"]
        feed._lost = [(since_s, until_s) for since_s, until_s in saved.get("lost", [])]
        feed._load.restore(saved)
        feed._segments.restore(saved.get("segments"))
        feed.seq = saved["join_from"]
        while feed.seq < saved["seq"]:
            page = log.read(service, after_seq=feed.seq, limit=min(PAGE_EVENTS, saved["seq"] - feed.seq))
            if page is None:
                return None
            for event in page.events:
                if event.seq <= saved["seq"]:
                    feed._join_only(event)
            if page.next_seq <= feed.seq:
                break
            feed.seq = page.next_seq
        feed.seq = saved["seq"]
        return feed

    def snapshot(self) -> bytes:
        """Everything that `restore` needs, as JSON."""
        firsts = (next(iter(self._window), None), self._join.first_held(), self._segments.first_seq)
        evaluator = self._evaluator.snapshot() if self._evaluator else None
        saved = {
            "seq": self.seq,
            "join_from": min(first - 1 for first in (*firsts, self.seq + 1) if first is not None),
            "guard": self._guard.to_mapping(),
            "entered": self._entered,
            "through_s": self._through_s,
            "lost": self._lost,
            **self._load.to_mapping(),
            "segments": self._segments.to_mapping(),
            "seed": {} if self._evaluator else self._seed,
            "evaluator": base64.b64encode(evaluator).decode() if evaluator else None,
        }
        return pack(self.sight(), saved)

    def take(self, page: RecordPage, now_s: float) -> None:
        """Feed one page, in its order."""
        self._note_lost(page.lost)
        for event in page.events:
            if isinstance(event, RequestRecord):
                self._take_request(event)
            elif (score := self._join.match(event)) is not None:
                self._add(score)
        self.seq = page.next_seq
        self._through_s = max(self._through_s, page.low_watermark_s)
        if self._evaluator is not None:
            self._load.tell(self._evaluator)
            settled_s = self._evaluator.settlement.through_s
            through_s = self._load.through_s(self._through_s, now_s)
            self._evaluator.advance(max(settled_s, through_s), now_s)
            settled_s = self._evaluator.settlement.through_s
            self._lost = [span for span in self._lost if span[1] > settled_s]
        self._forget(now_s)

    def follow(self, state: RolloutState) -> None:
        """Note where the rollout stands, so that the evaluator hears of each acknowledged stage once."""
        if state.phase not in LIVE or state.acked_at_s is None:
            return
        self._load.stand(state.weight_bp, state.acked_at_s)
        if self._entered < state.stage < len(self._config.stages):
            self._stage, self._acked_at_s = state.stage, state.acked_at_s
            if self._evaluator is not None:
                self._enter(self._evaluator)

    def note_ready(self, stable: int, canary: int, now_s: float) -> None:
        """Ready replicas of each arm now."""
        self._load.look(stable, canary, now_s)

    def begin(self) -> None:
        """The log has been read to its end: with a stage acknowledged, start even without a unit."""
        if self._stage >= 0:
            self._started()

    def sight(self) -> EvidenceStatus | None:
        """What the evidence and the guard of errors say; None: no unit was drawn yet."""
        if self._evaluator is None:
            return None
        rung = self._guard.verdict()
        guards = (
            (GuardStatus(rung.guard, rung.reason, both_arms=rung.action is GuardAction.HOLD),) if rung else ()
        )
        report = self._evaluator.report()
        points = point_estimates(report, self._config.policy, self._config.stages[report.stage])
        return EvidenceStatus.of(
            report, guards, (*metric_alarms(report), *self._segments.raised(frozen=report.frozen)), points
        )

    def _note_lost(self, lost: Sequence[LostSpan]) -> None:
        """Drop a span with lost records for both arms: what is missing may hang on the arm.

        The rest of it was told before, in an earlier page, or comes later: what was quick, and what was not.
        """
        if lost:
            self._lost += [(one.since_s, one.until_s) for one in lost]
            self._lost = list(dict.fromkeys(self._lost))[-LOST_SPANS:]
        if lost and self._evaluator is not None:
            waiting = self._evaluator.settlement.waiting
            for draw in [draw for draw in waiting.values() if self._is_lost(draw.at_s)]:
                del waiting[draw.request_id]

    def _is_lost(self, at_s: float) -> bool:
        return any(since_s <= at_s < until_s for since_s, until_s in self._lost)

    def _take_request(self, record: RequestRecord) -> None:
        scores = self._join_request(record)
        if self._is_own(record):
            if not self._is_lost(record.at_s):
                self._started()
                self._segments.note(record)
                self._add(draw_of(record))
                self._load.count(record)
                if record.error is not None:
                    self._guard.add(canary=record.arm == 1, error=record.error)
        elif self._evaluator is None:
            self._seed_with(record)
        for score in scores:
            self._add(score)

    def _is_own(self, record: RequestRecord) -> bool:
        return record.rollout == self._rollout and record.w > 0

    def _started(self) -> Evaluator:
        if self._evaluator is None:
            config = self._config
            started = Evaluator.start(config.policy, stages=config.stages, seed_latency_ms=self._seed)
            self._evaluator = self._heard(started)
            self._enter(self._evaluator)
        return self._evaluator

    def _heard(self, evaluator: Evaluator) -> Evaluator:
        """The evaluator, with the segments hearing of what settles."""
        evaluator.on_settled = self._segments.watch
        return evaluator

    def _enter(self, evaluator: Evaluator) -> None:
        if self._stage > self._entered:
            self._entered = self._stage
            evaluator.enter_stage(self._stage, self._acked_at_s)

    def _add(self, event: Draw | Score) -> None:
        if self._evaluator is None:
            return
        try:
            self._evaluator.add(event)
        except EvidenceError as exc:
            self.refused += 1
            telemetry.warning("record refused as evidence", rollout=self._rollout, why=str(exc))

    def _seed_with(self, record: RequestRecord) -> None:
        if record.error is not False or record.served_arm != 0:
            return
        for metric, values in self._seed.items():
            value = getattr(record, metric)
            if value is not None:
                values.append(value)
                del values[:-SEED_VALUES]

    def _join_request(self, record: RequestRecord) -> list[Score]:
        """The scores that waited for it. What its arm did not answer whole has no quality, whatever is said
        of the answer that stable gave instead."""
        self._window[record.seq] = record.at_s
        return self._join.add(record) if record.error is False and record.served_arm == record.arm else []

    def _join_only(self, event: RequestRecord | ScoreRecord) -> None:
        if isinstance(event, RequestRecord):
            self._join_request(event)
            if self._is_own(event):
                self._segments.note(event)
        else:
            self._join.match(event)

    def _forget(self, now_s: float) -> None:
        before_s = now_s - self._join_s
        while self._window and next(iter(self._window.values())) < before_s:
            self._window.popitem(last=False)
        self._join.forget(before_s)
        if self._evaluator is not None:
            self._segments.forget(min(before_s, self._evaluator.settlement.through_s))


class EvidenceFeeds:
    """The core's Evidence port: one feed a running rollout, restored from the store when first asked for."""

    def __init__(
        self,
        log: RecordsLog,
        snapshots: Snapshots,
        config: Callable[[RolloutState], GateConfig],
    ) -> None:
        self._log = log
        self._snapshots = snapshots
        self._config = config
        self._feeds: dict[str, Feed] = {}

    def observe(
        self, rollout: RolloutState, versions: Sequence[VersionStatus] | None, now_s: float
    ) -> EvidenceStatus | None:
        """Take in what is new and report; None: the log cannot be read, or no unit was drawn yet.

        versions: the service's, with their ready replicas; None: not known, and no load is compared.
        """
        feed = self._feed(rollout)
        if feed is None:
            return None
        feed.follow(rollout)
        _note_ready(feed, rollout, versions, now_s)
        for _ in range(PAGES_A_TICK):
            page = self._log.read(rollout.service, after_seq=feed.seq, limit=PAGE_EVENTS)
            if page is None:
                return None
            feed.take(page, now_s)
            if len(page.events) < PAGE_EVENTS:
                feed.begin()
                break
        return feed.sight()

    def snapshot(self, rollout: str) -> bytes | None:
        """The feed as it stands; None: this rollout was not observed since the start."""
        feed = self._feeds.get(rollout)
        return feed.snapshot() if feed else None

    def _feed(self, rollout: RolloutState) -> Feed | None:
        feed = self._feeds.get(rollout.id)
        if feed is None:
            feed = self._open(rollout)
            if feed is not None:
                self._feeds[rollout.id] = feed
        return feed

    def _open(self, rollout: RolloutState) -> Feed | None:
        config = self._config(rollout)
        saved = self._snapshots.evidence(rollout.id)
        if saved is None:
            return Feed(rollout.id, config)
        try:
            return Feed.restore(rollout.id, config, saved, self._log, rollout.service)
        except (SnapshotMismatch, ValueError, KeyError) as exc:
            # Evidence of another policy is no evidence. The gate starts again from the log as it is.
            telemetry.alarm("evidence snapshot refused, starting again", exc, rollout=rollout.id)
            return Feed(rollout.id, config)


def _note_ready(
    feed: Feed, rollout: RolloutState, versions: Sequence[VersionStatus] | None, now_s: float
) -> None:
    """Unreadable changes nothing; behind an endpoint there may be any number of replicas."""
    if rollout.stable.external or rollout.canary.external or versions is None:
        return
    ready = {one.version: one.ready_replicas for one in versions if one.phase is VersionPhase.READY}
    feed.note_ready(ready.get(rollout.stable.id, 0), ready.get(rollout.canary.id, 0), now_s)

"""Evidence of a rollout: feeds its evaluator from the records log, and goes on after a restart.

Invariants: the log is consumed in order and only forwards; a snapshot holds the position, so a restarted feed
continues after exactly that event and ends with the same evidence.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from controller import telemetry
from controller.evidence.before import StableBefore
from controller.evidence.costs import RolloutCosts
from controller.evidence.judged import JudgedAnswers
from controller.evidence.live_load import LiveLoad
from controller.evidence.mirrored import MirroredAnswers
from controller.evidence.point_estimates import point_estimates
from controller.evidence.reader import JoinedPage, RecordsReader
from controller.evidence.records import GateConfig, draw_of
from controller.evidence.score_join import JOIN_WINDOW_S, MAX_IDS, Joined
from controller.evidence.segment_alarms import RolloutSegmentAlarms, metric_alarms
from controller.evidence.snapshot import envelope_of, stored_feed, trip_of
from controller.evidence.typical_range import TypicalRanges
from controller.rollout.observation import EvidenceStatus, GuardStatus, VersionPhase, VersionStatus
from controller.rollout.state import LIVE, Phase, RolloutState
from evaluation.evaluator import Evaluator
from evaluation.guards import ErrorGuard, GuardAction, GuardVerdict
from evaluation.records import Draw, EvidenceError, Score
from evaluation.report import Verdict
from serving.messages import CANARY, LostSpan, RequestRecord

LOST_SPANS = 1_000


class Feed:
    """One rollout's subscriber of the records log: evaluator, error guard, load and segment alarms."""

    join_ids = 200_000  # at least; by time beyond it, up to MAX_IDS

    def __init__(self, rollout: str, config: GateConfig) -> None:
        self._rollout = rollout
        self._config = config
        self._evaluator: Evaluator | None = None  # None until the first unit of this rollout
        self._before = StableBefore(config.prices)
        # seq -> at_s of requests that a score may still refer to
        self._window: OrderedDict[int, float] = OrderedDict()
        self._guard = ErrorGuard()
        # The guard's trip that no committed look has shown, also if it has recovered.
        self._tripped: GuardVerdict | None = None
        self._looked_at_s = 0.0  # of the state at the last look: when it was committed
        self._shown_at_s: float | None = None  # of the state whose look showed `_tripped`
        self._ranges = TypicalRanges()
        self._load = LiveLoad(config.policy.load_ratio)
        self._segments = RolloutSegmentAlarms(config.policy)
        # How long after its request a score still finds it, after a restart too.
        self.join_s = max((JOIN_WINDOW_S, *(gate.deadline_s for gate in config.policy.gates)))
        self._lost: list[tuple[float, float]] = []  # spans of assignment that have not settled yet
        self._entered = self._stage = -1  # last stage that the evaluator entered; last one acknowledged
        self._acked_at_s = 0.0
        self._low_watermark_s = 0.0
        self._judged = JudgedAnswers.of(rollout, config)
        self._costs = RolloutCosts(rollout, config.prices)
        self._mirrored = MirroredAnswers(rollout, config)
        self._is_mirroring = False
        self.seq = 0
        self._recalled = 0  # position up to which its recent requests are known; `seq`: all are
        self.refused = 0

    @classmethod
    def restore(cls, rollout: str, config: GateConfig, data: bytes) -> Feed:
        """The feed that wrote `data`, without its recent requests: call `recall` until it returns True."""
        saved = stored_feed(data)
        feed = cls(rollout, config)
        if saved["evaluator"] is not None:
            state = base64.b64decode(saved["evaluator"])
            feed._attach(Evaluator.restore(config.policy, config.stages, state))
        feed._before.restore(saved["seed"], has_keys=saved.get("has_keys", False))
        feed._guard = ErrorGuard.from_mapping(saved["guard"])
        feed._tripped = trip_of(saved.get("tripped"))
        feed._entered = feed._stage = saved["entered"]
        feed._low_watermark_s = saved["through_s"]
        feed._lost = [(since_s, until_s) for since_s, until_s in saved.get("lost", [])]
        feed._load.restore(saved)
        feed._segments.restore(saved.get("segments"))
        feed._mirrored.restore(saved.get("mirror"))
        feed._judged.restore(saved.get("judged"))
        feed._costs.restore(saved.get("costs"))
        feed._ranges = TypicalRanges.of(saved.get("ranges"))
        feed.seq, feed._recalled = saved["seq"], saved["join_from"]
        return feed

    def recall(self, reader: RecordsReader) -> bool:
        """Read some more of the recent requests again; True: all are known."""
        recalled = reader.replay(self._recalled, self, self._recall)
        if recalled is None:
            return False
        self._recalled = recalled
        return recalled >= self.seq

    def snapshot(self, resume_seq: int) -> bytes:
        """Everything that `restore` needs, as JSON. resume_seq: from there the join needs the log again."""
        oldest = (next(iter(self._window), None), self._segments.first_seq)
        evaluator = self._evaluator.snapshot() if self._evaluator else None
        saved = {
            "seq": self.seq,
            "join_from": min((resume_seq, *(seq - 1 for seq in oldest if seq is not None))),
            "guard": self._guard.to_mapping(),
            # One that was shown is in the decision that is stored with this snapshot.
            "tripped": asdict(self._tripped) if self._tripped and self._shown_at_s is None else None,
            "entered": self._entered,
            "through_s": self._low_watermark_s,
            "lost": self._lost,
            "mirror": self._mirrored.to_mapping(),
            "judged": self._judged.to_mapping(),
            "costs": self._costs.to_mapping(),
            "ranges": self._ranges.to_mapping(),
            **self._load.to_mapping(),
            "segments": self._segments.to_mapping(),
            "seed": {} if self._evaluator else self._before.values,
            "has_keys": self._before.has_keys,
            "evaluator": base64.b64encode(evaluator).decode() if evaluator else None,
        }
        return envelope_of(self.status(), saved)

    def on_page(self, page: JoinedPage, now_s: float) -> None:
        """Consume one page in its order, then settle what its watermark allows."""
        self._drop_lost(page.lost)
        for event in page.events:
            if event.is_new:
                self._consume(event.request)
            for score in event.scores:
                self._add(self._judged.score_of(score, event.request))
        for copied in page.mirrored:
            self._mirrored.count(copied)
            self._costs.add_copy(copied)
        self._low_watermark_s = max(self._low_watermark_s, page.low_watermark_s)
        for verdict in page.verdicts:
            self._costs.add_question(verdict)
            if verdict.pair is None:
                self._add(self._judged.take(verdict))
            elif self._judged.is_own(verdict):
                self._mirrored.take(verdict)
        self._mirrored.advance(now_s)
        self._judged.expire(self._low_watermark_s, now_s)
        if self._evaluator is not None:
            self._load.report_to(self._evaluator)
            settled_s = self._evaluator.settlement.through_s
            through_s = self._load.settle_through_s(self._low_watermark_s, now_s)
            self._evaluator.advance(max(settled_s, through_s), now_s)
            settled_s = self._evaluator.settlement.through_s
            self._lost = [span for span in self._lost if span[1] > settled_s]
        self._forget(now_s)
        if page.is_end and self._stage >= 0:
            self._started()  # an acknowledged stage has evidence even without a unit

    def follow(self, state: RolloutState, versions: Sequence[VersionStatus] | None, now_s: float) -> None:
        """Note the rollout's weight, stage and ready replicas, at each look. versions None: not known."""
        self._is_mirroring = state.phase is Phase.MIRRORING
        self._looked_at_s = state.ticked_at_s
        self._judged.follow(state.judge)
        if self._shown_at_s is not None and self._shown_at_s != state.ticked_at_s:
            # Committed since that look, so what it showed is decided.
            self._tripped = self._shown_at_s = None
        self._follow_stage(state)
        # An external endpoint may have any number of replicas.
        if versions is not None and not state.stable.external and not state.canary.external:
            ready = {one.version: one.ready_replicas for one in versions if one.phase is VersionPhase.READY}
            self._load.note_ready(ready.get(state.stable.id, 0), ready.get(state.canary.id, 0), now_s)

    def note_shown(self) -> None:
        """The guards of this look were handed on: once it is committed, the guard's trip is shown no more."""
        self._shown_at_s = self._looked_at_s

    def _follow_stage(self, state: RolloutState) -> None:
        """Enter each acknowledged stage once."""
        if state.phase not in LIVE or state.acked_at_s is None:
            return
        self._load.set_weight(state.weight_bp, state.acked_at_s)
        if self._entered < state.stage < len(self._config.stages):
            self._stage, self._acked_at_s = state.stage, state.acked_at_s
            self._enter_stage()

    def status(self) -> EvidenceStatus | None:
        """Status of gates, guards, alarms and point estimates; None: no unit was drawn yet.

        Without stages, as in an undo, there are only guards; while copies are sent, only theirs.
        """
        void = self._judged.judge_void
        harm = self._mirrored.rollback(void)
        if self._is_mirroring:
            mirror, judge = self._mirrored.status(void), self._judged.status()
            return EvidenceStatus(0, Verdict.UNDECIDED, rollback=harm, mirror=mirror, judge=judge)
        hit = self._tripped or self._guard.verdict()
        is_both = hit is not None and hit.action is GuardAction.HOLD
        guards = (GuardStatus(hit.guard, hit.reason, both_arms=is_both),) if hit else ()
        if self._evaluator is None:
            return None if self._config.stages else EvidenceStatus(0, Verdict.UNDECIDED, guards=guards)
        report = self._judged.applied_to(self._evaluator.report())
        points = point_estimates(report, self._config.policy, self._config.stages[report.stage])
        costs = self._costs.status()
        alarms = (*metric_alarms(report, costs.currency), *self._segments.raised(frozen=report.frozen))
        status = EvidenceStatus.of(report, guards, alarms, points, self._judged.status(), costs)
        return replace(status, rollback=status.rollback or harm)  # of pairs whose verdicts came late

    def _drop_lost(self, lost: Sequence[LostSpan]) -> None:
        """Drop every request of a span with lost records, for both arms: the loss may depend on the arm.

        Requests of the span may have come in an earlier page (the fast ones), or come in a later one.
        """
        if not lost:
            return
        spans = [*self._lost, *((span.since_s, span.until_s) for span in lost)]
        self._lost = list(dict.fromkeys(spans))[-LOST_SPANS:]
        if self._evaluator is not None:
            waiting = self._evaluator.settlement.waiting
            for draw in [draw for draw in waiting.values() if self._is_lost(draw.at_s)]:
                del waiting[draw.request_id]

    def _is_lost(self, at_s: float) -> bool:
        return any(since_s <= at_s < until_s for since_s, until_s in self._lost)

    def _consume(self, record: RequestRecord) -> None:
        self._window[record.seq] = record.at_s
        if self._is_own(record):
            if not self._is_lost(record.at_s):
                self._started()
                self._segments.remember(record)
                drawn = self._judged.metrics_of(record)
                self._add(draw_of(record, self._ranges, self._config.prices, sampled=drawn))
                self._costs.add(record)
                self._judged.sample(record)
                self._load.count(record)
                if record.error is not None:
                    self._count_in_guard(record)
        elif not self._config.stages:
            if record.error is not None:
                self._count_in_guard(record, of_replaced=True)
        elif self._evaluator is None:
            self._before.learn(record, self._ranges)

    def _count_in_guard(self, record: RequestRecord, *, of_replaced: bool = False) -> None:
        """of_replaced: the request is of the version that an undo replaces, from before its switch. No coin
        assigned it, nor those after it, so all are of one weight."""
        hit = self._guard.add(
            unit=record.unit,
            canary=record.arm == CANARY and not of_replaced,
            w=record.w if self._config.stages else 1.0,
            error=record.error is True,
            rejected=record.rejected is True,
        )
        if hit is not None:
            self._shown_at_s = None  # it must be shown again
            if self._tripped is None or hit.action is GuardAction.ROLLBACK:
                self._tripped = hit

    def _recall(self, events: Sequence[Joined]) -> None:
        """Remember the requests of events consumed before a restart, without counting them again."""
        for event in events:
            if event.is_new:
                self._window[event.request.seq] = event.request.at_s
                if self._is_own(event.request):
                    self._segments.remember(event.request)

    def _is_own(self, record: RequestRecord) -> bool:
        return record.rollout == self._rollout and record.w > 0

    def _started(self) -> None:
        self._ranges.fix()
        if self._evaluator is None and self._config.stages:
            config = self._config
            evaluator = Evaluator.start(
                config.policy,
                stages=config.stages,
                seed_latency_ms=self._before.values,
                has_keys=self._before.has_keys,
            )
            self._attach(evaluator)
            self._enter_stage()

    def _attach(self, evaluator: Evaluator) -> None:
        evaluator.on_settled = self._segments.on_settled
        self._evaluator = evaluator

    def _enter_stage(self) -> None:
        if self._evaluator is not None and self._stage > self._entered:
            self._entered = self._stage
            self._evaluator.enter_stage(self._stage, self._acked_at_s)

    def _add(self, event: Draw | Score | None) -> None:
        if self._evaluator is None or event is None:
            return
        try:
            self._evaluator.add(event)
        except EvidenceError as exc:
            self.refused += 1
            telemetry.warning("record refused as evidence", rollout=self._rollout, why=str(exc))

    def _forget(self, now_s: float) -> None:
        before_s = now_s - self.join_s
        # A request beyond the join's own bound finds no score any more, however young it is.
        while self._window and (len(self._window) > MAX_IDS or next(iter(self._window.values())) < before_s):
            self._window.popitem(last=False)
        if self._evaluator is not None:
            self._segments.forget(min(before_s, self._evaluator.settlement.through_s))


class EvidenceFeeds:
    """The core's Evidence port for one service: one feed per running rollout, restored from the store."""

    def __init__(
        self,
        reader: RecordsReader,
        snapshot_of: Callable[[str], bytes | None],
        config: Callable[[RolloutState], GateConfig],
    ) -> None:
        """snapshot_of: a rollout's last committed snapshot; None: it has none."""
        self._reader = reader
        self._snapshot_of = snapshot_of
        self._config = config
        self._feeds: dict[str, Feed] = {}
        self._opening: dict[str, Feed] = {}  # restored, and not yet with all of their recent requests
        self._observed: set[str] = set()  # rollouts observed since the last `poll_idle`

    def observe(
        self, rollout: RolloutState, versions: Sequence[VersionStatus] | None, now_s: float
    ) -> EvidenceStatus | None:
        """Poll the log and report; None: the log cannot be read, or no unit was drawn yet.

        None, too, while a restored feed reads its recent requests again, some pages a call: a rollback of the
        service waits for no more than that.

        versions: the service's, with their ready replicas; None: not known, and no load is compared.
        """
        feed = self._feeds.get(rollout.id) or self._open(rollout)
        if feed is None:
            return None
        feed.follow(rollout, versions, now_s)
        is_read = self._reader.poll(now_s)
        if not self._reader.has(rollout.id):
            # It failed on a page that it had partly counted: the next call opens it from its last snapshot.
            del self._feeds[rollout.id]
            return None
        self._observed.add(rollout.id)
        if not is_read:
            return None
        status = feed.status()
        if status is not None and status.guards:
            feed.note_shown()
        return status

    def poll_idle(self, now_s: float) -> None:
        """Poll the log for the other subscribers, unless `observe` has done so since the last call.

        A feed that was not observed since then is dropped: its rollout has ended.
        """
        for rollout in self._feeds.keys() - self._observed:
            self._reader.unsubscribe(rollout)
            del self._feeds[rollout]
        if not self._observed:
            self._reader.poll(now_s)
        self._observed.clear()

    def snapshot(self, rollout: str) -> bytes | None:
        """Snapshot of the feed; None: this rollout has no feed here."""
        feed = self._feeds.get(rollout)
        return feed.snapshot(self._reader.resume_seq(feed.seq)) if feed else None

    def conclusion(self, rollout: str) -> bytes | None:
        """The feed's last status alone; None: this rollout has no feed here."""
        feed = self._feeds.get(rollout)
        return envelope_of(feed.status(), {}) if feed else None

    def _open(self, rollout: RolloutState) -> Feed | None:
        feed = self._opening.get(rollout.id) or self._restored(rollout)
        self._opening = {rollout.id: feed}
        if not feed.recall(self._reader):
            return None
        self._opening.clear()
        self._feeds[rollout.id] = feed
        self._reader.subscribe(rollout.id, feed)
        return feed

    def _restored(self, rollout: RolloutState) -> Feed:
        """The feed of the stored snapshot, or an empty one."""
        config = self._config(rollout)
        saved = self._snapshot_of(rollout.id)
        if saved is not None:
            try:
                return Feed.restore(rollout.id, config, saved)
            except Exception as exc:  # noqa: BLE001 - one of another release may fail anywhere
                # Evidence for another policy does not count: the gate starts again from the whole log.
                telemetry.error("evidence snapshot refused, starting again", exc, rollout=rollout.id)
        return Feed(rollout.id, config)

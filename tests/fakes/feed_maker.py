"""Records, a log of them and evidence feeds on it, for tests of what reads the log."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from controller.evidence.feed import EvidenceFeeds
from controller.evidence.reader import RecordsReader
from controller.evidence.records import GateConfig
from controller.rollout.observation import EvidenceStatus, VersionStatus
from controller.rollout.state import Phase, RolloutState
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from serving.messages import RequestRecord, ScoreRecord
from tests.fakes.plane import FakeLog
from tests.fakes.rollouts import a_rollout

START_S = 1_800_000_000.0
CONFIG = GateConfig(
    GatePolicy.default().only("error", "latency_ms", "quality"),
    (StagePlan(0.1, 50), StagePlan(0.5, 100)),
)
ROLLOUT = "r-00000001"


def a_record(
    n: int, *, arm: int = 0, w: float = 0.1, rollout: str = ROLLOUT, **changes: object
) -> RequestRecord:
    at_s = START_S + 0.1 * n
    record = RequestRecord(
        seq=0, request_id=f"q{n}", answer_id=f"a{n}", unit=f"u{n}", bucket=n % 10_000, arm=arm, w=w,
        assigned_by="request", stage=0, rollout=rollout, at_s=at_s, done_at_s=at_s + 0.05, status=200,
        outcome="answered", served_arm=arm, error=False, cause=None, latency_ms=50.0, ttft_ms=None,
        itl_ms=None, prompt_tokens=9, completion_tokens=9, finish_reason="stop", empty=False,
        path="/v1/chat/completions", router="one", epoch=1, revision=1,
        body_bytes=500 * 4 ** (n % 4),
    )  # fmt: skip
    return replace(record, **changes) if changes else record  # type: ignore[arg-type]


def a_score(id: str, value: float, *, metric: str = "quality", at_s: float = START_S) -> ScoreRecord:
    return ScoreRecord(0, id, metric, value, at_s)


def in_stage(index: int = 0, *, acked_at_s: float = START_S) -> RolloutState:
    state, bp = a_rollout(now_s=START_S), round(CONFIG.stages[index].weight * 10_000)
    return replace(state, phase=Phase.STAGE, stage=index, weight_bp=bp, acked_at_s=acked_at_s, exposed=True)


def traffic(log: FakeLog, count: int, *, first: int = 0, canary_accuracy: float = 0.9, seed: int = 3) -> None:
    """`count` requests at w = 0.5, each scored by its answer's id; latencies and scores by `seed`."""
    rng = random.Random(seed)
    for n in range(first, first + count):
        arm = int(rng.random() < 0.5)
        log.append(a_record(n, arm=arm, w=0.5, latency_ms=rng.expovariate(1 / 80)))
        score = float(rng.random() < (canary_accuracy if arm else 0.97))
        log.append(a_score(f"a{n}", score, at_s=START_S + 0.1 * n + 0.06))
    log.watermark_s = START_S + 0.1 * (first + count)


def feeds_on(log: FakeLog, saved: bytes | None = None, config: GateConfig = CONFIG) -> EvidenceFeeds:
    return EvidenceFeeds(RecordsReader("chat", log), lambda rollout: saved, lambda rollout: config)


def observe(
    feeds: EvidenceFeeds,
    state: RolloutState,
    now_s: float,
    versions: Sequence[VersionStatus] | None = None,
) -> EvidenceStatus:
    status = feeds.observe(state, versions, now_s)
    assert status is not None
    return status


def n_of(status: EvidenceStatus, metric: str) -> tuple[int, int]:
    gate = next(gate for gate in status.gates if gate.metric == metric and gate.side == "rollback")
    return gate.n_stable, gate.n_canary

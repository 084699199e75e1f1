"""Live rollouts and backtests have the same bits, however records are cut; snapshots continue them."""

import json
from typing import Any

import numpy as np
import pytest

from evaluation import snapshot as snapshots
from evaluation.evaluator import Evaluator
from evaluation.offline.backtest import feed, run
from evaluation.offline.columns import checked_table
from evaluation.pipeline import Pipeline
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.report import GateReport
from evaluation.snapshot import SnapshotMismatch
from evaluation.verdict import gate_reports
from tests.fakes.evidence_maker import ONE_STAGE, Columns, draw_at, requests, sticky, streamed

FOUR = ("error", "latency_ms", "quality", "hallucinated")
POLICY = GatePolicy.default().only(*FOUR)


def ramp(rows: int) -> np.ndarray:
    return np.repeat([0.02, 0.05, 0.1, 0.25, 0.5], -(-rows // 5))[:rows]


CASES = {
    "requests": lambda: requests(2400, before=300),
    "harm": lambda: requests(2400, error=(0.02, 0.1), slower=1.3, worse=0.1),
    "sticky users": lambda: sticky(2400, people=400),
    "a ramp with users who come back": lambda: sticky(2400, people=150, w=ramp(2400)),
}


def essence(reports: tuple[GateReport, ...]) -> dict[tuple[str, str], tuple[object, ...]]:
    return {
        (r.gate, r.side): (
            r.verdict,
            r.log_e,
            r.decided_canary,
            r.decided_at_s,
            r.stable,
            r.canary,
            r.n_canary,
        )
        for r in reports
    }


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("policy", [POLICY, GatePolicy.strict().only(*FOUR)], ids=["default", "strict"])
@pytest.mark.slow
def test_a_file_and_a_live_rollout_give_the_same_bits(name: str, policy: GatePolicy) -> None:
    columns = CASES[name]()
    columns["rejected"] = np.zeros(len(columns["arm"]))

    live = streamed(columns, policy, seed=1, reload_ratio=0.1).report()

    assert essence(live.gates) == essence(run(columns, policy, stages=ONE_STAGE).gates)


@pytest.mark.parametrize("size", [1, 97, 2400])
@pytest.mark.slow
def test_the_size_of_blocks_changes_no_bit(size: int) -> None:
    columns: Columns = {k: v[:700] for k, v in CASES["sticky users"]().items()}
    expected = run(columns, POLICY, stages=ONE_STAGE)
    pipeline = Pipeline(POLICY, ONE_STAGE)
    feed(pipeline, checked_table(columns, POLICY), rows_at_once=size)
    for lane in pipeline.lanes:
        lane.close_through(float("inf"))

    assert essence(tuple(gate_reports(pipeline, ONE_STAGE, 0))) == essence(expected.gates)


@pytest.mark.slow
def test_a_restored_evaluator_makes_the_same_snapshot() -> None:
    saved = streamed(CASES["sticky users"](), POLICY, seed=2).snapshot()

    assert Evaluator.restore(POLICY, ONE_STAGE, saved).snapshot() == saved


def test_a_snapshot_of_another_policy_is_refused() -> None:
    saved = Evaluator.start(POLICY, stages=ONE_STAGE, seed_latency_ms={}).snapshot()

    with pytest.raises(SnapshotMismatch, match=GatePolicy.strict().name and "restore with its own"):
        Evaluator.restore(GatePolicy.strict(), ONE_STAGE, saved)


def test_a_snapshot_of_other_stages_is_refused() -> None:
    saved = Evaluator.start(POLICY, stages=ONE_STAGE, seed_latency_ms={}).snapshot()

    with pytest.raises(SnapshotMismatch):
        Evaluator.restore(POLICY, (StagePlan(0.5, 100),), saved)


@pytest.mark.parametrize("data", [b"", b"not json", b"[1]", b'{"format": 99, "digest": "", "state": {}}'])
def test_malformed_snapshots_are_refused(data: bytes) -> None:
    with pytest.raises(SnapshotMismatch):
        Evaluator.restore(POLICY, ONE_STAGE, data)


def test_a_snapshot_without_a_required_part_is_refused() -> None:
    document = json.loads(Evaluator.start(POLICY, stages=ONE_STAGE, seed_latency_ms={}).snapshot())
    del document["state"]["settlement"], document["sum"]
    body = json.dumps(document).encode()[:-1]

    with pytest.raises(SnapshotMismatch, match="settlement"):
        Evaluator.restore(POLICY, ONE_STAGE, body + snapshots._sum(body))


@pytest.mark.slow
@pytest.mark.parametrize(("decades", "kib"), [(0, 44), (10, 60)])
def test_the_state_of_a_metric_is_bounded(decades: int, kib: int) -> None:
    """44 KiB for answers of 2 ms to 80 s; 60 KiB where values need all bins that there can be."""
    rng = np.random.default_rng(5)
    columns = requests(20_000)
    columns["latency_ms"] = rng.lognormal(6.0, 1.5, 20_000)
    if decades:
        columns["latency_ms"] = 10.0 ** (2.5 + decades * rng.uniform(-0.5, 0.5, 20_000))
    policy = GatePolicy.default().only("latency_ms")

    pipeline = streamed(columns, policy).pipeline

    assert len(snapshots.write(pipeline.metrics["latency_ms"], digest="")) <= kib * 1024


def test_pending_records_survive_a_restart() -> None:
    columns = requests(50)
    evaluator = Evaluator.start(POLICY, stages=ONE_STAGE, seed_latency_ms={})
    for row in range(50):
        evaluator.add(draw_at(columns, row))
    evaluator = Evaluator.restore(POLICY, ONE_STAGE, evaluator.snapshot())
    evaluator.advance(100.0, 100.0)

    assert evaluator.report().n_canary == int(columns["arm"].sum())


def without_buffers(value: Any) -> Any:
    if isinstance(value, list):
        return [without_buffers(item) for item in value]
    if not isinstance(value, dict):
        return value
    state = {name: without_buffers(item) for name, item in value.items()}
    return {k: v for k, v in state.items() if k != "waiting"} if "range" in state else state


@pytest.mark.parametrize("version", [1, 5, 6])
def test_a_snapshot_of_an_earlier_format_is_refused_with_what_happens_to_the_rollout(version: int) -> None:
    saved = Evaluator.start(POLICY, stages=ONE_STAGE, seed_latency_ms={}).snapshot()
    earlier = json.dumps({**json.loads(saved), "format": version}).encode()

    with pytest.raises(SnapshotMismatch, match="its weight and stage stay, its proofs start anew"):
        Evaluator.restore(POLICY, ONE_STAGE, earlier)


def test_a_snapshot_of_a_later_format_is_refused() -> None:
    saved = Evaluator.start(POLICY, stages=ONE_STAGE, seed_latency_ms={}).snapshot()
    later = json.dumps({**json.loads(saved), "format": snapshots.FORMAT + 1}).encode()

    with pytest.raises(SnapshotMismatch, match=f"format {snapshots.FORMAT + 1} is unknown"):
        Evaluator.restore(POLICY, ONE_STAGE, later)


@pytest.mark.calibration
def test_an_outlier_as_first_latency_hides_no_harm() -> None:
    """A cached answer of 2 ms before answers of 400 ms does not centre the histogram."""
    columns = requests(3000, w=0.2, before=500, slower=1.6)
    columns["latency_ms"][0] = 2.0
    policy = GatePolicy.default().only("latency_ms")
    begin = {name: values[:900] for name, values in columns.items()}
    results = []
    for size in (1, 7, 900):
        pipeline = Pipeline(policy, ONE_STAGE)
        feed(pipeline, checked_table(begin, policy), rows_at_once=size)
        results.append(essence(tuple(gate_reports(pipeline, ONE_STAGE, 0))))

    assert results[0] == results[1] == results[2]
    assert run(columns, policy).decision == "rollback"

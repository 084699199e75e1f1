"""Gates with covariates: policy, columns, live records, verdicts, size of the state."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from evaluation.evaluator import Evaluator
from evaluation.metrics import Kind
from evaluation.offline.backtest import BacktestResult, feed, run
from evaluation.offline.columns import checked_table
from evaluation.pipeline import Pipeline
from evaluation.policy.gates import StagePlan
from evaluation.policy.parsing import gate_policy_of, parse_gate_policy
from evaluation.policy.policy import GatePolicy
from evaluation.policy.values import PolicyError
from evaluation.records import Draw, EvidenceError, Score, check_draw
from evaluation.report import Verdict
from evaluation.snapshot import write
from evaluation.units.settlement import Settlement
from tests.fakes.evidence_maker import Columns, draw_at, requests, scores_at

ONE = (StagePlan(0.5, 0, {"quality": 0.1}),)


def policy(names: Sequence[object] = ("body_bytes",), preset: str = "strict") -> GatePolicy:
    return gate_policy_of({"preset": preset, "gates": {"quality": {"covariates": list(names)}}})


def columns(rows: int = 3000, *, worse: float = 0.0, r2: float = 0.5, seed: int = 3) -> Columns:
    """Requests whose length explains a share `r2` of their quality; the first third is stable's alone."""
    out = requests(rows, seed=seed, before=rows // 3)
    rng = np.random.default_rng(seed + 1)
    z = rng.standard_normal(rows)
    y = 0.7 - 0.15 * (np.sqrt(r2) * z + np.sqrt(1.0 - r2) * rng.standard_normal(rows)) - worse * out["arm"]
    out["quality"], out["body_bytes"] = np.clip(y, 0.0, 1.0), np.exp(7.0 + z)
    return {name: out[name] for name in ("t_s", "unit", "arm", "w", "assigned_by", "quality", "body_bytes")}


def decided(given: Columns, names: Sequence[str] = ("body_bytes",)) -> BacktestResult:
    return run(given, policy(names).only("quality"), stages=ONE)


# --- the policy


def test_a_policy_with_covariates_is_read_stored_and_read_again() -> None:
    got = policy(["body_bytes", "history_turns"])
    stored = json.loads(json.dumps(got.to_mapping()))

    assert got.gate("quality").covariates == ("body_bytes", "history_turns")
    assert parse_gate_policy(stored) == got


def test_a_policy_without_covariates_has_the_digest_it_had() -> None:
    stored = GatePolicy.default().to_mapping()["gates"]
    assert isinstance(stored, dict)

    assert all("covariates" not in gate for gate in stored.values())
    assert policy().digest() != policy([]).digest()


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["tokens"], "gates.quality.covariates tokens is known only after the toss"),
        (["fell_back"], "fell_back is known only after the toss"),
        (["completion_tokens"], "completion_tokens is known only after the toss"),
        (["a", "b", "a"], "repeats a; give each column once"),
        (list("abcdefghi"), "has 9 names, limit 8"),
        ([3], "3 is not a name; give columns, as [body_bytes]"),
        ([""], "'' is not a name"),
    ],
)
def test_names_that_are_no_covariates_are_refused(names: list[object], says: str) -> None:
    with pytest.raises(PolicyError) as refused:
        policy(names)

    assert says in str(refused.value)


def test_only_scores_have_covariates_in_a_list_and_equal_for_each_metric() -> None:
    with pytest.raises(PolicyError, match=r"gates.error.covariates does not fit kind rate; only scores"):
        gate_policy_of({"gates": {"error": {"covariates": ["body_bytes"]}}})
    with pytest.raises(PolicyError, match=r"covariates 'body_bytes' is not a list; write the names"):
        gate_policy_of({"gates": {"quality": {"covariates": "body_bytes"}}})
    other = replace(policy().gate("quality"), name="quality_wide", alpha_share=0.0, covariates=())
    with pytest.raises(PolicyError, match=r"differ from those of gates.quality, and both test quality"):
        replace(policy(), gates=(*policy().gates, other))
    assert policy().gate("quality").kind is Kind.SCORE


# --- a file


def test_a_missing_column_is_refused_with_the_near_name() -> None:
    given = columns(300)
    given["body_byte"] = given.pop("body_bytes")
    with pytest.raises(EvidenceError, match=r"body_bytes is missing, a covariate .* did you mean body_byte?"):
        decided(given)
    del given["body_byte"]
    with pytest.raises(EvidenceError, match=r"give the column, or leave it out of the policy"):
        decided(given)


def test_an_infinite_value_is_refused_and_a_missing_one_is_not() -> None:
    given = columns(300)
    given["body_bytes"][7] = np.inf
    with pytest.raises(EvidenceError, match=r"body_bytes inf in row 7 .* give a finite number, NaN when"):
        decided(given)
    given["body_bytes"][7] = np.nan
    assert decided(given).decision in ("undecided", "promote")


@pytest.mark.slow
def test_harm_is_found_sooner_and_the_margin_proven_sooner() -> None:
    def medians(names: Sequence[str], worse: float) -> float:
        found = []
        for seed in range(12):
            result = decided(columns(8000, worse=worse, seed=seed), names)
            assert result.decision == ("rollback" if worse else "promote")
            found.append(result.canary_requests)
        return float(np.median(found))

    assert medians(["body_bytes"], 0.06) < 0.85 * medians([], 0.06)
    assert medians(["body_bytes"], 0.0) <= medians([], 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("value", [5.0, np.nan])
def test_a_constant_covariate_decides_what_none_decides_to_the_last_bit(value: float) -> None:
    given = columns(2000, worse=0.04)
    given["body_bytes"] = np.full(2000, value)

    with_x, without = decided(given), decided(given, [])

    assert with_x.log_e == without.log_e
    assert [gate.log_e for gate in with_x.gates] == [gate.log_e for gate in without.gates]


def test_a_covariate_that_the_arm_changes_is_invalid_and_proves_nothing() -> None:
    given = columns(6000, seed=8)
    given["body_bytes"] = given["body_bytes"] * np.where(given["arm"] == 1, 0.6, 1.0)

    result = decided(given)

    assert result.decision == "invalid"
    assert any("covariates (body_bytes) differ by arm" in reason for reason in result.reasons)


# --- live records


def live(given: Columns, names: Sequence[str], *, restored_at: int = -1) -> Evaluator:
    gates = policy(names).only("quality")
    evaluator = Evaluator.start(gates, stages=ONE, seed_latency_ms={})
    for row in range(len(given["t_s"])):
        draw = replace(draw_at(given, row), covariates={"body_bytes": float(given["body_bytes"][row])})
        evaluator.add(draw)
        for score in scores_at(given, row):
            evaluator.add(score)
        if row == restored_at:
            evaluator.advance(draw.at_s - 5.0, draw.at_s)
            evaluator = Evaluator.restore(gates, ONE, evaluator.snapshot())
    evaluator.advance(float("inf"), float("inf"))
    return evaluator


@pytest.mark.slow
def test_live_records_bet_the_bits_of_a_file_and_survive_a_restart() -> None:
    given = columns(900, worse=0.02)
    whole = {(r.gate, r.side): r.log_e for r in live(given, ["body_bytes"]).report().gates}
    again = {(r.gate, r.side): r.log_e for r in live(given, ["body_bytes"], restored_at=700).report().gates}
    file = {(r.gate, r.side): r.log_e for r in decided(given).gates}

    assert whole == again
    assert whole["quality", "rollback"] == file["quality", "rollback"] != 0.0
    assert whole["quality", "promotion"] == file["quality", "promotion"] != 0.0
    assert whole["quality", "rollback"] != decided(given, []).log_e["quality"]


def test_a_live_covariate_must_be_a_number() -> None:
    draw = Draw("r1", "u1", 0.0, 0, 0.5, "request", covariates={"body_bytes": float("nan")})
    with pytest.raises(EvidenceError, match=r"covariate body_bytes nan of r1 is not a number; leave it out"):
        check_draw(draw)


@pytest.mark.slow
def test_the_state_of_eight_covariates_adds_less_than_16_kib() -> None:
    names = [f"x{number}" for number in range(8)]
    rng = np.random.default_rng(2)
    sizes = []
    for chosen in ([], names):
        evaluator = Evaluator.start(policy(chosen).only("quality"), stages=ONE, seed_latency_ms={})
        for row in range(800):
            covariates = dict(zip(names, rng.lognormal(5.0, 1.0, 8).tolist(), strict=True))
            arm = int(row % 5 == 0)
            evaluator.add(
                Draw(
                    f"r{row}", f"u{row}", float(row), arm, 0.2, "request", error=False, covariates=covariates
                )
            )
            evaluator.add(Score(f"r{row}", "quality", float(rng.random()), row + 1.0))
        evaluator.advance(float("inf"), float("inf"))
        sizes.append(len(evaluator.snapshot()))

    assert evaluator.report().gates[0].verdict is Verdict.UNDECIDED
    assert sizes[1] - sizes[0] < 16 * 1024


def test_an_alarms_covariates_are_compared_however_rows_without_a_score_are_cut() -> None:
    gate = replace(policy().gate("quality"), alpha_share=0.0)
    alarm = replace(GatePolicy.strict(), gates=(gate,))
    given = columns(900)
    given["quality"][:600] = np.nan
    table = checked_table(given, alarm)
    states = []
    for cuts in ((0, 900), (0, 450, 600, 900)):
        pipeline = Pipeline(alarm, [replace(ONE[0], margins={})])
        for start, stop in pairwise(cuts):
            feed(pipeline, table.pick(np.arange(start, stop)))
        states.append(write(pipeline.metrics["quality"].covariates, digest=""))

    assert states[0] == states[1]


def test_draws_stored_without_covariates_are_restored() -> None:
    draw = Draw("r1", "u1", 0.0, 0, 0.5, "request", covariates={"body_bytes": 7.0})
    before, after, without = (Settlement(keep_scores_s=0.0) for _ in range(3))
    before.waiting = {"r1": draw}
    after.waiting_rows = before.waiting_rows
    without.waiting_rows = [row[:-1] for row in before.waiting_rows]

    assert after.waiting == before.waiting
    assert without.waiting == {"r1": replace(draw, covariates={})}

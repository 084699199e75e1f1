"""The trials of the gate benchmark: their traffic, the preset's decisions, the goals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.gate.ab_trials import msprt
from benchmarks.gate.growing import Traffic
from benchmarks.gate.trial_cases import TRIALS
from benchmarks.gate.trials import (
    FIRST_RUNG,
    NO_PROOF,
    PRESETS,
    Better,
    Found,
    NotProven,
    Quantile,
    Ratio,
    Row,
    Share,
    decide,
    seed_of,
)
from benchmarks.gate.world_columns import columns_of
from benchmarks.gate.worlds import Arm, World

SMALL = World(sticky=True, w=0.5, canary_requests=600, stable_first=300)
WORLDS = {name: t.measure.world for name, t in TRIALS.items() if hasattr(t.measure, "world")}


def columns(world: World, seed: int = 0) -> dict[str, Any]:
    return {name: np.asarray(column) for name, column in columns_of(world, [7, seed]).items()}


@pytest.mark.sample(67)
@pytest.mark.parametrize("name", list(WORLDS))
def test_every_world_has_complete_columns_in_order_of_time(name: str) -> None:
    got = columns(replace(WORLDS[name], canary_requests=100, stable_first=200, late=0))

    assert len({len(column) for column in got.values()}) == 1
    assert (np.diff(got["t_s"]) >= 0).all()
    assert not got["arm"][got["w"] == 0].any()
    if "latency_ms" in got:
        assert np.isnan(got["latency_ms"]).any() == (WORLDS[name].lost + WORLDS[name].patience_s > 0.0)


def test_a_unit_keeps_its_arm_and_its_weight() -> None:
    got = columns(replace(SMALL, canary=Arm(turns=6)))
    for name in ("arm", "w"):
        of_unit = np.full(got["unit"].max() + 1, -1.0)
        of_unit[got["unit"]] = got[name]
        assert (of_unit[got["unit"]] == got[name]).all()


@pytest.mark.parametrize("sticky", [True, False])
def test_a_repetition_is_deterministic(sticky: bool) -> None:
    world = replace(SMALL, sticky=sticky)
    first, again, other = columns(world), columns(world), columns(world, 1)

    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert len(first["arm"]) != len(other["arm"]) or (first["arm"] != other["arm"]).any()


def test_the_worlds_have_the_properties_they_name() -> None:
    large = replace(SMALL, canary_requests=6000)
    failing = columns(replace(large, users_failing=0.03))
    judged = columns(replace(large, users_judged=0.3))
    slowest = columns(replace(large, sticky=False, stable=Arm(error=0.0, fails_slowest=0.05)))
    stamped = columns(replace(large, resolution_s=10.0))
    depth = columns(replace(large, stable=Arm(turns=6, deeper=0.1), sigma=0.01))

    per_unit = np.bincount(failing["unit"], failing["error"]) / np.bincount(failing["unit"])
    assert (per_unit == 1.0).mean() == pytest.approx(0.03, abs=0.01)
    has_score = np.bincount(judged["unit"], ~np.isnan(judged["quality"])) > 0
    assert has_score.mean() == pytest.approx(0.3, abs=0.03)
    stable = slowest["arm"] == 0
    failed = slowest["error"][stable] == 1
    assert failed.mean() == pytest.approx(0.05, abs=0.01)
    assert slowest["latency_ms"][stable][failed].min() >= slowest["latency_ms"][stable][~failed].max()
    same = np.diff(stamped["t_s"]) == 0
    assert same.mean() > 0.5
    assert (np.diff(stamped["arm"])[same] >= 0).all()
    stable = (depth["arm"] == 0) & (depth["error"] == 0)
    assert np.quantile(depth["latency_ms"][stable], 0.9) > 1.4 * np.quantile(depth["latency_ms"][stable], 0.1)


@pytest.mark.parametrize(("before", "after"), [(4.0, 2.0), (1.3, 8.0)])
def test_conversations_have_the_named_lengths(before: float, after: float) -> None:
    got = columns(replace(SMALL, stable=Arm(turns=before), canary=Arm(turns=after), canary_requests=4000))
    for arm, mean in ((0, before), (1, after)):
        rows = (got["arm"] == arm) & (got["w"] > 0)
        assert rows.sum() / len(np.unique(got["unit"][rows])) == pytest.approx(mean, rel=0.06)


def test_clients_leave_after_the_named_times() -> None:
    large = replace(SMALL, sticky=False, canary_requests=6000, canary=Arm(first_token=0.5, slowest=1.3))
    early, late = (
        columns(replace(large, first_token_within_s=0.38)),
        columns(replace(large, answer_within_s=2.15)),
    )
    for got, after_ms, stable, canary in ((early, 380.0, 0.12, 0.007), (late, 2150.0, 0.024, 0.030)):
        left, arm = got["cancelled"] == 1.0, got["arm"]
        assert left[arm == 0].mean() == pytest.approx(stable, abs=0.012)
        assert left[arm == 1].mean() == pytest.approx(canary, abs=0.008)
        assert (got["latency_ms"][left] == after_ms).all()
        assert not got["error"][left].any()


def test_coarse_values_keep_their_means() -> None:
    exact, coarse = (columns(replace(SMALL, score_step=step, canary_requests=6000)) for step in (0.0, 1.0))

    assert set(np.unique(coarse["quality"][~np.isnan(coarse["quality"])])) == {0.0, 1.0}
    assert np.nanmean(coarse["quality"]) == pytest.approx(np.nanmean(exact["quality"]), abs=0.02)


def test_a_coarse_canary_is_slower_throughout() -> None:
    world = replace(SMALL, canary=Arm(latency_scale=1.2, error=0.0), stable=Arm(error=0.0), step_ms=400.0)
    got = columns(replace(world, canary_requests=4000))
    y1, y0 = (np.sort(got["latency_ms"][got["arm"] == arm]) for arm in (1, 0))

    assert set(np.unique(y0 % 400.0)) == {0.0}
    for value in np.unique(y0)[:3]:
        assert (y1 / 1.2 > value - 1.0).mean() == pytest.approx((y0 > value - 1.0).mean(), abs=0.05)


@pytest.mark.parametrize(("below", "share"), [(0.207, 0.02), (0.296, 0.05)])
def test_the_worst_answers_fail(below: float, share: float) -> None:
    world = replace(SMALL, sticky=False, canary_requests=8000)
    got = columns(replace(world, canary=Arm(quality=0.70, error=0.0, fails_below=below)))
    canary = got["arm"] == 1

    assert got["error"][canary].mean() == pytest.approx(share, abs=0.008)
    assert np.nanmin(got["quality"][canary]) >= below
    assert np.nanmin(got["quality"][~canary]) < below


def test_late_harm_begins_with_the_second_stage() -> None:
    world = replace(SMALL, canary=Arm(error=0.6), late=300, stages=2)
    got = columns(world)
    canary = got["arm"] == 1

    assert got["error"][canary & (got["stage"] == 0)].mean() < 0.1
    assert got["error"][canary & (got["stage"] == 1)].mean() > 0.4
    assert (np.diff(got["stage"]) >= 0).mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_a_harmful_canary_is_rolled_back_and_a_twin_is_promoted(preset: str) -> None:
    twin = replace(SMALL, sticky=False, canary_requests=4000)
    good, bad = (
        decide(Traffic(columns_of(world, [5])), preset, FIRST_RUNG)
        for world in (twin, replace(twin, canary=Arm(error=0.3)))
    )

    assert good.word == "promote"
    assert (good.canary or 0) >= FIRST_RUNG.min_canary
    assert bad.word == "rollback"
    assert "error" in bad.metrics


@pytest.mark.slow
def test_without_margins_nothing_is_promoted() -> None:
    assert decide(Traffic(columns_of(SMALL, [5])), "default", NO_PROOF).word == "undecided"


@pytest.mark.slow
def test_no_stage_is_promoted_before_its_minimum() -> None:
    got = columns_of(replace(SMALL, sticky=False, canary_requests=4000), [5])

    assert decide(Traffic(got), "default", FIRST_RUNG, canary_requests=450).word == "undecided"


@pytest.mark.slow
def test_an_undecided_run_goes_on_to_the_next_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Better, "LENGTHS", (20, 3000))
    row = Better("x", replace(SMALL, sticky=False, canary_requests=3000))(0)

    assert (row["strict"], row["default"]) == ("promote", "promote")


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize(("late", "within"), [(0, (1, 80)), (300, (1, 100))])
def test_a_time_is_counted_from_the_beginning_of_the_harm(late: int, within: tuple[int, int]) -> None:
    world = replace(SMALL, canary=Arm(error=0.9), late=late, w=0.5, metrics=("error",))
    found = [Found("x", world)(rep)["strict_at"] for rep in range(5)]

    assert all(isinstance(at, int) and within[0] <= at <= within[1] for at in found)


@pytest.mark.slow
def test_a_proof_of_the_last_stage_alone_counts() -> None:
    world = replace(SMALL, sticky=False, metrics=("error",), canary_requests=3000)
    good = NotProven("x", world, {"error": 5.0})(0)
    bad = NotProven("x", replace(world, canary=Arm(error=0.2)), {"error": 5.0})(0)

    assert (good["proven"], bad["proven"]) == ("promote", "undecided")


def rows_of(bad: int, runs: int) -> list[Row]:
    return [{"rep": i, "strict": "rollback" if i < bad else "undecided"} for i in range(runs)]


@pytest.mark.parametrize(
    ("bad", "runs", "reached"), [(16, 1000, True), (17, 1000, False), (3, 100, True), (4, 100, False)]
)
def test_sixteen_runs_of_a_thousand_may_be_rolled_back(bad: int, runs: int, reached: bool) -> None:
    goal = Share("strict", frozenset({"rollback", "invalid"}), 0.016, 0.01)

    assert goal.judge(rows_of(bad, runs), 1000) == (f"{bad / runs:.1%}", reached)


@pytest.mark.parametrize(("bad", "reached"), [(50, True), (51, False)])
def test_nineteen_of_twenty_must_be_promoted(bad: int, reached: bool) -> None:
    goal = Share("strict", frozenset({"undecided"}), 0.95, 0.97, at_least=True)

    assert goal.judge(rows_of(bad, 1000), 1000)[1] is reached


def test_a_run_without_a_decision_counts_as_infinite() -> None:
    rows: list[Row] = [{"rep": 0, "at": 10}, {"rep": 1, "at": None}, {"rep": 2, "at": 30}]

    assert Quantile("at", 30).judge(rows, 3) == ("30", True)
    assert Quantile("at", 29).judge(rows, 3) == ("30", False)
    assert Quantile("at", 30, 1.0).judge(rows, 3) == ("67% found", False)
    assert Ratio("at", "at", 1.2).judge(rows, 3) == ("30 / 30", True)
    assert Ratio("at", "none", 1.2).judge([{"rep": 0, "at": 9, "none": None}], 1)[1] is False


def test_no_figure_reaches_no_goal() -> None:
    assert Share("x", frozenset(), 0.5, 0.5).judge([], 10)[1] is False


def test_seeds_are_of_the_name() -> None:
    assert seed_of("a", 1) == seed_of("a", 1) != seed_of("b", 1)


def test_msprt_keeps_its_alpha_and_finds_the_effect_it_is_tuned_to() -> None:
    false, found = 0, []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        is_b = rng.random(4000) < 0.5
        equal = (rng.random(4000) < 0.5).astype(np.float64)
        better = (rng.random(4000) < np.where(is_b, 0.6, 0.5)).astype(np.float64)
        false += msprt(equal, is_b, 0.1, 0.5) is not None
        found.append(msprt(better, is_b, 0.1, 0.55) or 10**6)

    assert false <= 11
    # log(1 / alpha) and the cost of the mixture, over the mean gain a unit of effect^2 / (8 v).
    assert 500 < np.median(found) < 1100

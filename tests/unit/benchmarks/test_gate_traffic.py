"""Traffic of the gate benchmark, and the other methods that it compares."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.gate.cases import BOUNDARY, CASES, UNIT_MODELS
from benchmarks.gate.peers import alarms, summary, tolerated
from benchmarks.gate.traffic import RAMP, STABLE_FIRST, Behaviour, Case, Events, Traffic, simulate

SMALL = {name: replace(case, canary_requests=400) for name, case in CASES.items()}


def columns(case: Case, rep: int = 0) -> dict[str, np.ndarray]:
    return {name: np.asarray(column) for name, column in simulate(case, rep).columns.items()}


@pytest.mark.parametrize("name", list(CASES))
def test_every_case_has_complete_columns_in_order_of_time(name: str) -> None:
    got = columns(SMALL[name])

    assert len({len(column) for column in got.values()}) == 1
    assert (np.diff(got["t_s"]) >= 0).all()
    assert not got["arm"][got["w"] == 0].any()


@pytest.mark.parametrize("name", ["independent", "sticky users, drift", "ramp, returning users, drift"])
def test_a_repetition_is_deterministic(name: str) -> None:
    first, second = columns(SMALL[name], 3), columns(SMALL[name], 3)

    assert all((first[column] == second[column]).all() for column in first)
    assert (columns(SMALL[name], 4)["arm"] != first["arm"]).any()


def test_stable_serves_the_first_rows_alone() -> None:
    before = columns(SMALL["independent"])["w"] == 0

    assert before[:STABLE_FIRST].mean() > 0.98
    assert not before[STABLE_FIRST + 200 :].any()


@pytest.mark.parametrize("model", list(UNIT_MODELS))
def test_a_unit_keeps_its_arm_and_the_weight_of_its_draw(model: str) -> None:
    got = columns(Case(f"units {model}", "no_harm", traffic=UNIT_MODELS[model], canary_requests=1500))
    _, first = np.unique(got["unit"], return_index=True)
    people = got["unit"].astype(np.int64)
    position = np.zeros(people.max() + 1, dtype=np.int64)
    position[got["unit"][first]] = first

    assert (got["arm"] == got["arm"][position[people]]).all()
    assert (got["w"] == got["w"][position[people]]).all()


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.6])
def test_tokens_are_held_by_the_named_share_of_the_second_stage(ratio: float) -> None:
    traffic = Traffic(units="held", held_ratio=ratio)
    got = columns(Case("held", "no_harm", traffic=traffic, canary_requests=4000))
    late = got["t_s"] > np.quantile(got["t_s"], 0.6)
    units, first = np.unique(got["unit"][late], return_index=True)

    assert (got["assigned_by"][late][first] == "pin").mean() == pytest.approx(ratio, abs=0.03)
    assert len(units) > 1000


def test_returning_users_never_move_back_to_stable() -> None:
    got = columns(replace(SMALL["ramp, returning users, drift"], canary_requests=3000))
    order = np.lexsort((got["t_s"], got["unit"]))
    same_unit = np.diff(got["unit"][order]) == 0

    assert (np.diff(got["arm"][order])[same_unit] >= 0).all()
    assert set(np.unique(got["w"])) == {0.0, *RAMP}


def test_a_takeover_leaves_the_slowest_canary_answers_in_their_arm() -> None:
    got = columns(Case("fallback", "no_harm", traffic=Traffic(units="fallback"), canary_requests=2000))
    taken_over = got["assigned_by"] == "fallback"

    assert got["arm"][taken_over].all()
    assert taken_over.sum() / got["arm"].sum() == pytest.approx(0.05, abs=0.002)
    assert got["latency_ms"][taken_over].min() > got["latency_ms"][(got["arm"] == 1) & ~taken_over].max()


@pytest.mark.parametrize("case", [c for c in BOUNDARY if "sticky 50" not in c.name], ids=lambda c: c.name)
def test_a_boundary_canary_is_exactly_as_bad_as_its_margin(case: Case) -> None:
    got = columns(replace(case, canary_requests=4000, traffic=replace(case.traffic, w=0.5, rate_per_s=3.0)))
    canary = got["arm"] == 1
    [(gate, margin)] = case.proofs.items()
    column = {"error": "error", "hallucination": "hallucinated", "quality": "quality"}.get(gate, "latency_ms")
    y1, y0 = got[column][canary], got[column][~canary]

    if gate in ("error", "hallucination"):
        edge = max(margin * getattr(case.stable, column), getattr(case.stable, column) + case.floor)
        assert getattr(case.canary, column) == pytest.approx(edge)
        assert y1.mean() == pytest.approx(edge, rel=0.35)
    elif gate == "quality":
        assert y0.mean() - y1.mean() == pytest.approx(margin, abs=0.03)
    else:
        assert np.quantile(y1, 0.99) / np.quantile(y0, 0.99) == pytest.approx(margin, rel=0.2)


def test_a_stretched_tail_moves_the_p99_and_nothing_below_p95() -> None:
    got = columns(
        Case("tail", "rollback", Behaviour(p99_scale=1.5), traffic=Traffic(w=0.5), canary_requests=60_000)
    )
    y1, y0 = (got["latency_ms"][got["arm"] == arm] for arm in (1, 0))

    assert np.quantile(y1, 0.99) / np.quantile(y0, 0.99) == pytest.approx(1.5, rel=0.05)
    assert np.quantile(y1, 0.9) / np.quantile(y0, 0.9) == pytest.approx(1.0, rel=0.02)


@pytest.mark.slow
def test_the_fixed_horizon_alarms_agree_with_scipys_test() -> None:
    case = Case("mw", "rollback", Behaviour(error=0.02), metrics=("error",), canary_requests=1000)
    agreed = 0
    for rep in range(20):
        events = simulate(case, rep)
        got: dict[str, Any] = {name: np.asarray(column) for name, column in events.columns.items()}
        whole = int(got["arm"].sum()) // 20 * 20
        rows = (got["w"] > 0) & (np.cumsum(got["arm"]) - got["arm"] < whole)
        y1, y0 = (got["error"][rows & (got["arm"] == arm)] for arm in (1, 0))
        test = stats.mannwhitneyu(y1, y0, alternative="greater", method="asymptotic", use_continuity=False)
        agreed += (test.pvalue < 0.01) == (alarms(events, alpha_metric=0.01).fixed_horizon is not None)

    assert agreed == 20


@pytest.mark.slow
def test_walds_test_decides_at_the_expected_time() -> None:
    case = replace(CASES["hallucination 3 -> 14 %"], metrics=("hallucinated",))
    times = [alarms(simulate(case, rep), alpha_metric=0.0025).wald for rep in range(60)]

    # Mean gain of the coin's log likelihood: 0.102 nats a canary request; log(400) / 0.102 = 58.
    assert summary(times)["median"] == pytest.approx(58, abs=20)


@pytest.mark.calibration
@pytest.mark.parametrize(
    ("name", "kept", "later"),
    [
        ("hallucination 3 -> 14 %", {"hallucinated": 0.0375}, 1.0),
        ("quality -0.05", {"quality": 0.725}, 2.0),
        ("latency x1.2", {"latency_scale": 1.1}, 2.0),
        ("tail only, p99 +50 %", {"p99_scale": 1.5}, 1.0),
    ],
)
def test_walds_test_against_the_tolerance_decides_later(
    name: str, kept: dict[str, float], later: float
) -> None:
    case = CASES[name]
    pairs = [alarms(simulate(case, rep), alpha_metric=0.0025) for rep in range(7)]
    plain, limited = (np.median([getattr(p, f) or 10**6 for p in pairs]) for f in ("wald", "wald_tolerated"))

    assert tolerated(case.canary, case.stable) == replace(case.canary, **kept)
    assert later * plain < limited < 10**6


def test_a_tolerated_harm_has_no_limit() -> None:
    assert alarms(simulate(CASES["quality -0.02"], 0), alpha_metric=0.0025).wald_tolerated is None


@pytest.mark.slow
def test_thresholds_need_fifty_samples() -> None:
    case = replace(CASES["hallucination 3 -> 14 %"], canary_requests=400)
    times = [alarms(simulate(case, rep), alpha_metric=0.0025).thresholds for rep in range(10)]

    assert min(t for t in times if t is not None) >= 60


def test_a_run_without_an_alarm_counts_as_infinite() -> None:
    assert summary([20, None, 40, None]) == {"rang": 0.5, "median": 40.0, "p90": None}


def test_no_method_raises_an_alarm_without_a_canary() -> None:
    got = simulate(SMALL["independent"], 0)
    without_canary = Events(got.case, {name: column[:100] for name, column in got.columns.items()})

    assert alarms(without_canary, alpha_metric=0.01).thresholds is None

"""Decisions of `backtest.run`, and the input that it refuses by name."""

import re

import numpy as np
import pytest

from evaluation.offline.backtest import run
from evaluation.policy.gates import StagePlan
from evaluation.policy.parsing import parse_gate_policy
from evaluation.policy.values import PolicyError
from evaluation.records import EvidenceError
from tests.fakes.evidence_maker import Columns, requests


def only(columns: Columns, *metrics: str) -> Columns:
    """The columns without the other metrics."""
    dropped = {"error", "latency_ms", "quality", "hallucinated"} - set(metrics)
    return {name: values for name, values in columns.items() if name not in dropped}


@pytest.mark.slow
def test_a_canary_like_stable_is_promoted() -> None:
    result = run(requests(8000, before=1000))

    assert (result.decision, result.policy) == ("promote", "default")


@pytest.mark.slow
def test_harm_rolls_back_and_names_its_metric_and_where() -> None:
    result = run(requests(8000, before=1000, error=(0.02, 0.12)), "default")

    assert (result.decision, result.metric) == ("rollback", "error")
    assert 20 < result.canary_requests < 400
    assert 1000 < result.t_s < 4000
    assert result.log_e["error"] >= np.log(1 / 0.003)


@pytest.mark.slow
def test_worse_quality_rolls_back() -> None:
    assert run(requests(8000, before=1000, worse=0.15)).metric == "quality"


@pytest.mark.slow
def test_slower_answers_roll_back() -> None:
    assert run(requests(8000, before=1000, slower=1.6)).metric == "latency_ms"


def test_too_little_evidence_is_undecided() -> None:
    assert run(requests(60)).decision == "undecided"


def test_an_absent_column_is_not_gated() -> None:
    result = run(only(requests(4000, before=1000), "error"))

    assert set(result.log_e) == {"error"}


@pytest.mark.slow
def test_a_rollback_is_the_same_whatever_comes_after_it() -> None:
    columns = requests(8000, before=1000, error=(0.02, 0.12))
    whole = run(columns)

    part = run({name: values[: int(whole.t_s) + 2] for name, values in columns.items()})

    assert (part.decision, part.canary_requests, part.t_s) == ("rollback", whole.canary_requests, whole.t_s)


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("arm", [0, 1])
def test_an_empty_arm_is_invalid(arm: int) -> None:
    columns = requests(4000, w=0.5)
    columns["arm"][:] = arm

    result = run(columns)

    assert result.decision == "invalid"
    assert "no requests" in result.reasons[0]


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("metric", ["quality", "hallucinated", "error"])
def test_a_metric_that_never_arrives_is_invalid(metric: str) -> None:
    columns = requests(4000)
    columns[metric][:] = np.nan

    result = run(columns)

    assert result.decision == "invalid"
    assert "no value" in " ".join(result.reasons)


@pytest.mark.slow
def test_a_metric_that_stops_arriving_is_invalid() -> None:
    columns = requests(4000)
    columns["quality"][3000:] = np.nan

    assert "quality: stopped arriving" in " ".join(run(columns).reasons)


@pytest.mark.slow
def test_many_missing_values_are_invalid() -> None:
    columns = requests(4000)
    columns["latency_ms"][::5] = np.nan

    assert re.search(
        r"20% of values missing in the last \d{4} requests, limit 10% \(max_missing\)",
        " ".join(run(columns).reasons),
    )


@pytest.mark.slow
def test_a_metric_is_valid_again_after_an_outage_of_the_grader() -> None:
    columns = requests(4000)
    columns["quality"][1000:1600] = np.nan  # 15 % of all, of both arms alike

    assert not any("missing" in reason for reason in run(columns).reasons)
    during = {name: column[:1600] for name, column in columns.items()}
    assert any("quality" in reason for reason in run(during).reasons)


@pytest.mark.slow
def test_a_few_missing_values_are_valid() -> None:
    columns = requests(6000, before=1000)
    columns["quality"][::50] = np.nan

    assert run(columns).decision == "promote"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t_s": np.nan}, "t_s is not finite"),
        ({"arm": 2}, "arm 2.0"),
        ({"w": 1.5}, "w 1.5"),
        ({"w": np.nan}, "w nan"),
        ({"error": 2.0}, "error 2.0"),
        ({"error": np.inf}, "error inf"),
        ({"latency_ms": -1.0}, "latency_ms -1.0"),
        ({"latency_ms": np.inf}, "latency_ms inf"),
        ({"quality": 1.2}, "quality 1.2"),
        ({"quality": -0.2}, "quality -0.2"),
    ],
)
def test_an_invalid_value_is_refused_with_its_row(change: dict[str, float], message: str) -> None:
    columns = requests(100)
    for name, value in change.items():
        columns[name][17] = value

    with pytest.raises(EvidenceError, match=f"{message}.* row 17"):
        run(columns)


def test_an_arm_impossible_at_its_weight_is_refused() -> None:
    columns = requests(100, w=0.5)
    columns["w"][columns["arm"] == 1] = 0.0

    with pytest.raises(EvidenceError, match="contradicts"):
        run(columns)


def test_rows_out_of_order_are_refused() -> None:
    columns = requests(100)
    columns["t_s"][50] = 3.0

    with pytest.raises(EvidenceError, match="t_s goes back in row 50"):
        run(columns)


def test_columns_of_different_length_are_refused() -> None:
    columns = requests(100)
    columns["error"] = columns["error"][:99]

    with pytest.raises(EvidenceError, match="column error has 99 rows"):
        run(columns)


def test_repeated_requests_are_refused() -> None:
    columns = requests(100)
    columns["request_id"] = np.arange(100)
    columns["request_id"][40] = 39

    with pytest.raises(EvidenceError, match="row 40"):
        run(columns)


def test_a_duplicate_row_is_refused() -> None:
    columns = {
        name: np.repeat(values, np.where(np.arange(100) == 30, 2, 1))
        for name, values in requests(100).items()
    }

    with pytest.raises(EvidenceError, match=r"row 31 .*the request is a duplicate"):
        run(columns)


@pytest.mark.parametrize("name", ["t_s", "arm", "w"])
def test_a_missing_required_column_is_named(name: str) -> None:
    columns = requests(100)
    del columns[name]

    with pytest.raises(EvidenceError, match=name):
        run(columns)


def test_sticky_rows_need_the_name_of_their_unit() -> None:
    columns = requests(100)
    columns["assigned_by"] = np.full(100, "sticky")
    del columns["unit"]

    with pytest.raises(EvidenceError, match="unit"):
        run(columns)


def test_a_text_column_of_a_metric_is_refused() -> None:
    columns = requests(100)
    columns["latency_ms"] = np.full(100, "fast")

    with pytest.raises(EvidenceError, match="latency_ms is not numeric"):
        run(columns)


def test_columns_without_a_gated_metric_are_refused() -> None:
    with pytest.raises(PolicyError, match="no column is gated"):
        run(only(requests(100)))


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(PolicyError, match="lenient"):
        run(requests(100), "lenient")


@pytest.mark.slow
def test_several_stages_need_a_stage_column() -> None:
    columns = requests(6000, before=500)
    stages = (StagePlan(0.2, 200), StagePlan(0.2, 200))

    with pytest.raises(EvidenceError, match="column stage"):
        run(columns, stages=stages)
    columns["stage"] = np.repeat([0, 1], 3000)
    assert run(columns, stages=stages).decision == "promote"


@pytest.mark.slow
def test_a_gate_without_alpha_never_decides() -> None:
    policy = parse_gate_policy({"gates": {"error": {"alpha_share": 0.0}}})

    assert run(requests(8000, error=(0.02, 0.3)), policy).decision == "undecided"

"""Input of `backtest.run`: array-likes, missing values, assignment, duplicates; all else is refused."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluation.offline.backtest import BacktestResult, run
from evaluation.offline.trace import trace
from evaluation.policy.gates import StagePlan
from evaluation.policy.policy import GatePolicy
from evaluation.policy.values import PolicyError
from evaluation.records import EvidenceError
from tests.fakes.evidence_maker import Columns, requests, sticky

Loose = dict[str, Any]
NAN = float("nan")


def essence(result: BacktestResult) -> tuple[object, ...]:
    return result.decision, result.canary_requests, dict(result.log_e), dict(result.proofs)


def changed(columns: Columns, **more: object) -> Loose:
    return {**columns, **more}


# --- array-likes


class Series:
    """The part of a pandas column that numpy uses."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.values, dtype=dtype)


class Frame:
    """The part of a pandas table that is used here."""

    def __init__(self, columns: Loose) -> None:
        self.columns = columns

    def keys(self) -> object:
        return self.columns.keys()

    def __getitem__(self, name: str) -> object:
        return Series(self.columns[name])


@pytest.fixture(scope="module")
def answer() -> object:
    return essence(run(requests(1500, before=300)))


@pytest.mark.slow
@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "change",
    [
        lambda c: {name: list(values) for name, values in c.items()},
        lambda c: {name: tuple(values.tolist()) for name, values in c.items()},
        lambda c: {name: values.astype(object) for name, values in c.items()},
        lambda c: {name: np.ma.asarray(values) for name, values in c.items()},
        lambda c: {**c, "arm": c["arm"].astype(bool), "error": c["error"].astype(bool)},
        lambda c: {**c, "arm": c["arm"].astype(np.int8), "hallucinated": c["hallucinated"].astype(np.uint64)},
        lambda c: {**c, "assigned_by": np.array([b"request"] * len(c["arm"]))},
        lambda c: {**c, "unit": [UUID(int=i) for i in range(len(c["arm"]))]},
        lambda c: {**c, "note": ["not gated"] * len(c["arm"])},
        Frame,
    ],
)
def test_any_array_like_gives_the_same_answer(change: Any, answer: object) -> None:
    assert essence(run(change(requests(1500, before=300)))) == answer


@pytest.mark.slow
def test_none_and_masked_values_are_missing() -> None:
    columns = requests(3000, error=(0.02, 0.2))
    missing = columns["arm"] == 1
    masked = np.ma.masked_where(missing, np.where(missing, 99, columns["error"].astype(int)))
    with_none = [None if lost else value for value, lost in zip(columns["error"], missing, strict=True)]
    expected = run(changed(columns, error=np.where(missing, NAN, columns["error"])))

    assert essence(run(changed(columns, error=masked))) == essence(expected)
    assert essence(run(changed(columns, error=with_none))) == essence(expected)
    assert expected.decision == "invalid"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("w", 0.05, "column w is one value, 0.05"),
        ("w", np.array(0.05), "column w is one value"),
        ("assigned_by", "request", "column assigned_by is one value, 'request'"),
        ("error", None, "column error is None; leave it out"),
        ("error", np.zeros((100, 2)), r"column error is of shape \(100, 2\)"),
        ("t_s", np.zeros((100, 1)), r"column t_s is of shape \(100, 1\)"),
        ("t_s", np.zeros(100, dtype="datetime64[s]"), "t_s holds dates; give seconds"),
        ("error", ["no"] * 100, "column error is not numeric"),
        ("quality", np.zeros(100) + 0j, "column quality is not numeric"),
        ("tokens", [10**400] * 100, "column tokens is not numeric"),
        ("tokens", [[1], [1, 2]] * 50, "column tokens is"),
        ("arm", ["canary"] * 100, "column arm is not numeric"),
        ("assigned_by", [None] * 100, "assigned_by is missing in row 0"),
        ("assigned_by", ["request", None] * 50, "assigned_by is missing in row 1"),
        ("assigned_by", np.zeros(100), r"row 0: assigned_by '0' is unknown"),
        ("assigned_by", ["request", "zzz"] * 50, "row 1: assigned_by 'zzz' is unknown; use request, sticky"),
        ("request_id", [None] * 100, "request_id is missing in row 0"),
        ("request_id", ["x"] * 100, "request_id x in row 1 .*the request is a duplicate"),
        ("unit", [["a"]] * 100, r"column unit is of shape"),
        ("unit", [{"a": 1}] * 100, "unit {'a': 1} in row 0 is not a name"),
        ("unit", ["a\0"] * 100, "in row 0 is not a name"),
        ("stage", [NAN] * 100, "stage nan in row 0"),
        ("stage", [-3] * 100, "stage -3.0 in row 0"),
        ("stage", [0.5] * 100, "stage 0.5 in row 0"),
        ("stage", ["a"] * 100, "column stage is not numeric"),
        ("hallucinated", [1e-9] * 100, "hallucinated 1e-09 in row 0 .*give 0 or 1"),
        ("error", [0.5] * 100, "error 0.5 in row 0 .*give 0 or 1"),
        ("fell_back", [5] * 100, "fell_back 5.0 in row 0"),
        ("fell_back", [-1] * 100, "fell_back -1.0 in row 0"),
        ("fell_back", ["x"] * 100, "column fell_back is not numeric"),
        ("w", [1e-300] * 100, "w 1e-300 in row 0 .*give 0 before the canary, or at least 1e-09"),
        ("w", [1.0 - 2**-53] * 100, "w 0.99.* in row 0"),
        ("unknown", [1] * 99, "column unknown has 99 rows"),
    ],
)
def test_an_ambiguous_column_is_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(EvidenceError, match=message) as refused:
        run(changed(requests(100), **{name: value}))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("columns", [None, 5, "columns", [1, 2]])
def test_columns_that_are_not_a_table_are_refused(columns: Any) -> None:
    with pytest.raises(EvidenceError, match=r"columns are .*; give a mapping of names to arrays"):
        run(columns)


@pytest.mark.parametrize("missing", [None, NAN, ""])
def test_a_sticky_row_without_its_unit_is_refused(missing: object) -> None:
    columns = sticky(200, people=50)
    units = columns["unit"].tolist()
    units[17] = missing

    with pytest.raises(EvidenceError, match="unit is missing in row 17"):
        run(changed(columns, unit=units))


# --- how a row was assigned


@pytest.mark.slow
def test_requests_are_their_own_units_by_default() -> None:
    columns = requests(1500, before=300)
    bare = {name: column for name, column in columns.items() if name != "assigned_by"}

    assert essence(run(bare)) == essence(run(columns))
    del bare["unit"]
    assert essence(run(bare)) == essence(run(columns))


@pytest.mark.slow
def test_repeated_units_are_sticky_by_default() -> None:
    columns = sticky(1500, people=200)
    bare = {name: column for name, column in columns.items() if name != "assigned_by"}

    assert essence(run(bare)) == essence(run(columns))


@pytest.mark.slow
@pytest.mark.parametrize("word", ["force", "header"])
def test_forced_rows_are_left_out_of_both_arms(word: str) -> None:
    columns = requests(3000, before=300)
    forced = np.arange(3000) % 10 == 0
    columns["assigned_by"] = np.where(forced, word, "request")
    columns["error"] = np.where(forced & (columns["arm"] == 1), 1.0, columns["error"])
    kept = {name: column[~forced] for name, column in columns.items()}

    assert run(columns).log_e == run(kept).log_e
    assert run(columns).canary_requests == run(kept).canary_requests


def test_rows_that_are_all_forced_are_invalid() -> None:
    assert run(changed(requests(500), assigned_by=["header"] * 500)).decision == "invalid"


def test_rows_that_are_all_held_by_tokens_are_refused() -> None:
    with pytest.raises(EvidenceError, match="tokens hold every row; give the draws"):
        run(changed(requests(500), assigned_by=["pin"] * 500))


# --- duplicates


def repeated(columns: Columns, *order: int, every: int = 2) -> Columns:
    """The rows in blocks of `every`, each block with its rows in this order."""
    blocks = np.arange(len(columns["t_s"])).reshape(-1, every)[:, list(order)]
    out = {name: column[blocks.ravel()] for name, column in columns.items()}
    out["t_s"] = np.repeat(np.arange(len(blocks), dtype=np.float64), len(order))
    return out


@pytest.mark.parametrize("order", [(0, 0, 1, 1), (0, 1, 0, 1), (0, 1, 1, 0)])
@pytest.mark.parametrize("names", ["all", "no unit", "listed", "no words"])
def test_duplicate_rows_are_refused_in_any_order(order: tuple[int, ...], names: str) -> None:
    columns: Loose = changed(repeated(requests(400), *order))
    if names == "no unit":
        del columns["unit"]
    if names == "listed":
        columns["unit"] = columns["unit"].tolist()
    if names == "no words":
        del columns["assigned_by"]

    with pytest.raises(EvidenceError, match="the request is a duplicate"):
        run(columns)


def test_rows_repeated_twenty_times_are_refused() -> None:
    columns = {name: np.repeat(column, 20) for name, column in requests(200).items() if name != "unit"}

    with pytest.raises(EvidenceError, match="the request is a duplicate"):
        run(columns)


@pytest.mark.parametrize("rows", ["one after the other", "after all others"])
def test_a_request_repeated_at_another_time_is_refused(rows: str) -> None:
    columns = requests(400)
    twice = {
        name: np.repeat(column, 2) if rows == "one after the other" else np.concatenate((column, column))
        for name, column in columns.items()
    }
    twice["t_s"] = np.arange(800, dtype=np.float64)

    with pytest.raises(EvidenceError, match=r"unit .* the request is a duplicate"):
        run(twice)


def test_a_duplicate_sticky_row_is_refused() -> None:
    columns = sticky(400, people=60)
    rows = np.sort(np.append(np.arange(400), 123))

    with pytest.raises(EvidenceError, match=r"in row 124 .*the request is a duplicate"):
        run({name: column[rows] for name, column in columns.items()})


def test_equal_rows_of_a_coarse_clock_are_not_duplicates() -> None:
    columns: Loose = changed(sticky(2000, people=40))
    columns["t_s"] = np.repeat(np.arange(20.0), 100)  # a hundred requests within each second
    only_errors = {name: columns[name] for name in ("t_s", "unit", "arm", "w", "assigned_by", "error")}
    unnamed = {name: only_errors[name] for name in ("t_s", "arm", "w", "error")}

    assert run(only_errors).decision in ("undecided", "promote")
    assert run(unnamed).decision in ("undecided", "promote")


def test_equal_rows_with_distinct_ids_are_not_duplicates() -> None:
    columns = repeated(requests(400), 0, 0)
    ids = np.arange(len(columns["t_s"]))

    assert run(changed(columns, request_id=ids)).decision == "undecided"


# --- policies, stages, seeds


@pytest.mark.slow
def test_a_mapping_is_a_policy() -> None:
    columns = requests(1500, before=300)
    raw = GatePolicy.strict().to_mapping()

    assert essence(run(columns, raw)) == essence(run(columns, "strict"))


@pytest.mark.parametrize("policy", ["", "nope", 42, {"alpa": 0.1}, {"gates": {"error": {"alpha_share": 2}}}])
def test_an_invalid_policy_argument_is_refused(policy: Any) -> None:
    with pytest.raises(PolicyError):
        run(requests(100), policy)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "stages is empty"),
        (5, "stages 5 is not a list of StagePlan"),
        ([{"weight": 0.05}], "is not a list of StagePlan"),
        ([StagePlan(0.05, 0, {"eror": 5.0})], r"stages\.0\.margins\.eror names no gate"),
        ([StagePlan(0.05, 0, {"error": -1.0})], r"stages\.0\.margins\.error -1\.0 is outside"),
    ],
)
def test_invalid_stages_are_refused(stages: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        run(requests(100), stages=stages)


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        ({"latency_ms": [NAN]}, "seed of latency_ms nan in row 0"),
        ({"latency_ms": [1.0, -5.0]}, r"seed of latency_ms -5\.0 in row 1"),
        ({"latency_ms": "fast"}, "column latency_ms is one value"),
        ({"lat": [5.0]}, "seed 'lat' is not a metric of values"),
        ({"error": [0.0]}, "seed 'error' is not a metric of values"),
        (5, "columns are int"),
    ],
)
def test_invalid_seeds_are_refused(seed: Any, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        run(requests(100), seed_latency_ms=seed)


# --- hardly any rows


@pytest.mark.parametrize("rows", [0, 1])
def test_zero_and_one_row_have_a_result(rows: int) -> None:
    columns = {name: column[:rows] for name, column in requests(5).items()}

    assert run(columns).decision == "invalid"
    assert len(trace(columns).t_s) == rows


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("w", [1e-9, 1e-6, 0.99999])
def test_arms_impossible_at_their_weights_are_invalid_without_inverted_intervals(w: float) -> None:
    result = run(changed(requests(3000, w=0.3), w=np.full(3000, w)))

    assert result.decision == "invalid"
    assert all(low <= high for low, high in result.intervals.values())


# --- arbitrary input

METRICS = ("fell_back", "error", "latency_ms", "ttft_ms", "quality", "hallucinated", "thumbs", "cost")
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.sampled_from([0.0, 1.0, 0.05, 0.5, 5e-324, 1e-300, 1.0 - 2**-53, 1e300, -0.0]),
    st.text(max_size=3),
    st.sampled_from(["request", "sticky", "pin", "force", "fallback"]),
    st.binary(max_size=2),
    st.lists(st.integers(), max_size=2),
)
NAMES = st.sampled_from(["t_s", "unit", "arm", "w", "assigned_by", "request_id", "stage", "note", *METRICS])
SOME = st.sampled_from(["unit", "assigned_by", "latency_ms", "tokens", "quality", "error", "fell_back"])


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    columns=st.dictionaries(NAMES, st.one_of(ANYTHING, st.lists(ANYTHING, max_size=4)), max_size=8),
    policy=st.one_of(st.sampled_from([None, "default", "strict", {}]), ANYTHING),
)
def test_arbitrary_input_is_evaluated_or_refused(columns: Any, policy: Any) -> None:
    evaluated_or_refused(columns, policy)


def value_of(name: str) -> st.SearchStrategy[Any]:
    """Mostly valid values of a column, including extremes."""
    weights = st.sampled_from([0.0, 0.05, 0.5, 0.95, 5e-324, 1e-300, 1.0 - 2**-53, 1.0])
    sizes = st.one_of(st.sampled_from([0.0, 1.0, 1e-300, 1e300, 1.7e308, NAN]), st.floats(0.0, 1e4))
    events = st.sampled_from([0, 1, 0.0, 1.0, True, False, None, NAN])
    usual: dict[str, st.SearchStrategy[Any]] = {
        "w": weights,
        "arm": st.sampled_from([0, 1]),
        "unit": st.sampled_from(["a", "b", "c", 1, 2.0]),
        "assigned_by": st.sampled_from(["request", "sticky", "pin", "force", "heavy"]),
        "latency_ms": sizes,
        "tokens": sizes,
        "quality": st.one_of(st.floats(0.0, 1.0), st.none()),
        "error": events,
        "hallucinated": events,
        "fell_back": events,
    }
    return usual[name]


@st.composite
def tables(draw: st.DrawFn) -> Loose:
    rows = draw(st.integers(1, 40))
    names = draw(st.sets(SOME))
    out: Loose = {"t_s": sorted(draw(st.lists(st.floats(-1e9, 1e300), min_size=rows, max_size=rows)))}
    for name in ("arm", "w", "hallucinated", *sorted(names)):
        out[name] = draw(st.lists(value_of(name), min_size=rows, max_size=rows))
    if draw(st.booleans()):  # arms that are possible at their weights
        pairs = zip(out["w"], out["arm"], strict=True)
        out["arm"] = [int(w) if w in (0.0, 1.0) else arm for w, arm in pairs]
    return out


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(columns=tables(), policy=st.sampled_from(["default", "strict"]))
def test_tables_of_extreme_values_are_evaluated_or_refused(columns: Any, policy: str) -> None:
    evaluated_or_refused(columns, policy)


def evaluated_or_refused(columns: Any, policy: Any) -> None:
    try:
        result = run(columns, policy)
    except (EvidenceError, PolicyError):
        return
    assert result.decision in ("rollback", "promote", "undecided", "invalid")
    for low, high in result.intervals.values():
        assert low <= high


# --- names and units that would silently mean something else


@pytest.mark.parametrize(
    ("right", "wrong"), [("latency_ms", "latency"), ("hallucinated", "hallucination"), ("quality", "qualty")]
)
def test_a_misspelt_column_is_refused_by_the_library_too(right: str, wrong: str) -> None:
    columns: Loose = {**requests(400)}
    columns[wrong] = columns.pop(right)

    with pytest.raises(EvidenceError, match=f"column '{wrong}' is unknown and close to {right}"):
        run(columns)


def test_times_in_milliseconds_are_refused() -> None:
    columns = requests(100)

    with pytest.raises(EvidenceError, match=r"t_s 1780000000000 in row 0 is not in seconds; divide"):
        run(changed(columns, t_s=1.78e12 + columns["t_s"]))


@pytest.mark.slow
def test_gates_without_a_column_are_named_and_block_where_they_are_required() -> None:
    columns = {name: values for name, values in requests(4000).items() if name != "quality"}
    free, blocked = run(columns), run(columns, required=["quality"])

    assert (free.decision, free.not_judged) == ("promote", ("rejected", "ttft_shape", "quality"))
    assert (blocked.decision, blocked.reasons) == ("undecided", ("quality: NOT JUDGED, it has no column",))

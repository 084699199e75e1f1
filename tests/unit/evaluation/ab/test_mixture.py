"""The two-sided mixture: its interval agrees with its end, whatever the order, the split and the blocks."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.ab.comparison import AbQuestion, AbVerdict, Scale
from evaluation.ab.fixed import fixed_by_split, fixed_horizon
from evaluation.ab.mixture import DELTAS, MAX_LOSS, MeanMixture, log_mean_exp
from evaluation.ab.sequential import SequentialTest, sequential
from evaluation.ab.units import AbUnits, units_of_rows
from evaluation.units.units import HELD, LEFT_OUT, STICKY

Run = tuple[np.ndarray, np.ndarray, np.ndarray]


def run_of(seed: int, n: int, *, a: float, b: float, w: float = 0.5) -> Run:
    """Events of n units and their arms; P(event) is a on A and b on B."""
    rng = np.random.default_rng(seed)
    is_b = (rng.random(n) < w) * 1.0
    return (rng.random(n) < np.where(is_b == 1, b, a)) * 1.0, is_b, np.full(n, w)


def excludes_zero(mixture: MeanMixture) -> bool:
    bounds = mixture.bounds()
    return bounds.low > 0.0 or bounds.high < 0.0


@pytest.mark.calibration
@pytest.mark.parametrize("w", [0.5, 0.1])
@pytest.mark.parametrize(("a", "b"), [(0.3, 0.3), (0.3, 0.45), (0.45, 0.3), (0.02, 0.08), (0.1, 0.9)])
def test_the_interval_excludes_zero_exactly_when_there_is_a_verdict(a: float, b: float, w: float) -> None:
    disagree = ended = 0
    for seed in range(10):
        y, is_b, weights = run_of(seed, 1500, a=a, b=b, w=w)
        mixture = MeanMixture(0.05)
        for start in range(0, 1500, 75):
            part = slice(start, start + 75)
            mixture.add(y[part], is_b[part], weights[part])
            disagree += excludes_zero(mixture) != (mixture.ended_at is not None)
        ended += mixture.ended_at is not None

    assert disagree == 0
    assert ended <= 2 if a == b else ended > 0


@pytest.mark.calibration
@pytest.mark.parametrize("scale", list(Scale))
@pytest.mark.parametrize("higher", [True, False])
def test_a_results_interval_agrees_with_its_verdict_on_every_scale(scale: Scale, higher: bool) -> None:
    for seed in range(12):
        rng = np.random.default_rng(seed)
        is_b = rng.random(600) < 0.5
        score = np.clip(rng.normal(0.5 + 0.08 * is_b, 0.2), 0, 1)
        y = {Scale.RATE: (score > 0.5) * 1.0, Scale.SCORE: score, Scale.VALUE: 1000 * score}[scale]
        result = sequential(y, is_b, 0.5, AbQuestion(scale, higher_is_better=higher))
        low, high = result.interval or (0.0, 0.0)
        none = 0.5 if scale is Scale.VALUE else 0.0

        assert (low > none or high < none) == (result.verdict is not AbVerdict.NOT_SHOWN)


def test_blocks_change_no_bit() -> None:
    y, is_b, w = run_of(1, 1000, a=0.4, b=0.5)
    whole, pieces = MeanMixture(0.05), MeanMixture(0.05)
    whole.add(y, is_b, w)
    for start in range(0, 1000, 7):
        part = slice(start, start + 7)
        pieces.add(y[part], is_b[part], w[part])

    assert (whole.ended_at, whole.bounds()) == (pieces.ended_at, pieces.bounds())
    np.testing.assert_array_equal(whole.log_e, pieces.log_e)


@pytest.mark.parametrize("g", [-0.3, -0.05, 0.0, 0.02, 0.2, 0.9])
def test_the_wealth_against_a_difference_is_bounded_from_below(g: float) -> None:
    y, is_b, w = run_of(2, 300, a=0.4, b=0.5, w=0.3)
    mixture = MeanMixture(0.05)
    mixture.add(y, is_b, w)
    exact, slope, curve = mixture._sums[:, 0]
    bound = float(log_mean_exp(exact - g * slope - g * g * curve))
    # The definition, unit by unit.
    total, square, logs = 0.5, 0.5, np.zeros(len(DELTAS))
    for n, (value, side) in enumerate(zip(y, is_b, strict=True), start=1):
        mean = total / n
        variance = square / n - mean**2
        spread = max(mean, 1 - mean)
        lam = np.minimum(DELTAS / variance, MAX_LOSS / max(0.7 * (spread + 0.7), 0.3 * (spread + 0.3)))
        toss = side - 0.3
        logs += np.log1p(lam * (toss * (value - mean) - toss**2 * g))
        total, square = total + value, square + value**2

    assert bound <= float(log_mean_exp(logs)) + 1e-9
    assert g != 0.0 or bound == pytest.approx(float(log_mean_exp(logs)))


def test_returning_outcomes_of_the_opposite_sign_keep_the_verdict_and_its_side() -> None:
    test = SequentialTest(AbQuestion(Scale.RATE, higher_is_better=True))
    better, worse = run_of(3, 600, a=0.2, b=0.6), run_of(4, 6000, a=0.9, b=0.1)
    test.add_all(*better)
    test.add_all(*worse)
    low, high = test.result().interval or (0.0, 0.0)

    assert test.verdict is AbVerdict.B_BETTER
    assert 0.0 < low <= high


# --- a fixed test of several splits


def changed_split(seed: int) -> Run:
    """Identical sides; the split goes from 5 to 50 % while quality falls."""
    rng = np.random.default_rng(seed)
    early = np.arange(4000) < 2000
    w = np.where(early, 0.05, 0.5)
    return (rng.random(4000) < np.where(early, 0.8, 0.4)) * 1.0, (rng.random(4000) < w), w


@pytest.mark.slow
def test_a_fixed_test_of_a_changed_split_does_not_pool_it() -> None:
    question = AbQuestion(Scale.RATE, higher_is_better=True)
    pooled = split = 0
    for seed in range(40):
        y, is_b, w = changed_split(seed)
        pooled += fixed_horizon(y[~is_b], y[is_b], question).verdict is not AbVerdict.NOT_SHOWN
        split += fixed_by_split(y, is_b, w, question).verdict is not AbVerdict.NOT_SHOWN

    assert pooled == 40
    assert split <= 5  # of 40, at an alpha of 0.05


def test_one_split_is_the_plain_fixed_test() -> None:
    y, is_b, w = run_of(5, 400, a=0.4, b=0.5)
    question = AbQuestion(Scale.RATE, higher_is_better=True)

    assert fixed_by_split(y, is_b, w, question) == fixed_horizon(y[is_b == 0], y[is_b == 1], question)


def test_a_difference_within_each_split_is_found() -> None:
    y, is_b, w = changed_split(6)
    y = np.where(is_b & (y == 1) & (np.random.default_rng(0).random(4000) < 0.3), 0.0, y)
    result = fixed_by_split(y, is_b, w, AbQuestion(Scale.RATE, higher_is_better=True))

    assert result.verdict is AbVerdict.A_BETTER
    assert result.interval is not None
    assert result.interval[1] < 0.0


def test_a_split_of_each_unit_is_refused_by_the_fixed_test() -> None:
    n = 200
    with pytest.raises(ValueError, match=r"the split has 200 values, .* use the sequential test"):
        fixed_by_split(
            np.zeros(n),
            np.arange(n) % 2,
            np.linspace(0.1, 0.9, n),
            AbQuestion(Scale.RATE, higher_is_better=True),
        )


# --- the units of a file


def test_a_unit_counts_once_with_the_mean_of_its_answers() -> None:
    units = units_of_rows(
        ["u", "v", "u", "u"],
        np.array([True, False, True, True]),
        np.full(4, 0.5),
        np.full(4, STICKY),
        np.array([0.0, 1.0, np.nan, 1.0]),
    )

    assert (units.row.tolist(), units.y.tolist(), units.answers.tolist()) == ([0, 1], [0.5, 1.0], [2, 1])
    assert units.crossing() is None


def test_a_unit_drawn_again_at_a_raised_split_counts_with_its_first_draw() -> None:
    units = units_of_rows(
        ["u", "u", "u"],
        np.array([False, True, True]),
        np.array([0.1, 0.5, 0.5]),
        np.full(3, STICKY),
        np.array([0.0, 1.0, 2.0]),
    )

    assert (units.y.tolist(), units.is_b.tolist(), units.crossed) == ([0.0], [False], ())


@pytest.mark.parametrize(
    ("is_b", "w", "crossed"),
    [
        ([True, False], [0.5, 0.1], ()),  # lowered: its bucket is between
        ([False, True], [0.5, 0.1], ("u",)),  # A at 50 % is A at 10 %
        ([True, False], [0.1, 0.5], ("u",)),  # B at 10 % is B at 50 %
        ([True, False], [0.5, 0.5], ("u",)),
    ],
)
def test_a_lowered_split_moves_units_of_b_alone(
    is_b: list[bool], w: list[float], crossed: tuple[str, ...]
) -> None:
    units = units_of_rows(["u", "u"], np.array(is_b), np.array(w), np.full(2, STICKY), np.array([0.4, 0.8]))

    assert (units.crossed, units.y.tolist(), units.is_b.tolist()) == (crossed, [0.4], is_b[:1])


def test_rows_without_a_draw_are_left_out_and_counted() -> None:
    kind = np.array([HELD, LEFT_OUT, STICKY])
    units = units_of_rows(["u", "v", "x"], np.array([True] * 3), np.full(3, 0.5), kind, np.ones(3))

    assert (units.row.tolist(), units.rows_left_out) == ([2], 2)


def test_units_on_both_sides_are_named_and_many_break_the_split() -> None:
    names = [f"u{i // 2}" for i in range(200)]
    units = units_of_rows(
        names, np.arange(200) % 2 == 1, np.full(200, 0.5), np.full(200, STICKY), np.ones(200)
    )

    assert units.is_broken
    assert (units.crossing() or "").startswith("100 of 100 units are on both sides: u0, u1, u10 and 97 more")


def asking(seed: int, more: float, *, units: int = 500, depth: float = 0.0) -> AbUnits:
    """Users whose answers are alike, B's `more` times as many; each turn is worse by `depth`."""
    rng = np.random.default_rng([65, seed])
    is_b = rng.random(units) < 0.5
    turns = 1 + rng.poisson(np.where(is_b, 2.0 * more, 2.0))
    owner = np.repeat(np.arange(units), turns)
    turn = np.arange(len(owner)) - np.repeat(np.cumsum(turns) - turns, turns)
    y = rng.lognormal(6.0, 1.0, len(owner)) * (1.0 + depth * turn)
    names = [f"u{unit}" for unit in owner]
    return units_of_rows(names, is_b[owner], np.full(len(y), 0.5), np.full(len(y), STICKY), y)


def winners(runs: int, more: float, depth: float = 0.0) -> int:
    """Tests of as many that name a winner, at alpha 5 %."""
    found = 0
    for seed in range(runs):
        units = asking(seed, more, depth=depth)
        result = fixed_by_split(units.y, units.is_b, units.w, AbQuestion(Scale.VALUE, higher_is_better=False))
        found += result.verdict is not AbVerdict.NOT_SHOWN
    return found


@pytest.mark.slow
@pytest.mark.sample(1)
@pytest.mark.parametrize("more", [1.0, 1.1, 1.25, 3.0])
def test_unlike_numbers_of_answers_name_no_winner(more: float) -> None:
    assert winners(40, more) <= 6


@pytest.mark.slow
def test_later_answers_that_are_worse_name_no_winner_where_one_side_asks_more() -> None:
    assert winners(40, 2.0, depth=0.3) <= 6


@pytest.mark.slow
def test_the_mean_counts_where_numbers_are_alike_and_the_first_where_not() -> None:
    alike, unlike = asking(3, 1.0), asking(3, 2.0)

    assert (alike.by_first, unlike.by_first) == (False, True)
    assert "the mean of its answers" in (alike.how_counted() or "")
    assert "its first answer alone" in (unlike.how_counted() or "")
    assert sum(asking(seed, 1.0, units=200).by_first for seed in range(100)) <= 10

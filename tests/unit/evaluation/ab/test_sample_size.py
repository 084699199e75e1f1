"""Sample sizes: published values, power, invalid parameters."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from evaluation.ab.sample_size import EFFECTS, effect_table, required_sample_size


@pytest.mark.parametrize(("d", "cohen"), [(0.2, 393), (0.5, 64), (0.8, 26)])
def test_even_splits_agree_with_cohens_table_to_a_unit(d: float, cohen: int) -> None:
    size = required_sample_size(d, sd=1.0)

    assert abs(size.n_a - cohen) <= 1
    assert size.n_a == size.n_b


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("power", [0.5, 0.8, 0.99])
@pytest.mark.parametrize(("effect", "sd"), [(0.01, 0.2), (3.0, 40.0)])
def test_sizes_are_the_two_sample_formulas(effect: float, sd: float, alpha: float, power: float) -> None:
    z = stats.norm.isf(alpha / 2) + stats.norm.ppf(power)
    each = 2 * (z * sd / effect) ** 2

    size = required_sample_size(effect, sd=sd, alpha=alpha, power=power)
    assert (size.n_a, size.n_b) == (np.ceil(each), np.ceil(each))


def test_a_one_sided_test_needs_fewer_units() -> None:
    size = required_sample_size(0.5, sd=1.0, two_sided=False)

    assert size.n_a == np.ceil(2 * ((stats.norm.isf(0.05) + stats.norm.ppf(0.8)) / 0.5) ** 2)
    assert "alpha 0.05 one-sided" in str(size)


def test_the_promised_power_is_reached() -> None:
    size = required_sample_size(0.3, sd=1.0, alpha=0.05, power=0.8)
    rng = np.random.default_rng(3)
    a = rng.normal(0.0, 1.0, (2000, size.n_a))
    b = rng.normal(0.3, 1.0, (2000, size.n_b))

    found = (stats.ttest_ind(a, b, axis=1).pvalue < 0.05).mean()
    assert found == pytest.approx(0.8, abs=0.03)


def test_an_uneven_split_gives_b_its_share() -> None:
    size = required_sample_size(0.3, sd=1.0, split=0.1)

    assert size.n_b / (size.n_a + size.n_b) == pytest.approx(0.1, abs=0.001)


def test_an_uneven_split_costs_more_in_all() -> None:
    even, uneven = (required_sample_size(0.3, sd=1.0, split=s) for s in (0.5, 0.1))

    assert even.n_a + even.n_b < uneven.n_a + uneven.n_b


def test_a_sample_size_prints_its_assumptions() -> None:
    text = str(required_sample_size(0.05, sd=0.2, alpha=0.01, power=0.9))

    assert text.endswith("(assumed sd 0.2, alpha 0.01 two-sided, power 0.9, B gets 50%)")


def test_the_table_runs_from_one_to_twenty_percent() -> None:
    table = effect_table(0.8, sd=0.2)

    assert [round(size.effect / 0.8, 4) for size in table] == list(EFFECTS)
    assert (EFFECTS[0], EFFECTS[-1]) == (0.01, 0.20)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"effect": 0.0}, "effect 0.0 is not above 0"),
        ({"sd": float("nan")}, "sd nan is not above 0"),
        ({"alpha": 1.0}, "alpha 1.0 is outside"),
        ({"power": 0.0}, "power 0.0 is outside"),
        ({"split": 1.5}, "split 1.5 is outside"),
        ({"alpha": 0.9, "power": 0.1}, "need no data"),
    ],
)
def test_invalid_parameters_are_refused_by_name(bad: dict[str, float], message: str) -> None:
    parameters = {"effect": 0.1, "sd": 1.0} | bad
    effect = parameters.pop("effect")

    with pytest.raises(ValueError, match=message):
        required_sample_size(effect, **parameters)  # type: ignore[arg-type]


@pytest.mark.parametrize("effect", [1e-300, 5e-324, 1e-9])
def test_an_effect_too_small_for_any_traffic_is_refused(effect: float) -> None:
    with pytest.raises(ValueError, match=f"effect {effect} is too small beside sd 0.2"):
        required_sample_size(effect, sd=0.2)

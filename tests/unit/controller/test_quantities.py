"""Units: percentages, durations, bytes; parsed and formatted."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from controller import quantities
from controller.quantities import byte_count, duration, duration_s, figure, gib, percent, weight_bp, whole


@pytest.mark.parametrize(
    ("text", "points"), [("2.5%", 250), ("2.5 %", 250), (2.5, 250), (100, 10_000), ("0.01%", 1)]
)
def test_percents_become_basis_points(text: object, points: int) -> None:
    assert weight_bp(text) == points


@pytest.mark.parametrize(
    "bad", ["5", "5 percent", -1, 101, 0.001, 0.1, 1, 10**400, True, None, float("nan"), "1e400%"]
)
def test_a_malformed_percentage_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match=r"is not a percent|is outside|is finer|may mean"):
        weight_bp(bad)


@pytest.mark.parametrize(
    ("text", "written"),
    [("0.5", "0.5% or 50%"), ("1", "1% or 100%"), ("50", "50%"), ("half", "2.5%"), ("50 percent", "2.5%")],
)
def test_a_percentage_without_its_sign_is_told_how_to_write_it(text: str, written: str) -> None:
    with pytest.raises(ValueError, match=f"is not a percent; write {written}$"):
        weight_bp(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("10m", 600), ("1h30m", 5400), ("3d", 259_200), (7, 7), ("7", 7)],
)
def test_durations_become_seconds(text: object, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("bad", ["", "soon", "5 weeks", "1h-", -1, True, None, float("inf"), "400d"])
def test_a_malformed_duration_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match=r"is not a duration|is outside"):
        duration_s(bad)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4GiB", 4 << 30),
        ("512 MiB", 512 << 20),
        ("4GB", 4 * 10**9),
        ("1.5Gi", 3 << 29),
        ("4G", 4 << 30),
        (7, 7),
    ],
)
def test_sizes_become_bytes(text: object, count: int) -> None:
    assert byte_count(text) == count


@pytest.mark.parametrize("bad", ["", "4 gibs", "GiB", -1, 0.5, True, None, 10**400, "1e9GiB"])
def test_a_malformed_size_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="is not a number of bytes; write 4GiB"):
        byte_count(bad)


def test_numbers_are_formatted_with_their_units() -> None:
    assert (percent(250), percent(10_000), duration(5400), duration(0.5)) == (
        "2.5 %",
        "100 %",
        "1 h 30 min",
        "0.5 s",
    )
    assert (gib(3 << 30), gib(5 << 20)) == ("3.0 GiB", "5 MiB")


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(308.2, 2, "310"), (12345.6, 4, "12350"), (0.00001234, 2, "0.000012"), (1.5, 3, "1.5"), (0.0, 3, "0")],
)
def test_a_figure_has_no_exponent(value: float, digits: int, text: str) -> None:
    assert figure(value, digits) == text


@pytest.mark.parametrize("parse", [weight_bp, duration_s, byte_count])
@pytest.mark.parametrize("text", ["1" * 1000 + "x", "1" * 65, "1h" * 40, " " * 100])
def test_a_long_text_is_refused_before_a_pattern_sees_it(
    parse: Callable[[object], float], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A duration of a thousand digits took minutes, in which the whole controller stood still."""
    for name in ("_DURATION", "_PLAIN", "_PERCENT", "_BYTES"):
        monkeypatch.setattr(f"controller.quantities.{name}", None)

    with pytest.raises(ValueError, match=rf"has {len(text)} characters, limit 64; shorten it"):
        parse(text)


@pytest.mark.parametrize("name", ["_DURATION", "_PLAIN", "_PERCENT", "_BYTES"])
def test_a_pattern_splits_digits_in_one_way_only(name: str) -> None:
    """Two adjacent repeats of digits, the point between them optional, were tried in every combination."""
    assert "[0-9]*" not in getattr(quantities, name).pattern


@pytest.mark.parametrize(
    ("text", "number"), [("7", 7), ("", None), ("-1", None), ("²", None), ("9" * 5000, None), ("1.0", None)]
)
def test_a_whole_number_from_outside(text: str, number: int | None) -> None:
    assert whole(text) == number

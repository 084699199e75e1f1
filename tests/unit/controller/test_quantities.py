"""Units: percentages, durations, bytes; parsed and formatted."""

from __future__ import annotations

import pytest

from controller.quantities import byte_count, duration, duration_s, figure, gib, percent, weight_bp


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

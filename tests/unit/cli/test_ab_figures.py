"""Figures of an A/B comparison: no digits that say nothing, no comparison of what cannot be compared."""

from __future__ import annotations

import pytest
from rich.console import Console

from controller.cli.ab_show import file_table, p_text

ROW: dict[str, object] = {
    "category": "(all)", "verdict": "b_better", "n_a": 2951, "n_b": 2856, "mean_a": 0.799, "mean_b": 0.8282,
    "win_rate": 0.5853, "cohens_d": 0.3015, "interval": (0.02147, 0.03137), "p": 1.032e-21,
}  # fmt: skip


def printed(row: dict[str, object]) -> str:
    console = Console(width=160, color_system=None)
    with console.capture() as shown:
        console.print(file_table([row], []))
    return shown.get()


@pytest.mark.parametrize(
    ("value", "text"), [(1.032e-21, "< 0.0001"), (0.00012, "0.00012"), (0.0456, "0.0456"), (None, "-")]
)
def test_a_tiny_p_is_not_written_out(value: float | None, text: str) -> None:
    assert p_text(value) == text


def test_an_invalid_comparison_shows_its_counts_alone() -> None:
    assert "0.5853" in printed(ROW)
    assert "< 0.0001" in printed(ROW)

    invalid = printed({**ROW, "verdict": "invalid"})
    assert "2951" in invalid
    for figure in ("0.5853", "0.3015", "0.02147", "0.0001"):
        assert figure not in invalid

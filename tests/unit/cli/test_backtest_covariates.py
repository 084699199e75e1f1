"""`canaryctl backtest` with covariates that a policy names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from controller.cli.main import app
from controller.errors import BadInput

POLICY = "gates:\n  quality: {covariates: [request_length]}\n"


def written(tmp_path: Path, *, name: str = "request_length") -> list[str]:
    """The arguments of a backtest of 400 requests with a column `name`."""
    rng = np.random.default_rng(1)
    lines = [f"t_s,arm,w,quality,{name}"]
    for row in range(400):
        w = 0.0 if row < 100 else 0.5
        length = "" if row % 9 == 0 else f"{rng.integers(10, 5000)}"
        lines.append(f"{row},{int(rng.random() < w)},{w},{rng.uniform(0.5, 1.0):.3f},{length}")
    (tmp_path / "e.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "p.yaml").write_text(POLICY)
    return [str(tmp_path / "e.csv"), "--policy", str(tmp_path / "p.yaml")]


def backtest(*arguments: str) -> None:
    app(args=["backtest", *arguments], standalone_mode=False)


def test_a_covariate_is_read_as_numbers_and_not_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backtest(*written(tmp_path))
    said = capsys.readouterr()

    assert "quality" in said.out
    assert "ignored" not in said.err


def test_a_covariate_by_another_name_is_mapped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = written(tmp_path, name="request_len")
    with pytest.raises(BadInput, match=r"lacks request_length; give --map request_length=request_len "):
        backtest(*arguments)
    backtest(*arguments, "--map", "request_length=request_len")

    assert "quality" in capsys.readouterr().out


def test_a_cell_that_is_no_number_is_refused_with_its_line(tmp_path: Path) -> None:
    arguments = written(tmp_path)
    file = tmp_path / "e.csv"
    lines = file.read_text().splitlines()
    lines[3] = lines[3].rsplit(",", 1)[0] + ",long"
    file.write_text("\n".join(lines) + "\n")

    with pytest.raises(BadInput, match=r"line 4: request_length 'long' is not a number"):
        backtest(*arguments)

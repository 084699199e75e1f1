"""`--policy` with a name that is no preset and no file."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.cli.main import run


@pytest.mark.parametrize("name", ["strikt", "Default", "none"])
def test_a_policy_that_is_neither_preset_nor_file_names_the_presets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.csv").write_text("t_s,arm,w,error\n1,0,0.5,0\n2,1,0.5,0\n")

    assert run(["backtest", "e.csv", "--policy", name]) == 2
    assert capsys.readouterr().err == (
        f"error: no policy {name!r}; presets are default, strict, vendor; or give a file (docs/policy.md)\n"
    )


def test_a_missing_policy_file_is_named_as_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "e.csv").write_text("t_s,arm,w,error\n1,0,0.5,0\n2,1,0.5,0\n")

    assert run(["backtest", str(tmp_path / "e.csv"), "--policy", str(tmp_path / "mine.yaml")]) == 2
    assert "mine.yaml: No such file or directory; give a readable file" in capsys.readouterr().err

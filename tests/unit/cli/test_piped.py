"""What goes into a pipe: no line ends in blanks, however wide its table or its indented lines are."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from rich.padding import Padding
from rich.text import Text

from controller.cli.output import console, table


def test_no_line_in_a_pipe_ends_in_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    grid = table("name", "note")
    grid.add_row("a", "long enough")
    grid.add_row("b", "-")

    console().print(grid)
    console().print(Padding(Text("indented"), (0, 0, 0, 2)))
    console().print("two blanks within  stay, a line of blanks   \n   \nends")

    lines = capsys.readouterr().out.split("\n")
    assert lines == [line.rstrip() for line in lines]
    assert lines[3] == "  indented"
    assert lines[4:] == ["two blanks within  stay, a line of blanks", "", "ends", ""]


def _canaryctl(tmp_path: Path, command: str) -> subprocess.CompletedProcess[str]:
    """A shell's command, where `canaryctl` is this tree's."""
    root = Path(__file__).parents[3]
    shell = (
        f'set -o pipefail; canaryctl() {{ {shlex.quote(sys.executable)} -m controller.cli "$@"; }}; {command}'
    )
    environment = {**os.environ, "PYTHONPATH": str(root), "CANARYCTL_HOME": str(tmp_path)}
    return subprocess.run(
        ["bash", "-c", shell], capture_output=True, text=True, timeout=60, cwd=tmp_path, env=environment
    )


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error_of_ours(tmp_path: Path) -> None:
    """Its exit code was 1, as of a fault of canaryctl, by rich."""
    done = _canaryctl(tmp_path, "canaryctl backtest --columns | true; echo ${PIPESTATUS[0]}")

    assert (done.stdout.strip(), done.stderr) in (("141", ""), ("0", ""))  # 0: it had written all by then
    code = """
import importlib, sys
main = importlib.import_module("controller.cli.main")
from controller.cli.output import console
main.app = lambda **_: [console().print("x" * 99) for _ in range(9999)]
sys.exit(main.run([]))
"""
    done = _canaryctl(tmp_path, f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | head -1")
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.slow
def test_a_closed_stdout_is_no_traceback(tmp_path: Path) -> None:
    done = _canaryctl(tmp_path, "canaryctl version >&-")

    assert (done.returncode, done.stderr) == (0, "")

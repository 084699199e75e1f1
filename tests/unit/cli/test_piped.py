"""What goes into a pipe: no line ends in blanks, however wide its table or its indented lines are."""

from __future__ import annotations

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

"""Names, files and engines' texts on a terminal: shown as they are, never obeyed."""

from __future__ import annotations

import json
import sys

import pytest
from rich.table import Table
from rich.text import Text

from controller.cli.live_frame import frame
from controller.cli.main import run
from controller.cli.output import Output, console, emit_data, note, print_error, progress, table
from controller.cli.render import history_list, service_detail, services_table
from controller.errors import CanaryctlError
from controller.rollout.observation import SplitStatus
from controller.spec.label import Label
from controller.views.models import ServiceView
from controller.views.rollout import rollout_view, service_view
from tests.fakes.view_maker import in_stage

NAMES = ["v2[/fix]", "llama-8b[awq]", "[link=http://x]v2[/link]", ":fire:", "[bold]"]
ESCAPE = "\x1b[31mred\x9b0m\u202etxt.exe"
SHOWN = "\ufffd[31mred\ufffd0m\ufffdtxt.exe"


def a_view(name: str) -> ServiceView:
    rollout = rollout_view(in_stage(weight_bp=1000), None, now_s=130.0, label=Label(name, name, name, name))
    split = SplitStatus(1, 1, "v-old", "v-new", 1000, True)
    labels = {"v-old": Label(name, name, None, None)}
    return service_view(
        "chat",
        url="http://x/v1",
        stable="v-old",
        split=split,
        versions=(),
        rollout=rollout,
        labels=labels,
        problem=f"engine: {name}",
    )


@pytest.mark.parametrize("name", [*NAMES, ESCAPE])
@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_name_is_shown_character_by_character(
    name: str, is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One version named `v2[/fix]` made `status` and `list` a traceback for everybody."""
    monkeypatch.setenv("COLUMNS", "220")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    view, out = a_view(name), console()
    assert view.rollout is not None
    shown = SHOWN if name == ESCAPE else name

    for drawn in (
        service_detail(view, is_wide=True),
        services_table([view], is_wide=True),
        history_list([view.rollout], is_wide=True),
        frame(view.rollout, view, console=out, notice=name),
    ):
        out.print(drawn)
        text = capsys.readouterr().out
        assert (shown in text, "\x1b[31m" in text, "\x9b" in text) == (True, False, False)


@pytest.mark.parametrize("name", NAMES)
def test_a_table_shows_a_name_in_cells_and_headers(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    grid = table("name", name)
    grid.add_row(name, "x")
    plain = Table(name)
    plain.add_row(name)

    console().print(grid)
    console().print(plain)

    text = capsys.readouterr().out
    assert (text.count(name.upper()), text.count(name)) == (1, 3 if name != name.upper() else 4)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_waited_for_may_have_any_name(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress(f"loading {name}") as shown:
        shown(f"{name}: loading")


def test_styles_are_still_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)

    console().print(Text("ready", style="green"))

    assert capsys.readouterr().out == "\x1b[32mready\x1b[0m\n"


def test_notes_and_errors_hold_no_escape_sequence(capsys: pytest.CaptureFixture[str]) -> None:
    """Such as a column's name in a file that was sent by someone else."""
    note(f"columns ignored, no gate uses them: {ESCAPE}\n\tsecond line")
    print_error(CanaryctlError(ESCAPE), Output.TABLE)
    code = run(["backtest", f"/nowhere/{ESCAPE}.csv"])

    text = capsys.readouterr().err
    assert (code, text.count(SHOWN) >= 3, "\x1b" in text, "\x9b" in text) == (2, True, False, False)
    assert "\n\tsecond line\n" in text


@pytest.mark.parametrize("output", [Output.JSON, Output.YAML])
def test_programs_get_the_text_itself_in_characters_that_no_terminal_obeys(
    output: Output, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    emit_data({"name": ESCAPE, "town": "Zürich"}, output)

    text = capsys.readouterr().out
    read = json.loads(text) if output is Output.JSON else yaml.safe_load(text)
    assert (read["name"], "\x1b" in text, "\x9b" in text, "Zürich" in text) == (ESCAPE, False, False, True)

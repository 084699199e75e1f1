"""docs/reference/cli.md matches the commands."""

from __future__ import annotations

from pathlib import Path

from controller.cli.main import app
from controller.cli.reference import PAGE, page

ROOT = Path(__file__).parents[3]


def test_the_reference_page_is_up_to_date() -> None:
    assert (ROOT / PAGE).read_text() == page(), "run: make reference"


def test_every_command_is_on_the_page() -> None:
    names = {
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    }

    assert {name for name in names if f"## canaryctl {name}\n" not in page()} == set()

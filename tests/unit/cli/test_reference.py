"""docs/reference/cli.md matches the commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.cli.main import COMMANDS
from controller.cli.reference import PAGE, page
from controller.cli.risk_reference import RISK_PAGE, risk_page

ROOT = Path(__file__).parents[3]


def test_the_reference_page_is_up_to_date() -> None:
    assert (ROOT / PAGE).read_text() == page(), "run: make reference"


def test_the_page_of_risks_is_up_to_date() -> None:
    assert (ROOT / RISK_PAGE).read_text() == risk_page(), "run: make reference"


@pytest.mark.slow
def test_every_command_is_on_the_page() -> None:
    assert [name for name in COMMANDS if f"## canaryctl {name}" not in page()] == []

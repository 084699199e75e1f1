"""Tables in narrow terminals: words stay whole, the least important column goes first."""

from __future__ import annotations

import pytest
from rich.console import Console
from rich.text import Text

from controller.cli.output import table
from controller.cli.render import versions_table
from controller.cli.render_gates import gates_table
from controller.views.models import ServiceView
from controller.views.rollout import gate_view
from tests.fakes.view_maker import GATE

ID = "v-762e9e7cfb"


def printed(renderable: object, width: int) -> list[str]:
    console = Console(width=width, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get().splitlines()


def a_table() -> object:
    grid = table("version", "state", "requests", "memory", "why", drop=("memory", "requests"))
    grid.add_row(ID, Text("ready"), "1,234,567", "12.5 GiB", "error above 1.25x shown by sessions")
    return grid


@pytest.mark.parametrize("width", [200, 70, 60, 50, 40, 30, 20])
def test_no_line_is_too_long_and_no_id_or_number_is_cut(width: int) -> None:
    lines = printed(a_table(), width)

    assert max(len(line.rstrip()) for line in lines) <= width
    assert ID in " ".join(lines)
    assert "1.25x" in " ".join(lines)
    assert ("1,234" in " ".join(lines)) == ("1,234,567" in " ".join(lines))  # whole, or gone with its column


def test_the_least_important_column_goes_first() -> None:
    headers = {width: printed(a_table(), width)[0].split() for width in (200, 45, 36)}

    assert headers == {
        200: ["VERSION", "STATE", "REQUESTS", "MEMORY", "WHY"],
        45: ["VERSION", "STATE", "REQUESTS", "WHY"],
        36: ["VERSION", "STATE", "WHY"],
    }


@pytest.mark.parametrize("width", [100, 70, 50, 24])
def test_gates_and_versions_keep_their_figures(width: int) -> None:
    version = {
        "version": ID, "name": "a-fine-tune-with-a-long-name", "phase": "ready", "ready_replicas": 2,
        "in_flight": 3, "memory_bytes": 1 << 30, "last_error": None,
    }  # fmt: skip
    view = ServiceView.model_validate(
        {"service": "chat", "url": "u", "stable": ID, "weight_bp": 0, "versions": [version], "rollout": None}
    )
    text = " ".join(
        (
            *printed(gates_table([gate_view(GATE)], is_wide=True), width),
            *printed(versions_table(view, is_wide=False), width),
        )
    )

    assert ID in text
    assert "0.97" in text
    assert "0.95" in text

"""The first line of `status`: what serves, and where requests go."""

from __future__ import annotations

import pytest
from rich.console import Console

from controller.cli.render import service_detail
from controller.rollout.observation import SplitStatus
from controller.views.rollout import rollout_view, service_view
from tests.fakes.view_maker import in_stage


@pytest.mark.parametrize(
    ("weight_bp", "line"),
    [
        (10_000, "chat  serving v-old, 100 % of requests to v-new  http://x/v1"),
        (1000, "chat  serving v-old, 10 % of requests to v-new  http://x/v1"),
        (0, "chat  serving v-old  http://x/v1"),
    ],
)
def test_the_first_line_says_where_requests_go(weight_bp: int, line: str) -> None:
    """While an undo is watched, all of them go to the version that is not called stable yet."""
    split = SplitStatus(1, 1, "v-old", "v-new" if weight_bp else None, weight_bp, True)
    rollout = rollout_view(in_stage(weight_bp=weight_bp), None, now_s=130.0)
    view = service_view("chat", url="http://x/v1", stable="v-old", split=split, versions=(), rollout=rollout)
    console = Console(width=120, record=True)

    console.print(service_detail(view, is_wide=False))

    assert console.export_text().splitlines()[0] == line


def test_a_controller_whose_ticks_fail_is_named_beneath_the_versions() -> None:
    view = service_view(
        "chat",
        url="http://x/v1",
        stable="v-old",
        split=None,
        versions=(),
        rollout=None,
        problem="disk is full",
    )
    console = Console(width=120, record=True)

    console.print(service_detail(view, is_wide=False))

    assert "the controller can decide nothing: disk is full" in console.export_text()

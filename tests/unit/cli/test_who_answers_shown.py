"""`status` says who answers where the version that has the requests has no replica."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from controller.cli.live_frame import frame
from controller.cli.render import service_detail
from controller.rollout.observation import SplitStatus, VersionPhase, VersionStatus
from controller.rollout.state import Phase
from controller.views.models import ServiceView
from controller.views.rollout import rollout_view, service_view
from tests.fakes.view_maker import PLAN, in_stage


def service(weight_bp: int, *, old: int, new: int) -> ServiceView:
    """A rollout at this weight, with so many ready replicas of each version."""
    ready = {"v-old": old, "v-new": new}
    versions = [
        VersionStatus(name, VersionPhase.READY if count else VersionPhase.LOADING, count, 0)
        for name, count in ready.items()
    ]
    phase = Phase.BAKING if weight_bp == 10_000 else Phase.STAGE
    return service_view(
        "chat",
        url="http://test/chat/v1",
        stable="v-old",
        split=SplitStatus(1, 1, "v-old", "v-new", weight_bp, True),
        versions=versions,
        rollout=rollout_view(in_stage(phase=phase, weight_bp=weight_bp)),
    )


def shown(view: ServiceView) -> str:
    console = Console(width=110, color_system=None, highlight=False)
    with console.capture() as printed:
        console.print(service_detail(view, is_wide=False))
    return printed.get()


@pytest.mark.parametrize(
    ("weight_bp", "old", "new", "line"),
    [
        (10_000, 1, 0, "no replica of v-new is ready: v-old answers its requests"),
        (1000, 1, 0, "no replica of v-new is ready: v-old answers its requests"),
        (1000, 0, 1, "no replica of v-old is ready: its requests are not answered"),
        (1000, 0, 0, "no replica is ready: no request is answered"),
        (0, 0, 0, "no replica of v-old is ready: its requests are not answered"),
    ],
)
def test_the_line_under_the_first_says_who_answers(weight_bp: int, old: int, new: int, line: str) -> None:
    """`100 % of requests to v-new` stood there while it had no replica, and stable answered all of them."""
    view = service(weight_bp, old=old, new=new)

    assert shown(view).splitlines()[1].strip() == line
    assert view.rollout is not None
    console = Console(width=80, height=24, color_system=None)
    with console.capture() as printed:
        console.print(frame(view.rollout, view, console=console, notice=None))
    assert line in printed.get()


@pytest.mark.parametrize(("weight_bp", "old", "new"), [(1000, 1, 1), (10_000, 0, 1), (0, 1, 0)])
def test_there_is_no_such_line_while_whoever_has_requests_answers(weight_bp: int, old: int, new: int) -> None:
    assert "no replica" not in shown(service(weight_bp, old=old, new=new))


@pytest.mark.parametrize(("ready", "line"), [(1, "v-new answers until v-old is ready"), (0, "not answered")])
def test_what_the_route_table_still_names_answers_until_the_stored_version_is_loaded(
    ready: int, line: str
) -> None:
    """After `up --accept-database` the promoted version answered, and the line said that nobody did."""
    view = service_view(
        "chat",
        url="http://test/chat/v1",
        stable="v-old",
        split=SplitStatus(1, 1, "v-new", None, 0, True),
        versions=[
            VersionStatus("v-old", VersionPhase.LOADING, 0, 0),
            VersionStatus("v-new", VersionPhase.READY, ready, 0),
        ],
        rollout=None,
    )

    assert line in shown(view).splitlines()[1]


def test_an_undo_that_was_rolled_back_says_how_to_leave_what_serves() -> None:
    """The version that a person wanted to leave was back at 100 %, without a word on what to do."""
    state = in_stage(phase=Phase.ROLLED_BACK, plan=replace(PLAN, undo=True))
    view = service(0, old=1, new=0).model_copy(update={"rollout": rollout_view(state)})

    assert "v-old serves; to leave it: canaryctl undo chat --to v-new, or deploy another version" in shown(
        view
    )

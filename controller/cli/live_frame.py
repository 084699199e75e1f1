"""The frame of `watch`, and `status`, drawn so that they fit the terminal: what decides first, what is
undecided last."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from controller.cli.render import (
    CANNOT_DECIDE,
    Detail,
    rollout_parts,
    service_detail,
    unanswered,
    versions_table,
)
from controller.cli.render_gates import Fold, bar_width
from controller.views.models import RolloutView, ServiceView

WIDE_COLUMNS = 120  # from this width on, the gates' reasons fit
MAX_LOG_LINES = 14
MIN_LOG_LINES = 3


def frame(
    rollout: RolloutView, service: ServiceView | None, *, console: Console, notice: str | None
) -> RenderableType:
    """The newest view in a frame of at most the terminal's height, if that can be.

    service: None: it is not known, or was taken down. notice: what is wrong with the view itself, on top.
    """
    height = console.height - 1  # the cursor's line
    details = list(_details(bar_width(console.width)))

    def drawn(detail: tuple[Detail, bool]) -> Panel:
        return _panel(rollout, service, console, notice, detail[0], has_versions=detail[1])

    if rollout.is_final:
        return drawn(details[0])
    # Each is no higher than the one before: a few are drawn, not all.
    first = bisect_left(details, True, key=lambda one: _lines(drawn(one), console) <= height)
    return drawn(details[min(first, len(details) - 1)])


def fitted(view: ServiceView, *, console: Console, is_wide: bool) -> RenderableType:
    """A service as `service_detail` draws it; on a terminal that is too low for it with less of the rollout,
    so that who serves stays in sight. All of it is in a pipe."""
    full = service_detail(view, is_wide=is_wide, columns=console.width)
    height = console.height - 2  # the prompts' lines
    if is_wide or not console.is_terminal or view.rollout is None or _lines(full, console) <= height:
        return full
    more = Text(f"shortened to the terminal; all of it: canaryctl status {view.service} | cat", style="dim")
    drawn: RenderableType = full
    for detail, _ in _details(bar_width(console.width)):
        lines = min(detail.log_lines, Detail().log_lines)
        short = replace(detail, log_lines=lines)
        drawn = Group(service_detail(view, is_wide=False, columns=console.width, detail=short), more)
        if _lines(drawn, console) <= height:
            break
    return drawn


def _details(bar: int) -> Iterator[tuple[Detail, bool]]:
    """How much is drawn, from everything to the least, each with whether all versions are."""
    full = Detail(MAX_LOG_LINES, bar)
    for lines in range(MAX_LOG_LINES, MIN_LOG_LINES - 1, -1):
        yield replace(full, log_lines=lines), True
    less = replace(full, log_lines=MIN_LOG_LINES, crops_log=True)
    yield less, True
    less = replace(less, fold=Fold.WATCHED)
    yield less, True
    less = replace(less, has_ornaments=False)
    yield less, False
    less = replace(less, fold=Fold.ALL)
    yield less, False
    less = replace(less, has_remarks=False)
    yield less, False
    yield replace(less, log_lines=1), False


def _panel(
    rollout: RolloutView,
    service: ServiceView | None,
    console: Console,
    notice: str | None,
    detail: Detail,
    *,
    has_versions: bool,
) -> Panel:
    top = [Text(notice, style="yellow")] if notice is not None else []
    if service is not None and service.problem is not None:
        top.append(Text(f"{CANNOT_DECIDE}: {service.problem}", style="bold red"))
    versions: list[RenderableType] = []
    if service is not None:
        top += unanswered(service.model_copy(update={"rollout": rollout}))
        shown = service if has_versions else _only_troubled(service)
        if shown.versions is None or shown.versions:
            versions = [versions_table(shown, is_wide=False), *([Text()] if detail.has_ornaments else [])]
    is_wide = console.width >= WIDE_COLUMNS
    standing = rollout.as_it_stands(service.problem) if service is not None else rollout
    body = Group(*top, *versions, *rollout_parts(standing, is_wide=is_wide, detail=detail))
    title = Text.assemble((rollout.service, "bold"), f"  {service.url}" if service is not None else "")
    return Panel(body, title=title, title_align="left", border_style="dim")


def _only_troubled(service: ServiceView) -> ServiceView:
    """The service with those versions that are not ready, and stable beside them; without any, with none."""
    if service.versions is None:
        return service
    troubled = {one.version for one in service.versions if one.phase != "ready"}
    shown = troubled | {service.stable} if troubled else troubled
    return service.model_copy(
        update={"versions": tuple(one for one in service.versions if one.version in shown)}
    )


def _lines(drawn: RenderableType, console: Console) -> int:
    return len(console.render_lines(drawn, console.options, pad=False))

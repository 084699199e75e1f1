"""Watching a rollout: a live picture on a terminal, plain lines in a pipe, the same exit code at the end."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from controller.cli.client import Client, patiently
from controller.cli.output import console
from controller.cli.render import log_line, rollout_parts, versions_table
from controller.errors import CanaryctlError, RolledBack, TimedOut
from controller.views.models import RolloutView, ServiceView

GIVE_UP_S = 60.0  # of a controller that does not answer
REFRESH_PER_S = 4
WIDE_COLUMNS = 120  # from here on there is room for reasons
LOG_LINES = 14


def watch(client: Client, service: str, rollout: str, *, timeout_s: float | None) -> RolloutView:
    """Show the rollout until it is over; its last view. Raises TimedOut, Unreachable after a minute."""
    shown: _Shown = _Picture() if sys.stdout.isatty() else _Lines()
    return _follow(client, service, rollout, shown, timeout_s=timeout_s)


class _Shown(Protocol):
    """How a rollout is shown while it runs."""

    def __enter__(self) -> _Shown: ...
    def __exit__(self, *_: object) -> None: ...
    def show(self, view: ServiceView, rollout: RolloutView) -> None: ...
    def silent(self) -> None: ...


def _follow(
    client: Client, service: str, rollout: str, shown: _Shown, *, timeout_s: float | None
) -> RolloutView:
    ends_at_s = time.monotonic() + timeout_s if timeout_s is not None else None
    with shown:
        for view in patiently(lambda: client.service(service), give_up_s=GIVE_UP_S):
            if view is None:
                shown.silent()
            elif view.rollout is not None and view.rollout.rollout == rollout:
                shown.show(view, view.rollout)
                if view.rollout.is_final:
                    return view.rollout
            if ends_at_s is not None and time.monotonic() >= ends_at_s:
                raise TimedOut(
                    f"{rollout} is not over after {timeout_s:g} s and goes on; "
                    f"canaryctl watch {service} shows it, canaryctl rollback {service} ends it"
                )
    raise AssertionError("patiently never ends by itself")


def wait(client: Client, service: str, rollout: str, *, timeout_s: float | None) -> RolloutView:
    """The rollout's last view, with nothing shown. Raises as `watch` does."""
    return _follow(client, service, rollout, _Silence(), timeout_s=timeout_s)


def raise_for(view: RolloutView) -> None:
    """Nothing when the rollout succeeded, else the error whose exit code says how it ended."""
    if view.exit_code in (None, 0):
        return
    for kind in (RolledBack, TimedOut):
        if kind.exit_code == view.exit_code:
            raise kind(f"{view.rollout}: {view.reason}")
    raise CanaryctlError(f"{view.rollout} failed: {view.reason}")


class _Silence:
    """Nothing: for programs, which read the last view alone."""

    def __enter__(self) -> _Silence:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, view: ServiceView, rollout: RolloutView) -> None:
        """Nothing."""

    def silent(self) -> None:
        """Nothing."""


class _Lines:
    """Every new line of the rollout's log, once: for pipes and logs."""

    def __init__(self) -> None:
        self._console = console()
        self._seq = 0
        self._is_silent = False

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, view: ServiceView, rollout: RolloutView) -> None:
        """Print what is new."""
        self._is_silent = False
        for line in rollout.log:
            if line.seq > self._seq:
                self._seq = line.seq
                self._console.print(log_line(line.at_s, line.actor, line.text), soft_wrap=True)
        sys.stdout.flush()

    def silent(self) -> None:
        """Say once that nothing answers."""
        if not self._is_silent:
            self._is_silent = True
            self._console.print("the controller does not answer; waiting for it", soft_wrap=True)


class _Picture:
    """One picture that renews itself: versions, stages, weights, evidence, log."""

    def __init__(self) -> None:
        self._console = console()
        self._live = Live(console=self._console, refresh_per_second=REFRESH_PER_S, transient=False)
        self._last: RenderableType = Text("")

    def __enter__(self) -> _Picture:
        self._live.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.__exit__(None, None, None)

    def show(self, view: ServiceView, rollout: RolloutView) -> None:
        """Renew the picture."""
        wide = self._console.width >= WIDE_COLUMNS
        gates = len({gate.gate for gate in rollout.gates})
        room = self._console.height - 14 - gates - len(view.versions or ())
        log_lines = LOG_LINES if rollout.is_final else max(3, min(room, LOG_LINES))
        body = Group(
            versions_table(view, wide=False),
            Text(),
            *rollout_parts(rollout, wide=wide, log_lines=log_lines),
        )
        title = f"[bold]{view.service}[/]  {view.url}"
        self._last = Panel(body, title=title, title_align="left", border_style="dim")
        self._live.update(self._last)

    def silent(self) -> None:
        """Keep the last picture and say that nothing answers."""
        note = Text("the controller does not answer; waiting for it", style="yellow")
        self._live.update(Group(self._last, note))

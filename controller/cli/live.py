"""Watching a rollout: a live view on a terminal, log lines in a pipe, nothing for programs."""

from __future__ import annotations

import sys
import time

from rich.live import Live
from rich.text import Text

from controller.cli.client import TIMEOUT_S, Client, poll
from controller.cli.live_frame import frame
from controller.cli.output import console, told_on_interrupt
from controller.cli.render import CANNOT_DECIDE, log_line
from controller.errors import CanaryctlError, RolledBack, TimedOut, Unreachable
from controller.rollout.plan import ending_command, is_undo_id
from controller.views.models import RolloutView, ServiceView

CONNECTION_LOST_S = 60.0  # give up after this long without an answer of the controller
LAST_ANSWER_S = 0.5  # for the answer that is asked for at the end of a wait
CONNECTION_LOST = "connection to the controller lost; retrying"
SHOWN_AS_LOST = (
    "the controller, which does not answer"  # what a rollout waits for then; its clocks mean nothing
)
REFRESH_PER_S = 4
VIEW_TIMEOUT_S = 0.5  # of the versions beside the rollout, without which it is shown too


def watch(
    client: Client,
    service: str,
    rollout: str,
    *,
    timeout_s: float | None,
    is_silent: bool = False,
    on_interrupt: str = "",
) -> RolloutView:
    """Final view of the rollout, shown until it ends. Raises TimedOut, Unreachable after a minute.

    on_interrupt: what goes on when the user stops waiting; empty: the rollout.
    """
    shown = _Silent() if is_silent else _LiveView(client) if sys.stdout.isatty() else _LogLines(client)

    def goes_on() -> str:
        return f"{rollout} goes on; {_ways_on(service, rollout, shown.newest)}"

    with told_on_interrupt(on_interrupt or goes_on):
        return _watch(client, service, rollout, shown, timeout_s=timeout_s)


def _watch(
    client: Client, service: str, rollout: str, display: _Silent, *, timeout_s: float | None
) -> RolloutView:
    ends_at_s = time.monotonic() + timeout_s if timeout_s is not None else None

    def read() -> RolloutView:
        # By its id: another rollout may have started since, or the service may be gone.
        left_s = TIMEOUT_S if ends_at_s is None else ends_at_s - time.monotonic()
        return client.rollout(service, rollout, timeout_s=min(TIMEOUT_S, max(left_s, LAST_ANSWER_S)))

    with display:
        for view in poll(read, give_up_s=CONNECTION_LOST_S, until_s=ends_at_s):
            if view is None:
                display.on_connection_lost(_lost_line(service, rollout, display))
            else:
                display.newest, display.lost_at_s = view, None
                display.show(view)
                if view.is_final:
                    return view
            if ends_at_s is not None and time.monotonic() >= ends_at_s:
                problem = _problem(client, service)
                why = f": {CANNOT_DECIDE}: {problem}" if problem else ""
                ways = _ways_on(service, rollout, display.newest, is_stuck=problem is not None)
                raise TimedOut(f"{rollout} is still running after {timeout_s:g} s{why}; {ways}")
    raise AssertionError("poll never ends by itself")


def _lost_line(service: str, rollout: str, display: _Silent) -> str:
    """That the connection is lost, since when, and what helps."""
    display.lost_at_s = display.lost_at_s or time.time()
    at = time.strftime("%H:%M:%S", time.localtime(display.lost_at_s))
    bypass = "" if is_undo_id(rollout) else f", or bypass it: canaryctl rollback {service} --direct"
    return f"{CONNECTION_LOST}, since {at}; start it: canaryctl up" + bypass


def _ways_on(service: str, rollout: str, view: RolloutView | None, *, is_stuck: bool = False) -> str:
    """How to follow what runs, and how to end it, unless it ends already.

    view: the newest; None: there is none. is_stuck: the controller can decide nothing.
    """
    follow = f"follow it: canaryctl watch {service}"
    is_leaving = view is not None and view.steps is not None and view.steps.leaving == view.canary
    if is_leaving and not is_stuck:
        return follow  # it ends already, and a second command would change nothing
    end_it = ending_command(service, rollout, before=view.stable if view is not None else None)
    bypass = " --direct" if is_stuck and not is_undo_id(rollout) else ""
    return f"{follow}; end it: {end_it}{bypass}"


def _problem(client: Client, service: str) -> str | None:
    """Why the controller can decide nothing; None: it can, or does not say."""
    try:
        return client.service(service, timeout_s=VIEW_TIMEOUT_S).problem
    except CanaryctlError:
        return None


def raise_for_outcome(view: RolloutView) -> None:
    """Raise the error whose exit code reports how the rollout ended; nothing when it succeeded."""
    if view.exit_code in (None, 0):
        return
    for kind in (RolledBack, TimedOut):
        if kind.exit_code == view.exit_code:
            raise kind(f"{view.rollout}: {view.reason}")
    raise CanaryctlError(
        f"{view.rollout} failed: {view.reason}; its log: canaryctl history {view.service} --rollout "
        f"{view.rollout}"
    )


class _Silent:
    """Shows nothing; the other displays override what they show."""

    newest: RolloutView | None = None  # of the rollout; None: none was read yet
    lost_at_s: float | None = None  # by the wall clock, when the connection was lost; None: it is not

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        pass

    def show(self, rollout: RolloutView) -> None:
        pass

    def on_connection_lost(self, line: str) -> None:
        pass


class _LogLines(_Silent):
    """Prints each new line of the rollout's log once, and what keeps the controller from deciding."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._console = console()
        self._problem: str | None = None  # as printed last
        self._seq = 0
        self._is_lost = False

    def show(self, rollout: RolloutView) -> None:
        self._is_lost = False
        for line in rollout.log:
            if line.seq > self._seq:
                self._seq = line.seq
                self._console.print(log_line(line.at_s, line.actor, line.text), soft_wrap=True)
        problem = _problem(self._client, rollout.service)
        if problem is not None and problem != self._problem:
            self._console.print(f"{CANNOT_DECIDE}: {problem}", soft_wrap=True)
        self._problem = problem
        sys.stdout.flush()

    def on_connection_lost(self, line: str) -> None:
        if not self._is_lost:
            self._is_lost = True
            self._console.print(line, soft_wrap=True)


class _LiveView(_Silent):
    """Redraws versions, stages, weights, evidence and log in place."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._console = console()
        self._live = Live(console=self._console, refresh_per_second=REFRESH_PER_S, transient=False)
        self._rollout: RolloutView | None = None  # the newest; None: none was read yet
        self._view: ServiceView | None = None  # the newest; None: there is none

    def __enter__(self) -> None:
        self._live.__enter__()

    def __exit__(self, *exc: object) -> None:
        self._live.__exit__(None, None, None)

    def show(self, rollout: RolloutView) -> None:
        try:
            self._view = self._client.service(rollout.service, timeout_s=VIEW_TIMEOUT_S)
        except Unreachable:  # too slow, or lost: the next poll says so
            pass
        except CanaryctlError:  # it was taken down
            self._view = None
        self._rollout = rollout
        self._draw(notice=None)

    def on_connection_lost(self, line: str) -> None:
        if self._rollout is None:
            self._live.update(Text(line, style="yellow"))
        else:
            self._rollout = self._rollout.as_it_stands(line, waits=SHOWN_AS_LOST)
            self._draw(notice=line)

    def _draw(self, *, notice: str | None) -> None:
        if self._rollout is not None:
            self._live.update(frame(self._rollout, self._view, console=self._console, notice=notice))

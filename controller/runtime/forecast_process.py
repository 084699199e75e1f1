"""Forecasts in a child process, so that neither ticks nor other requests wait for a simulation.

Invariants: one simulation at a time, at most `MAX_WAITING` wait for it, each for a limited time; a process
that fails, hangs or is killed becomes one `NotSimulated`, and none is left behind.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from controller import telemetry
from controller.planning.forecast import NotSimulated, forecast
from controller.rollout.plan import Plan
from controller.runtime.child_process import ChildEnded, ChildFailed, ChildLate, in_child
from controller.spec.policy import PolicySpec
from evaluation.forecast.simulation import TrafficModel
from evaluation.forecast.stages import StageForecast

LIMIT_S = 120.0
MAX_WAITING = 3  # each blocks a thread of the API

Forecast = tuple[StageForecast, ...]
Work = Callable[[Plan, PolicySpec, TrafficModel], Forecast]


class Simulator:
    """Runs forecasts one at a time. work: runs in the child process, which must be able to import it."""

    def __init__(self, work: Work = forecast, *, limit_s: float = LIMIT_S) -> None:
        self._work = work
        self._limit_s = limit_s
        self._running = threading.Lock()
        self._slots = threading.BoundedSemaphore(1 + MAX_WAITING)

    def forecast(
        self, plan: Plan, policy: PolicySpec, traffic: TrafficModel, *, limit_s: float | None = None
    ) -> Forecast:
        """See `planning.forecast`. limit_s: total wait; None: the default limit. Raises NotSimulated."""
        limit_s = self._limit_s if limit_s is None else limit_s
        ends_at_s = time.monotonic() + limit_s
        if not self._slots.acquire(blocking=False):
            raise NotSimulated(
                f"{1 + MAX_WAITING} forecasts are running already; try again later, or use --quick"
            )
        try:
            if not self._running.acquire(timeout=limit_s):
                raise NotSimulated(_late(limit_s))
            try:
                return self._run(plan, policy, traffic, limit_s, ends_at_s)
            finally:
                self._running.release()
        finally:
            self._slots.release()

    def _run(
        self, plan: Plan, policy: PolicySpec, traffic: TrafficModel, limit_s: float, ends_at_s: float
    ) -> Forecast:
        left_s = max(0.0, ends_at_s - time.monotonic())
        try:
            return in_child(partial(self._work, plan, policy, traffic), name="forecast", limit_s=left_s)
        except ChildLate as exc:
            raise NotSimulated(_late(limit_s)) from exc
        except ChildEnded as exc:
            telemetry.warning("forecast process ended", why=str(exc))
            raise NotSimulated(f"the simulation {exc}; see the controller's log") from exc
        except ChildFailed as exc:
            telemetry.warning("forecast failed", why=str(exc))
            raise NotSimulated(f"the simulation failed: {exc}; the rollout does not need it") from exc


def _late(limit_s: float) -> str:
    return (
        f"the simulation took longer than {limit_s:g} s; try again when the host is less busy, "
        "or leave it out: --quick"
    )

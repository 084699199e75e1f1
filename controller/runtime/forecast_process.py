"""Runs a forecast in a process of its own: no tick and no other request waits for it.

Invariants: one simulation at a time, few wait for it, each for a limited time; a process that fails, hangs or
is killed becomes one `NotSimulated`, and none is left behind.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from controller import telemetry
from controller.planning.forecast import NotSimulated, forecast
from controller.rollout.plan import Plan
from controller.spec.service import PolicySpec
from controller.views.models import ForecastView
from evaluation.forecast.simulation import TrafficModel

LIMIT_S = 120.0
MOST_WAITING = 3  # each holds a thread of the API
NICE = 10
STOP_S = 2.0

Forecast = tuple[ForecastView, ...]
Work = Callable[[Plan, PolicySpec, TrafficModel], Forecast]


class Simulator:
    """Forecasts, one at a time. `work` is run in the other process, which must be able to import it."""

    def __init__(self, work: Work = forecast, *, limit_s: float = LIMIT_S) -> None:
        self._work = work
        self._limit_s = limit_s
        self._turn = threading.Lock()
        self._places = threading.BoundedSemaphore(1 + MOST_WAITING)

    def forecast(
        self, plan: Plan, policy: PolicySpec, traffic: TrafficModel, *, limit_s: float | None = None
    ) -> Forecast:
        """See `planning.forecast`. limit_s: to wait, in all; None: the default limit. Raises NotSimulated."""
        limit_s = self._limit_s if limit_s is None else limit_s
        ends_at_s = time.monotonic() + limit_s
        if not self._places.acquire(blocking=False):
            raise NotSimulated(
                f"{1 + MOST_WAITING} forecasts are being made already; ask again later, or with --quick"
            )
        try:
            if not self._turn.acquire(timeout=limit_s):
                raise NotSimulated(_late(limit_s))
            try:
                return self._run(plan, policy, traffic, limit_s, ends_at_s)
            finally:
                self._turn.release()
        finally:
            self._places.release()

    def _run(
        self, plan: Plan, policy: PolicySpec, traffic: TrafficModel, limit_s: float, ends_at_s: float
    ) -> Forecast:
        context = multiprocessing.get_context("spawn")  # a fork would copy the controller's threads' locks
        here, there = context.Pipe(duplex=False)
        process = context.Process(
            target=_apart, args=(there, self._work, plan, policy, traffic), name="forecast", daemon=True
        )
        try:
            process.start()
            there.close()
            if not here.poll(max(0.0, ends_at_s - time.monotonic())):
                raise NotSimulated(_late(limit_s))
            found, error = here.recv()
        except EOFError as exc:
            process.join(STOP_S)
            telemetry.warning("forecast process ended", exit_code=process.exitcode)
            raise NotSimulated(
                f"the simulation ended with exit code {process.exitcode}; the controller's log says why"
            ) from exc
        finally:
            here.close()
            _end(process)
        if error is not None:
            telemetry.warning("forecast failed", why=error)
            raise NotSimulated(f"the simulation failed: {error}; the rollout does not need it")
        result: Forecast = found
        return result


def _apart(there: Connection, work: Work, plan: Plan, policy: PolicySpec, traffic: TrafficModel) -> None:
    """In the other process: the result and None, or None and what went wrong."""
    os.nice(NICE)
    try:
        answer: tuple[Forecast | None, str | None] = (work(plan, policy, traffic), None)
    except Exception as exc:  # noqa: BLE001 - whatever it is, it is told and ends this process
        answer = (None, f"{type(exc).__name__}: {exc}".splitlines()[0][:200])
    there.send(answer)


def _end(process: multiprocessing.process.BaseProcess) -> None:
    if process.pid is None:
        return  # it never started
    process.join(0.2)
    for end in (process.terminate, process.kill):
        if process.is_alive():
            end()
            process.join(STOP_S)


def _late(limit_s: float) -> str:
    return f"the simulation took longer than {limit_s:g} s; ask again when the host is less busy"

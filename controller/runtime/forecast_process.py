"""Forecasts in a child process, so that neither ticks nor other requests wait for a simulation.

Invariants: one simulation at a time, at most `MAX_WAITING` wait for it, each for a limited time; a process
that fails, hangs or is killed becomes one `NotSimulated`, and none is left behind.
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
from controller.spec.policy import PolicySpec
from evaluation.forecast.simulation import TrafficModel
from evaluation.forecast.stages import StageForecast

LIMIT_S = 120.0
MAX_WAITING = 3  # each blocks a thread of the API
NICE = 10
STOP_S = 2.0

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
        context = multiprocessing.get_context("spawn")  # a fork would copy the controller's threads' locks
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(
            target=_simulate, args=(sender, self._work, plan, policy, traffic), name="forecast", daemon=True
        )
        try:
            process.start()
            sender.close()
            if not receiver.poll(max(0.0, ends_at_s - time.monotonic())):
                raise NotSimulated(_late(limit_s))
            result, error = receiver.recv()
        except EOFError as exc:
            process.join(STOP_S)
            telemetry.warning("forecast process ended", exit_code=process.exitcode)
            raise NotSimulated(
                f"the simulation ended with exit code {process.exitcode}; see the controller's log"
            ) from exc
        finally:
            receiver.close()
            _stop(process)
        if error is not None:
            telemetry.warning("forecast failed", why=error)
            raise NotSimulated(f"the simulation failed: {error}; the rollout does not need it")
        stages: Forecast = result
        return stages


def _simulate(sender: Connection, work: Work, plan: Plan, policy: PolicySpec, traffic: TrafficModel) -> None:
    """In the child process: send (result, None), or (None, error)."""
    os.nice(NICE)
    try:
        outcome: tuple[Forecast | None, str | None] = (work(plan, policy, traffic), None)
    except Exception as exc:  # noqa: BLE001 - any error is sent to the parent
        outcome = (None, f"{type(exc).__name__}: {exc}".splitlines()[0][:200])
    sender.send(outcome)


def _stop(process: multiprocessing.process.BaseProcess) -> None:
    if process.pid is None:
        return  # it never started
    process.join(0.2)
    for stop in (process.terminate, process.kill):
        if process.is_alive():
            stop()
            process.join(STOP_S)


def _late(limit_s: float) -> str:
    return (
        f"the simulation took longer than {limit_s:g} s; try again when the host is less busy, "
        "or leave it out: --quick"
    )

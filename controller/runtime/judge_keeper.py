"""Keeper of the engine that judges for a service: loaded while a rollout needs it, and no other one loaded.

Invariants: level-triggered, as the service's keeper; an unreadable fleet is left alone; what fails here keeps
neither the service nor its rollout from being kept, for a rollout without its judge only holds.
"""

from __future__ import annotations

from dataclasses import dataclass

from controller.errors import CanaryctlError, LostDatabase, StaleToken
from controller.rollout.judge import needed_engine
from controller.rollout.judge_plan import JudgeEngine
from controller.rollout.observation import VersionPhase, VersionStatus
from controller.rollout.ports import Clock, Fleet
from controller.rollout.state import RolloutState
from controller.runtime.faults import Faults
from controller.runtime.kept_loaded import KeptLoaded
from serving.actor_names import judge_service

KEEPING_JUDGE = "keeping the judge"  # place of faults


@dataclass(frozen=True, slots=True)
class JudgeKept:
    """The engine in the last tick. is_clear: none holds memory; None: the fleet cannot be read."""

    status: VersionStatus | None = None  # of the one that is needed; None: none is, or it does not run yet
    is_clear: bool | None = None
    is_settled: bool = True  # there is nothing to do


class JudgeKeeper:
    """Drives the fleet towards the engine that the running rollout needs."""

    def __init__(self, fleet: Fleet, clock: Clock, faults: Faults) -> None:
        """faults: of the service's keeper."""
        self._fleet, self._faults = fleet, faults
        self._needed = KeptLoaded(fleet, clock)
        self._is_clear = False  # none runs: nobody else loads one while this controller leads

    def tick(self, service: str, rollout: RolloutState | None, *, token: int) -> JudgeKept:
        """One correction. rollout: the running one; None: there is none. Raises StaleToken, LostDatabase."""
        engine = needed_engine(rollout) if rollout is not None else None
        if engine is None and self._is_clear:
            return JudgeKept(is_clear=True)
        try:
            kept = self._corrected(judge_service(service), engine, token)
        except (StaleToken, LostDatabase):
            raise
        except CanaryctlError as exc:
            self._faults.failed(KEEPING_JUDGE, exc, service=service)
            return JudgeKept(is_settled=False)
        self._faults.works(KEEPING_JUDGE)
        self._is_clear = engine is None and kept.is_clear is True
        return kept

    def _corrected(self, name: str, engine: JudgeEngine | None, token: int) -> JudgeKept:
        found = self._fleet.observe(name)
        if found is None:
            return JudgeKept(is_settled=False)
        needed = engine.version if engine is not None else None
        for one in found:
            if one.version != needed and one.phase is not VersionPhase.STOPPING:
                self._fleet.stop(name, one.version, token=token)
        status = next((one for one in found if one.version == needed), None)
        is_ready = needed is None or self._needed.is_ready(name, needed, 1, status, token=token)
        others = any(one.version != needed for one in found)
        return JudgeKept(status, not found, is_ready and not others)

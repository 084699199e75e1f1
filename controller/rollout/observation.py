"""Reading what was seen: small answers about one observation. What is not there counts as nothing ready."""

from __future__ import annotations

from controller.rollout.state import (
    Observation,
    Phase,
    ProbeKind,
    ProbeSight,
    RolloutState,
    SetSplit,
    VersionPhase,
    VersionSight,
)


def sight_of(seen: Observation, version: str) -> VersionSight | None:
    return next((sight for sight in seen.versions or () if sight.version == version), None)


def ready_replicas(seen: Observation, version: str) -> int:
    sight = sight_of(seen, version)
    return sight.ready_replicas if sight is not None and sight.phase is VersionPhase.READY else 0


def is_gone(seen: Observation, version: str) -> bool:
    """True: the fleet was read, and the version holds no memory any more."""
    sight = sight_of(seen, version)
    return seen.versions is not None and (sight is None or sight.phase is VersionPhase.GONE)


def does_stand(seen: Observation, table: SetSplit) -> bool:
    split = seen.split
    if split is None or not split.applied:
        return False
    return (split.stable, split.canary, split.weight_bp) == (table.stable, table.canary, table.weight_bp)


def is_idle(sight: VersionSight | None) -> bool:
    """True: nothing runs on it, and the drain was taken in (or it never got so far)."""
    if sight is None or sight.phase in (VersionPhase.LOADING, VersionPhase.GONE, VersionPhase.FAILED):
        return True
    return sight.phase is not VersionPhase.READY and sight.in_flight <= 0


def probe_of(state: RolloutState, seen: Observation) -> ProbeSight | None:
    kinds = {
        Phase.PREFLIGHT: ProbeKind.PREFLIGHT,
        Phase.WARMING: ProbeKind.WARM,
        Phase.SMOKE: ProbeKind.SMOKE,
    }
    return next((probe for probe in seen.probes if probe.kind is kinds.get(state.phase)), None)

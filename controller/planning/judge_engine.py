"""The engine of a judge that canaryctl serves itself: its size, its name, its room beside both versions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from controller.errors import NoRoom
from controller.planning.capacity import MIN_KV_BYTES, Device, Fit, Room, fit, need_bytes
from controller.planning.fingerprint import Fingerprint
from controller.quantities import gib
from controller.rollout.judge_plan import JudgeEngine
from controller.spec.judge import NAME_LIMIT, JudgeSpec
from controller.spec.service import dump
from controller.spec.version import VersionSpec


@dataclass(frozen=True, slots=True)
class ServedJudge:
    """A judge's engine as a rollout would run it."""

    version: VersionSpec
    fingerprint: Fingerprint
    model: str  # the name that it is asked by: with its digest, so that other weights are another judge
    need_bytes: int  # on each of its devices

    @property
    def engine(self) -> JudgeEngine:
        """What a rollout pins of it."""
        return JudgeEngine(self.fingerprint.version_id, json.dumps(dump(self.version)), self.need_bytes)


def judge_version(judge: JudgeSpec, devices: Sequence[Device], *, kv_bytes: int) -> VersionSpec:
    """The version that is loaded. kv_bytes: KV cache on a host without a GPU, where the user gave none: a
    judge is asked few questions at once, and needs no more than its engine takes by itself."""
    version = judge.version()
    is_on_host = bool(devices) and devices[0].kind == "host"
    if not is_on_host or version.kv_cache_memory_bytes is not None:
        return version
    return version.model_copy(update={"kv_cache_memory_bytes": max(kv_bytes, MIN_KV_BYTES)})


def served_judge(
    judge: JudgeSpec, version: VersionSpec, fingerprint: Fingerprint, devices: Sequence[Device]
) -> ServedJudge:
    """The judge with its name and memory. version: of `judge_version`."""
    digest = fingerprint.version_id.removeprefix("v-")
    name = f"{judge.title[: NAME_LIMIT - len(digest) - 1]}-{digest}"
    need = need_bytes(version, fingerprint, devices[0]) if devices else 0
    return ServedJudge(version, fingerprint, name, need)


def fit_beside(
    version: VersionSpec, fingerprint: Fingerprint, devices: Sequence[Device], judge: ServedJudge | None
) -> Fit:
    """Whether the canary fits into what is free now, and beside it the judge's engine."""
    found = fit(version, fingerprint, devices if not version.is_external else ())
    if judge is None or not found.fits:
        return found
    of_judge = fit(judge.version, judge.fingerprint, left_by(version, fingerprint, devices))
    if of_judge.fits:
        text = f"{found.text}; the judge's engine takes {gib(judge.need_bytes)} more"
        return replace(found, text=text)
    text = (
        f"the judge's engine does not fit beside the canary: {of_judge.text}; or name a judge elsewhere (url)"
    )
    return Fit(False, of_judge.need_bytes, of_judge.free_bytes, text)


def require_judge_fit(version: VersionSpec, planned_bytes: int, devices: Sequence[Device]) -> None:
    """Raises NoRoom when a judge's engine does not fit into what its canary leaves. devices: `left_by`."""
    if devices and Room(devices).take(version, planned_bytes, 1).replicas < 1:
        free = max(device.free_bytes for device in devices)
        raise NoRoom(
            f"the judge's engine needs {gib(planned_bytes)}, and {gib(free)} are free beside the canary; "
            "free memory, or name a judge elsewhere (url)"
        )


def left_by(version: VersionSpec, fingerprint: Fingerprint, devices: Sequence[Device]) -> tuple[Device, ...]:
    """The devices with what the version leaves free, all of its replicas as far as they fit."""
    if version.is_external or not devices:
        return tuple(devices)
    room = Room(devices)
    room.take(version, fingerprint, version.replicas)
    return tuple(
        replace(
            device,
            free_bytes=room.free_bytes[place],
            free_gpus=room.free_gpus.get(device.node, device.free_gpus),
        )
        for place, device in enumerate(devices)
    )


def engine_line(judge: ServedJudge) -> str:
    """For a plan: what it takes, and that nobody but routers with an order reaches it."""
    return (
        f"it is served here as {judge.model} ({gib(judge.need_bytes)}) from the canary's load until the "
        "rollout ends, gets no user's request, and no text leaves the cluster"
    )

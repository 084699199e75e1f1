"""The judge that a service serves itself, as the commands see it: its files are read when it is named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from controller.errors import BadCheckpoint
from controller.planning.capacity import Device
from controller.planning.fingerprint import Fingerprint
from controller.planning.judge_engine import ServedJudge, judge_version, left_by, served_judge
from controller.spec.judge import JudgeSpec
from controller.spec.service import ServiceSpec
from controller.spec.version import VersionSpec


class Files(Protocol):
    """The part of the commands' environment that reads checkpoints and devices."""

    def fingerprint(self, version: VersionSpec) -> Fingerprint: ...
    def kv_bytes(self, version: VersionSpec) -> int: ...
    def devices(self) -> Sequence[Device]: ...


def is_served(judge: JudgeSpec | None) -> bool:
    """Whether it is an engine that canaryctl runs."""
    return judge is not None and not judge.is_external


def planned_judge(judge: JudgeSpec | None, files: Files, devices: Sequence[Device]) -> ServedJudge | None:
    """The engine of a rollout's judge; None: it has none, or one at an endpoint. Raises BadCheckpoint."""
    if judge is None or not is_served(judge):
        return None
    version = judge_version(judge, devices, kv_bytes=files.kv_bytes(judge))
    return served_judge(judge, version, _fingerprint(version, files), devices)


def devices_beside_judge(spec: ServiceSpec, files: Files) -> Sequence[Device]:
    """The devices with what a new service may take: its judge needs some in every rollout. Empty for an
    endpoint. Raises BadCheckpoint, Unreachable."""
    if spec.is_external:
        return ()
    devices = files.devices()
    judge = planned_judge(spec.judge, files, devices)
    return devices if judge is None else left_by(judge.version, judge.fingerprint, devices)


def require_judge(judge: JudgeSpec | None, files: Files) -> None:
    """Raises BadCheckpoint for a judge whose checkpoint could not be served."""
    if judge is not None and is_served(judge):
        _fingerprint(judge.version(), files)


def _fingerprint(version: VersionSpec, files: Files) -> Fingerprint:
    try:
        return files.fingerprint(version)
    except BadCheckpoint as exc:
        raise BadCheckpoint(f"judge: {exc}") from exc

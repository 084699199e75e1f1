"""What the commands need of this machine: files, devices, traffic, and a process to forecast in."""

from __future__ import annotations

from collections.abc import Sequence

from controller.evidence.traffic_meter import TrafficMeter
from controller.planning.baseline import Measured
from controller.planning.capacity import Device
from controller.planning.fingerprint import Fingerprint
from controller.rollout.plan import Plan
from controller.runtime.data_plane_ray import PlaneLog
from controller.runtime.forecast_process import Simulator
from controller.spec.service import PolicySpec, VersionSpec
from controller.views.models import ForecastView
from controller.wiring.launches import Versions, devices
from evaluation.forecast.stages import TrafficModel
from serving.fleet import engine_args


class Environment:
    """What the commands need of this machine."""

    def __init__(self, versions: Versions, log: PlaneLog) -> None:
        self._versions = versions
        self._log = log
        self.meters: dict[str, TrafficMeter] = {}
        self._simulator = Simulator()

    def fingerprint(self, version: VersionSpec) -> Fingerprint:
        """See `Versions.fingerprint`."""
        return self._versions.fingerprint(version)

    def devices(self) -> Sequence[Device]:
        """The devices of this host, with what is free now."""
        return devices()

    def kv_bytes(self, version: VersionSpec) -> int:
        """The engine's default KV cache on a CPU; the maximum when the checkpoint is unreadable."""
        try:
            return engine_args.cpu_kv_cache_bytes(str(version.model), version.max_model_len)
        except engine_args.CheckpointError:
            return engine_args.CPU_KV_MAX_BYTES

    def requests_per_s(self, service: str) -> float | None:
        """Over the last minute; None: not known."""
        meter = self.meters.get(service)
        return meter.requests_per_s() if meter else None

    def measured(self, service: str) -> Measured | None:
        """What stable is like, of its newest requests; None: not known."""
        meter = self.meters.get(service)
        return meter.measured() if meter else None

    def forecast(
        self, plan: Plan, policy: PolicySpec, traffic: TrafficModel, *, limit_s: float | None = None
    ) -> tuple[ForecastView, ...]:
        """See `controller.runtime.forecast_process`."""
        return self._simulator.forecast(plan, policy, traffic, limit_s=limit_s)

    def append_scores(self, service: str, scores: Sequence[tuple[str, str, float, float]]) -> bool:
        """True: the log has them."""
        return self._log.append(service, scores)

"""What the commands need of this machine: files, devices, traffic, and a process to forecast in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

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
from evaluation.forecast.simulation import TrafficModel
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
        """KV cache for two whole contexts of this checkpoint, in bytes: the engine's own CPU default."""
        most = engine_args.CPU_KV_MOST_BYTES
        try:
            config = json.loads((Path(str(version.model)) / "config.json").read_text())
            tokens = int(version.max_model_len or config["max_position_embeddings"])
            wanted = 2 * tokens * engine_args.kv_bytes_per_token(config, value_bytes=4)
        except (OSError, KeyError, ValueError, TypeError):
            return most
        return min(max(wanted, engine_args.CPU_KV_LEAST_BYTES), most)

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

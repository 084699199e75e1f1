"""Adapter of the commands' Environment: this host's files, devices, measured traffic and simulations."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from controller.api.key_reads import KeyReads
from controller.api.keys import KeyProblem, key_problem
from controller.errors import Unreachable
from controller.evidence.reader import RecordsReader
from controller.evidence.traffic_meter import TrafficMeter
from controller.planning.baseline import MeasuredBaseline
from controller.planning.capacity import Device
from controller.planning.fingerprint import Fingerprint
from controller.rollout.plan import Plan
from controller.runtime.data_plane_ray import RecordsAdapter
from controller.runtime.forecast_process import Simulator
from controller.spec.policy import PolicySpec
from controller.spec.version import VersionSpec
from controller.wiring.launches import Versions
from evaluation.forecast.simulation import TrafficModel
from evaluation.forecast.stages import StageForecast
from serving.credentials import KeyReference
from serving.fleet import engine_args

LEAD_WAIT_S = 20.0  # longer than the lease of a controller that was killed
MEASURE_WAIT_S = 5.0  # a controller that takes over reads the logs within a second or two


class HostEnvironment:
    """Implements `api.commands.Environment`."""

    def __init__(
        self, versions: Versions, log: RecordsAdapter, *, has_variable: Callable[[str], bool]
    ) -> None:
        """has_variable: whether Ray's processes have this environment variable."""
        self._has_variable = has_variable
        self._versions = versions
        self._log = log
        self.meters: dict[str, TrafficMeter] = {}
        self.readers: dict[str, RecordsReader] = {}
        self.measuring: set[str] = set()  # services whose log was read since this controller leads
        self.serving: Callable[[str], str | None] = lambda service: None  # by its route table
        self.knows_all: Callable[[str], bool | None] = lambda service: None  # by the mark in its route table
        self.is_reading: Callable[[], bool] = lambda: True  # False: another controller reads the logs
        self._simulator = Simulator()
        self._keys = KeyReads(self._key_problem)

    def fingerprint(self, version: VersionSpec) -> Fingerprint:
        """See `Versions.fingerprint`."""
        return self._versions.fingerprint(version)

    def key_problem(self, reference: KeyReference) -> KeyProblem | None:
        """Why an endpoint's key cannot be read, here or in the Ray processes; None: it can. A file that hangs
        holds nobody."""
        return self._keys.problem(reference)

    def _key_problem(self, reference: KeyReference) -> KeyProblem | None:
        problem = key_problem(reference)
        if problem is None and reference.source == "env" and not self._has_variable(reference.name):
            name = reference.name
            return KeyProblem(
                f"{name} is not set where Ray was started, and routers read it there; "
                "write the key into a file and deploy with api_key_file"
            )
        return problem

    def devices(self, *, restoring: str | None = None) -> Sequence[Device]:
        """See `Versions.devices`."""
        return self._versions.devices(restoring=restoring)

    def kv_bytes(self, version: VersionSpec) -> int:
        """The engine's default KV cache on a CPU; the maximum when the checkpoint is unreadable."""
        try:
            return engine_args.cpu_kv_cache_bytes(str(version.model), version.max_model_len)
        except engine_args.CheckpointError:
            return engine_args.CPU_KV_MAX_BYTES

    def forget(self, service: str) -> None:
        """Keep nothing of a service that was removed."""
        self.meters.pop(service, None)
        self.readers.pop(service, None)
        self.measuring.discard(service)

    def require_leading(self) -> None:
        """Return once this controller leads. Raises Unreachable after `LEAD_WAIT_S`."""
        if not _becomes(self.is_reading, LEAD_WAIT_S):
            raise Unreachable("another controller leads; ask that one, or try again when it has ended")

    def serves(self, service: str) -> str | None:
        """The version that is served or loaded under this name; None: none is. Raises Unreachable where that
        is not known."""
        return self.serving(service)

    def is_newest(self, service: str) -> bool | None:
        """Whether the database knows all that was done to the service; None: not known."""
        return self.knows_all(service)

    def require_measuring(self, service: str) -> None:
        """Return once this controller measures the service's traffic.

        Raises Unreachable after `MEASURE_WAIT_S`.
        """
        if not _becomes(lambda: self.is_reading() and service in self.measuring, MEASURE_WAIT_S):
            raise Unreachable(
                f"this controller does not measure the traffic of {service}: another one leads, or it "
                "has just started; ask the one that leads, or try again"
            )

    def requests_per_s(self, service: str) -> float | None:
        """The service's rate over the last minute; None: not known."""
        meter = self.meters.get(service)
        return meter.requests_per_s() if meter else None

    def measured(self, service: str) -> MeasuredBaseline | None:
        """Measured baseline of the service's stable version; None: not known."""
        meter = self.meters.get(service)
        return meter.measured() if meter else None

    def forecast(
        self, plan: Plan, policy: PolicySpec, traffic: TrafficModel, *, limit_s: float | None = None
    ) -> tuple[StageForecast, ...]:
        """A forecast of each stage, simulated in another process. Raises NotSimulated."""
        return self._simulator.forecast(plan, policy, traffic, limit_s=limit_s)

    def append_scores(self, service: str, scores: Sequence[tuple[str, str, float, float]]) -> bool:
        """Append (id, metric, value, at_s) scores to the records log; False: it did not accept them."""
        return self._log.append(service, scores)

    def has_request(self, service: str, id: str) -> bool | None:
        """Whether a request with this id is recorded; None: the log is not read by this controller."""
        reader = self.readers.get(service) if self.is_reading() else None
        return reader.has_request(id) if reader is not None else None

    def has_score(self, service: str, id: str, metric: str) -> bool:
        """Whether the request with this id is known to have a score of the metric already."""
        reader = self.readers.get(service) if self.is_reading() else None
        return reader is not None and reader.has_score(id, metric)

    def forgotten_after_s(self, service: str) -> float | None:
        """Age at which requests are forgotten, too early for some scores; None: none is, or not known."""
        reader = self.readers.get(service) if self.is_reading() else None
        return reader.forgotten_after_s if reader is not None else None


def _becomes(condition: Callable[[], bool], wait_s: float) -> bool:
    """Wait until the condition holds; False: it does not within `wait_s`."""
    ends_at_s = time.monotonic() + wait_s
    while not condition():
        if time.monotonic() >= ends_at_s:
            return False
        time.sleep(0.05)
    return True

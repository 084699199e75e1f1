"""Messages about versions between fleet, engines and controller: frozen values, no Ray.

Invariant: a `Launch` holds everything needed to start a version; equal launches are one running version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from serving.actor_names import judged_service
from serving.credentials import KeyReference
from serving.files.plain_text import plain_text
from serving.judge_messages import restore

# draining: out of the route table, requests in flight continue.  stopping: Serve is deleting it.
# gone: its processes have ended and its memory is free.  failed: see last_error; not retried.
VersionPhase: TypeAlias = Literal["loading", "ready", "draining", "stopping", "gone", "failed"]
# closing: Serve stops the replica, which still answers until no router sends to it.  stalled: its engine has
# produced nothing for long although it has requests.
ReplicaPhase: TypeAlias = Literal["loading", "ready", "closing", "stalled", "failed"]
EngineArg: TypeAlias = Any  # a JSON value: text, a number, a flag, a list or a mapping


@dataclass(frozen=True, slots=True)
class EndpointError:
    """Why an external endpoint cannot serve."""

    text: str  # one line, with the remedy
    may_heal: bool  # by itself; False: somebody has to correct something first


class FleetUnreachable(Exception):
    """The fleet actor does not answer; the message holds the remedy."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A version to run: a checkpoint (`model_dir`) in vLLM engines, or an external endpoint (`url`)."""

    service: str
    version: str
    secret: str = field(repr=False)  # root of the service's data and control secrets
    model_dir: str | None = None  # None: `url` is set
    url: str | None = None  # None: `model_dir` is set; base URL as written
    engine_args: Mapping[str, EngineArg] = field(default_factory=dict)  # vLLM's own names
    replicas: int = 1
    gpus_per_replica: float = 0.0  # in total; 0: on the CPU; below 1: a share of one GPU
    tensor_parallel: int = 1
    memory_bytes: int | None = None  # required by a replica on each device; None: not checked
    # Name of the model at `url`, None: as clients write it; of an engine, None: `service`.
    endpoint_model: str | None = None
    api_key: KeyReference | None = None  # of the endpoint; None: it needs none

    def __post_init__(self) -> None:
        if (self.model_dir is None) == (self.url is None):
            raise ValueError(f"version {self.version} needs a model directory or a url, and not both")
        if self.replicas < 1 or self.tensor_parallel < 1:
            raise ValueError(
                f"version {self.version}: replicas {self.replicas} tensor_parallel {self.tensor_parallel}; "
                "use at least 1"
            )
        if not 0 <= self.gpus_per_worker <= 1:
            raise ValueError(
                f"version {self.version}: {self.gpus_per_replica} GPUs for tensor_parallel "
                f"{self.tensor_parallel}; use 0 to 1 GPU for each of its workers"
            )

    @property
    def gpus_per_worker(self) -> float:
        """Share of a GPU that each tensor-parallel worker takes, 0-1."""
        return self.gpus_per_replica / self.tensor_parallel

    @property
    def is_routed(self) -> bool:
        """False: a judge, which is in no route table."""
        return judged_service(self.service) is None

    @property
    def app_name(self) -> str:
        """Name of its Serve application."""
        return f"{self.service}--{self.version}"

    def to_json(self) -> str:
        """One line of JSON, the secret included."""
        return json.dumps({**asdict(self), "engine_args": dict(self.engine_args)})

    @classmethod
    def from_json(cls, text: str) -> Launch:
        """The launch that `to_json` wrote."""
        data = json.loads(text)
        return cls(**{**data, "api_key": KeyReference.from_json(data.get("api_key"))})


class HostProcess(NamedTuple):
    """A process of a host. Its start (`process_start.py`) detects a reused pid."""

    node: str  # address of the host in Ray
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class EngineReport:
    """Status of one replica, reported twice a second."""

    replica: str
    url: str
    phase: ReplicaPhase
    in_flight: int
    memory_bytes: int | None  # None: not measured yet
    processes: tuple[HostProcess, ...]  # its own and their descendants
    error: str | None  # None: none
    claims: tuple[str, ...] = ()  # devices that it waits for, to load on them, or loads on now
    is_loading: bool = False  # it loads on them now
    fence_epoch: int = 0  # of the route table that set its fence; 0: it has none


@dataclass(frozen=True, slots=True)
class ReportAnswer:
    """The fleet's answer to a report."""

    may_load: bool  # no other engine loads on the claimed devices
    is_unpublished: bool  # no router sends requests to its address any more


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What a replica answered when it was asked, because its reports had stopped."""

    in_flight: int
    is_ready: bool


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """Current status of one version. A version that is not listed is gone."""

    version: str
    phase: VersionPhase
    ready_replicas: int
    in_flight: int
    memory_bytes: int | None  # of all its replicas; None: not measured
    urls: tuple[str, ...]  # of its ready replicas
    last_error: str | None  # one line; None: none
    since_s: float  # CLOCK_BOOTTIME of the fleet when it entered this phase; tells one failure from another
    external: bool = False
    drained_replicas: int = 0  # ready ones that Serve has stopped, since the fleet actor began: not lost

    def __setstate__(self, state: list[Any]) -> None:
        restore(self, state)


class FleetClient(Protocol):
    """Runs versions. Every command is idempotent and returns at once; the work is done in the background.

    token: fencing token; one older than already used raises `serving.table.route_table.StaleFencingToken`.
    """

    def ensure(self, launch: Launch, *, token: int) -> None:
        """Load the version, or return it from draining, or set its number of replicas."""

    def observe(self, service: str) -> Sequence[VersionStatus] | None:
        """Every version of the service; None: unreachable."""

    def drain(self, service: str, version: str, *, token: int) -> None:
        """Take the version out of the route table; requests in flight continue."""

    def cancel(self, service: str, version: str, *, token: int) -> None:
        """Abort the requests still in flight in a draining version."""

    def stop(self, service: str, version: str, *, token: int) -> None:
        """Unload the version, even while it loads; clears a failure."""


def one_line(error: BaseException | str, *, limit: int = 400) -> str:
    """The last informative line of an error, truncated to `limit` characters and storable (`plain_text`)."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # pydantic, with which vLLM validates its settings, ends a message with a link and the input.
    useful = [line.split(" [type=")[0] for line in lines if not line.startswith("For further information")]
    return plain_text(useful[-1] if useful else type(error).__name__, limit=limit)

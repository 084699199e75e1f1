"""What fleet, engines and controller say about versions: frozen values, no Ray.

Invariant: a `Launch` says all that starting a version takes; equal launches are one running version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, NamedTuple, Protocol, TypeAlias

# draining: out of the route table, requests under way go on.  stopping: Serve is taking it down.
# gone: its processes were seen to have ended: its memory is free.  failed: see last_error; not retried.
Phase: TypeAlias = Literal["loading", "ready", "draining", "stopping", "gone", "failed"]
EngineArg: TypeAlias = str | int | float | bool


class FleetUnreachable(Exception):
    """The fleet actor does not answer; the message says what to look at."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A version to run: a checkpoint (`model_dir`) in engines of ours, or an endpoint elsewhere (`url`)."""

    service: str
    version: str
    secret: str = field(repr=False)  # engines accept requests that show it
    model_dir: str | None = None  # None: `url` is set
    url: str | None = None  # None: `model_dir` is set; no trailing slash, no /v1
    engine_args: Mapping[str, EngineArg] = field(default_factory=dict)  # vLLM's own names
    replicas: int = 1
    gpus_per_replica: float = 0.0  # in all; 0: on the CPU; below 1: a share of one GPU
    tensor_parallel: int = 1
    memory_bytes: int | None = None  # a replica needs this much on each device; None: not checked

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
        """The share of a GPU that each of its tensor-parallel workers takes, 0-1."""
        return self.gpus_per_replica / self.tensor_parallel

    @property
    def app_name(self) -> str:
        """The name of its Serve application."""
        return f"{self.service}--{self.version}"

    def to_json(self) -> str:
        """One line of JSON, the secret included."""
        return json.dumps({**asdict(self), "engine_args": dict(self.engine_args)})

    @classmethod
    def from_json(cls, text: str) -> Launch:
        """The launch that `to_json` wrote."""
        return cls(**json.loads(text))


class Process(NamedTuple):
    """A process on a host; with the time it began (seconds since the epoch), since pids are used again."""

    node: str  # address of the host, as Ray knows it
    pid: int
    created_s: float


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What a replica says of itself, twice a second."""

    replica: str
    url: str
    phase: Literal["loading", "ready", "failed"]
    in_flight: int
    memory_bytes: int | None  # None: not measured yet
    processes: tuple[Process, ...]  # its own and those under it
    error: str | None  # None: none


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One version as the fleet sees it now. A version that is not listed counts as gone."""

    version: str
    phase: Phase
    ready_replicas: int
    in_flight: int
    memory_bytes: int | None  # of all its replicas; None: not measured
    urls: tuple[str, ...]  # of its ready replicas
    last_error: str | None  # one line; None: none
    since_s: float  # wall clock when it came into this phase
    external: bool = False


class Fleet(Protocol):
    """Runs versions. Every command is idempotent and returns at once; the work goes on elsewhere.

    token: the lease's; an older one than was seen raises `serving.table.route_table.StaleToken`.
    """

    def ensure(self, launch: Launch, *, token: int) -> None:
        """Loads it, or brings it back from draining, or sets its number of replicas."""

    def observe(self, service: str) -> Sequence[VersionStatus] | None:
        """Every version of the service; None: could not be read."""

    def drain(self, service: str, version: str, *, token: int) -> None:
        """Takes it out of the route table; requests under way go on."""

    def cancel(self, service: str, version: str, *, token: int) -> None:
        """Breaks off the requests that are still under way in a draining version."""

    def stop(self, service: str, version: str, *, token: int) -> None:
        """Unloads it, also while it loads; forgets a failure."""


def one_line(error: BaseException | str, *, limit: int = 400) -> str:
    """The last telling line of an error, cut at `limit` characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # pydantic, in which vLLM reports wrong settings, ends with a link and the input.
    telling = [line.split(" [type=")[0] for line in lines if not line.startswith("For further information")]
    text = telling[-1] if telling else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"

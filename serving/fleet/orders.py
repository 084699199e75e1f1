"""Orders of the fleet: what `FleetCore` wants done, as frozen values. Each is idempotent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from serving.fleet.types import HostProcess, Launch


@dataclass(frozen=True, slots=True)
class RunApp:
    """Run the version in Serve with its number of replicas."""

    launch: Launch
    running: int  # replicas that already report


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish the version's addresses in the route table; without urls it leaves the table."""

    launch: Launch
    urls: tuple[str, ...]
    in_flight: tuple[
        int, ...
    ] = ()  # requests inside the engine at each address; (): nobody chooses between them


@dataclass(frozen=True, slots=True)
class Cancel:
    """Abort the requests in flight at these addresses."""

    launch: Launch
    urls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeleteApp:
    """Delete the version from Serve; call `on_gone` once its processes have ended."""

    launch: Launch
    processes: tuple[HostProcess, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """Check whether this address accepts connections."""

    launch: Launch
    replica: str
    url: str
    process: HostProcess | None = None  # its own; None: not known, or an endpoint


@dataclass(frozen=True, slots=True)
class Replace:
    """End this hung replica; Serve starts another in its place."""

    launch: Launch
    replica: str
    processes: tuple[HostProcess, ...]


Order: TypeAlias = RunApp | Publish | Cancel | DeleteApp | Probe | Replace

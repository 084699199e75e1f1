"""Where the judge of a service is reached that the fleet runs beside its versions.

Rules:
1. It runs under a name of its own (`judge_service`), which has no route table: nothing that draws, mirrors,
   lists or forwards requests of users can know of it.
2. Its secret is derived from the service's and is another one (`judge_root`): an engine of the service that
   gets its port does not answer in its place, and no router reaches it without an order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from serving.actor_names import judge_service
from serving.credentials import DataSecret, judge_root
from serving.fleet.types import FleetClient, FleetUnreachable, VersionPhase


@dataclass(frozen=True, slots=True)
class JudgeEngineStatus:
    """The engine as the fleet sees it."""

    phase: VersionPhase | None  # None: it does not run
    url: str  # '': it is not ready
    secret: DataSecret = field(repr=False)  # with which it is asked
    error: str | None  # its last one, one line; None: none


def judge_engine(fleet: FleetClient, service: str, version: str, root: str) -> JudgeEngineStatus:
    """The engine of this version that judges for `service`. root: the service's secret.

    Raises FleetUnreachable when the fleet cannot be read.
    """
    statuses = fleet.observe(judge_service(service))
    if statuses is None:
        raise FleetUnreachable(f"the fleet does not say where the judge of {service} is; trying again")
    secret = DataSecret.of(judge_root(root))
    status = next((one for one in statuses if one.version == version and one.phase != "gone"), None)
    if status is None:
        return JudgeEngineStatus(None, "", secret, None)
    url = status.urls[0] if status.phase == "ready" and status.urls else ""
    return JudgeEngineStatus(status.phase, url, secret, status.last_error)

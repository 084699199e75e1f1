"""What the store keeps besides a rollout's own state. Frozen rows; JSON stays text at this level."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServiceRow:
    """A named model endpoint and the version that production runs."""

    name: str
    spec: str  # the service as `up` was given it, JSON of `spec.ServiceSpec`
    stable: str  # id of the version in production
    secret: str  # engines accept the routers by it; never shown
    created_at_s: float
    removing: bool = False  # `down` was asked: traffic, engines and table are on their way out


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version of a service: its spec and the fingerprint of its files, both JSON."""

    service: str
    id: str
    spec: str
    fingerprint: str
    created_at_s: float


@dataclass(frozen=True, slots=True)
class RolloutRow:
    """A rollout as history shows it. `request`: what was asked for, JSON."""

    id: str
    service: str
    state: str
    request: str
    version: int
    created_at_s: float
    ended_at_s: float | None  # None: it runs


@dataclass(frozen=True, slots=True)
class EventRow:
    """One line of a service's log."""

    seq: int
    service: str
    rollout: str | None  # None: of the service itself
    at_s: float
    actor: str
    text: str


@dataclass(frozen=True, slots=True)
class Lease:
    """Who acts. The token rises with every holder, so that the world can refuse an earlier one."""

    holder: str
    token: int
    expires_at_s: float


@dataclass(frozen=True, slots=True)
class AbRow:
    """An A/B test of a service."""

    id: str
    service: str
    rollout: str
    spec: str  # JSON of `ab.spec.AbSpec`
    created_at_s: float
    ended_at_s: float | None  # None: it runs
    resume_seq: int = 0  # a restarted controller reads the log again from after this event
    settled_through_s: float = 0.0


@dataclass(frozen=True, slots=True)
class AbOutcome:
    """One unit's outcome in an A/B test."""

    unit: int
    is_b: bool
    w: float
    y: float | None  # None: it is missing; counted as missing by arm, never compared
    at_s: float

"""Rows of the store: service, version, rollout, event, lease. JSON columns stay text here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServiceRow:
    """A named model endpoint and its version in production."""

    name: str
    spec: str  # JSON of `spec.service.ServiceSpec`, as given to `up`
    stable: str  # id of the version in production
    secret: str  # shared by routers and engines; never shown
    created_at_s: float
    removing: bool = False  # `down` was requested: routers, engines and table are being stopped


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version of a service: its spec and the fingerprint of its files, both JSON."""

    service: str
    id: str
    spec: str
    fingerprint: str
    created_at_s: float
    name: str | None = None  # given name; None: it has none
    source: str | None = None  # checkpoint path or URL, as given
    actor: str | None = None  # who brought it
    message: str | None = None  # why, in their words


@dataclass(frozen=True, slots=True)
class ServedRow:
    """A version that has served since its service was created, as it served last."""

    version: VersionRow
    place: int  # rises with every version that begins to serve
    before: str | None  # the version that an undo returns to, itself after an undo; None: it is the first
    undone: str | None  # id of the undo that replaced it; None: none did, or it has served again since


@dataclass(frozen=True, slots=True)
class RolloutRow:
    """A rollout with its state and the request that created it, both JSON."""

    id: str
    service: str
    state: str
    request: str
    version: int
    created_at_s: float
    ended_at_s: float | None  # None: it is running
    name: str | None = None  # the canary's label as of this rollout, as in `VersionRow`
    source: str | None = None
    actor: str | None = None
    message: str | None = None
    canary: str = ""  # id of its version
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class EventRow:
    """One line of a service's log."""

    seq: int
    service: str
    rollout: str | None  # None: an event of the service itself
    at_s: float
    actor: str
    text: str


@dataclass(frozen=True, slots=True)
class Lease:
    """The controller's lease. Its fencing token rises with every holder, so earlier ones are refused."""

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

"""Specs and fingerprints in the JSON columns of stored rows."""

from __future__ import annotations

import json
from dataclasses import asdict

from controller.planning.fingerprint import Fingerprint
from controller.spec.service import ServiceSpec, VersionSpec, dump, parse_service, parse_version
from controller.store.rows import ServiceRow, VersionRow


def version_row(
    service: str,
    spec: VersionSpec,
    fingerprint: Fingerprint,
    at_s: float,
    *,
    name: str | None = None,
    source: str | None = None,
    actor: str | None = None,
    message: str | None = None,
) -> VersionRow:
    """Row of a version, which `version_spec` and `fingerprint_of` read."""
    return VersionRow(
        service,
        fingerprint.version_id,
        json.dumps(dump(spec)),
        json.dumps(asdict(fingerprint)),
        at_s,
        name,
        source,
        actor,
        message,
    )


def version_spec(row: VersionRow) -> VersionSpec:
    """Spec of a stored version."""
    return parse_version(json.loads(row.spec))


def replicas_of(row: VersionRow | None) -> int:
    """Replicas of a stored version; 1 if it is missing."""
    return version_spec(row).replicas if row is not None else 1


def service_spec(row: ServiceRow) -> ServiceSpec:
    """Spec of a stored service, as given to `up`."""
    return parse_service(json.loads(row.spec))


def fingerprint_of(row: VersionRow) -> Fingerprint:
    """Fingerprint of a stored version."""
    values = json.loads(row.fingerprint)
    pairs = {
        name: tuple((key, value) for key, value in values[name]) for name in ("parts", "sampling", "engine")
    }
    return Fingerprint(**{**values, **pairs})

"""Specs and fingerprints in the JSON columns of stored rows."""

from __future__ import annotations

import json
from dataclasses import asdict

from controller.planning.fingerprint import Fingerprint
from controller.spec.label import Label
from controller.spec.service import ServiceSpec, VersionSpec, dump, parse_service, parse_version
from controller.store.rows import RolloutRow, ServiceRow, VersionRow

UNLABELLED = Label()


def version_row(
    service: str,
    spec: VersionSpec,
    fingerprint: Fingerprint,
    at_s: float,
    *,
    label: Label = UNLABELLED,
) -> VersionRow:
    """Row of a version, which `version_spec`, `fingerprint_of` and `label_of` read."""
    return VersionRow(
        service,
        fingerprint.version_id,
        json.dumps(dump(spec)),
        json.dumps(asdict(fingerprint)),
        at_s,
        label.name,
        label.source,
        label.actor,
        label.message,
    )


def label_of(row: VersionRow | RolloutRow | None) -> Label:
    """Label of a stored version, or of the canary of a stored rollout; an empty one if it is missing."""
    return Label(row.name, row.source, row.actor, row.message) if row is not None else UNLABELLED


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

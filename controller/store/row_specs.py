"""Specs and fingerprints in the JSON columns of stored rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields

from controller.errors import BadCheckpoint
from controller.planning.fingerprint import Fingerprint
from controller.spec.label import Label
from controller.spec.service import ServiceSpec, dump, stored_service, stored_version
from controller.spec.version import VersionSpec
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
    return stored_version(json.loads(row.spec))


def replicas_of(row: VersionRow | None) -> int:
    """Replicas of a stored version; 1 if it is missing."""
    return version_spec(row).replicas if row is not None else 1


def service_spec(row: ServiceRow) -> ServiceSpec:
    """Spec of a stored service, as given to `up`."""
    return stored_service(json.loads(row.spec))


def fingerprint_of(row: VersionRow) -> Fingerprint:
    """Fingerprint of a stored version; what a newer release knows of it beside is left out."""
    known = {one.name for one in fields(Fingerprint)}
    values = {name: value for name, value in json.loads(row.fingerprint).items() if name in known}
    pairs = {
        name: tuple((key, value) for key, value in values.get(name, ()))
        for name in ("parts", "sampling", "engine", "files")
    }
    return Fingerprint(**{**values, **pairs, "vocabulary": tuple(values.get("vocabulary", ()))})


def comparable_fingerprint(row: VersionRow, compute: Callable[[VersionSpec], Fingerprint]) -> Fingerprint:
    """The row's fingerprint by today's rules, to compare with a fresh one: the stored one, or computed anew.

    A version keeps the id that it was stored with, and what older rules stored never equals a fresh
    fingerprint. compute: from the version's files. The stored one is returned if those are gone or changed.
    """
    stored = fingerprint_of(row)
    if stored.kind == "external":  # which follows from the spec alone
        return compute(version_spec(row))
    if stored.is_current:
        return stored
    try:
        fresh = compute(version_spec(row))
    except BadCheckpoint:
        return stored
    if fresh.part("tensors") != stored.part("tensors"):
        return stored
    return fresh.on_release(stored.part("engine_release"))

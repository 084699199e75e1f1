"""Counts of a rollout's mirrored copies, from the records log. They decide nothing of a live gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from controller.rollout.observation import MirrorStatus
from serving.messages import MirrorRecord


def counted(status: MirrorStatus, record: MirrorRecord) -> MirrorStatus:
    """The counts with one more copy."""
    match record.outcome:
        case "ok":
            same = status.same_text + (record.same_text is True)
            return replace(status, pairs=status.pairs + 1, same_text=same)
        case "failed":
            return replace(status, failed=status.failed + 1, cause=record.cause)
        case _:  # withheld, or a word of a later router: says nothing about the version
            return status


def mirror_to_mapping(status: MirrorStatus) -> dict[str, Any]:
    """JSON values for the snapshot."""
    return asdict(status)


def mirror_of(data: Mapping[str, Any] | None) -> MirrorStatus:
    """The counts of `mirror_to_mapping`; None: none, or of an older release."""
    known = {one.name for one in fields(MirrorStatus)}
    return MirrorStatus(**{key: value for key, value in (data or {}).items() if key in known})

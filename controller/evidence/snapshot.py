"""The envelope in which a rollout's evidence is stored: what it said, beside what the feed needs to go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from controller.rollout.observation import EvidenceStatus
from controller.rollout.serialization import evidence_from_json, evidence_to_json

FORMAT = 1


def pack(sight: EvidenceStatus | None, feed: Mapping[str, Any]) -> bytes:
    """The envelope. sight None: there was nothing to say yet."""
    said = evidence_to_json(sight) if sight is not None else None
    return json.dumps({"format": FORMAT, "sight": said, "feed": feed}, separators=(",", ":")).encode()


def feed_in(envelope: bytes) -> dict[str, Any]:
    """What the feed needs. Raises ValueError for an envelope of another format."""
    found = json.loads(envelope)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"evidence has no format {FORMAT}; it was written by another canaryctl")
    feed: dict[str, Any] = found["feed"]
    return feed


def evidence_in(envelope: bytes | None) -> EvidenceStatus | None:
    """What the evidence said when it was stored; None: nothing yet."""
    said = json.loads(envelope).get("sight") if envelope else None
    return evidence_from_json(said) if said else None

"""Stored envelope of a rollout's evidence: its status when stored, and the state that its feed restores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from controller.rollout.observation import EvidenceStatus
from controller.rollout.serialization import evidence_from_json, evidence_to_json
from evaluation.guards import GuardAction, GuardVerdict

FORMAT = 1


def envelope_of(status: EvidenceStatus | None, feed: Mapping[str, Any]) -> bytes:
    """The envelope as JSON. status None: no unit was drawn yet. feed: empty for a rollout that has ended."""
    shown = evidence_to_json(status) if status is not None else None
    return json.dumps({"format": FORMAT, "sight": shown, "feed": feed}, separators=(",", ":")).encode()


def stored_feed(envelope: bytes) -> dict[str, Any]:
    """The feed's state. Raises ValueError for an envelope of another format."""
    data = json.loads(envelope)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"evidence is not of format {FORMAT}; another version of canaryctl wrote it")
    feed: dict[str, Any] = data["feed"]
    return feed


def stored_status(envelope: bytes | None) -> EvidenceStatus | None:
    """The status when the evidence was stored; None: there was none yet."""
    status = json.loads(envelope).get("sight") if envelope else None
    return evidence_from_json(status) if status else None


def without_feed(envelope: bytes) -> bytes:
    """The envelope with its status alone, for a rollout that has ended. Raises ValueError."""
    return envelope_of(stored_status(envelope), {})


def trip_of(saved: dict[str, str] | None) -> GuardVerdict | None:
    """The guard's trip of a feed's state; None: there is none."""
    if saved is None:
        return None
    return GuardVerdict(saved["guard"], GuardAction(saved["action"]), saved["reason"])

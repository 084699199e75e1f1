"""JSON of the rollout's state, actions and sightings, and back: the store's and the transcripts' one form.

Each document carries `format`; a newer one than this code knows is refused rather than half read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import TypeAdapter, ValidationError

from controller.errors import CanaryctlError
from controller.planning.fingerprint import Fingerprint
from controller.rollout.actions import Action
from controller.rollout.observation import EvidenceSight
from controller.rollout.state import RolloutState

FORMAT = 1

_state = TypeAdapter(RolloutState)
_actions = TypeAdapter(tuple[Action, ...])
_evidence = TypeAdapter(EvidenceSight)
_fingerprint = TypeAdapter(Fingerprint)


class UnreadableState(CanaryctlError):
    """A stored document is not one of ours, or of a newer canaryctl."""

    problem = "unreadable-state"


def _unreadable(what: str, exc: Exception) -> UnreadableState:
    return UnreadableState(f"{what} cannot be read: {str(exc).splitlines()[0]}; restore the store")


def state_to_json(state: RolloutState) -> str:
    """One line of JSON; `state_from_json` gives back an equal state."""
    document = {"format": FORMAT, "rollout": _state.dump_python(state, mode="json")}
    return json.dumps(document, separators=(",", ":"))


def state_from_json(text: str | bytes) -> RolloutState:
    """The state that was written. Raises UnreadableState."""
    try:
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise UnreadableState(
                f"rollout state has format {document['format']}, this canaryctl reads {FORMAT}; "
                "run the version that wrote it"
            )
        return _state.validate_python(document["rollout"])
    except (ValueError, KeyError, TypeError, ValidationError) as exc:
        raise _unreadable("rollout state", exc) from exc


def actions_to_json(actions: Sequence[Action]) -> str:
    return json.dumps(_actions.dump_python(tuple(actions), mode="json"), separators=(",", ":"))


def actions_from_json(text: str | bytes) -> tuple[Action, ...]:
    """The actions that were written. Raises UnreadableState."""
    try:
        return _actions.validate_json(text)
    except ValidationError as exc:
        raise _unreadable("pending actions", exc) from exc


def evidence_to_json(evidence: EvidenceSight) -> str:
    # dump_json writes null for the end of an interval at infinity, and null cannot be read again.
    return json.dumps(_evidence.dump_python(evidence, mode="json"), separators=(",", ":"))


def evidence_from_json(text: str | bytes) -> EvidenceSight:
    """The evidence that was written. Raises UnreadableState."""
    try:
        return _evidence.validate_json(text)
    except ValidationError as exc:
        raise _unreadable("evidence", exc) from exc


def fingerprint_to_json(fingerprint: Fingerprint) -> str:
    return _fingerprint.dump_json(fingerprint).decode()


def fingerprint_from_json(text: str | bytes) -> Fingerprint:
    """The fingerprint that was written. Raises UnreadableState."""
    try:
        return _fingerprint.validate_json(text)
    except ValidationError as exc:
        raise _unreadable("fingerprint", exc) from exc

"""JSON of the rollout's state, actions and sightings, and back: the store's and the transcripts' one form.

Each document carries `format`; a newer one than this code knows is refused rather than half read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import TypeAdapter, ValidationError

from controller.errors import CanaryctlError
from controller.rollout.actions import Action
from controller.rollout.observation import EvidenceStatus
from controller.rollout.state import RolloutState

FORMAT = 1
# Fields whose stored key is older than their name: what is stored stays readable, by older releases too.
STORED_KEYS = {"commands_through": "asks_through"}

_state = TypeAdapter(RolloutState)
_actions = TypeAdapter(tuple[Action, ...])
_evidence = TypeAdapter(EvidenceStatus)


class UnreadableState(CanaryctlError):
    """A stored document is not one of ours, or of a newer canaryctl."""

    problem = "unreadable-state"


def _unreadable(what: str, exc: Exception) -> UnreadableState:
    return UnreadableState(f"{what} cannot be read: {str(exc).splitlines()[0]}; restore the store")


def state_to_json(state: RolloutState) -> str:
    """One line of JSON; `state_from_json` gives back an equal state."""
    values = {
        STORED_KEYS.get(key, key): value for key, value in _state.dump_python(state, mode="json").items()
    }
    document = {"format": FORMAT, "rollout": values}
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
        names = {key: name for name, key in STORED_KEYS.items()}
        return _state.validate_python(
            {names.get(key, key): value for key, value in document["rollout"].items()}
        )
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as exc:
        raise _unreadable("rollout state", exc) from exc


def actions_to_json(actions: Sequence[Action]) -> str:
    return json.dumps(_actions.dump_python(tuple(actions), mode="json"), separators=(",", ":"))


def actions_from_json(text: str | bytes) -> tuple[Action, ...]:
    """The actions that were written. Raises UnreadableState."""
    try:
        return _actions.validate_json(text)
    except ValidationError as exc:
        raise _unreadable("pending actions", exc) from exc


def evidence_to_json(evidence: EvidenceStatus) -> str:
    # dump_json writes null for the end of an interval at infinity, and null cannot be read again.
    return json.dumps(_evidence.dump_python(evidence, mode="json"), separators=(",", ":"))


def evidence_from_json(text: str | bytes) -> EvidenceStatus:
    """The evidence that was written. Raises UnreadableState."""
    try:
        return _evidence.validate_json(text)
    except ValidationError as exc:
        raise _unreadable("evidence", exc) from exc

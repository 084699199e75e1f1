"""JSON form of a rollout's state, actions and evidence, as the store keeps them.

The state carries `format`; a format that this code does not know is refused rather than half read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import TypeAdapter, ValidationError

from controller.errors import CanaryctlError
from controller.rollout.actions import Action
from controller.rollout.observation import EvidenceStatus
from controller.rollout.state import RolloutState
from serving.files.plain_text import storable_json

FORMAT = 1
# Stored keys of renamed fields: stored states stay readable, also by older releases.
STORED_KEYS = {"commands_through": "asks_through", "unreadable_since_s": "blind_since_s"}

_state = TypeAdapter(RolloutState)
_actions = TypeAdapter(tuple[Action, ...])
_evidence = TypeAdapter(EvidenceStatus)


class UnreadableState(CanaryctlError):
    """A stored document is malformed, or was written by a newer canaryctl."""

    problem = "unreadable-state"


def _unreadable(what: str, exc: Exception) -> UnreadableState:
    return UnreadableState(f"{what} cannot be read: {str(exc).splitlines()[0]}; restore the store")


def state_to_json(state: RolloutState) -> str:
    """One line of JSON; `state_from_json` restores an equal state, but for unstorable characters."""
    values = {
        STORED_KEYS.get(key, key): value for key, value in _state.dump_python(state, mode="json").items()
    }
    return storable_json({"format": FORMAT, "rollout": values})


def state_from_json(text: str | bytes) -> RolloutState:
    """The state of `state_to_json`. Raises UnreadableState."""
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
    return storable_json(_actions.dump_python(tuple(actions), mode="json"))


def actions_from_json(text: str | bytes) -> tuple[Action, ...]:
    """The actions of `actions_to_json`. Raises UnreadableState."""
    try:
        return _actions.validate_json(text)
    except ValidationError as exc:
        raise _unreadable("pending actions", exc) from exc


def evidence_to_json(evidence: EvidenceStatus) -> str:
    # Not `dump_json`: it writes an infinite interval end as null, which cannot be read again.
    return storable_json(_evidence.dump_python(evidence, mode="json"))


def evidence_from_json(text: str | bytes) -> EvidenceStatus:
    """The evidence of `evidence_to_json`. Raises UnreadableState."""
    try:
        return _evidence.validate_json(text)
    except ValidationError as exc:
        raise _unreadable("evidence", exc) from exc

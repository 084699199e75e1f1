"""Assignment of requests to arms: pure functions of the route table, the headers and the body.

Rules:
1. One formula: `bucket = hash64(salt, key) mod 10000`; canary if `bucket < weight_bp`. A raised weight
   therefore moves keys one way only, and every router assigns the same key to the same arm.
2. The key is the first of: header x-session-id; body `prompt_cache_key`, `safety_identifier`, `user`;
   everything up to the end of the first assistant turn; the request itself. Its source is not hashed: a unit
   keeps its name when the source of its key changes.
3. A raw key never leaves this module's callers: records carry `unit_of`, an HMAC.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from serving.messages import FULL_BP
from serving.targets import ELIGIBLE_PATHS

SESSION_HEADER = "x-session-id"
BODY_KEYS = ("prompt_cache_key", "safety_identifier", "user")


@dataclass(frozen=True, slots=True)
class AssignmentKey:
    """The text that is hashed to assign a request; requests of one conversation or user share it."""

    text: str
    source: Literal["request", "sticky"]


def is_eligible(method: str, path: str) -> bool:
    """True for a request that asks a model for an answer: it is assigned to an arm and recorded."""
    return method == "POST" and path in ELIGIBLE_PATHS


def find_key(headers: Mapping[str, str], body: Mapping[str, Any] | None, *, request_id: str) -> AssignmentKey:
    """The key of this request, by rule 2. `headers`: lower-case names. `body`: None when it is not JSON."""
    session = headers.get(SESSION_HEADER, "").strip()
    if session:
        return AssignmentKey(session, "sticky")
    for name in BODY_KEYS if body else ():
        value = body.get(name) if body else None
        if isinstance(value, str) and value:
            return AssignmentKey(value, "sticky")
    opening = _opening(body) if body else None
    if opening is not None:
        return AssignmentKey(opening, "sticky")
    return AssignmentKey(request_id, "request")


def _opening(body: Mapping[str, Any]) -> str | None:
    """Digest of the conversation up to the end of its first assistant turn; None: no such turn yet."""
    turns = body.get("messages", body.get("input"))
    if not isinstance(turns, list):
        return None
    for index, turn in enumerate(turns):
        if isinstance(turn, dict) and turn.get("role") == "assistant":
            # Excludes the model's name, which may change during the conversation.
            opening = json.dumps(turns[: index + 1], sort_keys=True, separators=(",", ":"))
            return hashlib.blake2b(opening.encode(), digest_size=16).hexdigest()
    return None


def hash64(salt: str, key: str) -> int:
    """A uniform 64-bit number for this salt and key, the same in every process and release.

    Check: hash64('salt', 'key') is 11907544988806243802.
    """
    # Prefixed with the length, so that ('ab', 'c') and ('a', 'bc') differ.
    encoded_salt = salt.encode()
    data = len(encoded_salt).to_bytes(4, "big") + encoded_salt + key.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def bucket_of(salt: str, key: str) -> int:
    """Bucket of a key, 0-9999. The bias of the modulus is under 1e-15."""
    return hash64(salt, key) % FULL_BP


def unit_of(secret: str, rollout: str, key: str) -> str:
    """HMAC of the key under a key of this rollout: 32 hex digits, unlinkable between rollouts."""
    data = key.encode("utf-8", "surrogatepass")
    return hmac.digest(_rollout_key(secret, rollout), data, "sha256").hex()[:32]


@functools.lru_cache(maxsize=8)
def _rollout_key(secret: str, rollout: str) -> bytes:
    return hmac.digest(secret.encode(), b"canaryctl unit\0" + rollout.encode(), "sha256")

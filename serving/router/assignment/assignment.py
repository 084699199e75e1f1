"""Assignment of requests to arms: pure functions of the route table, the headers and the body.

Rules:
1. One formula: `bucket = hash64(salt, key) mod 10000`; canary if `bucket < weight_bp`. A raised weight
   therefore moves keys one way only, and every router assigns the same key to the same arm. The service's
   name is part of the salt: two services never pick the same users, whatever their salts.
2. The key is the first of: header x-session-id, or what agents call it (`headers.SESSION_HEADERS`; Claude
   Code's of /v1/messages alone); body `prompt_cache_key`, `safety_identifier`, `user`, of /v1/messages then
   `metadata.user_id`; everything up to the end of the model's first turn (a message, or on /v1/responses
   reasoning or a call), Anthropic's `system` included; the request itself.
   Its source is not hashed: a unit keeps its name when the source of its key changes.
3. A raw key never leaves this module's callers: records carry `unit_of`, an HMAC under a random key of the
   rollout, which is no secret of the service: engines hold those.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Literal

from msgspec import Struct

from serving.messages import FULL_BP, RouteTable
from serving.router.bodies.body_facts import BodyFacts
from serving.targets import ELIGIBLE_PATHS

_PROCESS_KEY = secrets.token_hex(32)


class AssignmentKey(Struct, frozen=True, gc=False):
    """The text that is hashed to assign a request; requests of one conversation or user share it."""

    text: str
    source: Literal["request", "sticky"]


def is_eligible(method: str, path: str) -> bool:
    """True for a request that asks a model for an answer: it is assigned to an arm and recorded."""
    return method == "POST" and path in ELIGIBLE_PATHS


def find_key(session: str | None, facts: BodyFacts, *, request_id: str) -> AssignmentKey:
    """The key of this request, by rule 2. session: by `headers.session_of`."""
    session = session.strip() if session else ""
    if session:
        return AssignmentKey(session, "sticky")
    if facts.key is not None:
        return AssignmentKey(facts.key, "sticky")
    if facts.opening is not None:
        return AssignmentKey(facts.opening, "sticky")
    return AssignmentKey(request_id, "request")


def hash64(salt: str, key: str) -> int:
    """A uniform 64-bit number for this salt and key, the same in every process and release.

    Check: hash64('salt', 'key') is 11907544988806243802.
    """
    return Salted(salt).hash64(key)


class Salted:
    """`hash64` of many keys with one salt, which is hashed once."""

    __slots__ = ("_salted",)

    def __init__(self, salt: str) -> None:
        # Prefixed with the length, so that ('ab', 'c') and ('a', 'bc') differ.
        encoded = salt.encode()
        self._salted = hashlib.blake2b(len(encoded).to_bytes(4, "big") + encoded, digest_size=8)

    def hash64(self, key: str) -> int:
        """A uniform 64-bit number for this key."""
        hashed = self._salted.copy()
        hashed.update(key.encode("utf-8", "surrogatepass"))
        return int.from_bytes(hashed.digest(), "big")

    def bucket_of(self, key: str) -> int:
        """Bucket of a key, 0-9999. The bias of the modulus is under 1e-15."""
        return self.hash64(key) % FULL_BP


def salt_of(service: str, salt: str) -> str:
    """What keys of this service are hashed with. A service's name holds no NUL, so no two pairs are equal."""
    return f"{service}\0{salt}"


def bucket_of(salt: str, key: str) -> int:
    """Bucket of a key, 0-9999."""
    return Salted(salt).bucket_of(key)


def unit_key_of(table: RouteTable) -> str:
    """The key of units under this table: the rollout's, or this process's own for a table that names none."""
    return table.unit_key.text if table.unit_key is not None else _PROCESS_KEY


def unit_of(unit_key: str, rollout: str, key: str) -> str:
    """HMAC of the key under `unit_key`: 32 hex digits, unlinkable between rollouts."""
    return Units(unit_key, rollout).of(key)


class Units:
    """`unit_of` of many keys in one rollout. It goes with its table, and a destroyed key with it.

    A copy of a keyed HMAC costs half of a new one, whose hash OpenSSL looks up by name.
    """

    __slots__ = ("_keyed",)

    def __init__(self, unit_key: str, rollout: str) -> None:
        self._keyed = hmac.new(unit_key.encode(), rollout.encode() + b"\0", "sha256")

    def of(self, key: str) -> str:
        """The unit of this key."""
        keyed = self._keyed.copy()
        keyed.update(key.encode("utf-8", "surrogatepass"))
        return keyed.hexdigest()[:32]

"""Clients of a service: API keys, audiences, categories, affinity tokens, and how answers reach them.

A client's key is known by its SHA-256 alone, so a key must be long and random; who reads a table learns none.

Invariant: pure; imports nothing of ours.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeAlias

# Streams of the canary that stable could not continue. hold: the answer is held back until it is whole.
# stream: it is not, and a cut is an error for the user.
LateCommit: TypeAlias = Literal["hold", "stream"]


@dataclass(frozen=True, slots=True)
class ClientKey:
    """What the holder of an API key is."""

    name: str  # who holds it; shown, never secret. Keys of one name are one client's
    audiences: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    may_force: bool = False  # may choose the arm by x-canaryctl-force
    may_go_first: bool = False  # may give its requests a `priority` below 0

    def __setstate__(self, state: list[Any]) -> None:
        for one, value in zip(fields(self), (*state, False)[: len(fields(self))], strict=True):
            object.__setattr__(self, one.name, value)  # an older release pickles no `may_go_first`


@dataclass(frozen=True, slots=True)
class TrustedHeaders:
    """Headers from which a client's audience or category is read, and who may set them."""

    audience: str | None  # a header's name in lower case; None: none
    category: str | None
    networks: tuple[str, ...]  # addresses in CIDR form; from any other the headers are ignored


@dataclass(frozen=True, slots=True)
class Access:
    """Who may use a service, and the weights of audiences and categories."""

    keys: Mapping[str, ClientKey] = field(default_factory=dict)  # by `digest_of` the key
    keys_required: bool = False  # requests without a listed key are refused
    trusted: TrustedHeaders | None = None
    audience_bp: Mapping[str, int] = field(default_factory=dict)  # weight of an audience, 0-10000
    category_bp: Mapping[str, int] = field(default_factory=dict)

    @property
    def largest_bp(self) -> int:
        """The largest weight of an audience or category."""
        return max((*self.audience_bp.values(), *self.category_bp.values()), default=0)


@dataclass(frozen=True, slots=True)
class Affinity:
    """How affinity tokens are signed and carried."""

    key: bytes = field(repr=False)
    cookie: bool = False  # also as a cookie, for browsers; a back end's HTTP client would share it

    @classmethod
    def of(cls, unit_key: str, *, cookie: bool = False) -> Affinity:
        """That of a rollout whose units are named under this key, which is not empty.

        Not of the service's secrets: its engines hold those, and could sign tokens.
        """
        return cls(hmac.digest(unit_key.encode(), b"canaryctl affinity tokens", "sha256"), cookie)


@dataclass(frozen=True, slots=True)
class ClientRules:
    """What a service's spec says about its clients."""

    access: Access | None = None  # None: all clients are alike
    cookie: bool = False  # affinity tokens are also cookies
    burst_cap: float | None = None  # canary requests expected in any 10 s at each router; None: no cap
    late_commit: LateCommit = "hold"

    def to_json(self) -> dict[str, Any]:
        """These rules as a dict of JSON values."""
        access = None if self.access is None else asdict(self.access)
        named = {"access": access, "cookie": self.cookie, "burst_cap": self.burst_cap}
        return {**named, "late_commit": self.late_commit}

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> ClientRules:
        """The rules that `to_json` wrote; none were written: clients are all alike."""
        if data is None:
            return cls()
        late_commit = data.get("late_commit", "hold")
        return cls(_access_of(data["access"]), data["cookie"], data["burst_cap"], late_commit)


def _access_of(data: Mapping[str, Any] | None) -> Access | None:
    if data is None:
        return None
    keys = {
        digest: ClientKey(
            *(one["name"], tuple(one["audiences"]), tuple(one["categories"]), one["may_force"]),
            may_go_first=one.get("may_go_first", False),
        )
        for digest, one in data["keys"].items()
    }
    trusted = data["trusted"]
    if trusted is not None:
        trusted = TrustedHeaders(trusted["audience"], trusted["category"], tuple(trusted["networks"]))
    return Access(keys, data["keys_required"], trusted, dict(data["audience_bp"]), dict(data["category_bp"]))


def digest_of(key: str) -> str:
    """The SHA-256 of an API key in hex, as it stands in tables.

    Check: digest_of('sk-1') begins with 0f2c10bf.
    """
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()

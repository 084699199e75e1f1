"""Clients of a service as people write them: API keys, weights of audiences and categories, trusted headers.

    keys:
      - {name: team-a, sha256: "…", audiences: [staff]}     # of the key; see `REMEDY`
      - {name: on-call, sha256: "…", force: true}           # may send x-canaryctl-force
      - {name: pager, sha256: "…", priority: true}          # may send a `priority` below 0
    keys_required: true                # requests without a listed key are refused
    audience_bp: {staff: 10000}        # 100 % of this audience, while there is a canary
    category_bp: {code: 500}
    trust: {audience_header: x-audience, from: [10.0.0.0/8]}
    burst_cap: 50                      # canary requests expected in any 10 s, at each router
    late_commit: stream                # do not hold back what stable could not continue; default: hold

A typo is refused: an audience with a weight must be given by a key or a trusted header.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from serving.access import Access, ClientKey, LateCommit, TrustedHeaders

REMEDY = 'write the key\'s SHA-256: printf %s "$KEY" | sha256sum'
_DIGEST = re.compile(r"[0-9a-f]{64}")
_HEADER = re.compile(r"[a-z][a-z0-9-]{0,63}")
# The router or the connection gives these a meaning of its own.
_RESERVED = re.compile(
    r"x-canaryctl-.*|x-session-id|x-request-id|authorization|(x-|x-goog-)?api-key|cookie|host|connection|"
    r"content-.*|transfer-encoding|te|trailer|upgrade|expect|accept.*"
)


def _digest(text: str) -> str:
    if not _DIGEST.fullmatch(text.lower()):  # the text is not shown: it may be the key itself
        raise ValueError(f"is no SHA-256 of 64 hex digits; {REMEDY}")
    return text.lower()


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as exc:
        raise ValueError(f"{exc}; write a network as 10.0.0.0/8") from exc


def _header(text: str) -> str:
    name = text.lower()
    if not _HEADER.fullmatch(name) or _RESERVED.fullmatch(name):
        raise ValueError(f"{text!r} cannot be read as an audience or category; name another header")
    return name


Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Bp = Annotated[int, Field(ge=0, le=10_000, strict=True)]
HeaderName = Annotated[str, AfterValidator(_header)]


class KeySpec(BaseModel):
    """One client's API key."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=100)
    sha256: Annotated[str, AfterValidator(_digest)]
    audiences: list[Label] = []
    categories: list[Label] = []
    force: bool = Field(default=False, strict=True)
    client: Annotated[str, Field(min_length=1, max_length=100)] | None = (
        None  # whose it is; None: as its name
    )
    priority: bool = Field(default=False, strict=True)  # may ask engines to go before others


class TrustSpec(BaseModel):
    """Headers that name a client's audience or category, and the networks that may send them."""

    model_config = ConfigDict(extra="forbid")
    audience_header: HeaderName | None = None
    category_header: HeaderName | None = None
    networks: list[Annotated[str, AfterValidator(_network)]] = Field(alias="from", min_length=1)


class ClientFields(BaseModel):
    """The keys of a table or spec that speak of clients."""

    model_config = ConfigDict(extra="forbid")
    keys: list[KeySpec] = []
    keys_required: bool = Field(default=False, strict=True)
    audience_bp: dict[Label, Bp] = {}
    category_bp: dict[Label, Bp] = {}
    trust: TrustSpec | None = None
    burst_cap: float | None = Field(default=None, gt=0, le=1e9)
    late_commit: LateCommit = "hold"

    @model_validator(mode="after")
    def _check_clients(self) -> Self:
        names = [key.name for key in self.keys]
        digests = [key.sha256 for key in self.keys]
        if len(set(names)) < len(names) or len(set(digests)) < len(digests):
            raise ValueError("two keys have one name or one digest; keep one of them")
        if self.keys_required and not self.keys:
            raise ValueError("keys_required without keys would refuse every request; list the keys")
        trust = self.trust
        if trust is not None and trust.audience_header is None and trust.category_header is None:
            raise ValueError("trust names no header; give audience_header or category_header")
        self._check_labels("audience", set(self.audience_bp), trust is not None and trust.audience_header)
        self._check_labels("category", set(self.category_bp), trust is not None and trust.category_header)
        return self

    def _check_labels(self, kind: str, weighed: set[str], header: object) -> None:
        given = {
            one for key in self.keys for one in (key.audiences if kind == "audience" else key.categories)
        }
        unknown = sorted(weighed - given) if not header else []
        if unknown:
            a = "an" if kind == "audience" else "a"
            raise ValueError(
                f"{kind} {unknown[0]} of {kind}_bp is given by no key; correct the name, "
                f"add it to a key, or trust {a} {kind}_header"
            )

    def access(self) -> Access | None:
        """These clients; None: nothing is said of any."""
        if not (self.keys or self.audience_bp or self.category_bp or self.trust):
            return None
        keys = {
            one.sha256: ClientKey(
                one.client or one.name, tuple(one.audiences), tuple(one.categories), one.force, one.priority
            )
            for one in self.keys
        }
        trust, trusted = self.trust, None
        if trust is not None:
            trusted = TrustedHeaders(trust.audience_header, trust.category_header, tuple(trust.networks))
        return Access(keys, self.keys_required, trusted, dict(self.audience_bp), dict(self.category_bp))

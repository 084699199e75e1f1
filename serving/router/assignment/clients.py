"""Who sent a request: its API key, audience and category, by the route table's `Access`. Pure.

Rules:
1. The key is the first of those that a client sends (`client_keys.py`) that is known. An unknown key is as
   good as none, unless the service requires one. A browser asks before it sends any (a CORS preflight): that
   question needs none, and is sent on with its own headers alone and no key of ours (`of_preflight`).
2. Audience and category come from the key, and from the headers that the table names, which count only from
   the networks that it trusts: the last line of each. They reach no engine, whoever sent them.
3. An endpoint keeps the files and batches of all clients in one list, and tells no owner. Where clients have
   keys of their own (several, or one beside clients without) no list is passed on: who made it finds each by
   its id. What another client made, as far as that is remembered (`records/owners.py`), is not found.
4. `w(key)` is the largest of the general weight and the weights of the client's audiences and categories.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TypeAlias

from msgspec import structs

from serving.access import Access, ClientKey, TrustedHeaders, digest_of
from serving.router.assignment.client_keys import keys_of, without_keys
from serving.router.bodies.reserved import PRIORITY, REQUEST_ID
from serving.router.headers import RawHeaders, is_preflight, value_of, values_of
from serving.router.types import Refusal, Request

FORCE_HEADER = b"x-canaryctl-force"
_LABELS_LIMIT = 32  # audiences or categories in one header
_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Client:
    """The sender of a request."""

    audiences: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    may_force: bool = False
    may_go_first: bool = False
    key: str = ""  # the name of its API key; empty: it has none that is known


ANYONE = Client()


class Clients:
    """The clients of one `Access`."""

    def __init__(self, access: Access) -> None:
        """Raises ValueError when a trusted network is none."""
        self._access = access
        self._networks: list[_Network] = []
        self._consumed: frozenset[bytes] = frozenset()
        if access.trusted is not None:
            names = (access.trusted.audience, access.trusted.category)
            self._consumed = frozenset(name.encode() for name in names if name is not None)
            self._networks = [ipaddress.ip_network(one) for one in access.trusted.networks]

    def identify(self, request: Request) -> Client | Refusal:
        """The sender; a Refusal when the service requires a key and this is none."""
        access = self._access
        found: ClientKey | None = None
        if access.keys or access.keys_required:
            keys = keys_of(request)
            known = (access.keys.get(digest_of(key)) for key in keys)
            found = next((one for one in known if one is not None), None)
            if found is None and access.keys_required and not is_preflight(request.method, request.headers):
                return _unauthorised(bool(keys))
        client = ANYONE
        if found is not None:
            rights = found.may_force, found.may_go_first
            client = Client(found.audiences, found.categories, *rights, found.name)
        if access.trusted is not None and self._is_trusted(request.peer):
            client = _with_headers(client, access.trusted, request.headers)
        return client

    def without_consumed(self, request: Request) -> Request:
        """The request without the headers that only the router reads, and without clients' API keys."""
        request = without_keys(request, self._knows if self._access.keys else None)
        if not self._consumed:
            return request
        kept = tuple((name, value) for name, value in request.headers if name.lower() not in self._consumed)
        return request if len(kept) == len(request.headers) else structs.replace(request, headers=kept)

    @property
    def has_several(self) -> bool:
        """Whether there are clients with keys of their own beside others."""
        names = {one.name for one in self._access.keys.values()}
        return len(names) > 1 or (bool(names) and not self._access.keys_required)

    def weight_bp(self, client: Client, general_bp: int) -> int:
        """By rule 4, in basis points."""
        access = self._access
        weights = [access.audience_bp.get(name, 0) for name in client.audiences]
        weights += [access.category_bp.get(name, 0) for name in client.categories]
        return max(general_bp, *weights) if weights else general_bp

    def _knows(self, key: str) -> bool:
        return digest_of(key) in self._access.keys

    def _is_trusted(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)


def forced_arm(client: Client, headers: RawHeaders) -> str | Refusal | None:
    """'stable' or 'canary', as a client that may do so demands; None: it demands nothing, or may not."""
    value = value_of(headers, FORCE_HEADER) if client.may_force else None
    if value is None:
        return None
    wanted = value.strip().lower()
    if wanted in ("stable", "canary"):
        return wanted
    return Refusal(400, "bad_force", f"x-canaryctl-force {wanted[:40]!r} is no arm; send stable or canary")


def reserved_field(client: Client, path: str, reserved: Collection[str]) -> Refusal | None:
    """Why a body with these fields (`bodies/reserved.py`) is refused; None: this client may send it."""
    named = set(reserved)
    if path != "/v1/responses":
        named.discard(REQUEST_ID)
    if client.may_go_first:
        named.discard(PRIORITY)
    if not named:
        return None
    name = min(named)
    text = f"{name} in the body is for who runs the engines; send the request without it"
    if name == PRIORITY:
        text = "a priority below 0 goes before other users; send a whole number of 0 to 999999999, or none"
    return Refusal(400, "reserved_field", text)


def _with_headers(client: Client, trusted: TrustedHeaders, headers: RawHeaders) -> Client:
    audiences = _labels(headers, trusted.audience)
    categories = _labels(headers, trusted.category)
    return replace(client, audiences=client.audiences + audiences, categories=client.categories + categories)


def _labels(headers: RawHeaders, name: str | None) -> tuple[str, ...]:
    values = values_of(headers, name.encode()) if name is not None else []
    if not values:
        return ()
    value = values[-1]  # what a proxy appends stands below what its client wrote
    return tuple(label.strip() for label in value.split(",", _LABELS_LIMIT)[:_LABELS_LIMIT] if label.strip())


def _unauthorised(has_key: bool) -> Refusal:
    what = "this API key is not known here" if has_key else "this service needs an API key"
    message = f"{what}; send one that its operator gave you, as Authorization: Bearer KEY"
    return Refusal(401, "invalid_api_key", message, ((b"www-authenticate", b"Bearer"),))

"""Whether a client may ask for what it asks for, by the head of its request alone. Pure.

Rules:
1. The client is identified before any byte of its body is read, also where the body names the service: it
   must then have the right to one service at least.
2. An error names only services that the client may use.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from serving.router.front.paths import Found, find_target, query_of
from serving.router.headers import RawHeaders
from serving.router.router import RouterCore
from serving.router.types import Refusal, Request
from serving.targets import Target

_ANY = Target("/v1/models")


@dataclass(frozen=True, slots=True)
class Sent:
    """The head of a request. Names of headers are in lower case."""

    method: str
    target: bytes  # as it was sent, with the query
    headers: RawHeaders
    peer: str  # the client's address; empty: not known

    @property
    def unaddressed(self) -> Request:
        """By which a client is identified: its headers, query and address alone."""
        return Request(self.method, _any_with(query_of(self.target)), self.headers, b"", self.peer)


def _any_with(query: str) -> Target:
    try:
        return Target(_ANY.path, query) if query else _ANY
    except ValueError:  # no request with such a query begins
        return _ANY


def admit(cores: Mapping[str, RouterCore], sent: Sent, found: Found | Refusal) -> str | Refusal:
    """Who the client is, for the sharing of budgets; a Refusal when it may not ask.

    found: what `find_target` says of the target. The name: `client_name`.
    """
    if isinstance(found, Refusal):
        return without_names(cores, sent, found)
    services = tuple(cores) if found.service is None else (found.service,)
    request = sent.unaddressed
    refusal: Refusal | None = None
    for service in services:
        client = cores[service].assigner.identify(request)
        if not isinstance(client, Refusal):
            return client_name(sent.peer, client.key)
        refusal = refusal or client
    assert refusal is not None, "a front serves one service at least"
    return refusal


def client_name(peer: str, key: str = "") -> str:
    """What a client is called wherever clients share something: by its API key's name, else its network."""
    return f"key {key}" if key else f"address {network_of(peer)}"


def peer_of(transport: asyncio.BaseTransport) -> str:
    """The client's address; empty: it is not known."""
    address = transport.get_extra_info("peername")
    return str(address[0]) if isinstance(address, tuple) else ""


@lru_cache(maxsize=4096)
def network_of(peer: str) -> str:
    """An address as one client's: of IPv6 its /64, of which one host has all."""
    if ":" not in peer:
        return peer
    try:
        address = ipaddress.IPv6Address(peer.partition("%")[0])
    except ValueError:
        return peer
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False))


def usable_services(cores: Mapping[str, RouterCore], sent: Sent) -> tuple[str, ...] | Refusal:
    """The services that this client may use, at least one; a Refusal when there is none."""
    request = sent.unaddressed
    clients = {service: core.assigner.identify(request) for service, core in cores.items()}
    refusals = [one for one in clients.values() if isinstance(one, Refusal)]
    if len(refusals) == len(clients):
        return refusals[0]
    return tuple(service for service, one in clients.items() if not isinstance(one, Refusal))


def without_names(cores: Mapping[str, RouterCore], sent: Sent, refusal: Refusal) -> Refusal:
    """The error of a target that is none, for this client."""
    if not refusal.names_services:
        return refusal
    services = usable_services(cores, sent)
    if isinstance(services, Refusal) or len(services) == len(cores):
        return services if isinstance(services, Refusal) else refusal
    other = find_target(sent.method, sent.target, services)
    return other if isinstance(other, Refusal) else refusal

"""Which requests are begun: as many at engines as the limit, which clients share. Pure.

Rules:
1. A client is its API key, else its network (`admission.client_name`). Behind a balancer all users without
   keys are one client: a header that names others could be written by anybody who reaches the router.
2. A client may begin a request while it has fewer than SHARE for each place that is left. One that takes all
   it can gets SHARE of SHARE + 1 places, n of them SHARE of n * SHARE + 1 each: so one client alone, as
   behind a balancer, has nearly all. (Dynamic thresholds, as switches share a buffer: Choudhury and Hahne
   1998.) They share evenly as requests end; before that whoever comes later finds an eighth of the rest.
   So the last RESERVE of all places is for whoever has none: one place each, and one for all networks of a
   site (a /48 of IPv6), which one who has several of them could else take by themselves.
3. A request that has begun keeps its place.
4. A client that has more than half of the limit is not drawn; the others are.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Generic, TypeVar

from serving.router.front.load import Load
from serving.router.types import Refusal

SHARE = 7
RESERVE = 64  # one of so many places
SITE_BITS = 48  # of IPv6: what one subscriber is given at most, of which a network is a /64

K = TypeVar("K")


class RequestLimit(Generic[K]):
    """The client of each connection that has a request under way."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._clients: dict[K, str] = {}
        self._counts: dict[str, int] = {}
        self._sites: dict[str, int] = {}

    def begin(self, one: K, client: str) -> None:
        """A request of this client is begun on this connection, which has no other."""
        self.end(one)
        self._clients[one] = client
        for counts, name in ((self._counts, client), (self._sites, site_of(client))):
            counts[name] = counts.get(name, 0) + 1

    def end(self, one: K) -> None:
        """The request on this connection has ended, if there is one."""
        client = self._clients.pop(one, None)
        if client is None:
            return
        for counts, name in ((self._counts, client), (self._sites, site_of(client))):
            if left := counts[name] - 1:
                counts[name] = left
            else:
                del counts[name]

    def refusal(self, client: str, under_way: int) -> Refusal | None:
        """Why no further request of this client is begun; None: it is. under_way: attempts at engines."""
        load, count = self._load, self._counts.get(client, 0)
        if load.is_late or under_way >= load.requests_limit:
            return load.refusal()
        left, reserve = load.requests_limit - under_way, load.requests_limit // RESERVE
        if site_of(client) in self._sites and count >= SHARE * (left - reserve):
            return load.share_refusal(count)
        return None

    @property
    def largest(self) -> tuple[str, int]:
        """The client with most requests under way, and their number."""
        return max(self._counts.items(), key=lambda one: one[1], default=("", 0))


@lru_cache(maxsize=4096)
def site_of(client: str) -> str:
    """A client with all others that may be of one subscriber: of a network of IPv6 its /48, else itself."""
    kind, _, network = client.partition(" ")
    if kind != "address" or ":" not in network:
        return client
    try:
        address = ipaddress.IPv6Address(network.partition("/")[0])
    except ValueError:
        return client
    return f"site {ipaddress.IPv6Network((address, SITE_BITS), strict=False)}"

"""Which requests are begun: as many at engines as the limit, which clients share. Pure.

Rules:
1. A client is its API key, else its network (`admission.client_name`). Behind a balancer all users without
   keys are one client: a header that names others could be written by anybody who reaches the router.
2. A client may begin a request while it has fewer than SHARE for each place that is left. One that takes all
   it can gets SHARE of SHARE + 1 places, n of them SHARE of n * SHARE + 1 each: so there are always places
   for whoever has few, and one client alone, as behind a balancer, has nearly all. (Dynamic thresholds, as
   switches share a buffer: Choudhury and Hahne 1998.)
3. A request that has begun keeps its place.
4. A client that has more than half of the limit is not drawn; the others are.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from serving.router.front.load import Load
from serving.router.types import Refusal

SHARE = 7

K = TypeVar("K")


class RequestLimit(Generic[K]):
    """The client of each connection that has a request under way."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._clients: dict[K, str] = {}
        self._counts: dict[str, int] = {}

    def begin(self, one: K, client: str) -> None:
        """A request of this client is begun on this connection, which has no other."""
        self.end(one)
        self._clients[one] = client
        self._counts[client] = self._counts.get(client, 0) + 1

    def end(self, one: K) -> None:
        """The request on this connection has ended, if there is one."""
        client = self._clients.pop(one, None)
        if client is None:
            return
        if left := self._counts[client] - 1:
            self._counts[client] = left
        else:
            del self._counts[client]

    def refusal(self, client: str, under_way: int) -> Refusal | None:
        """Why no further request of this client is begun; None: it is. under_way: attempts at engines."""
        load, count = self._load, self._counts.get(client, 0)
        if load.is_late or under_way >= load.requests_limit:
            return load.refusal()
        if count >= SHARE * (load.requests_limit - under_way):
            return load.share_refusal(count)
        return None

    @property
    def largest(self) -> tuple[str, int]:
        """The client with most requests under way, and their number."""
        return max(self._counts.items(), key=lambda one: one[1], default=("", 0))

"""Which connections of clients are served: as many as the limit, which the clients' networks share. Pure.

Rules:
1. Below the limit every connection gets a place. One network may have all of them: behind a balancer all
   users come from its address.
2. At the limit a connection of another network gets a place of the network that has more than half of them:
   of an idle connection, which is closed, else of one whose request has not come whole, which is answered
   429. The oldest ones are looked at first. A request that has begun keeps its place.
3. A connection without a place is answered 429 when it asks, but for the router's own routes (`/health`): a
   balancer whose users have all places must find the router well. It has LINGER_S for its head.
4. Of connections without a place so many are held as leave open files for the engines; others are broken.
"""

from __future__ import annotations

from itertools import islice
from typing import Generic, Protocol, TypeVar

from serving.router.front.load import Load
from serving.router.types import Refusal

LOOKED_AT = 256  # connections, for one that could give up its place


class Connection(Protocol):
    """The connection of a client, as the limit needs it."""

    def close_if_idle(self, refusal: Refusal | None = None) -> bool:
        """True: it ends. refusal: also where a request is arriving, which is answered so."""

    def abort(self) -> None:
        """Break it."""


K = TypeVar("K", bound=Connection)


class ConnectionLimit(Generic[K]):
    """Every connection that is open, its network, and whether it has a place."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._networks: dict[K, str] = {}
        self._places: dict[str, dict[K, None]] = {}  # by network, oldest first
        self._taken = 0
        self._largest = ""  # the network that had more than half of the places last

    def join(self, one: K, network: str) -> None:
        """A client of this network has connected."""
        self._networks[one] = network
        self._load.connections = len(self._networks)
        if not self._get_place(one) and len(self._networks) - self._taken > self._load.turned_away_limit:
            one.abort()

    def leave(self, one: K) -> None:
        """The connection is closed."""
        if one in self._networks:
            self._give_up(one)
            del self._networks[one]
            self._load.connections = len(self._networks)

    def has_place(self, one: K) -> bool:
        """Whether it is served."""
        return one in self._places.get(self._networks.get(one, ""), ())

    def refusal(self, one: K) -> Refusal | None:
        """Why what it asks is not served; None: it has a place, perhaps since now."""
        return None if self._get_place(one) else self._load.crowd_refusal()

    def _get_place(self, one: K) -> bool:
        if self.has_place(one):
            return True
        network, limit = self._networks[one], self._load.connections_limit
        if self._taken >= limit and not self._make_room(network):
            return False
        places = self._places.setdefault(network, {})
        places[one] = None
        self._taken += 1
        if len(places) * 2 > limit:
            self._largest = network
        return True

    def _make_room(self, network: str) -> bool:
        """Take a place from the network that has more than half, for this other one."""
        places = self._places.get(self._largest, {})
        if network == self._largest or len(places) * 2 <= self._load.connections_limit:
            return False
        oldest = list(islice(places, LOOKED_AT))
        for refusal in (None, self._load.crowd_refusal()):
            for one in oldest:
                if one.close_if_idle(refusal):
                    self._give_up(one)
                    return True
        for one in oldest:  # the next time others are looked at
            places[one] = places.pop(one)
        return False

    def _give_up(self, one: K) -> None:
        network = self._networks[one]
        places = self._places.get(network, {})
        if one in places:
            del places[one]
            self._taken -= 1
            if not places:
                del self._places[network]

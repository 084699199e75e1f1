"""Which connections of clients are served: as many as the limit, which the clients' networks share. Pure.

Rules:
1. Below the limit every connection gets a place. One network may have all of them: behind a balancer all
   users come from its address.
2. At the limit a connection of another network gets a place of the network that has more than half of them:
   of an idle connection, which is closed, else of one whose request has not come whole, which is answered
   429, else of one that does not read its last answer, which is broken. The oldest ones are looked at first.
   A request that has begun keeps its place.
3. A connection without a place is answered 429 when it asks, but for the router's own routes (`/health`): a
   balancer whose users have all places must find the router well. It has LINGER_S for its head.
4. Of connections without a place so many are held as leave open files for the engines; others are broken,
   whether they came without one or lost it: to close takes as long as the client needs to read.
"""

from __future__ import annotations

from itertools import islice
from typing import Generic, Protocol, TypeVar

from serving.router.front.load import Load
from serving.router.types import Refusal

LOOKED_AT = 256  # connections, for one that could give up its place


class Connection(Protocol):
    """The connection of a client, as the limit needs it."""

    @property
    def unread_bytes(self) -> int:
        """Bytes that wait for its client; 0: it reads as fast as it is answered."""

    def close_if_idle(self, refusal: Refusal | None = None) -> bool:
        """True: it ends, once its client has read its answers. refusal: also where a request is arriving,
        which is answered so."""

    def abort_if_unread(self) -> bool:
        """Break it where its client does not read what it was answered: True."""

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
        if not self._get_place(one):
            self._abort_if_many(one)

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
        ending: K | None = None
        if self._taken >= limit and (ending := self._make_room(network)) is None:
            return False
        places = self._places.setdefault(network, {})
        places[one] = None
        self._taken += 1
        if len(places) * 2 > limit:
            self._largest = network
        if ending is not None:
            self._abort_if_many(ending)
        return True

    def _abort_if_many(self, one: K) -> None:
        """Break this one, which has no place, where too many have none."""
        if len(self._networks) - self._taken > self._load.turned_away_limit:
            one.abort()

    def _make_room(self, network: str) -> K | None:
        """Take a place from the network that has more than half, for this other one. None: there is none to
        take; else the connection that had it, which ends."""
        places = self._places.get(self._largest, {})
        if network == self._largest or len(places) * 2 <= self._load.connections_limit:
            return None
        oldest = list(islice(places, LOOKED_AT))
        for refusal in (None, self._load.crowd_refusal()):
            for one in oldest:
                if not one.unread_bytes and one.close_if_idle(refusal):
                    self._give_up(one)
                    return one
        for one in oldest:
            if one.abort_if_unread():
                self._give_up(one)
                return one
        for one in oldest:  # the next time others are looked at
            places[one] = places.pop(one)
        return None

    def _give_up(self, one: K) -> None:
        network = self._networks[one]
        places = self._places.get(network, {})
        if one in places:
            del places[one]
            self._taken -= 1
            if not places:
                del self._places[network]

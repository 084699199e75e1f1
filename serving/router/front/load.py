"""How much one front takes on at once: connections, requests under way, a late event loop.

Rules:
1. Drawing stops first: at half of a limit requests go to stable undrawn and leave the evidence of both arms.
   Where one client has more than half of the requests, only its own do.
2. Then new requests are answered 429 with retry-after, at once: none waits for its turn in here. Clients
   share the limit of requests (`request_limit.py`).
3. One late turn of the event loop changes nothing; one that is late again and again ends the draw, then all.
4. A client beyond the limit of connections is answered 429 too (`connection_limit.py`). Idle connections are
   ended early before that.

Pure, but for `open_files`.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass, field

from serving.router.types import Limits, Refusal, overloaded

CONNECTIONS = 16_384  # of clients
REQUESTS = 8_192  # attempts at engines
SPARE_FILES = 128  # open files for all else: listeners, logs, the way to the table
FILES = 4 * CONNECTIONS  # open files that are asked of the system
TURNED_AWAY = 64  # connections beyond the limit that are answered, at least
KEEP_ALIVE_S = Limits().client_idle_s
SHORT_KEEP_ALIVE_S = 1.0  # while there are many connections
LATE_S = 0.5  # by which a turn of the event loop is late; the sweep measures it four times a second
UNDRAWN_TURNS = 2  # late turns in a row from which on nothing is drawn
REFUSED_TURNS = 8  # and from which on nothing is taken on


@dataclass(slots=True)
class Load:
    """What one front has taken on, and the limits."""

    connections_limit: int = CONNECTIONS
    requests_limit: int = REQUESTS
    turned_away_limit: int = TURNED_AWAY  # connections beyond the limit that are answered; others are broken
    connections: int = 0  # all that are open
    is_undrawn: bool = False  # nothing is drawn
    undrawn_client: str = ""  # alone has more than half of the requests, and is not drawn; empty: none
    is_late: bool = False  # the event loop has been late for so long that nothing is taken on
    client_idle_s: float = KEEP_ALIVE_S  # between two requests of a connection, as long as there are few
    idle_now_s: float = KEEP_ALIVE_S  # the same as of now
    _late_turns: int = field(default=0, init=False)

    @classmethod
    def of_files(cls, files: int) -> Load:
        """The limits of a process that may open so many files: a request needs one on either side."""
        free = files - SPARE_FILES - TURNED_AWAY
        most = max(free // 2, 16)
        connections, requests = min(CONNECTIONS, most), min(REQUESTS, most)
        return cls(connections, requests, TURNED_AWAY + max(free - connections - requests, 0))

    def swept(
        self, *, late_s: float, requests: int, has_many_bytes: bool, largest: tuple[str, int] = ("", 0)
    ) -> None:
        """A turn of the sweep. late_s: of the event loop. has_many_bytes: half of a budget is used.
        largest: the client with most requests, and their number."""
        self._late_turns = self._late_turns + 1 if late_s > LATE_S else 0
        self.is_late = self._late_turns >= REFUSED_TURNS
        client, count = largest
        self.undrawn_client = client if count > self.requests_limit // 2 else ""
        is_busy = requests > self.requests_limit // 2 and not self.undrawn_client
        self.is_undrawn = has_many_bytes or is_busy or self._late_turns >= UNDRAWN_TURNS
        is_crowded = self.connections > self.connections_limit * 3 // 4
        self.idle_now_s = SHORT_KEEP_ALIVE_S if is_crowded else self.client_idle_s

    @property
    def is_strained(self) -> bool:
        """Whether there is something that is not drawn, so that nothing is done for no user."""
        return self.is_undrawn or bool(self.undrawn_client)

    def refusal(self) -> Refusal:
        """Why no further request is begun, where their number has its limit or the loop `is_late`."""
        if self.is_late:
            return overloaded(f"the router's event loop has been late {self._late_turns} times in a row")
        return overloaded(f"the router has {self.requests_limit} requests under way, which is its limit")

    def share_refusal(self, count: int) -> Refusal:
        """Why a client that has so many requests under way begins no other."""
        return overloaded(
            f"this client (API key, else address) has {count} requests under way, its share of a router's "
            f"{self.requests_limit}"
        )

    def crowd_refusal(self) -> Refusal:
        """Why a client is not served, where the connections have their limit."""
        return overloaded(f"the router has {self.connections_limit} connections, which is its limit")


def open_files() -> int:
    """How many files this process may open, which is raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return FILES if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # a sandbox may forbid what the limit allows
        return soft
    return wanted

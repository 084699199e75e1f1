"""Notes the ids of what a client has made, as they pass on their way to it (`records/owners.py`)."""

from __future__ import annotations

from serving.router.exchange.context import CREATING_PATHS
from serving.router.exchange.exchange import Exchange
from serving.router.exchange.relay import Client
from serving.router.records.owners import Owners, ids_of
from serving.router.types import Deliver, Refusal
from serving.targets import id_of

ANSWER_LIMIT = 64 << 10  # bytes of an answer about a file or batch
RESPONSES, BATCHES = "/v1/responses", "/v1/batches/"


def noted(exchange: Exchange, client: Client, owners: Owners) -> Client:
    """The client, with what notes the ids that its answer names; itself where none are to be noted."""
    start = exchange.start
    path, owner = start.request.path, start.owner
    makes = start.request.method == "POST" and (path in CREATING_PATHS or path == RESPONSES)
    if owner is None or not (makes or _is_own_batch(path, owners, owner)):
        return client
    return _Noting(exchange, client, owners, owner)


def _is_own_batch(path: str, owners: Owners, owner: str) -> bool:
    """Whether it is one that this client is known to have made: whose files it names is known then, too."""
    id = id_of(path) if path.startswith(BATCHES) else None
    return id is not None and owners.is_of(id, owner)


class _Noting:
    """Passes one answer on to its client. The ids are noted first, so that nobody is quicker."""

    __slots__ = ("_client", "_exchange", "_owner", "_owners", "_parts", "_size", "_status")

    def __init__(self, exchange: Exchange, client: Client, owners: Owners, owner: str) -> None:
        self._exchange, self._client, self._owners, self._owner = exchange, client, owners, owner
        self._parts: list[bytes] = []
        self._size = self._status = 0

    @property
    def unread_bytes(self) -> int:
        """Bytes that wait for the client."""
        return self._client.unread_bytes

    def deliver(self, action: Deliver) -> None:
        """Note what this names, then send it."""
        if action.head is not None:
            self._status = action.head.status
        if 200 <= self._status < 300:
            self._owners.add(self._owner, self._ids(action))
        self._client.deliver(action)

    def refuse(self, refusal: Refusal) -> None:
        """Send the router's own error."""
        self._client.refuse(refusal)

    def _ids(self, action: Deliver) -> list[str]:
        if self._exchange.start.request.path == RESPONSES:
            scan = self._exchange.seen.scan
            return [scan.answer_id] if scan is not None and scan.answer_id is not None else []
        self._size += len(action.data)
        if self._size > ANSWER_LIMIT:
            self._parts = []
            return []
        self._parts.append(action.data)
        return ids_of(b"".join(self._parts)) if action.then == "end" else []

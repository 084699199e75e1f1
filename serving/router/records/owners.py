"""Who made what an endpoint keeps: the client of each file, batch and stored response, by its id. Pure.

Rules:
1. An endpoint keeps all under the service's one account and names no owner, so the router remembers whose
   answer named an id first. What another client asks for by it is not found.
2. An id that is not remembered is nobody's: it was made before this process began, at another router, or by
   other means. Whoever knows it may use it; what guards it is that it cannot be guessed.
3. IDS_LIMIT are remembered. Beyond it the oldest of the client with the most is forgotten, so that one which
   makes very many uncovers its own, and nobody else's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from serving.json_value import json_value
from serving.messages import ANSWER_ID_LIMIT

IDS_LIMIT = 100_000  # some 20 MB
_NAMES = ("id", "output_file_id", "error_file_id")  # the files of a batch are its maker's


@dataclass(slots=True, eq=False)
class Owners:
    """Those that one router process remembers, whatever the service."""

    limit: int = IDS_LIMIT
    _owner: dict[str, str] = field(default_factory=dict)
    _made: dict[str, dict[str, None]] = field(default_factory=dict)  # ids by client, the oldest first

    def __len__(self) -> int:
        return len(self._owner)

    def add(self, owner: str, ids: Iterable[str]) -> None:
        """These ids stand in an answer to this client: they are its own, unless they are another's."""
        for one in ids:
            if one in self._owner or not 0 < len(one) <= ANSWER_ID_LIMIT:
                continue
            self._owner[one] = owner
            self._made.setdefault(owner, {})[one] = None
            if len(self._owner) > self.limit:
                self._forget_one()

    def anothers(self, ids: Iterable[str], client: str) -> str | None:
        """The first of these that another client made; None: this one may use them all."""
        return next((one for one in ids if self._owner.get(one, client) != client), None)

    def is_of(self, id: str, client: str) -> bool:
        """Whether this client is remembered to have made it."""
        return self._owner.get(id) == client

    def _forget_one(self) -> None:
        most = max(self._made, key=lambda name: len(self._made[name]))
        oldest = next(iter(self._made[most]))
        del self._owner[oldest], self._made[most][oldest]


def ids_of(answer: bytes) -> list[str]:
    """What the answer about a file or batch names: itself, and the files that were made for it."""
    value = json_value(answer)
    found = [value.get(name) for name in _NAMES] if isinstance(value, dict) else []
    return [one for one in found if isinstance(one, str)]

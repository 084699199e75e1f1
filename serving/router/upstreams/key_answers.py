"""When each endpoint last took an API key of the service's own. Pure.

A 401 or 403 says that a key is refused, or that a request is: for its content (OpenRouter's moderation), or
for a header of its client (a firewall that knows its `user-agent`). Where the same endpoint took the same key
for a request of the same arm and path at most KEY_S before, it is the request.

`sent_s` is CLOCK_BOOTTIME, of when a request was sent: an answer that was allowed long ago, and begins now,
says nothing of a key that was withdrawn in between.
"""

from __future__ import annotations

from collections.abc import Hashable

KEY_S = 10.0
REFUSED = frozenset({401, 403})
_PLACES = 256  # that are remembered: addresses and keys change with each rollout


class KeyAnswers:
    """What endpoints answered to our keys, by place: an arm, its endpoint, the key and the path."""

    def __init__(self) -> None:
        self._taken_s: dict[Hashable, float] = {}

    def is_refused(self, place: Hashable, status: int, *, sent_s: float) -> bool:
        """Whether this answer says that the key is refused; one of 2xx says that it is taken."""
        if 200 <= status < 300:
            before_s = self._taken_s.pop(place, sent_s)
            self._taken_s[place] = max(before_s, sent_s)  # the last again
            if len(self._taken_s) > _PLACES:
                del self._taken_s[next(iter(self._taken_s))]
        return status in REFUSED and sent_s - self._taken_s.get(place, float("-inf")) > KEY_S

"""Random keys of the HMAC that names units in records, one for each rollout. Pure but for their randomness.

Rules:
1. A key is random and derived from nothing, so that whoever holds a service's secrets (its engines do) cannot
   compute a unit. Only the table actor's store and routers hold it.
2. A destroyed key is gone from the store before `destroy` is answered; nobody can compute its units again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping

from serving.credentials import UnitKey

KEYS_LIMIT = 64  # rollouts; the oldest key is destroyed


def _random() -> str:
    return secrets.token_hex(32)


class UnitKeys:
    """Keys by rollout; '' names the time without one."""

    def __init__(self, stored: Mapping[str, str] | None = None, *, new: Callable[[], str] = _random) -> None:
        self._keys = dict(stored or {})
        self._new = new

    def of(self, rollout: str) -> UnitKey:
        """The rollout's key, made at the first call."""
        if rollout not in self._keys:
            self._keys[rollout] = self._new()
            while len(self._keys) > KEYS_LIMIT:
                del self._keys[next(iter(self._keys))]
        return UnitKey(self._keys[rollout])

    def destroy(self, rollout: str) -> bool:
        """Forget the rollout's key; False: there was none."""
        return self._keys.pop(rollout, None) is not None

    def to_store(self) -> dict[str, str]:
        """The keys, as JSON values."""
        return dict(self._keys)

"""The replicas that a key prefers (rendezvous hashing): the highest of their scores for it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from heapq import nlargest

from serving.messages import Replica
from serving.router.assignment.assignment import Salted

_MASK = (1 << 64) - 1
_OF_REPLICA = Salted("replica")


def preferred(replicas: Sequence[Replica], key: str) -> list[Replica]:
    """The two replicas with the highest scores for this key, the best first; all, when there are fewer."""
    spread = _OF_REPLICA.hash64(key)
    return nlargest(2, replicas, key=lambda one: score(_hash_of(one.url), spread))


def score(replica_hash: int, key_hash: int) -> int:
    """A uniform 64-bit number for this pair: SplitMix64's finaliser, a tenth of a second hash's cost.

    Check: score(0, 1) is 6238072747940578789.
    """
    x = replica_hash ^ key_hash
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


@lru_cache(maxsize=4096)
def _hash_of(url: str) -> int:
    return _OF_REPLICA.hash64(url)

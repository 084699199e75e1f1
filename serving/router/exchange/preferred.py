"""The replicas that a key prefers (rendezvous hashing), the highest of their scores for it, and which of
them is asked next. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def untried_of(replicas: Sequence[Replica], urls: Sequence[str]) -> Sequence[Replica]:
    """Those that are not at one of these URLs."""
    return [one for one in replicas if one.url not in urls] if urls else replicas


def least_loaded(replicas: Sequence[Replica], key: str, in_flight: Mapping[str, int]) -> Replica:
    """Of those that the key prefers the one with less in flight. in_flight: of this router, by URL, which is
    current; that of a replica is all routers', as of the last publication. replicas: two or more."""
    return min(preferred(replicas, key), key=lambda one: max(one.in_flight, in_flight.get(one.url, 0)))


def next_beside(replicas: Sequence[Replica], asked: Sequence[str], key: str) -> Replica | None:
    """The one to ask beside an attempt elsewhere. asked: URLs of those that were. None: each was asked, one
    that stands alone twice."""
    left = untried_of(replicas, asked)
    if len(asked) == 1 and not left:
        left = replicas
    return preferred(left, key)[0] if left else None


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

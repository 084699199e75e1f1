"""Which of a sticky unit's later requests are judged: blocks as long as a session, of which some are drawn.

After its first session, a unit's requests come in blocks, numbered anew in each round. They have PARTS parts,
each twice as long as the one before: block 0; 1 and 2; 3 to 6; 7 to 14; 15 to 30. In each part, one block of
a unit is judged: which one is drawn by a hash of the unit's bucket, round and part, the same on both arms. So
in each round a unit has at most one later session of a part, as its coin may be bet once in a process; and
each request of a long conversation may be judged, beside those that are about as deep. (The first block
alone: harm from the 21st turn on was never judged within the hour. One block of any depth, drawn with 1/2,
1/4, ...: half of the units say nothing of the first one, and harm at any depth is mixed with what comes
before it.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

PARTS = 5  # of a unit's blocks in a round: with ten requests a block, the 11th to the 320th request
BLOCKS = 1 << PARTS  # numbers of blocks; the last one stands for all that come after the parts
BUCKETS = 64  # of units, by a hash: the units of one have the same judged blocks
STAGES = 1024  # more than a plan has
_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where a unit's last block of later requests was. round, block: 0 and -1 before any. judged: a bit for
    each part of which the unit had a later session in this stage."""

    round: int = 0
    stage: int = 0
    block: int = -1
    judged: int = 0

    @classmethod
    def of(cls, number: int) -> Place:
        """The place that `number` stands for; below 0: before any."""
        if number < 0:
            return cls()
        rest, judged = divmod(number, 1 << PARTS)
        rest, block = divmod(rest, BLOCKS)
        round, stage = divmod(rest, STAGES)
        return cls(round, stage, block, judged)

    @property
    def number(self) -> int:
        """As one number."""
        place = (self.round * STAGES + self.stage) * BLOCKS + self.block
        return place * (1 << PARTS) + self.judged

    def next_block(self, round: int, stage: int) -> Place:
        """That of the block after it."""
        block = min(self.block + 1, BLOCKS - 1) if round == self.round else 0
        # A late request of an earlier stage ends nothing: a coin is bet once a stage.
        return Place(round, max(stage, self.stage), block, self.judged if stage <= self.stage else 0)

    def judged_part(self, unit: int) -> tuple[int, int]:
        """The part of the block, and how many requests each of its own stands for, if it is the unit's judged
        one of that part; else (-1, 0)."""
        part = (self.block + 1).bit_length() - 1
        block = self.block + 1 - (1 << part)
        is_judged = part < PARTS and block == judged_block(bucket_of(unit), self.round, part)
        return (part, stands_for(block, part)) if is_judged else (-1, 0)


def bucket_of(unit: int) -> int:
    """The bucket of a unit, by its hash."""
    return _mixed(unit) % BUCKETS


@lru_cache(maxsize=1 << 14)
def judged_block(bucket: int, round: int, part: int) -> int:
    """Which of the 2 ** part blocks of a part is judged, from 0: the first with 1/2, else one of the others.

    By a hash of what was known before the coin: units of both arms are judged alike. The first more often, as
    many conversations end within a part: of those of 50 turns, the last ten would else count in one of four.
    """
    x = _mixed((bucket << 40) + round * 0x9E3779B97F4A7C15 + (part << 32))
    others = (1 << part) - 1
    return 0 if others == 0 or x & 1 else 1 + (x >> 1) % others


def _mixed(x: int) -> int:
    """A hash of a number, of 64 bits."""
    x &= _MASK
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        x = (x ^ x >> 33) * factor & _MASK
    return x ^ x >> 33


def stands_for(block: int, part: int) -> int:
    """How many requests one of a judged block stands for: 1 over the probability that it was drawn. block: in
    its part, from 0."""
    others = (1 << part) - 1
    return 1 if others == 0 else 2 if block == 0 else 2 * others

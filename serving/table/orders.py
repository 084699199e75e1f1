"""What a route table is told: splits by the controller, polls by routers; and its orders to replicas. Pure.

Errors of the controller's commands are here too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from serving.judge_messages import JudgeOrder, restore
from serving.messages import FULL_BP, UnitCounts


class StaleFencingToken(Exception):
    """The fencing token is older than one already used: another controller holds the lease. Stop acting."""

    def __init__(self, text: str, newest: int | None = None) -> None:
        """newest: the token that was used; None: not known."""
        super().__init__(text, newest)  # both, for the way out of an actor
        self.newest = newest

    def __str__(self) -> str:
        return str(self.args[0])


class UnitKeyInUse(ValueError):
    """The rollout whose key should be destroyed has a canary in the table; end it first."""


class BadSplit(ValueError):
    """The split is invalid; the message holds the value, the limit and the remedy."""


@dataclass(frozen=True, slots=True)
class Split:
    """The split that the controller requests. Without a weight and without copies there is no canary."""

    rollout: str
    salt: str
    stable: str | None
    canary: str | None
    weight_bp: int
    stage: int
    audience_bp: tuple[tuple[str, int], ...] = ()  # weights of audiences beside those of the clients' rules
    mirror_bp: int = 0  # share of stable's requests of which the canary gets a copy
    judge: JudgeOrder | None = None  # None: no judge is asked

    def __setstate__(self, state: list[Any]) -> None:
        restore(self, state)

    def checked(self) -> Split:
        """This split; at weight 0 no audiences, and no canary unless it gets copies. Raises BadSplit."""
        if not 0 <= self.mirror_bp <= FULL_BP:
            raise BadSplit(f"mirror share {self.mirror_bp} bp is outside 0-{FULL_BP}; use basis points")
        if self.mirror_bp and self.canary is None:
            raise BadSplit(f"mirror share {self.mirror_bp} bp without a canary; name a version or set 0")
        if not 0 <= self.weight_bp <= FULL_BP:
            raise BadSplit(f"weight {self.weight_bp} bp is outside 0-{FULL_BP}; use basis points (1 % = 100)")
        if self.canary is not None and self.canary == self.stable:
            raise BadSplit(f"version {self.canary} cannot be stable and canary at once; name two versions")
        if self.weight_bp and self.canary is None:
            raise BadSplit(f"weight {self.weight_bp} bp without a canary; name a version or set 0")
        for audience, bp in self.audience_bp:
            if not 0 <= bp <= FULL_BP:
                raise BadSplit(f"weight {bp} bp of audience {audience} is outside 0-{FULL_BP}; correct it")
        judge = self.judge
        if judge is not None and not (0 < judge.share_bp <= FULL_BP and judge.per_minute > 0):
            raise BadSplit(
                f"judge: share {judge.share_bp} bp is outside 1-{FULL_BP}, or {judge.per_minute} questions a "
                "minute are none; set both above 0"
            )
        if self.weight_bp:
            return self
        return replace(self, canary=self.canary if self.mirror_bp else None, audience_bp=())


@dataclass(frozen=True, slots=True)
class Poll:
    """A router's poll. `applied`: the newest (epoch, change) that all its new requests obey."""

    router: str
    applied: tuple[int, int]
    counts: UnitCounts | None = None  # requests by unit; None: no report is due


@dataclass(frozen=True, slots=True)
class FenceOrder:
    """A fence to post to a replica's front, which then refuses canary requests of any older revision."""

    url: str
    epoch: int
    revision: int

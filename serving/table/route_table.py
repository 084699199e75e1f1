"""Who gets what, and when everybody knows: the route table of one service, pure (time comes in as a value).

Rules:
1. Revisions compare as (epoch, revision). A split that changes nothing makes no new revision. `change` also
   counts changes of replicas; routers poll for it and acknowledge it with their next poll.
2. A router may start canary requests until 1 s after it *sent* its last answered poll. This side counts
   from when the poll *arrived*, which is later, so clocks are never compared: a lease that has passed here
   has passed there.
3. A withdrawn canary (weight 0, or another version in its place) gets a fence on every replica that was
   ever published for it. The split is applied when the fences stand, or every live router has acknowledged,
   or the silent ones' leases and 200 ms have passed. Fences are given 250 ms before acknowledgements alone
   suffice: a request sent just before an acknowledgement may still be on its way into the engine.
4. An older fencing token is refused. A tombstoned rollout only takes away: no canary, and no other stable
   than the one it found.
5. With the controller silent for 60 s the canary is withdrawn; stable's part of the table lives for ever.
6. A restarted table begins with a higher epoch and stable only, and counts a whole lease as outstanding,
   because it does not know the routers that the last one had.

Clock: seconds of CLOCK_BOOTTIME (`now_s` everywhere), which goes on while a machine sleeps.
Invariant: this file opens no socket and reads no clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from serving.messages import FULL_BP, AppliedHow, Arm, Replica, RouteTable, SplitStatus

LEASE_S = 1.0
LEASE_MARGIN_S = 0.2
POLL_S = 0.3  # a poll is answered at the latest after this
SILENCE_S = 60.0
FENCE_GRACE_S = 0.25
FENCE_TRIES_S = 30.0  # how long a fence is tried on a replica that does not answer
HOMES = 16  # of how many rollouts the stable that they found is remembered
TOMBSTONES = 1000  # the oldest are forgotten beyond this


class StaleToken(Exception):
    """Another controller holds the lease: the fencing token is older than one already seen. Stop acting."""


class BadSplit(ValueError):
    """The split itself is wrong; the message holds the value, the limit and the remedy."""


@dataclass(frozen=True, slots=True)
class Split:
    """What the controller wants. `canary` None and `weight_bp` 0 go together."""

    rollout: str
    salt: str
    stable: str | None
    canary: str | None
    weight_bp: int
    stage: int

    def checked(self) -> Split:
        """This split with canary None at weight 0. Raises BadSplit."""
        if not 0 <= self.weight_bp <= FULL_BP:
            raise BadSplit(f"weight {self.weight_bp} bp is outside 0-{FULL_BP}; use basis points (1 % = 100)")
        if self.canary is not None and self.canary == self.stable:
            raise BadSplit(f"version {self.canary} cannot be stable and canary at once; name two versions")
        if self.weight_bp and self.canary is None:
            raise BadSplit(f"weight {self.weight_bp} bp without a canary; name a version or set 0")
        return self if self.weight_bp else replace(self, canary=None)


@dataclass(frozen=True, slots=True)
class Poll:
    """A router's question for news. `applied`: the newest (epoch, change) that all its new requests obey."""

    router: str
    applied: tuple[int, int]


@dataclass(frozen=True, slots=True)
class FenceOrder:
    """To be posted to the replica's own front: refuse canary requests of a revision below this one."""

    url: str
    epoch: int
    revision: int


@dataclass(slots=True)
class _Router:
    applied: tuple[int, int]
    heard_s: float

    def is_live(self, now_s: float) -> bool:
        return now_s < self.heard_s + LEASE_S + LEASE_MARGIN_S


class TableCore:
    """The state behind a service's route table. One caller at a time."""

    def __init__(
        self,
        service: str,
        *,
        epoch: int,
        now_s: float,
        stored: Mapping[str, Any] | None = None,
        silence_s: float | None = SILENCE_S,
    ) -> None:
        """`stored` is what `to_store` gave before a restart; `silence_s` None holds the share for ever."""
        stored = stored or {}
        self._service = service
        self._epoch = max(epoch, stored.get("epoch", 0) + 1)
        self._silence_s = silence_s
        self._secret: str = stored.get("secret", "")
        self._token: int = stored.get("token", 0)
        self._tombstones: dict[str, None] = dict.fromkeys(stored.get("tombstones", ()))
        self._arms = {one["version"]: Arm.from_json(one) for one in stored.get("arms", ())}
        self._home: dict[str, str | None] = dict(stored.get("home", {}))
        stable = stored.get("stable")
        self._split = Split("", "", stable, None, 0, 0)
        self._revision = self._change = self._split_change = 1
        self._seen_change: dict[str, int] = {}  # version -> change at which its replicas last changed
        self._routers: dict[str, _Router] = {}
        self._heard_s = now_s  # the controller
        self._silenced = False
        self._published_s = now_s
        self._unknown_until_s = now_s + LEASE_S + LEASE_MARGIN_S if stored else now_s
        self._canary_urls: set[str] = set()  # every address published for the present canary
        self._fences: dict[str, FenceOrder] = {}  # ordered for this split, not standing yet
        self._stable_change = 1  # the change at which stable last became another version
        self._withdrew_fenced = False  # the last canary to go had fences
        self._how: AppliedHow = "pending"
        self._took_ms: float | None = None

    @property
    def mark(self) -> tuple[int, int]:
        """(epoch, change): another one means another table."""
        return self._epoch, self._change

    @property
    def is_applied(self) -> bool:
        """True when no request can start under an older split."""
        return self._how != "pending"

    # ---- the controller's side

    def open(self, secret: str) -> None:
        """Takes the service's secret; a changed one is published."""
        if secret != self._secret:
            self._secret = secret
            self._change += 1

    def set_split(self, split: Split, *, token: int, now_s: float) -> SplitStatus:
        """Publishes the split unless it holds already. Raises StaleToken or BadSplit, changing nothing."""
        wanted = split.checked()
        self.heartbeat(token, now_s=now_s)
        self._home.setdefault(wanted.rollout, self._split.stable or wanted.stable)
        while len(self._home) > HOMES:
            del self._home[next(iter(self._home))]
        if wanted.rollout in self._tombstones:
            found = self._home[wanted.rollout]
            stable = wanted.stable if wanted.stable == found else self._split.stable
            wanted = replace(wanted, canary=None, weight_bp=0, stable=stable)
        if wanted != self._split:
            self._publish(wanted, now_s)
            self._silenced = False
        return self.sight(now_s=now_s)

    def heartbeat(self, token: int, *, now_s: float) -> None:
        """The controller lives. Raises StaleToken."""
        if token < self._token:
            raise StaleToken(f"fencing token {token} is older than {self._token}: another controller acts")
        self._token = token
        self._heard_s = now_s

    def tombstone(self, rollout: str, *, now_s: float) -> SplitStatus:
        """Withdraws this rollout's canary for ever; needs no token, so it works with the controller dead."""
        self._tombstones[rollout] = None
        while len(self._tombstones) > TOMBSTONES:
            del self._tombstones[next(iter(self._tombstones))]
        if self._split.rollout == rollout and self._split.canary is not None:
            self._publish(replace(self._split, canary=None, weight_bp=0), now_s)
        return self.sight(now_s=now_s)

    def sight(self, *, now_s: float) -> SplitStatus:
        """The present split and how far it is applied."""
        self.tick(now_s=now_s)
        split = self._split
        return SplitStatus(
            revision=self._revision,
            epoch=self._epoch,
            rollout=split.rollout,
            stable=split.stable,
            canary=split.canary,
            weight_bp=split.weight_bp,
            applied=self._how != "pending",
            how=self._how,
            tombstoned=tuple(self._tombstones),
            silenced=self._silenced,
            routers=sum(router.is_live(now_s) for router in self._routers.values()),
            took_ms=self._took_ms,
        )

    # ---- the fleet's side

    def set_replicas(self, arm: Arm) -> int:
        """Publishes where a version answers; no replica takes it out. Returns the change to wait for."""
        arm = replace(arm, replicas=tuple(replace(one, url=root_url(one.url)) for one in arm.replicas))
        if self._arms.get(arm.version, Arm(arm.version)) != arm:
            if arm.replicas:
                self._arms[arm.version] = arm
            else:
                self._arms.pop(arm.version, None)
            if arm.version in (self._split.stable, self._split.canary):
                self._change += 1
            if arm.version == self._split.canary:
                self._canary_urls.update(one.url for one in arm.replicas if not arm.external)
            self._seen_change[arm.version] = self._change
        return self._seen_change.get(arm.version, 0)

    def is_replicas_applied(self, version: str, *, now_s: float) -> bool:
        """True when every live router has the last replicas that were set for this version."""
        change = self._seen_change.get(version, 0)
        return now_s >= self._unknown_until_s and not self._behind(change, now_s)

    # ---- the routers' side

    def table(self) -> RouteTable:
        """What routers get."""
        split = self._split
        return RouteTable(
            service=self._service,
            epoch=self._epoch,
            revision=self._revision,
            change=self._change,
            rollout=split.rollout,
            salt=split.salt,
            weight_bp=split.weight_bp,
            stable=self._arm(split.stable) if split.stable else None,
            canary=self._arm(split.canary) if split.canary else None,
            stage=split.stage,
            secret=self._secret,
        )

    def poll(self, poll: Poll, *, now_s: float) -> bool:
        """Takes a router's acknowledgement and renews its lease; True when there is news for it."""
        self._routers[poll.router] = _Router(poll.applied, now_s)
        self.tick(now_s=now_s)
        return self.has_news(poll)

    def has_news(self, poll: Poll) -> bool:
        """True when the router does not have the present table yet."""
        return poll.applied != self.mark

    def routers(self, *, now_s: float) -> dict[str, float]:
        """Seconds since each router's last poll."""
        return {name: now_s - one.heard_s for name, one in self._routers.items()}

    # ---- fences and time

    def fence_orders(self) -> tuple[FenceOrder, ...]:
        """The fences that do not stand yet; post them, and say `fenced` for each that was taken."""
        return tuple(self._fences.values())

    def fenced(self, order: FenceOrder, *, now_s: float) -> None:
        """The replica's front has taken the fence."""
        if self._fences.get(order.url) == order:
            del self._fences[order.url]
        self.tick(now_s=now_s)

    def tick(self, *, now_s: float) -> None:
        """Lets time pass: the silence rule, leases, abandoned fences, routers that are long gone."""
        silent_s = now_s - self._heard_s
        if self._split.canary is not None and self._silence_s is not None and silent_s > self._silence_s:
            self._publish(replace(self._split, canary=None, weight_bp=0), now_s)
            self._silenced = True
        if self._how == "pending":
            self._how = self._judge(now_s)
            if self._how != "pending":
                self._took_ms = (now_s - self._published_s) * 1000
        if self._fences and now_s > self._published_s + FENCE_TRIES_S:
            self._fences.clear()
            self._withdrew_fenced = False  # given up is not standing: only acknowledgements count now
        if self._how != "pending":
            for name in [name for name, one in self._routers.items() if now_s > one.heard_s + 60.0]:
                del self._routers[name]

    def to_store(self) -> dict[str, Any]:
        """What must survive a restart, JSON values: everything but the canary's share."""
        names = [name for name in (self._split.stable, self._split.canary) if name in self._arms]
        arms = [replace(self._arms[name], replicas=_idle(self._arms[name].replicas)) for name in names]
        return {
            "epoch": self._epoch,
            "secret": self._secret,
            "token": self._token,
            "stable": self._split.stable,
            "tombstones": list(self._tombstones),
            "home": dict(self._home),
            "arms": [arm.to_json() for arm in arms],
        }

    # ---- inside

    def _arm(self, version: str) -> Arm:
        return self._arms.get(version, Arm(version))

    def _publish(self, split: Split, now_s: float) -> None:
        before, self._split = self._split, split
        self._revision += 1
        self._change += 1
        self._split_change = self._change
        self._published_s = now_s
        self._how, self._took_ms = "pending", None
        if before.stable != split.stable:
            self._stable_change = self._change
        if before.canary != split.canary:
            # A canary that became stable is not fenced: routers that lag behind must still reach it.
            withdrawn = self._canary_urls if before.canary != split.stable else set()
            self._fences.update({url: FenceOrder(url, self._epoch, self._revision) for url in withdrawn})
            self._withdrew_fenced = bool(withdrawn)
            arm = self._arms.get(split.canary) if split.canary else None
            self._canary_urls = {one.url for one in arm.replicas if not arm.external} if arm else set()

    def _behind(self, change: int, now_s: float) -> Sequence[_Router]:
        """The live routers that have not acknowledged this change."""
        needed = (self._epoch, change)
        return [one for one in self._routers.values() if one.applied < needed and one.is_live(now_s)]

    def _judge(self, now_s: float) -> AppliedHow:
        if self._withdrew_fenced and not self._fences and not self._behind(self._stable_change, now_s):
            return "fenced"
        if now_s < self._unknown_until_s or self._behind(self._split_change, now_s):
            return "pending"
        if self._fences and now_s < self._published_s + FENCE_GRACE_S:
            return "pending"
        needed = (self._epoch, self._split_change)
        # Whoever was live at publication and has not acknowledged since has lost its lease.
        lapsed = any(
            one.applied < needed and one.heard_s + LEASE_S + LEASE_MARGIN_S > self._published_s
            for one in self._routers.values()
        )
        return "lease" if lapsed or self._unknown_until_s > self._published_s else "acknowledged"


def root_url(url: str) -> str:
    """The address without a trailing slash and without /v1, which requests bring themselves."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _idle(replicas: Sequence[Replica]) -> tuple[Replica, ...]:
    """The same addresses without their load, which is old by the time that it is read again."""
    return tuple(Replica(one.url) for one in replicas)

"""Route table of one service: revisions, acknowledgements, leases, fences. Pure: time is a parameter.

Rules:
1. Revisions compare as (epoch, revision). An unchanged split makes no new revision. `change` also counts
   changes of replicas; routers poll for it and acknowledge it with their next poll.
2. A router may start canary requests until 1 s after it *sent* its last answered poll. The table counts from
   when the poll *arrived*, which is later, so no clocks are compared: a lease that has expired here has
   expired in the router.
3. A withdrawn canary (weight 0, or replaced by another version) gets a fence on every replica that was ever
   published for it. The split is applied when all fences are confirmed and every router with a lease knows
   the current stable, or when every router has acknowledged it or its lease (and 200 ms more) has expired.
   While a fence is pending, acknowledgements suffice only after 250 ms: a request sent just before one may
   still be on its way to the engine. An external canary has no fence.
4. An older fencing token is refused. A tombstoned rollout can have no canary, and can set no stable but the
   one it started from.
5. After 60 s without a heartbeat from the controller the canary is withdrawn; stable stays.
6. A canary that is put in begins a generation, which affinity tokens are bound to: what withdraws it
   (a rollback, silence, a restart) revokes them all.
7. Routers report with their polls how many requests they had by unit; a unit that is heavy by all of them is
   published as such, for the rest of its rollout.
8. A restarted table begins with a higher epoch and without a canary, and waits for one lease, because it does
   not know the routers of its predecessor.

Clock: `now_s` is seconds of CLOCK_BOOTTIME, which includes the time that a machine is suspended.
Invariant: this file opens no socket and reads no clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from serving.access import Affinity, ClientRules
from serving.credentials import ControlSecret, DataSecret
from serving.messages import FULL_BP, AppliedHow, Arm, Replica, RouteTable, SplitStatus, UnitCounts
from serving.table.heavy_keys import HeavyKeys

TABLE_LEASE_S = 1.0
LEASE_MARGIN_S = 0.2
POLL_S = 0.3  # maximum wait for news before a poll is answered
SILENCE_S = 60.0  # without a heartbeat, until the canary is withdrawn
FENCE_GRACE_S = 0.25
FENCE_RETRY_S = 30.0  # how long a fence is retried on a replica that does not answer
INITIAL_STABLES_LIMIT = 16  # rollouts whose initial stable is remembered
TOMBSTONES_LIMIT = 1000


class StaleFencingToken(Exception):
    """The fencing token is older than one already used: another controller holds the lease. Stop acting."""


class BadSplit(ValueError):
    """The split is invalid; the message holds the value, the limit and the remedy."""


@dataclass(frozen=True, slots=True)
class Split:
    """The split that the controller requests. `canary` None and `weight_bp` 0 go together."""

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


@dataclass(slots=True)
class _Router:
    applied: tuple[int, int]
    last_poll_s: float

    def has_lease(self, now_s: float) -> bool:
        return now_s < self.last_poll_s + TABLE_LEASE_S + LEASE_MARGIN_S


class TableCore:
    """State and rules of a service's route table. Not thread-safe."""

    def __init__(
        self,
        service: str,
        *,
        epoch: int,
        now_s: float,
        stored: Mapping[str, Any] | None = None,
        silence_s: float | None = SILENCE_S,
    ) -> None:
        """`stored`: result of `to_store` before a restart. `silence_s` None: no heartbeat needed."""
        stored = stored or {}
        self._service = service
        self._epoch = max(epoch, stored.get("epoch", 0) + 1)
        self._silence_s = silence_s
        self._secret: str = stored.get("secret", "")
        self._token: int = stored.get("token", 0)
        self._tombstones: dict[str, None] = dict.fromkeys(stored.get("tombstones", ()))
        self._arms = {arm["version"]: Arm.from_json(arm) for arm in stored.get("arms", ())}
        # By rollout: stable when it set its first split. The stored key is "home".
        self._initial_stable: dict[str, str | None] = dict(stored.get("home", {}))
        self._split = Split("", "", stored.get("stable"), None, 0, 0)
        self._revision = self._change = self._split_change = 1
        self._replicas_change: dict[str, int] = {}  # version -> change at which its replicas last changed
        self._routers: dict[str, _Router] = {}
        self._heartbeat_s = now_s
        self._silenced = False
        self._published_s = now_s
        # Routers of the table before a restart may hold leases until then.
        self._unknown_leases_until_s = now_s + TABLE_LEASE_S + LEASE_MARGIN_S if stored else now_s
        self._canary_urls: set[str] = set()  # every address published for the current canary
        self._pending_fences: dict[str, FenceOrder] = {}  # by address; not confirmed yet
        self._stable_change = 1  # the change at which stable last became another version
        self._fences_suffice = False  # the withdrawn canary had fences, and none of them was given up
        self._how: AppliedHow = "pending"
        self._took_ms: float | None = None
        self._heavy = HeavyKeys()
        self._generation = ""
        self._rules = ClientRules.from_json(stored.get("clients"))

    @property
    def publication(self) -> tuple[int, int]:
        """(epoch, change) of the current table."""
        return self._epoch, self._change

    @property
    def is_applied(self) -> bool:
        """True when no request can start under an older split."""
        return self._how != "pending"

    # ---- called by the controller

    def open(self, secret: str) -> None:
        """Set the service's root secret; the data secret of a changed one is published."""
        if secret != self._secret:
            self._secret = secret
            self._change += 1

    def set_clients(self, rules: ClientRules, *, token: int, now_s: float) -> None:
        """Publish who may use the service, if that differs. Raises StaleFencingToken."""
        self.heartbeat(token, now_s=now_s)
        if rules != self._rules:
            self._rules = rules
            self._change += 1

    def set_split(self, split: Split, *, token: int, now_s: float) -> SplitStatus:
        """Publish the split if it differs. Raises StaleFencingToken or BadSplit and then changes nothing."""
        desired = split.checked()
        self.heartbeat(token, now_s=now_s)
        self._initial_stable.setdefault(desired.rollout, self._split.stable or desired.stable)
        _drop_oldest(self._initial_stable, INITIAL_STABLES_LIMIT)
        if desired.rollout in self._tombstones:
            is_return = desired.stable == self._initial_stable[desired.rollout]
            stable = desired.stable if is_return else self._split.stable
            desired = replace(desired, canary=None, weight_bp=0, stable=stable)
        if desired != self._split:
            self._publish(desired, now_s)
            self._silenced = False
        return self.status(now_s=now_s)

    def heartbeat(self, token: int, *, now_s: float) -> None:
        """The controller is alive. Raises StaleFencingToken."""
        if token < self._token:
            raise StaleFencingToken(
                f"fencing token {token} is older than {self._token}: another controller acts"
            )
        self._token = token
        self._heartbeat_s = now_s

    def tombstone(self, rollout: str, *, now_s: float) -> SplitStatus:
        """Withdraw this rollout's canary permanently; needs no token, so it works without a controller."""
        self._tombstones[rollout] = None
        _drop_oldest(self._tombstones, TOMBSTONES_LIMIT)
        if self._split.rollout == rollout:
            self._withdraw_canary(now_s)
        return self.status(now_s=now_s)

    def status(self, *, now_s: float) -> SplitStatus:
        """The current split, and how far it is applied."""
        self.tick(now_s=now_s)
        split = self._split
        return SplitStatus(
            revision=self._revision,
            epoch=self._epoch,
            rollout=split.rollout,
            stable=split.stable,
            canary=split.canary,
            weight_bp=split.weight_bp,
            applied=self.is_applied,
            how=self._how,
            tombstoned=tuple(self._tombstones),
            silenced=self._silenced,
            routers=sum(router.has_lease(now_s) for router in self._routers.values()),
            took_ms=self._took_ms,
        )

    # ---- called by the fleet

    def set_replicas(self, arm: Arm) -> int:
        """Publish a version's replicas; without any it leaves the table. The change to wait for."""
        arm = replace(arm, replicas=tuple(replace(one, url=one.url.rstrip("/")) for one in arm.replicas))
        if self._arms.get(arm.version, Arm(arm.version)) != arm:
            if arm.replicas:
                self._arms[arm.version] = arm
            else:
                self._arms.pop(arm.version, None)
            if arm.version in (self._split.stable, self._split.canary):
                self._change += 1
            if arm.version == self._split.canary:
                self._canary_urls.update(one.url for one in arm.replicas if not arm.external)
            self._replicas_change[arm.version] = self._change
        return self._replicas_change.get(arm.version, 0)

    def are_replicas_applied(self, version: str, *, now_s: float) -> bool:
        """True when every router with a lease has the replicas last set for this version."""
        change = self._replicas_change.get(version, 0)
        return now_s >= self._unknown_leases_until_s and not self._are_behind(change, now_s)

    # ---- called by routers

    def table(self) -> RouteTable:
        """The current table, with the data secret."""
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
            secret=DataSecret.of(self._secret) if self._secret else None,
            access=self._rules.access,
            affinity=Affinity.of(self._secret, cookie=self._rules.cookie) if self._secret else None,
            generation=self._generation,
            heavy=self._heavy.units,
            burst_cap=self._rules.burst_cap,
        )

    def poll(self, poll: Poll, *, now_s: float) -> bool:
        """Record a router's acknowledgement and renew its lease; True: it needs a newer table."""
        self._routers[poll.router] = _Router(poll.applied, now_s)
        if poll.counts is not None and self._heavy.add(poll.counts, now_s=now_s):
            self._change += 1
        self.tick(now_s=now_s)
        return self.has_news(poll)

    def has_news(self, poll: Poll) -> bool:
        """True when the router does not have the current table."""
        return poll.applied != self.publication

    def routers(self, *, now_s: float) -> dict[str, float]:
        """Seconds since each router's last poll."""
        return {name: now_s - router.last_poll_s for name, router in self._routers.items()}

    # ---- fences and time

    def pending_fences(self) -> tuple[FenceOrder, ...]:
        """The fences to post; call `confirm_fence` for each that its replica has accepted."""
        return tuple(self._pending_fences.values())

    @property
    def control_secret(self) -> ControlSecret:
        """What a fence is posted with. Raises ValueError before `open`."""
        return ControlSecret.of(self._secret)

    def confirm_fence(self, order: FenceOrder, *, now_s: float) -> None:
        """The replica's front has accepted the fence."""
        if self._pending_fences.get(order.url) == order:
            del self._pending_fences[order.url]
        self.tick(now_s=now_s)

    def tick(self, *, now_s: float) -> None:
        """Apply what depends on time: missing heartbeats, leases, fences without an answer, stale routers."""
        if self._silence_s is not None and now_s - self._heartbeat_s > self._silence_s:
            self._silenced = self._withdraw_canary(now_s) or self._silenced
        if not self.is_applied:
            self._how = self._applied_how(now_s)
            if self.is_applied:
                self._took_ms = (now_s - self._published_s) * 1000
        if self._pending_fences and now_s > self._published_s + FENCE_RETRY_S:
            self._pending_fences.clear()
            self._fences_suffice = False
        if self.is_applied:
            for name in [name for name, one in self._routers.items() if now_s > one.last_poll_s + 60.0]:
                del self._routers[name]

    def to_store(self) -> dict[str, Any]:
        """The state that survives a restart, as JSON values: all but the canary and its weight."""
        names = [name for name in (self._split.stable, self._split.canary) if name in self._arms]
        arms = [replace(self._arms[name], replicas=_idle(self._arms[name].replicas)) for name in names]
        return {
            "epoch": self._epoch,
            "secret": self._secret,
            "token": self._token,
            "stable": self._split.stable,
            "tombstones": list(self._tombstones),
            "home": dict(self._initial_stable),
            "arms": [arm.to_json() for arm in arms],
            "clients": self._rules.to_json(),
        }

    # ---- inside

    def _arm(self, version: str) -> Arm:
        return self._arms.get(version, Arm(version))

    def _withdraw_canary(self, now_s: float) -> bool:
        """True when there was a canary."""
        if self._split.canary is None:
            return False
        self._publish(replace(self._split, canary=None, weight_bp=0), now_s)
        return True

    def _publish(self, split: Split, now_s: float) -> None:
        before, self._split = self._split, split
        self._revision += 1
        self._change += 1
        self._split_change = self._change
        self._published_s = now_s
        self._how, self._took_ms = "pending", None
        if before.stable != split.stable:
            self._stable_change = self._change
        self._heavy.begin(split.rollout)
        if (before.rollout, before.canary) != (split.rollout, split.canary):
            self._generation = f"{self._epoch}.{self._revision}"
        if before.canary != split.canary:
            # A canary that became stable gets no fence: routers with an older table must still reach it.
            withdrawn = self._canary_urls if before.canary != split.stable else set()
            orders = {url: FenceOrder(url, self._epoch, self._revision) for url in withdrawn}
            self._pending_fences.update(orders)
            self._fences_suffice = bool(orders)
            arm = self._arms.get(split.canary) if split.canary else None
            self._canary_urls = {one.url for one in arm.replicas if not arm.external} if arm else set()

    def _are_behind(self, change: int, now_s: float) -> bool:
        """True when a router with a lease has not acknowledged this change."""
        required = (self._epoch, change)
        return any(one.applied < required and one.has_lease(now_s) for one in self._routers.values())

    def _applied_how(self, now_s: float) -> AppliedHow:
        has_all_fences = self._fences_suffice and not self._pending_fences
        if has_all_fences and not self._are_behind(self._stable_change, now_s):
            return "fenced"
        if now_s < self._unknown_leases_until_s or self._are_behind(self._split_change, now_s):
            return "pending"
        if self._pending_fences and now_s < self._published_s + FENCE_GRACE_S:
            return "pending"
        required = (self._epoch, self._split_change)
        # A router that had a lease at publication and has not acknowledged since has let it expire.
        has_expired = any(
            one.applied < required and one.has_lease(self._published_s) for one in self._routers.values()
        )
        return "lease" if has_expired or self._unknown_leases_until_s > self._published_s else "acknowledged"


def _drop_oldest(entries: dict[str, Any], limit: int) -> None:
    while len(entries) > limit:
        del entries[next(iter(entries))]


def _idle(replicas: Sequence[Replica]) -> tuple[Replica, ...]:
    """The same addresses without their load, which is outdated when it is read again."""
    return tuple(Replica(one.url) for one in replicas)

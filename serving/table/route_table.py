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
6. A restarted table begins with a higher epoch, without a canary, and waits for one lease: its predecessor's
   routers are not known. If its state was lost and its clock is behind, a router's poll or a replica's fence
   shows it a later table than its own; it rises above that epoch, and waits again.
7. A rollout's units are named under a random key of its own, which can be destroyed (`unit_keys.py`).
8. A canary that is put in begins a generation, which affinity tokens are bound to: what withdraws it
   (a rollback, silence, a restart) revokes them all.
9. The table notes how far the database was that a controller acts from, so that no older copy acts (`mark`).
10. Routers report with their polls how many requests they had by unit; a unit that is heavy by all of them is
   published as such, for the rest of its rollout.

Clock: `now_s` is seconds of CLOCK_BOOTTIME, which includes the time that a machine is suspended.
Invariant: this file opens no socket and reads no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from serving.access import Access, Affinity, ClientRules
from serving.credentials import ControlSecret, DataSecret
from serving.messages import AppliedHow, Arm, DatabaseMark, RouteTable, SplitStatus
from serving.table.acknowledgements import LEASE_MARGIN_S, TABLE_LEASE_S, Acknowledgements
from serving.table.heavy_keys import HeavyKeys
from serving.table.orders import FenceOrder, Poll, Split, StaleFencingToken, UnitKeyInUse
from serving.table.unit_keys import UnitKeys

POLL_S = 0.3  # maximum wait for news before a poll is answered
SILENCE_S = 60.0  # without a heartbeat, until the canary is withdrawn
FENCE_GRACE_S = 0.25
FENCE_RETRY_S = 30.0  # how long a fence is retried on a replica that does not answer
INITIAL_STABLES_LIMIT = 16  # rollouts whose initial stable is remembered
TOMBSTONES_LIMIT = 1000


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
        """`stored`: result of `to_store` before a restart; {}: it may be lost; None: it never ran before.
        `silence_s` None: no heartbeat needed."""
        may_have_run, stored = stored is not None, stored or {}
        self._service = service
        self._epoch = max(epoch, stored.get("epoch", 0) + 1)
        self._silence_s = silence_s
        self._secret: str = stored.get("secret", "")
        self._token: int = stored.get("token", 0)
        self._mark = DatabaseMark.from_json(stored.get("mark"))
        self._tombstones: dict[str, None] = dict.fromkeys(stored.get("tombstones", ()))
        self._arms = {arm["version"]: Arm.from_json(arm) for arm in stored.get("arms", ())}
        # By rollout: stable when it set its first split. The stored key is "home".
        self._initial_stable: dict[str, str | None] = dict(stored.get("home", {}))
        self._split = Split("", "", stored.get("stable"), None, 0, 0)
        self._revision = self._change = self._split_change = 1
        self._replicas_change: dict[str, int] = {}  # version -> change at which its replicas last changed
        self._routers = Acknowledgements()
        self._unit_keys = UnitKeys(stored.get("unit_keys"))
        self._unit_keys.of("")
        self._heartbeat_s = now_s
        self._silenced = False
        self._published_s = now_s
        # Routers of the table before a restart may hold leases until then.
        self._unknown_leases_until_s = now_s + TABLE_LEASE_S + LEASE_MARGIN_S if may_have_run else now_s
        self._canary_urls: set[str] = set()  # every address published for the current canary
        self._pending_fences: dict[str, FenceOrder] = {}  # by address; not confirmed yet
        self._stable_change = 1  # the change at which stable last became another version
        self._fences_suffice = False  # the withdrawn canary had fences, and none of them was given up
        self._how: AppliedHow = "pending"
        self._took_ms: float | None = None
        self._heavy = HeavyKeys()
        self._generation = ""
        self._rules = ClientRules.from_json(stored.get("clients"))
        self._stored_rules = self._rules.to_json()  # once: `to_store` runs at every poll

    @property
    def publication(self) -> tuple[int, int]:
        """(epoch, change) of the current table."""
        return self._epoch, self._change

    @property
    def is_applied(self) -> bool:
        """True when no request can start under an older split."""
        return self._how != "pending"

    # ---- called by the controller

    def open(self, secret: str, *, token: int) -> None:
        """Set the service's root secret and publish its data secret. Raises StaleFencingToken."""
        self.require(token)
        if secret != self._secret:
            self._secret = secret
            self._change += 1

    def set_clients(self, rules: ClientRules, *, token: int, now_s: float) -> None:
        """Publish who may use the service, if that differs. Raises StaleFencingToken."""
        self.heartbeat(token, now_s=now_s)
        if rules != self._rules:
            self._rules, self._stored_rules = rules, rules.to_json()
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
            desired = replace(desired, canary=None, weight_bp=0, mirror_bp=0, stable=stable, judge=None)
        if desired != self._split:
            self._publish(desired, now_s)
            self._silenced = False
        return self.status(now_s=now_s)

    def heartbeat(self, token: int, *, now_s: float) -> None:
        """The controller is alive. Raises StaleFencingToken."""
        self.require(token)
        self._heartbeat_s = now_s

    def require(self, token: int) -> None:
        """Take the token of a command. Raises StaleFencingToken when a younger one has been used."""
        if token < self._token:
            text = f"fencing token {token} is older than {self._token}: another controller acts"
            raise StaleFencingToken(text, self._token)
        self._token = token

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
            routers=self._routers.with_lease(now_s),
            took_ms=self._took_ms,
            mirror_bp=split.mirror_bp,
            mark=self._mark,
        )

    def mark(self, mark: DatabaseMark, *, instead_of: DatabaseMark | None) -> DatabaseMark | None:
        """Note `mark` if `instead_of` is what is noted; what is noted now."""
        if self._mark == instead_of:
            self._mark = mark
        return self._mark

    def destroy_unit_key(self, rollout: str, *, token: int) -> bool:
        """Destroy the key of the rollout's units; False: none. Raises StaleFencingToken, UnitKeyInUse."""
        self.require(token)
        canary = self._split.canary if self._split.rollout == rollout else None
        if canary is not None:
            raise UnitKeyInUse(f"rollout {rollout} has canary {canary} in the table; end it first")
        is_destroyed = self._unit_keys.destroy(rollout)
        if is_destroyed and self._split.rollout == rollout:
            self._change += 1  # routers get a new key
            self._unit_keys.of(rollout)
        return is_destroyed

    # ---- called by the fleet

    def set_replicas(self, arm: Arm) -> int:
        """Publish a version's replicas; without any it leaves the table. The change to wait for."""
        arm = replace(arm, replicas=tuple(replace(one, url=one.url.rstrip("/")) for one in arm.replicas))
        before = self._arms.get(arm.version, Arm(arm.version))
        if before != arm:
            if arm.replicas:
                self._arms[arm.version] = arm
            else:
                self._arms.pop(arm.version, None)
            if arm.version in (self._split.stable, self._split.canary):
                self._change += 1
            if arm.version == self._split.canary:
                self._canary_urls.update(one.url for one in arm.replicas if not arm.external)
            # Of load alone no acknowledgement is asked: it changes faster than routers could give one.
            if before.idle() != arm.idle():
                self._replicas_change[arm.version] = self._change
        return self._replicas_change.get(arm.version, 0)

    def are_replicas_applied(self, version: str, *, now_s: float) -> bool:
        """True when every router with a lease has the replicas last set for this version."""
        is_behind = self._are_behind(self._replicas_change.get(version, 0), now_s)
        return now_s >= self._unknown_leases_until_s and not is_behind

    # ---- called by routers

    def table(self) -> RouteTable:
        """The current table, with the data secret."""
        split, unit_key = self._split, self._unit_keys.of(self._split.rollout)
        canary = self._arm(split.canary) if split.canary else None
        return RouteTable(
            service=self._service,
            epoch=self._epoch,
            revision=self._revision,
            change=self._change,
            rollout=split.rollout,
            salt=split.salt,
            weight_bp=split.weight_bp,
            stable=self._arm(split.stable) if split.stable else None,
            # One that only gets copies is no canary to routers: no request of a user can reach it.
            canary=canary if split.weight_bp else None,
            stage=split.stage,
            secret=DataSecret.of(self._secret) if self._secret else None,
            unit_key=unit_key,
            access=self._access(),
            affinity=Affinity.of(unit_key.text, cookie=self._rules.cookie),
            generation=self._generation,
            heavy=self._heavy.units,
            burst_cap=self._rules.burst_cap,
            late_commit=self._rules.late_commit,
            mirror=canary if split.mirror_bp else None,
            mirror_bp=split.mirror_bp,
            judge=split.judge,
        )

    def poll(self, poll: Poll, *, now_s: float) -> bool:
        """Record a router's acknowledgement and renew its lease; True: it needs a newer table."""
        self._routers.polled(poll.router, poll.applied, now_s)
        self.rise_above(poll.applied, now_s=now_s)
        if poll.counts is not None and self._heavy.add(poll.counts, now_s=now_s):
            self._change += 1
        self.tick(now_s=now_s)
        return self.has_news(poll)

    def has_news(self, poll: Poll) -> bool:
        """True when the router does not have the current table."""
        return poll.applied != self.publication

    def routers(self, *, now_s: float) -> dict[str, float]:
        """Seconds since each router's last poll."""
        return self._routers.ages(now_s)

    def rise_above(self, seen: tuple[int, int], *, now_s: float) -> None:
        """A router or a replica obeys (epoch, change or revision), perhaps of a later table than this one."""
        if seen <= self.publication:
            return
        self._epoch = seen[0] + 1
        self._change += 1
        self._split_change = self._stable_change = self._change
        self._replicas_change = dict.fromkeys(self._replicas_change, self._change)
        self._published_s, self._how, self._took_ms = now_s, "pending", None
        self._fences_suffice = False
        self._pending_fences = self._fences(self._pending_fences)

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
            self._routers.forget(now_s)

    def to_store(self) -> dict[str, Any]:
        """The state that survives a restart, as JSON values: all but the canary and its weight."""
        names = [name for name in (self._split.stable, self._split.canary) if name in self._arms]
        arms = [self._arms[name].idle() for name in names]
        return {
            "epoch": self._epoch,
            "secret": self._secret,
            "token": self._token,
            "stable": self._split.stable,
            "tombstones": list(self._tombstones),
            "home": dict(self._initial_stable),
            "arms": [arm.to_json() for arm in arms],
            "unit_keys": self._unit_keys.to_store(),
            "clients": self._stored_rules,
            "mark": None if self._mark is None else self._mark.as_json(),
        }

    # ---- inside

    def _fences(self, urls: Iterable[str]) -> dict[str, FenceOrder]:
        return {url: FenceOrder(url, self._epoch, self._revision) for url in urls}

    def _access(self) -> Access | None:
        """The clients' rules; an audience has the larger of its weights there and in the split."""
        access = self._rules.access
        if access is None or not self._split.audience_bp:
            return access
        weights = dict(access.audience_bp)
        for audience, bp in self._split.audience_bp:
            weights[audience] = max(bp, weights.get(audience, 0))
        return replace(access, audience_bp=weights)

    def _arm(self, version: str) -> Arm:
        return self._arms.get(version, Arm(version))

    def _withdraw_canary(self, now_s: float) -> bool:
        """True when there was a canary."""
        had_canary = self._split.canary is not None
        if had_canary or self._split.judge is not None:
            split = replace(self._split, canary=None, weight_bp=0, mirror_bp=0, judge=None)
            self._publish(split, now_s)
        return had_canary

    def _publish(self, split: Split, now_s: float) -> None:
        before, self._split = self._split, split
        self._revision += 1
        self._change += 1
        self._split_change = self._change
        self._unit_keys.of(split.rollout)
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
            self._pending_fences.update(self._fences(withdrawn))
            self._fences_suffice = bool(withdrawn)
            arm = self._arms.get(split.canary) if split.canary else None
            self._canary_urls = {one.url for one in arm.replicas if not arm.external} if arm else set()

    def _are_behind(self, change: int, now_s: float) -> bool:
        """True when a router with a lease has not acknowledged this change."""
        return self._routers.are_behind((self._epoch, change), now_s)

    def _applied_how(self, now_s: float) -> AppliedHow:
        has_all_fences = self._fences_suffice and not self._pending_fences
        if has_all_fences and not self._are_behind(self._stable_change, now_s):
            return "fenced"
        if now_s < self._unknown_leases_until_s or self._are_behind(self._split_change, now_s):
            return "pending"
        if self._pending_fences and now_s < self._published_s + FENCE_GRACE_S:
            return "pending"
        # A router that had a lease at publication and has not acknowledged since has let it expire.
        has_expired = self._are_behind(self._split_change, self._published_s)
        return "lease" if has_expired or self._unknown_leases_until_s > self._published_s else "acknowledged"


def _drop_oldest(entries: dict[str, Any], limit: int) -> None:
    while len(entries) > limit:
        del entries[next(iter(entries))]

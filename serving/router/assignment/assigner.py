"""Assignment of one router's requests by its table: whether a coin is tossed, by which key and weight.

Rules, the first that applies:
1. What needs the state that an engine holds of an earlier request goes to whichever engine has it. So does
   what only one account can read, where the endpoints are of several (`bodies/kept.py`), and thinking that
   one of them signed, where another or an engine of ours may have (`bodies/signed.py`). With one, both arms
   read it, and it is drawn: else no later turn of an agent would be evidence.
2. Without a canary all goes to stable. A client with the right to may force an arm.
3. Without a lease, without a ready canary replica, while the router is overloaded, or beyond the burst cap
   nothing is drawn: the request goes to stable and is no evidence of either arm. Nor is what may be sent but
   once, while the canary is set aside; what else is drawn for it then is tried there too (`trial.py`).
4. A valid affinity token keeps the arm of its draw: a canary's while its bucket is below w(key), so that
   nobody is brought to the canary by the token of a client with a larger weight. One of another named key
   (a session, a user) is ignored: a client that serves several users must not tie them together. So is
   stable's of a named key that this router has meanwhile brought to the canary, by a request without one: a
   client that sends its token now and then would go back, and forth.
5. Else the key's bucket and w(key) decide (`assignment.py`, `clients.py`), and the answer carries a token.

A heavy key (`heavy_keys.py`) is replaced by its conversation, and a heavy conversation by the request.

Clocks: `now_s` is CLOCK_BOOTTIME, `wall_s` seconds since the epoch.
"""

from __future__ import annotations

from serving.credentials import KeyReference
from serving.messages import CANARY, FULL_BP, STABLE, AssignedBy, RouteTable, UnitCounts
from serving.router.assignment.affinity import (
    AFFINITY_HEADER,
    Pin,
    cookie_of,
    generation_of,
    headers_of,
    read_token,
    signed,
)
from serving.router.assignment.assignment import (
    AssignmentKey,
    Salted,
    Units,
    find_key,
    salt_of,
    unit_key_of,
)
from serving.router.assignment.burst import BurstWindow
from serving.router.assignment.client_keys import without_keys
from serving.router.assignment.clients import ANYONE, Client, Clients, forced_arm
from serving.router.bodies.body_facts import BodyFacts
from serving.router.headers import session_of, value_of
from serving.router.types import Assignment, Canary, Refusal, Request
from serving.table.heavy_keys import UnitCounter
from serving.targets import Endpoint

UNITS_LIMIT = 20_000  # of named keys that are remembered to be the canary's


class Assigner:
    """The draws of one router. `use` a table, then `assign` requests by it."""

    def __init__(self) -> None:
        self.is_overloaded = False  # the router holds all that it can: nothing is drawn
        self._counter = UnitCounter()
        self._burst = BurstWindow()
        self._clients: Clients | None = None
        self._units = Units("", "")
        self._salted = Salted("")
        self._generation = b""
        self._canary: Canary | None = None
        self._rollout = ""
        self._has_accounts = False  # several: each external endpoint has files and keys of its own
        self._has_signers = False  # several: engines of ours sign too, with what no endpoint can verify
        self._at_canary: dict[str, None] = {}  # units of named keys that were brought there, the oldest first

    def use(self, table: RouteTable) -> None:
        """Prepare for this table."""
        self._clients = Clients(table.access) if table.access is not None else None
        self._units = Units(unit_key_of(table), table.rollout)
        self._salted = Salted(salt_of(table.service, table.salt))
        accounts, is_ours = len(_accounts(table)), any(not arm.external for arm in table.arms)
        self._has_accounts, self._has_signers = accounts > 1, accounts + is_ours > 1
        self._generation = generation_of(table) if table.affinity is not None else b""
        if canary_of(table) != self._canary:
            self._at_canary.clear()
        self._canary = canary_of(table)
        if table.rollout != self._rollout:
            self._counter.clear()
            self._rollout = table.rollout

    @property
    def has_clients(self) -> bool:
        """Whether clients are told apart, by keys or headers that the table names."""
        return self._clients is not None

    def identify(self, request: Request) -> Client | Refusal:
        """Who sent the request; a Refusal when the service requires a key and this is none."""
        return ANYONE if self._clients is None else self._clients.identify(request)

    @property
    def hides_lists(self) -> bool:
        """Whether a list of files or batches would show one client what another has made."""
        return self._clients is not None and self._clients.has_several

    def without_consumed(self, request: Request) -> Request:
        """The request without what only the router reads: API keys, and headers that the table names."""
        if self._clients is None:
            return without_keys(request, None)
        return self._clients.without_consumed(request)

    def take_counts(self, *, now_s: float) -> UnitCounts | None:
        """The report of requests by unit that is due now; None: none is."""
        return self._counter.take(self._rollout, now_s=now_s)

    def lookup(self, table: RouteTable, key: str, unit: str = "") -> Assignment:
        """For a request that needs the state of an earlier one: the engines are asked one after the other."""
        return Assignment(STABLE, 0.0, None, unit, key, "stateful", canary_of(table), is_lookup=True)

    def assign(
        self,
        table: RouteTable,
        request: Request,
        client: Client,
        facts: BodyFacts,
        *,
        request_id: str,
        now_s: float,
        wall_s: float,
        has_lease: bool,
        is_aside: bool = False,
        is_undrawn: bool = False,
    ) -> Assignment | Refusal:
        """The arm of an eligible request. table: the one that was given to `use` last. is_aside: its canary
        is not asked for this request, because it does not answer. is_undrawn: its client takes too much."""
        session = session_of(request.headers, is_messages=request.target.path == "/v1/messages")
        key = find_key(session, facts, request_id=request_id)
        is_named = facts.key is not None or session is not None
        unit = self._units.of(key.text)
        self._counter.add(unit if key.source == "sticky" else None)
        assigned_by: AssignedBy = key.source
        heavy = ""
        if unit in table.heavy:
            heavy = unit
            key, unit, assigned_by = self._of_heavy(table, facts, unit, request_id)
        has_state = facts.has_state and request.path == "/v1/responses"
        is_kept = (facts.names_kept and self._has_accounts) or (facts.is_signed and self._has_signers)
        if has_state or is_kept:
            return self.lookup(table, key.text, unit)
        canary = table.canary
        if canary is None:
            return Assignment(STABLE, 0.0, None, unit, key.text, assigned_by, None)
        bucket = self._salted.bucket_of(key.text)
        w_bp = table.weight_bp
        if self._clients is not None:
            forced = forced_arm(client, request.headers)
            if isinstance(forced, Refusal):
                return forced
            if forced is not None:
                can_start = has_lease and bool(canary.replicas) and not is_aside
                arm = CANARY if forced == "canary" and can_start else STABLE
                return Assignment(arm, float(arm), bucket, unit, key.text, "forced", self._canary)
            w_bp = self._clients.weight_bp(client, w_bp)
        undrawn: AssignedBy | None = None
        if not has_lease:
            undrawn = "fenced"
        elif is_aside or not canary.replicas:
            undrawn = "no-capacity"
        elif self.is_overloaded or is_undrawn:
            undrawn = "capped"
        elif table.burst_cap is not None:
            admitted = self._burst.admits(w_bp, cap=table.burst_cap, now_s=now_s)
            undrawn = None if admitted else "capped"
        if undrawn is not None:
            return Assignment(STABLE, 0.0, bucket, unit, key.text, undrawn, None)
        if table.affinity is None:
            arm = CANARY if bucket < w_bp else STABLE
            return Assignment(arm, w_bp / FULL_BP, bucket, unit, key.text, assigned_by, self._canary)
        pin = self._pin(table, request, wall_s)
        if (
            pin is not None
            and (pin.arm == STABLE or pin.bucket < w_bp)
            and _may_belong(pin, unit, heavy, is_named=is_named)
            and not (pin.arm == STABLE and is_named and bucket < w_bp and unit in self._at_canary)
        ):
            assigned_by = "pinned"
            pin = pin.seen_at(wall_s)
        else:
            arm, at_s = CANARY if bucket < w_bp else STABLE, int(wall_s)
            pin = Pin(unit, arm, w_bp, bucket, at_s, at_s, is_named and not heavy)
        if pin.arm == CANARY and is_named:
            self._at_canary[unit] = None
            if len(self._at_canary) > UNITS_LIMIT:
                del self._at_canary[next(iter(self._at_canary))]
        token = signed(pin, key=table.affinity.key, generation=self._generation)
        headers = headers_of(token, table.service, cookie=table.affinity.cookie)
        w = pin.w_bp / FULL_BP
        return Assignment(
            pin.arm, w, pin.bucket, pin.unit, key.text, assigned_by, self._canary, answer_headers=headers
        )

    def _of_heavy(
        self, table: RouteTable, facts: BodyFacts, unit: str, request_id: str
    ) -> tuple[AssignmentKey, str, AssignedBy]:
        """The key, unit and word for a request whose own unit is heavy."""
        if facts.opening is not None:
            narrower = self._units.of(facts.opening)
            if narrower != unit:
                self._counter.add_more(narrower)
                if narrower not in table.heavy:
                    return AssignmentKey(facts.opening, "sticky"), narrower, "conversation"
        narrower = self._units.of(request_id)
        return AssignmentKey(request_id, "request"), narrower, "heavy"

    def _pin(self, table: RouteTable, request: Request, wall_s: float) -> Pin | None:
        assert table.affinity is not None
        text = value_of(request.headers, AFFINITY_HEADER)
        if text is None and table.affinity.cookie:
            cookie = value_of(request.headers, b"cookie")
            text = cookie_of(cookie, table.service) if cookie is not None else None
        if text is None:
            return None
        pin = read_token(text.strip(), key=table.affinity.key, generation=self._generation)
        return pin if pin is not None and pin.holds_at(wall_s) else None


def _accounts(table: RouteTable) -> set[tuple[str, KeyReference | None]]:
    """What keeps files and keys of encryption apart, as far as a table tells: host and key of each endpoint.

    Engines of ours keep neither.
    """
    arms = [arm for arm in table.arms if arm.external]
    return {(Endpoint.parsed(one.url).authority, arm.api_key) for arm in arms for one in arm.replicas}


def _may_belong(pin: Pin, unit: str, heavy: str, *, is_named: bool) -> bool:
    """Whether a request may belong to a token's draw. heavy: the unit that `unit` replaces; empty: none."""
    if pin.unit == heavy:
        return False
    return not is_named or pin.unit == unit or (bool(heavy) and not pin.is_named)


def canary_of(table: RouteTable | None) -> Canary | None:
    """A table's canary as (rollout, version); None without one."""
    return (table.rollout, table.canary.version) if table and table.canary else None

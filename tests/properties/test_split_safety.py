"""Safety of a withdrawal: once it is applied, no router starts a canary request under any network or clock.

The real table core and router cores with a clock that Hypothesis moves: polls and replies are delayed, lost
in a crash of the table, or held by a frozen router. The canary is external and has no fence: acknowledgements
and leases alone must guarantee it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.messages import Arm, Replica, RouteTable
from serving.router.assignment.assigner import canary_of
from serving.router.router import RouterCore
from serving.table.orders import Poll, Split
from serving.table.route_table import TableCore

ROUTERS = 3
routers = st.integers(0, ROUTERS - 1)
steps = st.one_of(
    st.tuples(st.just("wait"), st.floats(0.01, 0.9)),
    st.tuples(st.just("send"), routers),
    st.tuples(st.just("arrive"), routers),
    st.tuples(st.just("reply"), routers),
    st.tuples(st.just("poll"), routers),  # sent, arrived and answered at once
    st.tuples(st.just("split"), st.sampled_from([0, 500, 9000])),
    st.tuples(st.just("crash"), st.none()),
)


@dataclass
class Connection:
    """A router and its poll in flight, if any."""

    core: RouterCore
    sent: tuple[float, Poll] | None = None
    answer: tuple[float, RouteTable | None] | None = None


@dataclass
class Simulation:
    now_s: float = 1000.0
    connections: list[Connection] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.table = TableCore("chat", epoch=1, now_s=self.now_s)
        for version in ("v-1", "v-2"):
            self.table.set_replicas(Arm(version, (Replica(f"http://{version}"),), external=True))
        self.set_split(500)
        self.connections = [Connection(RouterCore("chat", router=f"r{index}")) for index in range(ROUTERS)]

    def set_split(self, weight_bp: int) -> None:
        canary = "v-2" if weight_bp else None
        split = Split("r-1", "salt", "v-1", canary, weight_bp, 0)
        self.table.set_split(split, token=1, now_s=self.now_s)

    def crash(self) -> None:
        """Restart the table; messages in flight are lost."""
        stored = json.loads(json.dumps(self.table.to_store()))
        self.table = TableCore("chat", epoch=1, now_s=self.now_s, stored=stored)
        for connection in self.connections:
            connection.sent = connection.answer = None

    def send(self, connection: Connection) -> None:
        if connection.sent is None and connection.answer is None:
            connection.sent = (self.now_s, Poll(connection.core.router, connection.core.applied))

    def arrive(self, connection: Connection) -> None:
        if connection.sent is not None:
            sent_s, poll = connection.sent
            has_news = self.table.poll(poll, now_s=self.now_s)
            connection.sent, connection.answer = None, (sent_s, self.table.table() if has_news else None)

    def reply(self, connection: Connection) -> None:
        if connection.answer is not None:
            sent_s, table = connection.answer
            connection.answer = None
            connection.core.on_table(table, sent_s=sent_s)

    def step(self, what: str, value: object) -> None:
        if what == "wait":
            assert isinstance(value, float)
            self.now_s += value
        elif what == "split":
            assert isinstance(value, int)
            self.set_split(value)
        elif what == "crash":
            self.crash()
        else:
            assert isinstance(value, int)
            connection = self.connections[value]
            for event in ("send", "arrive", "reply") if what == "poll" else (what,):
                getattr(self, event)(connection)

    def may_start(self) -> list[str]:
        """The routers that would start a canary request now."""
        routers_that_may = []
        for connection in self.connections:
            canary = canary_of(connection.core.table)
            if canary is not None and connection.core.may_start(canary, self.now_s):
                routers_that_may.append(connection.core.router)
        return routers_that_may


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(script=st.lists(steps, min_size=5, max_size=60))
def test_no_router_starts_a_canary_request_after_an_applied_withdrawal(
    script: list[tuple[str, object]],
) -> None:
    simulation = Simulation()
    for what, value in script:
        simulation.step(what, value)
        status = simulation.table.status(now_s=simulation.now_s)
        if status.applied and status.canary is None:
            assert simulation.may_start() == []


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(script=st.lists(steps, max_size=40))
def test_a_withdrawal_is_applied_within_one_lease_and_its_margin(
    script: list[tuple[str, object]],
) -> None:
    simulation = Simulation()
    for what, value in script:
        simulation.step(what, value)
    simulation.set_split(0)
    simulation.now_s += 1.25
    status = simulation.table.status(now_s=simulation.now_s)

    assert (status.applied, simulation.may_start()) == (True, [])

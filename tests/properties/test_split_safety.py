"""No router may start a canary request once a withdrawal is applied, whatever the network and the clock do.

The real table core and real router cores under a clock that Hypothesis moves: polls and replies are delayed,
lost with a crash of the table, or held for ever by a frozen router. The canary is external, so that no fence
helps: acknowledgements and leases alone must carry the promise.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.messages import Arm, Replica, RouteTable
from serving.router.router import RouterCore, canary_of
from serving.table.route_table import Poll, Split, TableCore

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
class Line:
    """A router and the one poll that it may have under way."""

    core: RouterCore
    sent: tuple[float, Poll] | None = None
    answer: tuple[float, RouteTable | None] | None = None


@dataclass
class Environment:
    now_s: float = 1000.0
    lines: list[Line] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.table = TableCore("chat", epoch=1, now_s=self.now_s)
        for version in ("v-1", "v-2"):
            self.table.set_replicas(Arm(version, (Replica(f"http://{version}"),), external=True))
        self.set_split(500)
        self.lines = [Line(RouterCore("chat", router=f"r{index}")) for index in range(ROUTERS)]

    def set_split(self, weight_bp: int) -> None:
        canary = "v-2" if weight_bp else None
        split = Split("r-1", "salt", "v-1", canary, weight_bp, 0)
        self.table.set_split(split, token=1, now_s=self.now_s)

    def crash(self) -> None:
        """The table is restarted; what was under way to it or from it is lost."""
        stored = json.loads(json.dumps(self.table.to_store()))
        self.table = TableCore("chat", epoch=1, now_s=self.now_s, stored=stored)
        for line in self.lines:
            line.sent = line.answer = None

    def send(self, line: Line) -> None:
        if line.sent is None and line.answer is None:
            line.sent = (self.now_s, Poll(line.core.router, line.core.applied))

    def arrive(self, line: Line) -> None:
        if line.sent is not None:
            sent_s, poll = line.sent
            has_news = self.table.poll(poll, now_s=self.now_s)
            line.sent, line.answer = None, (sent_s, self.table.table() if has_news else None)

    def reply(self, line: Line) -> None:
        if line.answer is not None:
            sent_s, table = line.answer
            line.answer = None
            line.core.on_table(table, sent_s=sent_s)

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
            line = self.lines[value]
            for one in ("send", "arrive", "reply") if what == "poll" else (what,):
                getattr(self, one)(line)

    def may_start(self) -> list[str]:
        """The routers that would start a request on their table's canary now."""
        found = []
        for line in self.lines:
            canary = canary_of(line.core.table)
            if canary is not None and line.core.may_start(canary, self.now_s):
                found.append(line.core.router)
        return found


@settings(max_examples=400, deadline=None)
@given(script=st.lists(steps, min_size=5, max_size=60))
def test_no_router_starts_a_canary_request_after_an_applied_withdrawal(
    script: list[tuple[str, object]],
) -> None:
    world = Environment()
    for what, value in script:
        world.step(what, value)
        status = world.table.status(now_s=world.now_s)
        if status.applied and status.canary is None:
            assert world.may_start() == []


@settings(max_examples=100, deadline=None)
@given(script=st.lists(steps, max_size=40))
def test_a_withdrawal_is_applied_within_one_lease_and_its_margin(
    script: list[tuple[str, object]],
) -> None:
    world = Environment()
    for what, value in script:
        world.step(what, value)
    world.set_split(0)
    world.now_s += 1.25
    status = world.table.status(now_s=world.now_s)

    assert (status.applied, world.may_start()) == (True, [])

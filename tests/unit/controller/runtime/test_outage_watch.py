"""What users do not get of stable: one line while it lasts, and one page."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console, RenderableType

from controller.cli.render import service_detail, services_table
from controller.evidence.outages import Outage
from controller.rollout.observation import VersionPhase, VersionStatus
from controller.runtime.outage_watch import REMEDY, OutageWatch
from controller.views.rollout import service_view
from tests.fakes.plane import FakeNotifier

REFUSED = "http://h:1/v1 does not answer (connection refused); check that endpoint"


@dataclass
class Rig:
    """A watch on a clock that the test moves; wall and boot time are the same."""

    stable: str | None = "v1"
    now_s: float = 1000.0
    failing: Outage | None = None
    answered: float | None = 990.0
    error: str | None = None
    is_external: bool = True
    notifier: FakeNotifier = field(default_factory=FakeNotifier)

    def __post_init__(self) -> None:
        self.watch = OutageWatch("chat", self, self.notifier, lambda: self.now_s)

    def outage(self, now_s: float) -> Outage | None:
        return self.failing

    def answered_s(self) -> float | None:
        return self.answered

    def look(self, after_s: float) -> str | None:
        self.now_s += after_s
        version = VersionStatus(
            "v1", VersionPhase.READY, 1, 0, last_error=self.error, external=self.is_external
        )
        return self.watch.look((version,), self.now_s)


def test_stable_that_answers_nobody_is_a_line_at_once_and_one_page_after_ten_seconds() -> None:
    rig = Rig()
    assert rig.look(1.0) is None

    rig.failing = Outage(since_s=rig.now_s, requests=312, cause="reset")
    line = rig.look(3.0)

    assert line == f"no request to v1 was answered in the last 3 s: 312 failed (reset); {REMEDY}"
    assert rig.notifier.sent == {}
    for _ in range(30):
        rig.look(1.0)
    [page] = rig.notifier.sent.values()
    assert page.startswith("chat: no request to v1 was answered in the last 13 s: 312 failed (reset)")
    assert page.endswith(REMEDY)


def test_an_endpoint_that_flaps_pages_once_and_one_that_was_well_pages_again() -> None:
    rig = Rig()
    for _ in range(20):
        rig.failing = Outage(rig.now_s, 9, "refused")
        for _ in range(15):
            rig.look(1.0)
        rig.failing = None
        rig.look(30.0)
    assert len(rig.notifier.sent) == 1

    rig.look(700.0)
    rig.failing = Outage(rig.now_s, 9, "refused")
    for _ in range(15):
        rig.look(1.0)
    assert len(rig.notifier.sent) == 2


def test_outages_that_end_by_themselves_page_nobody_however_many() -> None:
    rig = Rig()
    for _ in range(20):
        rig.failing = Outage(rig.now_s, 9, "refused")
        rig.look(5.0)
        rig.failing = None
        rig.look(30.0)

    assert rig.notifier.sent == {}


def test_a_probe_that_fails_where_no_request_comes_is_a_line_and_pages_at_its_third_failure() -> None:
    rig = Rig(error=REFUSED)

    assert rig.look(30.0) == f"v1 does not answer its probe: {REFUSED}; {REMEDY}"
    assert rig.notifier.sent == {}
    for _ in range(25):
        rig.look(1.0)
    assert len(rig.notifier.sent) == 1


def test_a_probe_that_fails_beside_answers_says_nothing() -> None:
    rig = Rig(error=REFUSED)
    for _ in range(60):
        rig.answered = rig.now_s
        assert rig.look(1.0) is None

    assert rig.notifier.sent == {}


def shown(part: RenderableType) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(part)
    return capture.get()


def test_a_lost_replica_of_an_engine_is_no_endpoint_that_is_down() -> None:
    rig = Rig()
    rig.is_external, rig.error = False, "the engine died"
    assert [rig.look(30.0) for _ in range(3)] == [None] * 3


def test_status_and_list_show_it() -> None:
    version = VersionStatus("v1", VersionPhase.READY, 1, 0)
    outage = "no request to v1 was answered"
    view = service_view(
        "chat", url="http://h/v1", stable="v1", split=None, versions=(version,), rollout=None, outage=outage
    )

    assert "no request to v1 was answered" in shown(service_detail(view, is_wide=False))
    assert "chat: no request to v1 was answered" in shown(services_table([view], is_wide=False))

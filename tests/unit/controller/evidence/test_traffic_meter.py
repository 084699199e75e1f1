"""Traffic meter: stable alone, its newest requests, the same after a restart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from controller.evidence import traffic_meter as meters
from controller.evidence.reader import RecordsReader
from controller.evidence.traffic_meter import RequestRate, TrafficMeter
from controller.planning.baseline import MeasuredBaseline
from serving.answer_signals import Signals
from serving.messages import Event, RecordPage, RequestRecord, ScoreRecord

REQUEST = RequestRecord(
    seq=0,
    request_id="",
    answer_id=None,
    unit="",
    bucket=None,
    arm=0,
    w=0.0,
    assigned_by="request",
    stage=0,
    rollout="",
    at_s=0.0,
    done_at_s=0.0,
    status=200,
    outcome="answered",
    served_arm=0,
    error=False,
    cause=None,
    latency_ms=100.0,
    ttft_ms=None,
    itl_ms=None,
    prompt_tokens=None,
    completion_tokens=None,
    finish_reason="stop",
    empty=False,
    path="/v1/chat/completions",
    router="r",
    epoch=1,
    revision=1,
)


class Log:
    """A log in memory; unreadable while `is_up` is False."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.events: list[Event] = []
        self.is_up = True
        self.add(*events)

    def add(self, *events: Event) -> None:
        for event in events:
            self.events.append(replace(event, seq=len(self.events) + 1))

    def read(self, service: str, *, after_seq: int, limit: int) -> RecordPage | None:
        page = tuple(self.events[after_seq : after_seq + limit])
        return RecordPage(page, after_seq + len(page), (), 0.0) if self.is_up else None


def request(n: int, **changes: object) -> RequestRecord:
    named = {"request_id": f"q{n}", "unit": f"u{n}", "at_s": float(n), "answer_id": f"chatcmpl-{n}"}
    return replace(REQUEST, **{**named, **changes})  # type: ignore[arg-type]


class PolledMeter(TrafficMeter):
    """A meter with a reader of its own."""

    def __init__(self, log: Log, promoted_at_s: Callable[[str], float] = lambda version: 0.0) -> None:
        super().__init__(promoted_at_s)
        self.reader = RecordsReader("chat", log)
        self.reader.subscribe("meter", self)

    def poll(self, now_s: float, stable: str = "v1") -> None:
        self.set_stable(stable)
        self.reader.poll(now_s)


def measured(*events: Event, now_s: float = 0.0) -> MeasuredBaseline:
    meter = PolledMeter(Log(events))
    meter.poll(now_s)
    return meter.measured()


def test_an_outage_is_of_the_present_stable_and_ends_with_its_first_answer() -> None:
    down = [request(n, done_at_s=float(n), error=True, status=503, served_arm=None) for n in range(1, 9)]
    log = Log(down)
    meter = PolledMeter(log)
    meter.poll(9.0)

    found = meter.outage(9.0)
    log.add(request(9, done_at_s=9.0))
    meter.poll(10.0)

    assert found is not None
    assert (found.since_s, found.requests) == (1.0, 8)
    assert (meter.outage(10.0), meter.answered_s()) == (None, 9.0)
    meter.poll(10.0, stable="v2")
    assert meter.answered_s() is None


def test_stables_errors_are_counted_and_the_canarys_are_not() -> None:
    stable = [request(n, error=n % 10 == 0) for n in range(100)]
    canary = [request(100 + n, arm=1, served_arm=0, error=True) for n in range(50)]

    baseline = measured(*stable, *canary)

    assert (baseline.requests, baseline.events["error"]) == (100, 10)


def test_a_cancelled_request_is_no_error() -> None:
    baseline = measured(*(request(n, error=None, outcome="cancelled", latency_ms=None) for n in range(5)))

    assert (baseline.events["error"], baseline.events["cancelled"], baseline.latency_p50_ms) == (0, 5, None)


def test_the_rate_of_a_signal_is_that_of_the_answers_whose_text_was_read() -> None:
    """Outside a rollout a router reads some texts alone: 10 of 50 leaked, in 100 answers that is 20."""
    quiet = Signals(9, None, None, leaked=False, refused=False, other_language=False, invalid=False)
    signals = [replace(quiet, leaked=n < 10) if n < 50 else None for n in range(100)]

    baseline = measured(*(request(n, signals=one) for n, one in enumerate(signals)))

    assert (baseline.requests, baseline.events["leaked"], baseline.events["refused"]) == (100, 20, 0)


def test_latency_is_measured_by_percentiles_and_spread() -> None:
    baseline = measured(*(request(n, latency_ms=math.exp(5 + (-1) ** n)) for n in range(1000)))

    assert baseline.latency_log_sd == pytest.approx(1.0)
    assert baseline.latency_p99_ms == pytest.approx(math.exp(6))


def test_a_unit_is_a_keys_requests_within_one_session() -> None:
    # Each of 20 keys sends 4 requests in a minute, and again an hour later: 40 sessions of 4.
    at = [(hour * 3600.0 + 15 * k + u / 100, u) for hour in (0, 1) for k in range(4) for u in range(20)]
    records = [request(n, unit=f"u{u}", at_s=t, assigned_by="sticky") for n, (t, u) in enumerate(at)]

    assert measured(*records).unit_requests == pytest.approx(4.0)


def test_the_share_of_requests_with_a_key_is_measured() -> None:
    keyed = [request(n, unit=f"u{n}", assigned_by="sticky") for n in range(30)]
    alone = [request(n) for n in range(30, 40)]

    assert measured(*keyed, *alone).keyed_share == pytest.approx(0.75)
    assert (measured(*alone).keyed_share, measured().keyed_share) == (0.0, 0.0)


def test_requests_without_a_key_are_units_of_one() -> None:
    keyed = [request(n, unit="one", at_s=0.0, assigned_by="sticky") for n in range(9)]

    assert measured(*keyed, *(request(n) for n in range(9, 18))).unit_requests == pytest.approx(18 / 10)


def test_scores_are_joined_by_either_id_and_only_to_stable() -> None:
    records = [request(0), request(1), request(2, arm=1)]
    scores = [ScoreRecord(0, name, "quality", value, 5.0) for name, value in
              (("q0", 0.5), ("chatcmpl-1", 0.9), ("q2", 0.0), ("q77", 0.0))]  # fmt: skip

    quality = measured(*records, *scores).scores["quality"]

    assert quality.count == 2
    assert (quality.mean, quality.sd) == pytest.approx((0.7, 0.2))


@pytest.mark.slow
def test_the_judged_ratio_covers_only_answers_old_enough() -> None:
    records = [request(n) for n in range(1000)]
    scores = [ScoreRecord(0, f"q{n}", "quality", 1.0, 2000.0) for n in range(500) if n % 4]

    assert measured(*records, *scores, now_s=1000.0).scores["quality"].judged_ratio is None
    assert measured(*records, *scores, now_s=1100.0).scores["quality"].judged_ratio == 0.75


def test_what_a_request_carried_is_counted_by_metric() -> None:
    records = [request(n, ttft_ms=None if n else 12.0, completion_tokens=None) for n in range(3)]

    seen = measured(*records)

    assert (seen.values["ttft_ms"], seen.carried("ttft_ms"), seen.carried("tokens")) == (1, True, False)
    assert (seen.carried("error"), seen.carried("quality")) == (True, False)


@pytest.mark.slow
def test_only_answers_old_enough_could_carry_a_score() -> None:
    records = [request(n) for n in range(1000)]

    assert measured(*records, now_s=1000.0).could_carry("quality") == 0
    assert measured(*records, now_s=1100.0).could_carry("quality") == 500
    assert measured(*records, now_s=1100.0).could_carry("error") == 1000


@pytest.mark.slow
def test_old_requests_drop_out_and_the_state_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PolledMeter, "join_ids", 100)
    monkeypatch.setattr(meters, "OPEN_SESSIONS", 50)
    meter = PolledMeter(log := Log())
    records = [request(n, error=n < 4000, assigned_by="sticky", at_s=n / 1000) for n in range(24_000)]
    for start in range(0, 24_000, 4000):
        log.add(*records[start : start + 4000])
        meter.poll(2000.0)  # no score may refer to any of them any more

    baseline = meter.measured()

    assert (baseline.requests, baseline.events["error"]) == (20_000, 0)
    assert (len(meter.reader._join._requests), len(meter._sessions), len(meter._blocks)) == (100, 50, 40)


@pytest.mark.slow
def test_a_restarted_controller_measures_the_same_from_the_log() -> None:
    records: list[Event] = [request(n, error=n % 7 == 0, assigned_by="sticky") for n in range(12_000)]
    records += [ScoreRecord(0, f"q{n}", "quality", 0.5, 1.0) for n in range(11_000, 12_000)]
    before, after = PolledMeter(log := Log()), PolledMeter(log)
    for start in range(0, len(records), 900):
        log.add(*records[start : start + 900])
        before.poll(20_000.0)

    after.poll(20_000.0)

    assert after.measured() == before.measured()
    assert after.measured().requests == 12_000


def test_a_promotion_starts_the_baseline_anew_also_after_a_restart() -> None:
    promoted = {"v1": 0.0, "v2": 500.0}
    log = Log(request(n, error=True) for n in range(500))
    meter = PolledMeter(log, promoted.__getitem__)
    meter.poll(500.0)
    log.add(*(request(n) for n in range(500, 800)))

    meter.poll(800.0, "v2")
    restarted = PolledMeter(log, promoted.__getitem__)
    restarted.poll(800.0, "v2")

    assert (meter.measured().requests, meter.measured().events["error"]) == (300, 0)
    assert restarted.measured() == meter.measured()


def test_an_unreadable_log_changes_nothing() -> None:
    meter = PolledMeter(log := Log([request(0), request(1)]))
    meter.poll(2.0)
    log.is_up = False

    meter.poll(3.0)

    assert meter.measured().requests == 2


# --- the request rate


def rate_of(*spans: tuple[float, float, int]) -> float | None:
    """Rate at NOW_S of spans (from, to, requests), in seconds before NOW_S, after an hour of reading."""
    rate = RequestRate()
    rate.add(NOW_S - 5000.0)
    for since_s, until_s, count in spans:
        for index in range(count):
            rate.add(NOW_S - since_s + (since_s - until_s) * index / count)
    rate.forget(NOW_S)
    return rate.per_s(NOW_S)


NOW_S = 1_800_000_000.0


def test_the_rate_is_that_of_the_last_minute_where_it_has_enough_requests() -> None:
    assert rate_of((3600.0, 60.0, 10), (60.0, 0.0, 600)) == pytest.approx(10.0, rel=0.1)


def test_a_quiet_minute_is_judged_by_the_hour_around_it() -> None:
    assert rate_of((3600.0, 0.0, 7200), (55.0, 50.0, 1)) == pytest.approx(2.0, rel=0.1)
    assert rate_of((3590.0, 1800.0, 360)) == pytest.approx(0.1, rel=0.05)


def test_a_single_request_is_no_rate() -> None:
    """Taken as one a minute it made every stage's deadline 41.7 days."""
    assert rate_of((10.0, 9.0, 1)) is None


def test_a_clock_that_is_set_back_leaves_no_requests_in_the_future() -> None:
    assert rate_of((-3500.0, -3600.0, 600)) is None


def test_the_rate_of_a_young_service_is_taken_over_its_life() -> None:
    rate = RequestRate()
    for index in range(240):
        rate.add(NOW_S - 120.0 + index / 2)

    assert rate.per_s(NOW_S) == pytest.approx(2.0, rel=0.1)

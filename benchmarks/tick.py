"""What one tick of a service costs: CPU time, and reads of fleet, route table and records log.

`python -m benchmarks.tick [--ticks 300]` prints JSON. A rollout is in its second stage; 20 scored requests
arrive between two ticks. Store (SQLite), evidence, traffic meter and records log are real; fleet and route
table are in memory, where the product makes a Ray call of about a millisecond for each read.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from controller.evidence.feed import EvidenceFeeds
from controller.evidence.reader import RecordsReader
from controller.evidence.traffic_meter import TrafficMeter
from controller.rollout.state import Phase
from controller.runtime.reconciler import Ports, Reconciler
from controller.runtime.service_keeper import Keeper
from controller.runtime.service_loop import ServiceLoop, ServiceWorkers
from controller.store.rows import ServiceRow, VersionRow
from controller.store.sql import SqlStore
from serving.messages import RecordBatch, RecordPage, RequestRecord, ScoreRecord
from serving.table.records_log import RecordLog
from tests.fakes.counted import Counted
from tests.fakes.feed_maker import CONFIG, a_record, a_score, in_stage
from tests.fakes.plane import FakeClock, FakeFleet, FakeIngress, FakeNotifier, FakeProbes, FakeTraffic
from tests.fakes.rollouts import CANARY, STABLE

REQUESTS_A_TICK = 20
TICK_S = 1.0


class Log:
    """The service's real records log, filled between ticks; the log's own clock is the records'."""

    def __init__(self) -> None:
        self._log, self._count, self._dice = RecordLog(), 0, random.Random(7)

    def fill(self, at_s: float) -> None:
        """The requests of one interval, each scored; assigned evenly before `at_s`."""
        records: list[RequestRecord] = []
        scores: list[ScoreRecord] = []
        for index in range(REQUESTS_A_TICK):
            self._count += 1
            latency_ms = self._dice.lognormvariate(4.0, 0.4)
            sent_s = at_s - TICK_S * (1 - index / REQUESTS_A_TICK)
            record = a_record(self._count, arm=self._count % 2, w=0.5, latency_ms=latency_ms)
            records.append(replace(record, at_s=sent_s, done_at_s=sent_s + latency_ms / 1000))
            scores.append(a_score(f"a{self._count}", float(self._dice.random() < 0.9), at_s=at_s))
        batch = RecordBatch("one", self._count // REQUESTS_A_TICK, tuple(records), at_s)
        self._log.append_batch(batch, now_s=at_s, wall_s=at_s)
        self._log.append_scores(scores)
        self._now_s = at_s

    def read(self, service: str, *, after_seq: int, limit: int) -> RecordPage:
        """The next events."""
        return self._log.read(after_seq, limit, now_s=self._now_s, wall_s=self._now_s)


def run(ticks: int, folder: Path) -> dict[str, float]:
    """Milliseconds of CPU time and reads per tick, over `ticks` ticks after 20 of warm-up."""
    clock = FakeClock()
    store = SqlStore(f"sqlite:///{folder / 'state.db'}")
    version = VersionRow("chat", STABLE, "{}", "{}", 1.0)
    assert store.acquire_lease("benchmark", ttl_s=3600.0) is not None  # token 1
    store.put_service(ServiceRow("chat", "{}", STABLE, "secret", 1.0), version)
    fleet, traffic, log = FakeFleet(clock), FakeTraffic(clock), Log()
    reads: dict[str, Any] = {
        "fleet_reads": Counted(fleet),
        "table_reads": Counted(traffic),
        "log_reads": Counted(log),
    }
    for name in (STABLE, CANARY):
        fleet.ensure("chat", name, 1, token=1)
    clock.advance(60.0)
    state = in_stage(1, acked_at_s=clock.at_s)
    endless = tuple(replace(stage, duration_s=1e9, deadline_s=1e9) for stage in state.plan.stages)
    state = replace(state, plan=replace(state.plan, stages=endless), launched=True)
    assert state.phase is Phase.STAGE
    store.create_rollout(state, request="{}", at_s=clock.at_s)

    def workers(service: str) -> ServiceWorkers:
        meter = TrafficMeter()
        engines: Any = reads["fleet_reads"]
        table: Any = reads["table_reads"]
        reader = RecordsReader(service, reads["log_reads"])
        feeds = EvidenceFeeds(reader, store.evidence, lambda rollout: CONFIG)
        ports = Ports(store, engines, table, feeds, FakeProbes(), FakeNotifier(), clock)

        def measure(now_s: float) -> None:
            meter.set_stable(STABLE)
            reader.subscribe("meter", meter)
            feeds.poll_idle(now_s)

        keeper = Keeper(engines, table, FakeIngress(traffic), store, clock)
        return ServiceWorkers(Reconciler(ports), keeper, measure, lambda token: None)

    loop = ServiceLoop("chat", store, clock, workers, lambda row: 1)
    spent_s: list[float] = []
    for tick in range(ticks + 20):
        clock.advance(TICK_S)
        log.fill(clock.at_s)
        if tick == 20:
            for port in reads.values():
                port.reads = 0
        started_s = time.process_time()
        loop.tick(1)
        spent_s.append(time.process_time() - started_s)
    assert loop.last.evidence is not None
    measured = sorted(spent_s[20:])
    per_tick = {name: port.reads / ticks for name, port in reads.items()}
    return {"cpu_ms": 1000 * sum(measured) / ticks, "cpu_median_ms": 1000 * measured[ticks // 2], **per_tick}


def main() -> None:
    """Run the benchmark and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--ticks", type=int, default=300)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(given.ticks, Path(folder)), indent=2))


if __name__ == "__main__":
    main()

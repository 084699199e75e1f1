"""Prometheus metrics of a router on a port of its own, which serves nothing else.

The numbers are read from the router's `Counters` when they are asked for, in a thread of the server: a
request pays for its counts alone, and a slow reader holds up no request.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, start_http_server
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from serving.clock import boot_s
from serving.loopback import HOST
from serving.messages import FULL_BP
from serving.router.records.counters import ARM_NAMES, COPY_OUTCOMES, Histogram
from serving.supervised import LoopState

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from serving.router.front.front_wire import WireFront
    from serving.router.router import RouterCore

PREFIX = "canaryctl_router_"
PORT = 9464  # the usual one of exporters that are part of a program
PORTS = 100  # that are tried from there on, where several routers share a host
M = TypeVar("M", CounterMetricFamily, GaugeMetricFamily)
SETTING = "CANARYCTL_ROUTER_METRICS"  # environment variable: HOST:PORT, or `off`


class BadMetricsAddress(ValueError):
    """The setting is no address; one line with its value and the remedy."""


@dataclass(frozen=True, slots=True)
class MetricsAddress:
    """Where the metrics are served: the first free of `ports` ports from `port` on; port 0: any free one."""

    host: str = HOST
    port: int = PORT
    ports: int = 1

    @classmethod
    def from_setting(cls, text: str | None) -> MetricsAddress | None:
        """The setting's HOST:PORT; unset: loopback from 9464 on; None: `off`. Raises BadMetricsAddress."""
        if not text:
            return cls(ports=PORTS)
        if text == "off":
            return None
        host, colon, port = text.rpartition(":")
        if not (colon and host and port.isascii() and port.isdigit() and int(port[:6]) <= 65535):
            raise BadMetricsAddress(
                f"{SETTING}={text} is no address; use HOST:PORT, such as {HOST}:{PORT}, or off"
            )
        return cls(host.strip("[]"), int(port), PORTS)


class RouterMetrics(Collector):
    """What Prometheus reads of one router process."""

    def __init__(
        self,
        cores: Callable[[], Sequence[RouterCore]],
        *,
        refusals: Callable[[], Mapping[str, int]],
        held_bytes: Callable[[], int],
        held_answers: Callable[[], int],
        loops: Callable[[], Sequence[LoopState]],
        table_refused_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """cores: one for each service.   refusals: of requests that name none of several, by code."""
        self._cores = cores
        self._refusals = refusals
        self._held_bytes = held_bytes
        self._held_answers = held_answers
        self._loops = loops
        self._table_refused_s = table_refused_s

    def collect(self) -> Iterator[Metric]:
        """Every metric, as it is now."""
        cores = list(self._cores())
        yield from _request_metrics(cores, self._refusals())
        yield from _state_metrics(cores)
        held = GaugeMetricFamily(
            PREFIX + "held_bytes", "Bytes of request bodies that the router holds", value=self._held_bytes()
        )
        yield held
        yield GaugeMetricFamily(
            PREFIX + "held_answer_bytes", "Bytes of answers that are held back", value=self._held_answers()
        )
        yield GaugeMetricFamily(
            PREFIX + "table_refused_seconds",
            "Time for which the table file on disk is not what runs; 0: it is, or there is none",
            value=self._table_refused_s(),
        )
        restarts = CounterMetricFamily(
            PREFIX + "loop_restarts", "Background loops that ended and were started again", labels=["loop"]
        )
        for state in self._loops():
            restarts.add_metric([state.name], state.restarts)
        yield restarts


def _request_metrics(cores: Sequence[RouterCore], unnamed: Mapping[str, int]) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        PREFIX + "requests",
        "Requests that ask a model for an answer, by the arm they were assigned to",
        labels=["service", "arm", "outcome", "assigned_by"],
    )
    errors = _by_arm(CounterMetricFamily, "errors", "Requests whose first attempt failed")
    retries = _by_arm(CounterMetricFamily, "retries", "Attempts after the first")
    fallbacks = CounterMetricFamily(
        PREFIX + "fallbacks", "Requests of the canary that stable answered", labels=["service"]
    )
    takeovers = CounterMetricFamily(
        PREFIX + "takeovers", "Fallbacks in mid-stream, which stable continued", labels=["service"]
    )
    refusals = CounterMetricFamily(
        PREFIX + "refusals", "Errors that the router itself answered", labels=["service", "code"]
    )
    for code, count in dict(unnamed).items():
        refusals.add_metric(["", code], count)
    copies = CounterMetricFamily(
        PREFIX + "mirror_copies",
        "Copies to a mirrored canary; dropped: not sent",
        labels=["service", "outcome"],
    )
    questions = CounterMetricFamily(
        PREFIX + "judge_questions",
        "Answers and anchors of which a judge was to be asked, by verdict, or why there is none",
        labels=["service", "of", "outcome"],
    )
    tokens = CounterMetricFamily(
        PREFIX + "judge_tokens", "Tokens of questions to a judge and its answers", labels=["service"]
    )
    lost = CounterMetricFamily(
        PREFIX + "judge_lost", "Verdicts dropped, because the log was unreachable", labels=["service"]
    )
    latency = HistogramMetricFamily(
        PREFIX + "latency_seconds", "Time to the last byte of a whole answer", labels=["service", "arm"]
    )
    first_event = HistogramMetricFamily(
        PREFIX + "first_event_seconds", "Time to the first event of a stream", labels=["service", "arm"]
    )
    lag = HistogramMetricFamily(
        PREFIX + "event_loop_lag_seconds", "Time by which the event loop was late", labels=["service"]
    )
    for core in cores:
        counters, service = core.counters, core.service
        for (arm, outcome, assigned_by), count in dict(counters.requests).items():
            requests.add_metric([service, ARM_NAMES[arm], outcome, assigned_by], count)
        for arm, name in ARM_NAMES.items():
            errors.add_metric([service, name], counters.errors[arm])
            retries.add_metric([service, name], counters.retries[arm])
            _add_histogram(latency, [service, name], counters.latency[arm])
            _add_histogram(first_event, [service, name], counters.first_event[arm])
        fallbacks.add_metric([service], counters.fallbacks)
        takeovers.add_metric([service], counters.takeovers)
        for code, count in dict(counters.refusals).items():
            refusals.add_metric([service, code], count)
        for outcome in COPY_OUTCOMES:
            copies.add_metric([service, outcome], counters.mirrored.get(outcome, 0))
        for (of, outcome), count in dict(counters.judged).items():
            questions.add_metric([service, of, outcome], count)
        tokens.add_metric([service], counters.judge_tokens)
        lost.add_metric([service], core.outbox.lost_verdicts)
        _add_histogram(lag, [service], counters.lag)
    yield from (requests, errors, retries, fallbacks, takeovers, refusals, copies)
    yield from (questions, tokens, lost, latency, first_event, lag)


def _state_metrics(cores: Sequence[RouterCore]) -> Iterator[Metric]:
    now_s = boot_s()
    in_flight = _by_arm(GaugeMetricFamily, "requests_in_flight", "Attempts at engines now")
    age = _gauge("table_age_seconds", "Time since the last answered poll for the route table")
    lease = _gauge("lease_seconds", "Time for which canary requests may still start; 0: expired")
    weight = _gauge("canary_weight_ratio", "Share of the canary in the route table, 0 to 1")
    largest = _gauge("canary_largest_weight_ratio", "Largest weight of any client, audiences included")
    may_ask = _gauge("canary_in_table", "1: some request may reach the canary, drawn or forced; 0: none")
    aside = _gauge("canary_set_aside", "1: the canary gives no answer and is set aside; 0: it is asked")
    silent = _gauge("canary_silent_requests", "Requests in a row of which a canary has said nothing for long")
    waiting = _gauge("records_waiting", "Records that the records log has not accepted yet")
    dropped = CounterMetricFamily(
        PREFIX + "records_dropped", "Records dropped, because the log was unreachable", labels=["service"]
    )
    for core in cores:
        service = [core.service]
        for name, count in core.in_flight_by_arm().items():
            in_flight.add_metric([core.service, name], count)
        age.add_metric(service, core.table_age_s(now_s))
        lease.add_metric(service, core.lease_left_s(now_s))
        table = core.table
        has_canary = table is not None and table.canary is not None
        weight.add_metric(service, table.weight_bp / FULL_BP if table is not None and has_canary else 0.0)
        largest.add_metric(service, table.largest_bp / FULL_BP if table is not None and has_canary else 0.0)
        may_ask.add_metric(service, float(has_canary))
        aside.add_metric(service, float(core.is_canary_aside))
        silent.add_metric(service, core.health.silent_requests if core.health is not None else 0)
        waiting.add_metric(service, core.outbox.waiting)
        dropped.add_metric(service, core.outbox.dropped_in_all)
    yield from (in_flight, age, lease, weight, largest, may_ask, aside, silent, waiting, dropped)


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, text, labels=["service"])


def _by_arm(kind: type[M], name: str, text: str) -> M:
    return kind(PREFIX + name, text, labels=["service", "arm"])


def _add_histogram(family: HistogramMetricFamily, labels: list[str], histogram: Histogram) -> None:
    counts, sum_value = list(histogram.counts), histogram.total
    so_far, buckets = 0, []
    for bound, count in zip((*histogram.bounds, math.inf), counts, strict=True):
        so_far += count
        buckets.append(("+Inf" if bound == math.inf else repr(bound), float(so_far)))
    family.add_metric(labels, buckets, sum_value)


def _with_head(app: WSGIApplication) -> WSGIApplication:
    """This application, which knows no HEAD: that is answered as a GET without its body (RFC 9110, 9.3.2)."""

    def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        is_head = environ["REQUEST_METHOD"] == "HEAD"
        found = list[tuple[str, list[tuple[str, str]]]]()

        def found_head(status: str, headers: list[tuple[str, str]], *_: object) -> Callable[[bytes], object]:
            found.append((status, headers))
            return lambda data: None  # nobody writes so

        body = b"".join(app({**environ, "REQUEST_METHOD": "GET"} if is_head else environ, found_head))
        status, headers = found[-1]
        headers = [(name, value + ",HEAD" if name == "Allow" else value) for name, value in headers]
        start(status, [*headers, ("Content-Length", str(len(body)))])
        return [] if is_head else [body]

    return answer


def serve_metrics(
    front: WireFront, address: MetricsAddress, *, table_refused_s: Callable[[], float] = lambda: 0.0
) -> tuple[WSGIServer, int]:
    """Serve the metrics of this front in a thread of their own: the server, and its port.

    Raises OSError when no port is free, OverflowError when there is none of this number.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(
        RouterMetrics(
            lambda: list(front.cores.values()),
            refusals=lambda: front.refusals,
            held_bytes=lambda: front.bodies.total,
            held_answers=lambda: front.held.total,
            loops=lambda: front.loops,
            table_refused_s=table_refused_s,
        )
    )
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    last = min(address.port + address.ports - 1, 65535) if address.port else 0
    for port in range(address.port, last):
        with contextlib.suppress(OSError):
            return _served(address.host, port, registry)
    return _served(address.host, last, registry)


def _served(host: str, port: int, registry: CollectorRegistry) -> tuple[WSGIServer, int]:
    server, _ = start_http_server(port, host, registry=registry)
    server.set_app(_with_head(cast("WSGIApplication", server.get_app())))  # nobody knows the port yet
    return server, server.server_port

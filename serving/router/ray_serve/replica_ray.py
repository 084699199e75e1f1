"""The router as a Serve deployment, and its client of the service's table and records actors.

The fleet actor runs it: `serve.run(build_router_app(service, replicas=3), name=f"{service}--router",
route_prefix=f"/{service}")`. Ray's settings for the ingress (HAProxy, one event loop) are in `cluster_ray`.

Invariant: engines are reached over HTTP, never through a DeploymentHandle (a stream costs ten times more).
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time

from ray import serve
from ray.exceptions import RayError

from serving.actor_calls_ray import ActorHandles
from serving.actor_names import NAMESPACE, records_name, table_name
from serving.clock import boot_s
from serving.judging.samples import SampleStore
from serving.loopback_ray import keep_on_loopback
from serving.messages import RouteTable
from serving.router.front.front_wire import WireFront
from serving.router.heap import keep_collections_short
from serving.router.metrics import SETTING, BadMetricsAddress, MetricsAddress, serve_metrics
from serving.router.ray_serve.ingress_ray import Ingress
from serving.router.router import RouterCore
from serving.router.types import LONGEST_STREAM_S, Limits
from serving.supervised import LoopState, SupervisedLoops

# Serve restarts every replica of a deployment whose version changes, and a deployment without one gets a
# random version. Raise it when this router must not run beside the previous one.
ROUTER_VERSION = "6"
REPORT_S = 0.2
RETRY_S = 0.1
CALL_TIMEOUT_S = 1.0
MAX_ONGOING = 100_000  # requests a replica; overload is answered by the router, not by Serve's 503
IN_SERVE = Limits(drain_s=LONGEST_STREAM_S)
STOP_S = 60  # of Serve's own steps before and after the router's drain

log = logging.getLogger("canaryctl.router")


class RayTableClient:
    """Poll loop from the table actor into a core, and report loop from the core to the records actor."""

    def __init__(self, service: str, namespace: str = NAMESPACE) -> None:
        self._service = service
        self._handles = ActorHandles(namespace)
        self._loops = SupervisedLoops()
        self._lost: set[str] = set()  # actors whose connection is lost
        self._core: RouterCore | None = None

    async def start(self, core: RouterCore) -> None:
        """Start to poll and to report, in the running event loop."""
        self._core = core
        self._loops.start("poll", lambda: self._poll(core))
        self._loops.start("report", lambda: self._report(core))

    @property
    def loops(self) -> tuple[LoopState, ...]:
        """Both loops."""
        return self._loops.states

    async def stop(self) -> None:
        """Stop both, then send the remaining records with a last batch."""
        await self._loops.stop()
        if self._core is not None:
            await self._send(self._core, last=False)  # the batch that may not be acknowledged yet
            await self._send(self._core, last=True)

    async def watch(self, core: RouterCore) -> RouteTable | None:
        """One poll, which acknowledges the core's table; the next table, or None: unchanged.

        Raises RayError, TimeoutError, or ValueError when the service has no table.
        """
        async with asyncio.timeout(CALL_TIMEOUT_S):
            actor = await self._handles.get(table_name(self._service))
            counts = core.take_counts(now_s=boot_s())  # lost when the poll fails
            table: RouteTable | None = await actor.watch.remote(core.router, *core.applied, counts)
        return table

    async def _poll(self, core: RouterCore) -> None:
        name = table_name(self._service)
        while True:
            sent_s = boot_s()
            try:
                table = await self.watch(core)
            except (RayError, ValueError, TimeoutError) as exc:
                self._on_lost(name, exc)
                await asyncio.sleep(RETRY_S)
                continue
            self._on_restored(name)
            core.on_table(table, sent_s=sent_s)

    async def _report(self, core: RouterCore) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            await self._send(core, last=False)

    async def _send(self, core: RouterCore, *, last: bool) -> None:
        name = records_name(self._service)
        batch = core.report(now_s=boot_s(), wall_s=time.time(), last=last)
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                actor = await self._handles.get(name)
                await actor.append_batch.remote(batch)
        except (RayError, ValueError, TimeoutError) as exc:
            self._on_lost(name, exc)
            return
        self._on_restored(name)
        core.outbox.acknowledge()

    def _on_lost(self, name: str, exc: BaseException) -> None:
        self._handles.forget(name)
        if name not in self._lost:
            self._lost.add(name)
            log.warning("connection lost", extra={"actor": name, "error": repr(exc)})

    def _on_restored(self, name: str) -> None:
        if name in self._lost:
            self._lost.discard(name)
            log.warning("connection restored", extra={"actor": name})


def make_front(service: str, *, namespace: str = NAMESPACE, limits: Limits = IN_SERVE) -> WireFront:
    """The router of a service in this process, named after its host and process id."""
    router = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
    front = WireFront(RouterCore(service, router=router, limits=limits), RayTableClient(service, namespace))
    front.mirror.samples = SampleStore.from_environment(os.environ)
    return front


def start_metrics(front: WireFront, setting: str | None) -> None:
    """Serve the router's metrics as `CANARYCTL_ROUTER_METRICS` says. A router without them routes as well."""
    try:
        address = MetricsAddress.from_setting(setting)
        if address is not None:
            _, port = serve_metrics(front, address)
            log.info("metrics", extra={"url": f"http://{address.host}:{port}/metrics"})
    except (BadMetricsAddress, OSError) as exc:
        log.error("no metrics", extra={"error": str(exc)})


class RouterReplica:
    """One replica: a front on the port that Serve's ingress sends requests to."""

    def __init__(self, service: str, namespace: str) -> None:
        keep_on_loopback()
        front = make_front(service, namespace=namespace)
        start_metrics(front, os.environ.get(SETTING))
        self._ingress = Ingress(front)
        keep_collections_short()

    def __serve_build_asgi_app__(self) -> Ingress:
        return self._ingress


def build_router_app(service: str, *, replicas: int = 1, namespace: str = NAMESPACE) -> serve.Application:
    """The Serve application of a service's router. Running it again with equal arguments changes nothing."""
    deployment = serve.deployment(
        serve.ingress()(RouterReplica),
        name="router",
        num_replicas=replicas,
        max_ongoing_requests=MAX_ONGOING,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=LONGEST_STREAM_S + STOP_S,
    )
    # The only way in Ray 2.60 to pin the version; a random one would restart every router.
    return deployment.options(version=ROUTER_VERSION, _internal=True).bind(service, namespace)

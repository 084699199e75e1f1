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
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError

from serving.actor_names import NAMESPACE, records_name, table_name
from serving.clock import boot_s
from serving.loopback_ray import keep_on_loopback
from serving.messages import RouteTable
from serving.router.front_wire import WireFront
from serving.router.ingress_ray import Ingress
from serving.router.router import RouterCore
from serving.router.types import Limits

# Serve restarts every replica of a deployment whose version changes, and a deployment without one gets a
# random version. Raise it when this router must not run beside the previous one.
ROUTER_VERSION = "3"
REPORT_S = 0.2
RETRY_S = 0.1
CALL_TIMEOUT_S = 1.0
MAX_ONGOING = 100_000  # requests a replica; overload is answered by the router, not by Serve's 503

log = logging.getLogger("canaryctl.router")


class RayTableClient:
    """Poll loop from the table actor into a core, and report loop from the core to the records actor."""

    def __init__(self, service: str, namespace: str = NAMESPACE) -> None:
        self._service = service
        self._namespace = namespace
        self._handles: dict[str, Any] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._lost: set[str] = set()  # actors whose connection is lost
        self._core: RouterCore | None = None

    async def start(self, core: RouterCore) -> None:
        """Start to poll and to report, in the running event loop."""
        self._core = core
        self._tasks = [asyncio.create_task(self._poll(core)), asyncio.create_task(self._report(core))]

    async def stop(self) -> None:
        """Stop both, then send the remaining records with a last batch."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._core is not None:
            await self._send(self._core, last=False)  # the batch that may not be acknowledged yet
            await self._send(self._core, last=True)

    async def watch(self, core: RouterCore) -> RouteTable | None:
        """One poll, which acknowledges the core's table; the next table, or None: unchanged.

        Raises RayError, TimeoutError, or ValueError when the service has no table.
        """
        actor = await self._actor(table_name(self._service))
        async with asyncio.timeout(CALL_TIMEOUT_S):
            table: RouteTable | None = await actor.watch.remote(core.router, *core.applied)
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
            actor = await self._actor(name)
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await actor.append_batch.remote(batch)
        except (RayError, ValueError, TimeoutError) as exc:
            self._on_lost(name, exc)
            return
        self._on_restored(name)
        core.outbox.acknowledge()

    async def _actor(self, name: str) -> Any:
        if name not in self._handles:
            # A look-up blocks for a millisecond, or for long when the cluster's head does not answer.
            self._handles[name] = await asyncio.to_thread(ray.get_actor, name, namespace=self._namespace)
        return self._handles[name]

    def _on_lost(self, name: str, exc: BaseException) -> None:
        self._handles.pop(name, None)
        if name not in self._lost:
            self._lost.add(name)
            log.warning("connection lost", extra={"actor": name, "error": repr(exc)})

    def _on_restored(self, name: str) -> None:
        if name in self._lost:
            self._lost.discard(name)
            log.warning("connection restored", extra={"actor": name})


def make_front(service: str, *, namespace: str = NAMESPACE, limits: Limits | None = None) -> WireFront:
    """The router of a service in this process, named after its host and process id."""
    router = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
    return WireFront(RouterCore(service, router=router, limits=limits), RayTableClient(service, namespace))


class RouterReplica:
    """One replica: a front on the port that Serve's ingress sends requests to."""

    def __init__(self, service: str, namespace: str) -> None:
        keep_on_loopback()
        self._ingress = Ingress(make_front(service, namespace=namespace))

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
        graceful_shutdown_timeout_s=120,
    )
    # The only way in Ray 2.60 to pin the version; a random one would restart every router.
    return deployment.options(version=ROUTER_VERSION, _internal=True).bind(service, namespace)

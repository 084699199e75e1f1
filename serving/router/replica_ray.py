"""The router as a Serve deployment, and its line to the two actors of its service.

The fleet actor runs it: `serve.run(build_router_app(service, replicas=3), name=f"{service}--router",
route_prefix=f"/{service}")`. Ray's settings for the ingress (HAProxy, one event loop) are made where Ray is
started.

Invariant: engines are reached over HTTP, never through a DeploymentHandle (ten times the cost a stream).
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
from serving.router.exchange import Limits
from serving.router.front_asgi import RouterFront
from serving.router.router import RouterCore

# Serve restarts every replica of a deployment whose version changes, and gives a random one to a deployment
# without. Raise it when a router of this file may not run beside one of the last.
ROUTER_VERSION = "1"
REPORT_S = 0.2
RETRY_S = 0.1
WATCH_TIMEOUT_S = 1.0
MAX_ONGOING = 100_000  # requests a replica; overload is answered by the router, not by Serve's 503

log = logging.getLogger("canaryctl.router")


class RayTableClient:
    """Polls the route table into a core and sends the core's records out, for ever trying again."""

    def __init__(self, service: str, namespace: str = NAMESPACE) -> None:
        self._service = service
        self._namespace = namespace
        self._handles: dict[str, Any] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._broken: set[str] = set()
        self._core: RouterCore | None = None

    async def start(self, core: RouterCore) -> None:
        """Begins to poll and to report, in the running event loop."""
        self._core = core
        self._tasks = [asyncio.create_task(self._follow(core)), asyncio.create_task(self._report(core))]

    async def stop(self) -> None:
        """Ends both and tells the log that nothing more will come."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._core is not None:
            await self._send(self._core, last=False)  # the batch that may be under way
            await self._send(self._core, last=True)

    async def watch(self, core: RouterCore) -> RouteTable | None:
        """One poll: acknowledges the core's table, brings the next.

        Raises RayError, TimeoutError, or ValueError when the service has no table.
        """
        actor = await self._actor(table_name(self._service))
        async with asyncio.timeout(WATCH_TIMEOUT_S):
            table: RouteTable | None = await actor.watch.remote(core.router, *core.applied)
        return table

    async def _follow(self, core: RouterCore) -> None:
        name = table_name(self._service)
        while True:
            sent_s = boot_s()
            try:
                table = await self.watch(core)
            except (RayError, ValueError, TimeoutError) as exc:
                self._note_broken(name, exc)
                await asyncio.sleep(RETRY_S)
                continue
            self._note_mended(name)
            core.heard(table, sent_s=sent_s)

    async def _report(self, core: RouterCore) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            await self._send(core, last=False)

    async def _send(self, core: RouterCore, *, last: bool) -> None:
        name = records_name(self._service)
        batch = core.report(now_s=boot_s(), wall_s=time.time(), last=last)
        try:
            actor = await self._actor(name)
            async with asyncio.timeout(WATCH_TIMEOUT_S):
                await actor.append_batch.remote(batch)
        except (RayError, ValueError, TimeoutError) as exc:
            self._note_broken(name, exc)
            return
        self._note_mended(name)
        core.outbox.sent()

    async def _actor(self, name: str) -> Any:
        if name not in self._handles:
            # A look-up blocks for a millisecond, or for long when the cluster's head is away.
            self._handles[name] = await asyncio.to_thread(ray.get_actor, name, namespace=self._namespace)
        return self._handles[name]

    def _note_broken(self, name: str, exc: BaseException) -> None:
        self._handles.pop(name, None)
        if name not in self._broken:
            self._broken.add(name)
            log.warning("line broken", extra={"actor": name, "error": repr(exc)})

    def _note_mended(self, name: str) -> None:
        if name in self._broken:
            self._broken.discard(name)
            log.warning("line mended", extra={"actor": name})


def make_front(service: str, *, namespace: str = NAMESPACE, limits: Limits | None = None) -> RouterFront:
    """A router of this service in this process, named after its host and process id."""
    router = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
    return RouterFront(RouterCore(service, router=router, limits=limits), RayTableClient(service, namespace))


class RouterReplica:
    """One replica: Serve calls its ASGI application in its own event loop."""

    def __init__(self, service: str, namespace: str) -> None:
        keep_on_loopback()
        self._front = make_front(service, namespace=namespace)

    def __serve_build_asgi_app__(self) -> RouterFront:
        return self._front


def build_router_app(service: str, *, replicas: int = 1, namespace: str = NAMESPACE) -> serve.Application:
    """The router of a service for `serve.run`. The same arguments leave running replicas as they are."""
    deployment = serve.deployment(
        serve.ingress()(RouterReplica),
        name="router",
        num_replicas=replicas,
        max_ongoing_requests=MAX_ONGOING,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=120,
    )
    # The only door that 2.60 leaves to a pinned version; a random one would restart every router.
    return deployment.options(version=ROUTER_VERSION, _internal=True).bind(service, namespace)

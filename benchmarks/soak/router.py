"""Router process of the fault matrix: the front of `canaryctl router` before engines of ours.

`canaryctl router --table` knows endpoints of others only, whose streams nobody can continue, and it discards
its records. Here the same front has a table of fenced engines and writes each record into a file, as JSON.
The table's addresses are read again when its file changes: a replaced engine has another port.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from serving.clock import boot_s
from serving.credentials import DataSecret
from serving.messages import Arm, Replica, RouteTable
from serving.router.front.front_wire import WireFront
from serving.router.router import RouterCore
from serving.router.types import Limits
from serving.supervised import SupervisedLoops

SERVICE = "chat"
ROLLOUT = "r-soak"
POLL_S = 0.1
#: Shorter than the shipped ones, so that ten thousand silent engines can be waited for. To connect, longer: a
#: busy machine is none of the faults.
LIMITS = {
    "connect_s": 30.0,
    "canary_stream_s": 3.0,
    "canary_whole_s": 3.0,
    "stall_s": 3.0,
    "keep_alive_s": 0.25,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """One router. table: a file with `{"stable": [URL], "canary": [URL]}`, and `model`, of both.
    limits: of `Limits`, by field."""

    table: str
    records: str
    secret: str
    weight_bp: int
    limits: dict[str, float]


class Recorder:
    """Background of the front: reads the table's file, writes the records."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._table = b""
        self._change = 0
        self._loops = SupervisedLoops()
        self._out = open(settings.records, "ab")  # noqa: SIM115 - for the life of the process

    async def start(self, core: RouterCore) -> None:
        """Read the table, then check its file and write records until `stop`."""
        self._core = core
        self.poll()
        self._loops.start("soak", self._run)

    async def stop(self) -> None:
        """Write what is left."""
        await self._loops.stop()
        self.poll()
        self._out.close()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            self.poll()

    def poll(self) -> None:
        """Read the table if it has changed, and write the records so far."""
        text = Path(self._settings.table).read_bytes()
        now_s = boot_s()
        if text != self._table:
            self._table = text
            self._change += 1
            self._core.on_table(self._read(msgspec.json.decode(text)), sent_s=now_s)
        self._core.on_table(None, sent_s=now_s)
        batch = self._core.report(now_s=now_s, wall_s=time.time())
        for record in batch.records:
            self._out.write(msgspec.json.encode(dataclasses.asdict(record)) + b"\n")
        self._core.outbox.acknowledge()
        self._out.flush()

    def _read(self, urls: dict[str, Any]) -> RouteTable:
        stable, canary = (
            Arm(f"v-{arm}", tuple(Replica(url) for url in urls[arm]), model=urls.get("model"))
            for arm in ("stable", "canary")
        )
        secret, weight_bp = DataSecret(self._settings.secret), self._settings.weight_bp
        return RouteTable(
            SERVICE, 1, 1, self._change, ROLLOUT, "salt", weight_bp, stable, canary, secret=secret
        )


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM; prints the port."""
    core = RouterCore(
        SERVICE, router=f"soak:{os.getpid()}:1", limits=Limits(**settings.limits), lease_s=math.inf
    )
    front = WireFront(core, Recorder(settings))
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await front.start()
    print(await front.listen(socket.create_server(("127.0.0.1", 0), backlog=1024)), flush=True)
    await stopping.wait()
    await front.stop(drain_s=5.0)


def main() -> None:
    """Run the router that the first argument describes."""
    uvloop.run(serve(msgspec.json.decode(sys.argv[1], type=Settings)))


if __name__ == "__main__":
    main()

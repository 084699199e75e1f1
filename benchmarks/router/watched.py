"""The router of `benchmarks.soak.router`, with a watch on its event loop.

Writes to a file, ten times a second, the longest turn of the loop so far, in CPU milliseconds of its thread:
for so long no other stream moved, whatever else the machine did.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import uvloop

from benchmarks.soak import router

TURN_S = 0.001  # between two looks
WRITE_S = 0.1


@dataclass(frozen=True, slots=True)
class Settings:
    """router: its settings. file: where the longest turn is written."""

    router: router.Settings
    file: str


async def watch(file: Path) -> None:
    """Measure for ever."""
    most_s, written_s, last_s = 0.0, time.monotonic(), time.thread_time()
    while True:
        await asyncio.sleep(TURN_S)
        now_s = time.thread_time()
        most_s, last_s = max(most_s, now_s - last_s), now_s
        if time.monotonic() >= written_s + WRITE_S:
            written_s = time.monotonic()
            new = file.with_suffix(".new")
            new.write_text(f"{most_s * 1000:.3f}", encoding="utf-8")
            new.replace(file)  # whole, whenever it is read


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM; prints the port."""
    watching = asyncio.get_running_loop().create_task(watch(Path(settings.file)))
    await router.serve(settings.router)
    watching.cancel()


if __name__ == "__main__":
    uvloop.run(serve(msgspec.json.decode(sys.argv[1], type=Settings)))

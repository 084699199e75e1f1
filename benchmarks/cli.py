"""What a command costs: CPU time of its whole process, user and system, in milliseconds.

`python -m benchmarks.cli [--rounds 15]` prints JSON: the median and the 90th percentile of each command, the
commands in turn so that a busy minute hits all alike. The controller behind them is real, with a rollout in
its first stage; engines, route table and evidence are in memory. Its own time is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from controller.cli.main import run
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController

COMMANDS: Mapping[str, Sequence[str]] = {
    "python": (),  # the interpreter alone: the floor
    "help": ("--help",),
    "deploy_help": ("deploy", "--help"),
    "version": ("version",),
    "status": ("status", "chat"),
    "status_json": ("status", "chat", "-o", "json"),
    "list": ("list",),
    "history": ("history", "chat"),
    "rollback": ("rollback", "no-such-service"),  # all but the answer: nothing is rolled back
    "usage_error": ("status", "--no-such-option"),
}


def cpu_ms(arguments: Sequence[str], environment: Mapping[str, str]) -> float:
    """CPU time of one process: the command line with these arguments, or Python alone without any."""
    command = [sys.executable, *(("-m", "controller.cli", *arguments) if arguments else ("-c", "pass"))]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0  # waited for above
    return (usage.ru_utime + usage.ru_stime) * 1000


def measure(rounds: int, environment: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Median and 90th percentile of each command, after one unmeasured round."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for index in range(rounds + 1):
        for name, arguments in COMMANDS.items():
            took_ms = cpu_ms(arguments, environment)
            if index:
                times[name].append(took_ms)
    return {
        name: {
            "cpu_ms": round(statistics.median(values), 1),
            "cpu_p90_ms": round(sorted(values)[int(0.9 * (len(values) - 1))], 1),
        }
        for name, values in times.items()
    }


def start_rollout(home: Path) -> FakeController:
    """A served controller with the service `chat` and a rollout in its first stage."""
    fake = FakeController(home)
    fake.serve()
    policy = home / "slow.yaml"
    policy.write_text("stages: [{weight: 10%, duration: 1h}]\n")
    stable, canary = (write_checkpoint(home / name, seed=seed) for seed, name in enumerate(("a", "b")))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        codes = (
            run(["up", "--service", "chat", "--model", str(stable), "--no-wait"]),
            run(["deploy", "chat", "--model", str(canary), "--policy", str(policy)]),
        )
    if codes != (0, 0):
        raise SystemExit(f"the rollout did not start: exit codes {codes}")
    return fake


def main() -> None:
    """Start a controller on fakes, time the commands, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CANARYCTL_HOME"] = folder
        fake = start_rollout(Path(folder))
        try:
            figures = measure(rounds, {**os.environ, "CANARYCTL_HOME": folder})
        finally:
            fake.stop()
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

"""`canaryctl demo`: the whole product on real parts, and a table that says whether it kept its promises.

Every step is the command that a user would type, run as a process of its own; the demo plays the users and
reads the outcome. It keeps its state in a folder of its own, on ports of its own, and takes everything down.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from controller.cli.demo_traffic import CANARY, STABLE, Tally, Target, Users
from controller.errors import BadInput, Conflict
from controller.quantities import percent
from controller.settings import load_settings
from controller.spec.policy import PolicySpec
from controller.spec.service import parse_policy, parse_yaml
from serving.checkpoints import default_dir, questions
from serving.loopback import free_ports

SERVICE = "chat"
CANDIDATES = (("twin", "promoted"), ("wrong", "rolled back"))
# deploy --wait ends with these (README, "Exit codes").
OUTCOME = {0: "promoted", 5: "rolled back"}
ROLLOUT_LIMIT_S = 480


@dataclass(frozen=True, slots=True)
class Act:
    """One candidate's rollout, as it ended."""

    candidate: str
    expected: str
    outcome: str
    took_s: float
    view: dict[str, Any]  # the rollout's view; {} when it could not be read
    memory_freed: bool | None  # None: the fleet could not be read

    @property
    def kept(self) -> bool:
        return self.outcome == self.expected and self.memory_freed is True


class DemoFailed(Exception):
    """A step of the demo ended otherwise than it must; the message says which."""


def run(*, policy: Path, folder: Path | None, console: Console) -> int:
    """0 only when the twin was promoted, the wrong one rolled back, and no request failed; else 1.

    folder: of the demo's state, emptied first; None: a new one, removed at the end. Raises BadSpec for a
    policy that cannot hold.
    """
    _show_policy(console, parse_policy(parse_yaml(_read(policy), str(policy))))
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
        return _run(policy, folder, console)
    # Short, because Ray's sockets live below it.
    with tempfile.TemporaryDirectory(prefix="cctl-demo-") as temporary:
        return _run(policy, Path(temporary), console)


def _run(policy: Path, folder: Path, console: Console) -> int:
    started_s = time.monotonic()
    _say(console, "three small real checkpoints (trained once, then cached)")
    _command([sys.executable, "-m", "serving.checkpoints"], dict(os.environ))
    checkpoints = default_dir()
    api_port, ingress_port = free_ports(2)
    environment = {
        **os.environ,
        "CANARYCTL_HOME": str(folder),
        "CANARYCTL_API_PORT": str(api_port),
    }
    acts: list[Act] = []
    tally = Tally()
    try:
        model, port = str(checkpoints / "stable"), str(ingress_port)
        _canaryctl(console, ["up", "--service", SERVICE, "--model", model, "--port", port], environment)
        with Users(_target(environment), questions()) as users:
            tally = users.tally
            for candidate, expected in CANDIDATES:
                acts.append(_act(console, checkpoints / candidate, expected, policy, environment))
    except DemoFailed as exc:
        console.print(f"[red]{exc}[/red]")
        _show_log_tail(console, folder)
    finally:
        if _canaryctl(console, ["down", "--yes"], environment, may_fail=True) == Conflict.exit_code:
            # A rollout that ran into its time limit still runs.
            _canaryctl(console, ["rollback", SERVICE, "--wait"], environment, may_fail=True)
            _canaryctl(console, ["down", "--yes"], environment, may_fail=True)
    kept = len(acts) == len(CANDIDATES) and all(act.kept for act in acts) and not tally.failures
    console.print(_table(acts, tally))
    for line in tally.failures[:10]:
        console.print(f"[red]failed request {line}[/red]")
    minutes = (time.monotonic() - started_s) / 60
    console.print(f"{'All of it came true' if kept else 'NOT all of it came true'}, in {minutes:.1f} min.")
    return 0 if kept else 1


def _act(console: Console, model: Path, expected: str, policy: Path, environment: dict[str, str]) -> Act:
    began_s = time.monotonic()
    before = {one["version"] for one in _service(environment).get("versions") or ()}
    deploy = ["deploy", "--service", SERVICE, "--model", str(model), "--policy", str(policy)]
    code = _canaryctl(
        console, [*deploy, "--wait", "--timeout", f"{ROLLOUT_LIMIT_S}s"], environment, may_fail=True
    )
    service = _service(environment)
    view = service.get("rollout") or {}
    versions = service.get("versions")
    left = {one["version"] for one in versions} if versions is not None else None
    gone = view.get("stable") if expected == "promoted" else view.get("canary")
    return Act(
        candidate=model.name,
        expected=expected,
        outcome=OUTCOME.get(code, f"exit {code}"),
        took_s=time.monotonic() - began_s,
        view=view,
        memory_freed=None if left is None or gone is None else gone not in left and len(left) <= len(before),
    )


def _read(policy: Path) -> str:
    try:
        return policy.read_text()
    except OSError as exc:
        raise BadInput(f"policy {policy} cannot be read ({exc.strerror}); give a YAML file") from exc


def _show_policy(console: Console, policy: PolicySpec) -> None:
    """What is compressed, and what is not."""
    alpha = policy.gate_policy().alpha
    console.print(
        "Compressed: hours become seconds, floors and proofs are smaller. Not compressed: alpha, the chance "
        f"of a false rollback, is {alpha:g} for a whole rollout however often one looks.",
        soft_wrap=True,
    )
    for stage in policy.stages or ():
        margins = ", ".join(f"{gate} within {margin:g}" for gate, margin in (stage.margins or {}).items())
        text = f"  {percent(stage.bp)}: at least {stage.min_canary} canary requests; {margins}"
        console.print(text, soft_wrap=True)


def _target(environment: dict[str, str]) -> Target:
    settings = load_settings(environment)
    return Target(
        base_url=settings.base_url(SERVICE),
        model=SERVICE,
        feedback_url=f"{settings.api_url}/v1/feedback",
        token=(settings.home / "admin.token").read_text().strip(),
    )


def _service(environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [*_program(), "status", "--service", SERVICE, "-o", "json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise DemoFailed(f"canaryctl status ended with {done.returncode}: {done.stderr.strip()}")
    view: dict[str, Any] = json.loads(done.stdout)
    return view


def _canaryctl(
    console: Console, arguments: list[str], environment: dict[str, str], *, may_fail: bool = False
) -> int:
    _say(console, " ".join(["$ canaryctl", *arguments]))
    return _command([*_program(), *arguments], environment, may_fail=may_fail)


def _command(command: list[str], environment: dict[str, str], *, may_fail: bool = False) -> int:
    code = subprocess.run(command, env=environment, check=False).returncode
    if code and not may_fail:
        raise DemoFailed(f"{' '.join(command)} ended with exit code {code}")
    return code


def _program() -> list[str]:
    return [sys.executable, "-m", "controller.cli"]


def _say(console: Console, text: str) -> None:
    console.print(f"\n[bold cyan]{text}[/bold cyan]", highlight=False)


def _show_log_tail(console: Console, folder: Path) -> None:
    log = folder / "controller.log"
    if log.exists():
        console.print(f"the end of {log}:")
        console.print("\n".join(log.read_text().splitlines()[-15:]), markup=False, highlight=False)


def _table(acts: list[Act], tally: Tally) -> Table:
    table = Table(title="What happened", title_justify="left", show_header=False)
    table.add_column()
    table.add_column()
    table.add_row("requests", f"{tally.requests:,}")
    table.add_row("failed requests", _coloured(str(len(tally.failures)), good=not tally.failures))
    for arm in (STABLE, CANARY):
        answered = tally.answered[arm]
        wrong = f", {1 - tally.right[arm] / answered:.1%} of them wrong" if answered else ""
        table.add_row(f"answered by {arm}", f"{answered:,}{wrong}")
    for act in acts:
        table.add_section()
        verdict = f"{act.outcome} after {act.took_s:.0f} s (expected: {act.expected})"
        table.add_row(f"candidate {act.candidate}", _coloured(verdict, good=act.outcome == act.expected))
        decisive = act.view.get("decisive")
        if decisive:
            table.add_row("decided by", f"{decisive['gate']}: {decisive['reason']}")
        table.add_row("canary requests until the decision", _until_decision(act.view))
        table.add_row("memory given back", _coloured(_yes(act.memory_freed), good=act.memory_freed is True))
        steps = act.view.get("steps") or {}
        named = ("traffic_shift_ms", "drain_ms", "unload_ms", "total_ms")
        text = ", ".join(f"{name} {steps[name]:.0f}" for name in named if steps.get(name) is not None)
        kind = "rollback steps" if act.expected == "rolled back" else "unload steps"
        table.add_row(kind, text or "not recorded")
    return table


def _until_decision(view: dict[str, Any]) -> str:
    count = view.get("decided_canary")
    return f"{count:,}" if count is not None else "not recorded"


def _yes(value: bool | None) -> str:
    return "could not be read" if value is None else ("yes" if value else "NO")


def _coloured(text: str, *, good: bool) -> str:
    return f"[green]{text}[/green]" if good else f"[red]{text}[/red]"

"""`canaryctl demo`: the whole product on real engines, and a table of what happened against what must happen.

Each step is a command that a user would type, run as its own process; the demo plays the users and reads the
outcome. Its state folder and ports are its own; at the end it takes everything down.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from controller.cli.output import console as stdout
from controller.errors import BadInput, Conflict
from controller.quantities import percent
from controller.settings import load_settings
from serving.loopback import free_ports
from serving.own_programs import module_command

if TYPE_CHECKING:
    from controller.cli.demo_traffic import Tally, Target
    from controller.spec.policy import PolicySpec

SERVICE = "chat"
CANDIDATES = (("twin", "promoted"), ("wrong", "rolled back"))  # checkpoint, expected outcome
OUTCOMES = {0: "promoted", 5: "rolled back"}  # by exit code of `deploy --wait`
ROLLOUT_TIMEOUT_S = 480
LOG_TAIL_LINES = 15
MAX_FAILURES_SHOWN = 10


def demo(
    policy: Annotated[Path, typer.Option(metavar="FILE", help="Policy of both rollouts.")] = Path(
        "examples/demo-policy.yaml"
    ),
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="State folder; a short path; its contents are deleted first. [default: a temporary one]",
        ),
    ] = None,
) -> int:
    """Demonstrate a promotion and a rollback on real engines.

    Exit 0 only when both rollouts ended as expected, memory was released and no request failed.
    """
    from controller.spec.service import parse_policy, parse_yaml

    console = stdout()
    _show_policy(console, parse_policy(parse_yaml(_read(policy), str(policy))))
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
        return _run(policy, folder, console)
    # A short path, because Ray creates its sockets below it.
    with tempfile.TemporaryDirectory(prefix="cctl-demo-") as temporary:
        return _run(policy, Path(temporary), console)


@dataclass(frozen=True, slots=True)
class CandidateResult:
    """How one candidate's rollout ended."""

    candidate: str
    expected: str
    outcome: str
    took_s: float
    view: dict[str, Any]  # the rollout's view; {} when it could not be read
    memory_freed: bool | None  # None: the fleet could not be read

    @property
    def is_as_expected(self) -> bool:
        return self.outcome == self.expected and self.memory_freed is True


class DemoFailed(Exception):
    """A step of the demo failed; the message names it."""


def _run(policy: Path, folder: Path, console: Console) -> int:
    """Exit code: 0 when everything went as expected, otherwise 1."""
    from controller.cli.demo_traffic import Tally, Users
    from serving.checkpoints import default_dir, questions

    started_s = time.monotonic()
    _heading(console, "three small real checkpoints (trained once, then cached)")
    _command(module_command("serving.checkpoints"), dict(os.environ))
    checkpoints = default_dir()
    api_port, ingress_port = free_ports(2)
    environment = {
        **os.environ,
        "CANARYCTL_HOME": str(folder),
        "CANARYCTL_API_PORT": str(api_port),
    }
    results: list[CandidateResult] = []
    tally = Tally()
    try:
        model, port = str(checkpoints / "stable"), str(ingress_port)
        up = ["up", "--service", SERVICE, "--model", model, "--port", port, "--beside"]
        _canaryctl(console, up, environment)
        with Users(_target(environment), questions()) as users:
            tally = users.tally
            for candidate, expected in CANDIDATES:
                results.append(_roll_out(console, checkpoints / candidate, expected, policy, environment))
    except DemoFailed as exc:
        console.print(Text(str(exc), style="red"))
        _show_log_tail(console, folder)
    finally:
        if _canaryctl(console, ["down", "--yes"], environment, may_fail=True) == Conflict.exit_code:
            # A rollout that exceeded its timeout is still running.
            _canaryctl(console, ["rollback", SERVICE, "--wait"], environment, may_fail=True)
            _canaryctl(console, ["down", "--yes"], environment, may_fail=True)
    has_passed = (
        len(results) == len(CANDIDATES)
        and all(result.is_as_expected for result in results)
        and not tally.failures
    )
    console.print(_table(results, tally))
    for line in tally.failures[:MAX_FAILURES_SHOWN]:
        console.print(Text(f"failed request {line}", style="red"))
    minutes = (time.monotonic() - started_s) / 60
    console.print(f"demo {'passed' if has_passed else 'failed'} in {minutes:.1f} min")
    return 0 if has_passed else 1


def _roll_out(
    console: Console, model: Path, expected: str, policy: Path, environment: dict[str, str]
) -> CandidateResult:
    started_s = time.monotonic()
    before = {version["version"] for version in _service(environment).get("versions") or ()}
    deploy = ["deploy", "--service", SERVICE, "--model", str(model), "--policy", str(policy)]
    code = _canaryctl(
        console, [*deploy, "--wait", "--timeout", f"{ROLLOUT_TIMEOUT_S}s"], environment, may_fail=True
    )
    service = _service(environment)
    view = service.get("rollout") or {}
    versions = service.get("versions")
    after = {version["version"] for version in versions} if versions is not None else None
    removed = view.get("stable") if expected == "promoted" else view.get("canary")
    return CandidateResult(
        candidate=model.name,
        expected=expected,
        outcome=OUTCOMES.get(code, f"exit {code}"),
        took_s=time.monotonic() - started_s,
        view=view,
        memory_freed=None
        if after is None or removed is None
        else removed not in after and len(after) <= len(before),
    )


def _read(policy: Path) -> str:
    try:
        return policy.read_text()
    except OSError as exc:
        raise BadInput(f"policy {policy} cannot be read ({exc.strerror}); give a YAML file") from exc


def _show_policy(console: Console, policy: PolicySpec) -> None:
    """What the demo shortens, and what it does not."""
    alpha = policy.gate_policy().alpha
    console.print(
        "Shortened: hours become seconds, minimum counts and margins are relaxed. Not shortened: alpha, the "
        f"probability of a false rollback, is {alpha:g} for a whole rollout at any number of checks.",
        soft_wrap=True,
    )
    for stage in policy.stages or ():
        margins = ", ".join(f"{gate} within {margin:g}" for gate, margin in (stage.margins or {}).items())
        text = f"  {percent(stage.bp)}: at least {stage.min_canary} canary requests; {margins}"
        console.print(text, soft_wrap=True)


def _target(environment: dict[str, str]) -> Target:
    from controller.cli.demo_traffic import Target

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
    _heading(console, " ".join(["$ canaryctl", *arguments]))
    return _command([*_program(), *arguments], environment, may_fail=may_fail)


def _command(command: list[str], environment: dict[str, str], *, may_fail: bool = False) -> int:
    code = subprocess.run(command, env=environment, check=False).returncode
    if code and not may_fail:
        raise DemoFailed(f"{' '.join(command)} ended with exit code {code}")
    return code


def _program() -> list[str]:
    return module_command("controller.cli")


def _heading(console: Console, text: str) -> None:
    console.print(Text(f"\n{text}", style="bold cyan"))


def _show_log_tail(console: Console, folder: Path) -> None:
    log = folder / "controller.log"
    if log.exists():
        console.print(f"last lines of {log}:")
        console.print("\n".join(log.read_text().splitlines()[-LOG_TAIL_LINES:]))


def _table(results: list[CandidateResult], tally: Tally) -> Table:
    table = Table(title="Results", title_justify="left", show_header=False)
    table.add_column()
    table.add_column()
    table.add_row("requests", f"{tally.requests:,}")
    table.add_row("failed requests", _coloured(str(len(tally.failures)), good=not tally.failures))
    for arm in ("stable", "canary"):
        answered = tally.answered[arm]
        wrong = f", {1 - tally.correct[arm] / answered:.1%} of them wrong" if answered else ""
        table.add_row(f"answered by {arm}", f"{answered:,}{wrong}")
    for result in results:
        table.add_section()
        verdict = f"{result.outcome} after {result.took_s:.0f} s (expected: {result.expected})"
        is_right = result.outcome == result.expected
        table.add_row(f"candidate {result.candidate}", _coloured(verdict, good=is_right))
        decisive = result.view.get("decisive")
        if decisive:
            table.add_row("decided by", f"{decisive['gate']}: {decisive['reason']}")
        count = result.view.get("decided_canary")
        table.add_row(
            "canary requests until the decision", f"{count:,}" if count is not None else "not recorded"
        )
        freed = {None: "unknown: the fleet could not be read", True: "yes", False: "NO"}[result.memory_freed]
        table.add_row("memory released", _coloured(freed, good=result.memory_freed is True))
        steps = result.view.get("steps") or {}
        keys = ("traffic_shift_ms", "drain_ms", "unload_ms", "total_ms")
        text = ", ".join(f"{key} {steps[key]:.0f}" for key in keys if steps.get(key) is not None)
        kind = "rollback steps" if result.expected == "rolled back" else "unload steps"
        table.add_row(kind, text or "not recorded")
    return table


def _coloured(text: str, *, good: bool) -> Text:
    return Text(text, style="green" if good else "red")

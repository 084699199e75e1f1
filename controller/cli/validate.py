"""`canaryctl validate`: check a checkpoint, a policy or a service file without a controller."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controller.cli.options import ModelOption, PolicyOption
from controller.cli.output import Output, OutputOption, emit_data, print_line
from controller.errors import BadInput
from controller.quantities import gib


def validate(
    model: ModelOption = None,
    policy: PolicyOption = None,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Service file (YAML). [default: none]")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Check a checkpoint, policy or service file offline."""
    from controller.cli.request_bodies import read_policy, read_yaml
    from controller.planning.fingerprint import fingerprint_checkpoint, known_architectures
    from controller.runtime.golden_file import read_golden
    from controller.spec.service import parse_policy, parse_service

    if model is None and policy is None and file is None:
        raise BadInput("nothing to check; give --model DIR, --policy FILE or --file FILE")
    valid: dict[str, object] = {}
    if policy is not None:
        parsed = parse_policy(read_policy(policy))
        gates, golden = parsed.gate_policy(), parsed.preflight and parsed.preflight.golden
        deciding = [gate.name for gate in gates.gates if not gate.is_alarm]
        deciding += [gate.name for gate in gates.observed_ranges]
        names = ", ".join(deciding)
        if golden:
            valid[f"golden set {golden}"] = f"{len(read_golden(golden).cases)} cases"
        valid[f"policy {policy}"] = f"{len(deciding)} gates decide ({names}), alpha {gates.alpha:g}"
    if file is not None:
        service = parse_service(read_yaml(file)).located(file.parent)
        valid[f"service file {file}"] = service.service
        model = Path(service.checkpoint) if service.checkpoint is not None else model
    if model is not None:
        checkpoint = fingerprint_checkpoint(model.absolute(), architectures=known_architectures())
        size = f"{checkpoint.parameters:,} parameters, {gib(checkpoint.tensor_bytes)}"
        valid[f"checkpoint {model}"] = f"{checkpoint.architecture}, {size}"
    if not output.is_text:
        emit_data({"valid": valid}, output)
        return
    for name, text in valid.items():
        print_line(f"{name} is valid: {text}")

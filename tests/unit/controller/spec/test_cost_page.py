"""docs/cost.md: its examples are accepted, and it names every key of the prices."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from controller.spec.prices import PricesSpec
from controller.spec.service import parse_policy, parse_service
from evaluation.metrics import Kind

PAGE = (Path(__file__).parents[4] / "docs" / "cost.md").read_text()


def test_the_service_of_the_page_is_accepted_and_has_every_key() -> None:
    service, policy = (yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))

    prices = parse_service(service).prices
    gates = {gate.name: gate.kind for gate in parse_policy(policy).gate_policy().gates}

    assert prices is not None
    assert set(service["prices"]) == set(PricesSpec.model_fields)
    assert prices.alert == PricesSpec.model_fields["alert"].default
    assert gates["cost"] is Kind.MEAN


def test_the_alarms_own_gate_on_the_page_is_accepted() -> None:
    text = re.search(r"`(gates: \{tokens: .*?\}\})`", PAGE, re.DOTALL)
    assert text is not None

    [gate] = parse_policy(yaml.safe_load(text[1])).gate_policy().gates_for("tokens")

    assert (gate.threshold, gate.is_alarm) == (0.5, True)

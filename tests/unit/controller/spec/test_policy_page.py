"""docs/policy.md names every key of a policy with its default, and its examples can be deployed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from controller.quantities import duration_s, weight_bp
from controller.spec.fields import Strict
from controller.spec.policy import PolicySpec
from controller.spec.policy_parts import (
    GateSpec,
    MirrorSpec,
    ObservedRangeSpec,
    PreflightSpec,
    RungSpec,
    SamplingSpec,
    StageSpec,
)
from controller.spec.service import parse_policy
from evaluation.metrics import CATALOGUE
from evaluation.policy.gates import Gate
from evaluation.policy.policy import GatePolicy

PAGE = (Path(__file__).parents[4] / "docs" / "policy.md").read_text()


NESTED = {"stages", "gates", "rungs", "observed_ranges", "mirror", "preflight"}


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def rows(title: str) -> dict[str, str]:
    return dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section(title), re.MULTILINE))


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("The policy", PolicySpec),
        ("A gate", GateSpec),
        ("A stage", StageSpec),
        ("Mirroring", MirrorSpec),
        ("Before the first user", PreflightSpec),
        ("An observed range", ObservedRangeSpec),
    ],
)
def test_every_key_has_its_row_and_every_row_its_key(title: str, kind: type[Strict]) -> None:
    assert set(rows(title)) == set(kind.model_fields)


@pytest.mark.parametrize("kind", [PolicySpec, GateSpec, StageSpec, RungSpec, SamplingSpec, ObservedRangeSpec])
def test_aliases_and_keys_of_nested_specs_are_on_the_page(kind: type[Strict]) -> None:
    names = {*kind.ALIASES, *kind.model_fields}

    assert {name for name in names if not re.search(rf"\b{name}\b", PAGE)} == set()


@pytest.mark.parametrize("key", sorted(PolicySpec.model_fields.keys() - NESTED))
def test_a_default_on_the_page_is_the_default(key: str) -> None:
    on_page = rows("The policy")[key].strip("`")
    field = PolicySpec.model_fields[key]
    default = field.default
    if default is None:
        evaluated = GatePolicy.default()
        default = evaluated.session_s if key == "session" else getattr(evaluated, key)

    if key == "holdback":
        assert weight_bp(on_page) == default
    elif isinstance(default, bool):
        assert on_page == str(default).lower()
    elif isinstance(default, float) and not re.fullmatch(r"[\d.]+", on_page):
        assert duration_s(on_page) == default
    else:
        assert on_page == str(default)


def test_the_default_gates_and_their_alpha_shares_are_on_the_page() -> None:
    on_page = dict(re.findall(r"`(\w+)`\s+(0\.\d+)", section("A gate").split("| key |")[0]))

    assert on_page == {gate.name: str(gate.alpha_share) for gate in GatePolicy.default().gates}


def test_every_metric_is_on_the_page() -> None:
    assert set(rows("A gate")) >= {"metric"}
    named = re.search(r"^\| `metric` \| .*? \| `(.*?)` \|$", section("A gate"), re.MULTILINE)

    assert named is not None
    assert named[1].split() == list(CATALOGUE)


def examples() -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("text", examples())
def test_the_examples_are_valid_policies(text: str) -> None:
    assert parse_policy(yaml.safe_load(text)).stages


def test_the_first_policy_is_the_file_of_the_examples() -> None:
    file = (Path(__file__).parents[4] / "examples" / "first-policy.yaml").read_text()
    [text] = [text for text in examples() if "name: first" in text]

    assert yaml.safe_load(file) == yaml.safe_load(text)


def test_the_judged_example_samples_every_fifth_answer() -> None:
    [text] = [text for text in examples() if "name: judged" in text]
    judged: Gate = parse_policy(yaml.safe_load(text)).gate_policy().gate("quality")

    assert (judged.sampling.stable, judged.sampling.canary) == (0.2, 0.2)


def test_the_claim_is_on_the_page() -> None:
    assert "At no time worse than the tolerance, for exchangeable units" in PAGE


def test_the_example_of_an_observed_range_is_valid() -> None:
    text = re.search(r"```\n(.*?)```", section("An observed range"), re.DOTALL)

    assert text is not None
    ranges = parse_policy(yaml.safe_load(text[1])).gate_policy().observed_ranges
    assert [one.name for one in ranges[0].ranges] == ["p50", "p90", "p95"]

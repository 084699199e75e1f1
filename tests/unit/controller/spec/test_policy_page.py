"""docs/policy.md names every key of a policy with its default, and its examples can be deployed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from controller.quantities import duration_s, weight_bp
from controller.spec.fields import Strict
from controller.spec.policy import GateSpec, ObservedRangeSpec, PolicySpec, RungSpec, SamplingSpec, StageSpec
from controller.spec.service import parse_policy
from evaluation.metrics import CATALOGUE
from evaluation.policy.gates import Gate
from evaluation.policy.policy import GatePolicy

PAGE = (Path(__file__).parents[4] / "docs" / "policy.md").read_text()


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
        ("An observed range", ObservedRangeSpec),
    ],
)
def test_every_key_has_its_row_and_every_row_its_key(title: str, kind: type[Strict]) -> None:
    assert set(rows(title)) == set(kind.model_fields)


@pytest.mark.parametrize("kind", [PolicySpec, GateSpec, StageSpec, RungSpec, SamplingSpec, ObservedRangeSpec])
def test_keys_by_their_other_names_and_of_small_parts_are_on_the_page(kind: type[Strict]) -> None:
    names = {*kind.ALSO, *kind.model_fields}

    assert {name for name in names if not re.search(rf"\b{name}\b", PAGE)} == set()


@pytest.mark.parametrize(
    "key", sorted(PolicySpec.model_fields.keys() - {"stages", "gates", "rungs", "observed_ranges"})
)
def test_a_default_on_the_page_is_the_default(key: str) -> None:
    said = rows("The policy")[key].strip("`")
    field = PolicySpec.model_fields[key]
    found = field.default
    if found is None:
        evaluated = GatePolicy.default()
        found = evaluated.session_s if key == "session" else getattr(evaluated, key)

    if key == "holdback":
        assert weight_bp(said) == found
    elif isinstance(found, bool):
        assert said == str(found).lower()
    elif isinstance(found, float) and not re.fullmatch(r"[\d.]+", said):
        assert duration_s(said) == found
    else:
        assert said == str(found)


def test_the_default_gates_and_their_parts_are_those_on_the_page() -> None:
    said = dict(re.findall(r"`(\w+)`\s+(0\.\d+)", section("A gate").split("| key |")[0]))

    assert said == {gate.name: str(gate.alpha_share) for gate in GatePolicy.default().gates}


def test_every_metric_is_named() -> None:
    assert set(rows("A gate")) >= {"metric"}
    named = re.search(r"^\| `metric` \| .*? \| `(.*?)` \|$", section("A gate"), re.MULTILINE)

    assert named is not None
    assert named[1].split() == list(CATALOGUE)


def examples() -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("text", examples())
def test_an_example_is_a_sound_policy(text: str) -> None:
    policy = parse_policy(yaml.safe_load(text)).gate_policy()

    judged: Gate = policy.gate("quality")
    assert (judged.sampling.stable, judged.sampling.canary) == (0.2, 0.2)


def test_the_claim_is_on_the_page_as_it_was_designed() -> None:
    assert "At no time worse than the tolerance, for exchangeable units" in PAGE


def test_the_entry_of_an_observed_range_is_sound() -> None:
    text = re.search(r"```\n(.*?)```", section("An observed range"), re.DOTALL)

    assert text is not None
    ranges = parse_policy(yaml.safe_load(text[1])).gate_policy().observed_ranges
    assert [one.name for one in ranges[0].ranges] == ["p50", "p90", "p95"]

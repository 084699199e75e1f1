"""Specs of services and versions, and the parsers of all specs. One schema for YAML, the API and Kubernetes.

Unknown keys and values are refused by name: a typo never falls back to a default. Each error is one line: the
path, the value, the limit and the remedy (`BadSpec.lines`). `dump` returns plain values for the parsers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import Field, ValidationError, ValidationInfo, model_validator

from controller.errors import BadSpec
from controller.spec.clients import ClientsSpec
from controller.spec.fields import DERIVED, STORED, FieldError, Strict, is_stored
from controller.spec.judge import JudgeSpec, judge_of
from controller.spec.policy import PolicySpec
from controller.spec.policy_parts import suggestion
from controller.spec.prices import PricesSpec
from controller.spec.version import VersionSpec
from controller.spec.violations import violations
from serving.files.strict_yaml import YamlError, load_yaml

_NAME = r"^[a-z0-9]([a-z0-9.-]{0,38}[a-z0-9])?$"


class ServiceSpec(VersionSpec):
    """A named model endpoint: the version that it serves, and the policy of its rollouts."""

    service: str = Field(pattern=_NAME)
    policy: PolicySpec = Field(default_factory=lambda: PolicySpec())
    routers: int = Field(default=1, ge=1, le=64)
    port: int | None = Field(default=None, ge=1, le=65_535)
    clients: ClientsSpec = Field(
        default_factory=ClientsSpec, description="API keys and weights of clients; see docs/router.md"
    )
    judge: JudgeSpec | None = Field(
        default=None, description="a model that judges a share of both versions' answers; see docs/judges.md"
    )
    prices: PricesSpec | None = Field(
        default=None, description="what tokens cost, by version or for the service; see docs/cost.md"
    )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: object) -> object:
        """`policy: strict` names a preset, as in `--policy strict`."""
        if isinstance(data, Mapping) and isinstance(preset := data.get("policy"), str):
            return {**data, "policy": {"preset": preset}}
        return data

    @model_validator(mode="after")
    def _check_policy(self, info: ValidationInfo) -> Self:
        if self.policy.twin:
            raise FieldError("policy.twin", "belongs to one rollout, not to a service; give it to deploy")
        if not is_stored(info) and (unknown := unknown_audience(self.policy, self.clients)):
            raise FieldError(f"policy.{unknown[0]}", unknown[1])
        judge = self.judge
        if not is_stored(info) and judge is not None and judge.share and not judge_of(judge, self.policy):
            raise FieldError(
                "judge.metric",
                f"{judge.metric} is tested by no gate of the policy, so verdicts would decide nothing; "
                "keep its gate, or leave judge out",
            )
        return self

    @classmethod
    def without(cls, data: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
        """Without its clients, the audiences of a policy cannot be judged; some name it has."""
        gone = {path.partition(".")[0] for path in paths}
        rest = super().without(data, gone | ({"policy"} if gone & {"clients", "judge"} else set()))
        return rest | ({"service": "unnamed"} if "service" in gone else {})

    def located(self, base: Path) -> Self:
        """The service with its directory and key files made absolute, relative to `base`."""
        located = super().located(base)
        judge = located.judge
        return located if judge is None else located.model_copy(update={"judge": judge.located(base)})


def unknown_audience(policy: PolicySpec, clients: ClientsSpec) -> tuple[str, str] | None:
    """(path, error) of an audience in the policy's stages that no key of the service gives; None: none is."""
    known = sorted({one for key in clients.keys for one in key.audiences})
    for index, stage in enumerate(policy.stages or ()):
        for audience in stage.audience_bp:
            if audience not in known:
                remedy = suggestion(audience, known) if known else "its clients have no audiences"
                path = f"stages.{index}.audience_bp.{audience}"
                return path, f"is given by no key of the service; {remedy}"
    return None


Spec = TypeVar("Spec", bound=Strict)


def parse_service(data: object) -> ServiceSpec:
    """The service. Raises BadSpec, one line for each broken rule."""
    return parse_as(ServiceSpec, data, "service")


def parse_version(data: object) -> VersionSpec:
    """The version. Raises BadSpec, one line for each broken rule."""
    return parse_as(VersionSpec, data, "version")


def parse_policy(data: object) -> PolicySpec:
    """The policy; a string names a preset. Raises BadSpec, one line for each broken rule."""
    return parse_as(PolicySpec, {"preset": data} if isinstance(data, str) else data, "policy")


def derived_policy(policy: PolicySpec, changes: Mapping[str, Any]) -> PolicySpec:
    """The policy with these keys in place of its own, under every rule but the limits on a person's text.
    Raises BadSpec."""
    return parse_as(PolicySpec, {**dump(policy), **changes}, "policy", context=DERIVED)


def stored_service(data: object) -> ServiceSpec:
    """The service that the store holds. Raises BadSpec."""
    return parse_as(ServiceSpec, data, "service", context=STORED)


def stored_version(data: object) -> VersionSpec:
    """The version that the store holds. Raises BadSpec."""
    return parse_as(VersionSpec, data, "version", context=STORED)


def parse_yaml(text: str, where: str) -> Any:
    """The values of a YAML (or JSON) text, read by `strict_yaml`. Raises BadSpec, naming the line."""
    try:
        return load_yaml(text)
    except YamlError as exc:
        line = f" line {exc.line}" if exc.line is not None else ""
        raise BadSpec(f"{where}{line}: {exc}") from exc


def dump(spec: Strict) -> dict[str, Any]:
    """Plain JSON values, which the parser of the same kind reads back to an equal spec."""
    return spec.model_dump(mode="json", exclude_defaults=True)


def parse_as(kind: type[Spec], data: object, root: str, *, context: Mapping[str, bool] | None = None) -> Spec:
    """The spec in `data`, called `root` in errors. Raises BadSpec, one line for each broken rule."""
    try:
        return kind.model_validate(data, context=context)
    except RecursionError as exc:
        raise BadSpec(f"{root} is nested too deep; write it flatter") from exc
    except ValidationError as exc:
        raise BadSpec(violations(kind, data, root, exc, context)) from exc

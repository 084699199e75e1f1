"""What people write: services, versions and policies. One schema for YAML, the API and (later) Kubernetes.

Everything unknown is refused by name: a typo never falls back to a default. Each error is one line: the path,
the value, the limit and the remedy (`BadSpec.lines`). `dump` gives plain values that the parsers read back.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from controller.errors import BadSpec
from controller.state import FULL_BP
from controller.units import duration_s, percent, weight_bp
from evaluation.policy import GatePolicy, PolicyError

_NAME = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"
Weight = Annotated[
    int,
    BeforeValidator(weight_bp),
    PlainSerializer(lambda points: f"{points / 100:g}%", return_type=str),
    WithJsonSchema({"type": ["string", "number"], "description": "percent of the traffic: 2.5% or 2.5"}),
]
Duration = Annotated[
    float,
    BeforeValidator(duration_s),
    WithJsonSchema({"type": ["string", "number"], "description": "30s, 10m, 1h30m, 3d, or seconds"}),
]


def _scalar(value: object) -> object:
    if isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{value!r} is not a plain value; write text, a number, true or false")


Scalar = Annotated[bool | int | float | str, BeforeValidator(_scalar)]

# Engine arguments that the controller sets itself; a second value would start an engine nobody can reach.
OWN_ARGUMENTS = frozenset(
    {
        "model",
        "served_model_name",
        "host",
        "port",
        "uds",
        "api_key",
        "ssl_keyfile",
        "ssl_certfile",
        "root_path",
    }
)


class Strict(BaseModel):
    """What people write: frozen, and an unknown key is refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: object) -> object:
        if isinstance(data, Mapping):
            known = sorted(cls.model_fields)
            for key in data:
                if key not in known:
                    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.7)
                    hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"
                    raise ValueError(f"unknown key {key!r}; {hint}")
        return data


class VersionSpec(Strict):
    """A checkpoint directory and how to run it, or an external OpenAI-compatible endpoint."""

    model: str | None = Field(
        default=None, description="checkpoint directory (config.json, safetensors, tokenizer)"
    )
    url: str | None = Field(default=None, description="external endpoint, such as http://10.0.0.7:8000/v1")
    replicas: int = Field(default=1, ge=1, le=1024)
    gpus: float | None = Field(
        None, ge=0, le=64, description="GPUs a replica; fractions share one; default: all it needs"
    )
    tensor_parallel_size: int = Field(default=1, ge=1, le=64)
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    quantization: str | None = None
    max_model_len: int | None = Field(default=None, ge=1)
    kv_cache_memory_bytes: int | None = Field(default=None, ge=1 << 20)
    engine: dict[str, Scalar] = Field(default_factory=dict, description="further vLLM engine arguments")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.model is None) == (self.url is None):
            raise ValueError("needs exactly one of model (a checkpoint directory) and url (an endpoint)")
        if self.url is not None and not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", self.url):
            raise ValueError(
                f"url {self.url!r} is not http(s)://host[:port][/path]; give the endpoint's base URL"
            )
        for name in self.engine:
            own = name.lstrip("-").replace("-", "_")
            if own in OWN_ARGUMENTS:
                raise ValueError(f"engine.{name} is set by canaryctl itself; leave it out")
            if own in type(self).model_fields:
                raise ValueError(f"engine.{name} has its own key; write {own}: {self.engine[name]}")
        if self.gpus is not None and self.gpus < 1 and self.tensor_parallel_size > 1:
            raise ValueError(
                f"gpus {self.gpus:g} is too little for tensor_parallel_size {self.tensor_parallel_size}; "
                f"give {self.tensor_parallel_size}, or leave it out"
            )
        return self

    @property
    def is_external(self) -> bool:
        return self.url is not None

    def engine_arguments(self) -> dict[str, Scalar]:
        """vLLM's arguments in its own names (underscores); empty for an external endpoint."""
        if self.is_external:
            return {}
        named = {
            "tensor_parallel_size": self.tensor_parallel_size,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "dtype": self.dtype,
            "quantization": self.quantization,
            "max_model_len": self.max_model_len,
            "kv_cache_memory_bytes": self.kv_cache_memory_bytes,
        }
        given = {name.lstrip("-").replace("-", "_"): value for name, value in self.engine.items()}
        return {**{name: value for name, value in named.items() if value is not None}, **given}

    def located(self, base: Path) -> Self:
        """The same version with its checkpoint directory made absolute from `base`."""
        if self.model is None:
            return self
        return self.model_copy(update={"model": str((base / Path(self.model).expanduser()).absolute())})


class GateSpec(Strict):
    """Changes to one gate of the preset, or a gate of its own (that needs metric, kind, threshold)."""

    metric: str | None = None
    kind: Literal["rate", "score", "shape", "percentile"] | None = None
    alpha_share: float | None = None
    threshold: float | None = None
    tolerance: float | None = None
    percentile: float | None = None
    deadline: Duration | None = None

    def to_mapping(self) -> dict[str, object]:
        given = self.model_dump(exclude_none=True)
        if "deadline" in given:
            given["deadline_s"] = given.pop("deadline")
        return given


class StageSpec(Strict):
    """One rung. 100 % is the promotion itself; its duration is the bake's."""

    weight: Weight | None = None
    weight_bp: int | None = Field(default=None, ge=1, le=FULL_BP)
    duration: Duration = 0.0
    min_canary: int = Field(
        default=0, ge=0, description="canary requests that must have settled in this stage"
    )
    deadline: Duration | None = Field(default=None, description="default: three times what is planned")
    on_missing: Literal["hold", "rollback"] = "hold"
    margins: dict[str, float] | None = Field(
        None, description="what must be proven, by gate; default: by min_canary"
    )
    floor: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.weight is None) == (self.weight_bp is None):
            raise ValueError("needs exactly one of weight (2.5%) and weight_bp (250)")
        if self.bp == 0:
            raise ValueError(
                "weight 0 % gives the canary nothing to prove itself on; start at 0.01% or above"
            )
        if self.deadline is not None and self.deadline < self.duration:
            raise ValueError(f"deadline {self.deadline:g} s is before duration {self.duration:g} s; raise it")
        return self

    @property
    def bp(self) -> int:
        return (self.weight if self.weight is not None else self.weight_bp) or 0


class RungSpec(Strict):
    """What a stage of at least `min_canary` canary requests has to prove, where the stage does not say."""

    min_canary: int = Field(default=0, ge=0)
    margins: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        description="by gate: a ratio for rates and latency, a loss for scores"
    )
    floor: float = Field(default=0.005, ge=0, le=1, description="a rate below stable plus this passes, too")


class PolicySpec(Strict):
    """How a rollout goes: what is gated, on which ladder, how long it may wait."""

    name: str = "default"
    preset: Literal["default", "strict", "vendor"] = "default"
    ladder: Literal["risk", "full"] = Field(default="risk", description="full: every risk starts at 2 %")
    stages: tuple[StageSpec, ...] | None = Field(
        default=None, description="default: from the risk of the change"
    )
    alpha: float | None = Field(
        default=None, description="false rollbacks, over the whole rollout; default 0.01"
    )
    gates: dict[str, GateSpec | None] = Field(
        default_factory=dict, description="null takes a gate of the preset out"
    )
    units: Literal["auto", "request", "sticky"] | None = Field(
        default=None, description="what the coin is tossed for; default auto: as the traffic shows"
    )
    proof_canary: int | None = Field(
        default=None, ge=0, description="canary requests before a proof is looked at; default 100"
    )
    rungs: tuple[RungSpec, ...] | None = Field(
        default=None, description="what stages must prove, by their min_canary; the first has 0"
    )
    holdback: Weight = 500
    bake: Duration = 7200.0
    load_timeout: Duration = 900.0
    warm_timeout: Duration = 300.0
    smoke_timeout: Duration = 120.0
    promote_timeout: Duration = 90.0
    drain_timeout: Duration = 30.0
    unload_timeout: Duration = 120.0
    unreadable_timeout: Duration = 60.0
    unready_timeout: Duration = 30.0
    hold_limit: Duration = 259_200.0
    warmup_tokens: int = Field(default=256, ge=0, le=100_000)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.holdback > FULL_BP // 2:
            raise ValueError(
                f"holdback {percent(self.holdback)} exceeds 50 %; the promoted version must carry most"
            )
        self._check_stages()
        self._check_rungs()
        try:
            self.gate_policy()
        except PolicyError as exc:
            raise ValueError(str(exc)) from exc
        return self

    def _check_stages(self) -> None:
        if self.stages is None:
            return
        if not self.stages:
            raise ValueError("stages is empty; give at least one stage below 100 %, or leave it out")
        before = 0
        for index, stage in enumerate(self.stages):
            at, last = f"stages.{index}.weight {percent(stage.bp)}", index == len(self.stages) - 1
            if stage.bp <= before:
                raise ValueError(
                    f"{at} does not rise above the stage before it, {percent(before)}; raise or drop it"
                )
            if stage.bp == FULL_BP and not last:
                raise ValueError(f"{at} must be the last stage; it is the promotion itself")
            if stage.bp != FULL_BP and stage.bp >= FULL_BP - self.holdback:
                top = percent(FULL_BP - self.holdback)
                raise ValueError(f"{at} reaches the bake's share, {top}; lower it, or lower holdback")
            before = stage.bp
        if self.stages[0].bp == FULL_BP:
            raise ValueError("stages has only 100 %, which proves nothing first; put a stage below it before")

    def _check_rungs(self) -> None:
        preset = {gate.name for gate in self._base().gates}
        known = sorted(preset | {name for name, gate in self.gates.items() if gate is not None})
        places = [(f"rungs.{n}", rung.margins) for n, rung in enumerate(self.rungs or ())]
        places += [(f"stages.{n}", stage.margins or {}) for n, stage in enumerate(self.stages or ())]
        for at, margins in places:
            for name in margins:
                if name not in known:
                    raise ValueError(f"{at}.margins.{name} is no gate; use one of {', '.join(known)}")
        for index, (before, rung) in enumerate(pairwise(self.rungs or ()), start=1):
            if rung.min_canary <= before.min_canary:
                raise ValueError(
                    f"rungs.{index}.min_canary {rung.min_canary} does not rise above the rung before it, "
                    f"{before.min_canary}; raise or drop it"
                )

    def _base(self) -> GatePolicy:
        return GatePolicy.named("strict" if self.preset == "strict" else "default")

    def gate_policy(self) -> GatePolicy:
        """What the evidence is judged by. Raises PolicyError."""
        base = self._base()
        raw: dict[str, object] = {
            "base": base.name,
            "name": base.name if self.name == "default" else self.name,
        }
        if self.alpha is not None:
            raw["alpha"] = self.alpha
        if self.units is not None:
            raw["units"] = self.units
        if self.proof_canary is not None:
            raw["proof_canary"] = self.proof_canary
        if self.rungs is not None:
            raw["rungs"] = [rung.model_dump() for rung in self.rungs]
        gates: dict[str, object] = {gate.name: {} for gate in base.gates}
        for name, change in self.gates.items():
            if change is not None:
                gates[name] = change.to_mapping()
            elif name in gates:
                del gates[name]
            else:
                raise PolicyError(f"gates.{name} is null but unknown; known: {', '.join(sorted(gates))}")
        if self.gates:
            raw["gates"] = gates
        return GatePolicy.from_mapping(raw)


class ServiceSpec(VersionSpec):
    """A named model endpoint: the version that it serves, and how its versions are rolled out."""

    service: str = Field(pattern=_NAME)
    policy: PolicySpec = Field(default_factory=lambda: PolicySpec())
    routers: int = Field(default=1, ge=1, le=64)
    port: int | None = Field(default=None, ge=1, le=65_535)

    def version(self) -> VersionSpec:
        """The version alone."""
        names = VersionSpec.model_fields
        return VersionSpec.model_construct(**{name: getattr(self, name) for name in names})


Spec = TypeVar("Spec", bound=Strict)


def parse_service(data: object) -> ServiceSpec:
    """The service. Raises BadSpec, one line for each rule broken."""
    return parse_as(ServiceSpec, data, "service")


def parse_version(data: object) -> VersionSpec:
    """The version. Raises BadSpec, one line for each rule broken."""
    return parse_as(VersionSpec, data, "version")


def parse_policy(data: object) -> PolicySpec:
    """The policy; a string names a preset. Raises BadSpec, one line for each rule broken."""
    return parse_as(PolicySpec, {"preset": data} if isinstance(data, str) else data, "policy")


def parse_yaml(text: str, where: str) -> object:
    """The values in a YAML (or JSON) text. Raises BadSpec, naming the line; keys given twice are refused."""
    try:
        return yaml.load(text, Loader=_OnceLoader)
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        raise BadSpec(f"{where}{line}: {getattr(exc, 'problem', None) or 'is not YAML'}; correct it") from exc


def dump(spec: Strict) -> dict[str, Any]:
    """Plain JSON values that the parser of its kind reads back to an equal spec."""
    return spec.model_dump(mode="json", exclude_defaults=True)


class _OnceLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_as(kind: type[Spec], data: object, root: str) -> Spec:
    """`data` as this kind, called `root` in errors. Raises BadSpec, one line for each rule broken."""
    try:
        return kind.model_validate(data)
    except ValidationError as exc:
        raise BadSpec([_line(error, root) for error in exc.errors(include_url=False)]) from exc


_REMEDIES = {
    "missing": "is missing; give it",
    "int_type": "is not a whole number; write one",
    "int_parsing": "is not a whole number; write one",
    "int_from_float": "is not a whole number; write one",
    "float_type": "is not a number; write one",
    "float_parsing": "is not a number; write one",
    "bool_type": "is not true or false; write one of them",
    "string_type": "is not text; put it in quotes",
    "model_type": "is not a mapping; write its settings as key: value",
    "model_attributes_type": "is not a mapping; write its settings as key: value",
    "dict_type": "is not a mapping; write its settings as key: value",
    "tuple_type": "is not a list; write its items with dashes",
    "string_pattern_mismatch": "is not a name; use lower-case letters, digits and dashes, at most 40",
}
_LIMITS = {
    "greater_than_equal": ("ge", "is below {}; raise it"),
    "greater_than": ("gt", "is not above {}; raise it"),
    "less_than_equal": ("le", "exceeds {}; lower it"),
    "less_than": ("lt", "is not below {}; lower it"),
}


# A message that begins with one of these speaks of a place below the path.
_FIELDS = {
    name for kind in (ServiceSpec, PolicySpec, StageSpec, RungSpec, GateSpec) for name in kind.model_fields
}


def _line(error: Any, root: str) -> str:
    """One error of pydantic's as one line of ours."""
    path = ".".join((root, *(str(part) for part in error["loc"])))
    kind, value, context = error["type"], error["input"], error.get("ctx") or {}
    shown = "" if kind == "missing" or isinstance(value, Mapping | list) else f" {value!r}"
    if kind == "value_error":
        text = str(context["error"])
        inside = re.split(r"[ .]", text, maxsplit=1)[0] in _FIELDS
        return f"{path}.{text}" if inside else f"{path}: {text}"
    if kind in _LIMITS:
        name, text = _LIMITS[kind]
        return f"{path}{shown} {text.format(f'{context[name]:g}')}"
    if kind == "literal_error":
        return f"{path}{shown} is unknown; use one of {context['expected']}"
    return f"{path}{shown} {_REMEDIES.get(kind, error['msg'] + '; correct it')}"

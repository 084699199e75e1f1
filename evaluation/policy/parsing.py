"""Parser of gate policies: plain values of a file, a spec or a caller to a checked `GatePolicy`.

One schema, two readings. What a person writes (`gate_policy_of`, and policy files by way of the controller's
spec) changes a preset: gates that are not named stay, `NAME: null` removes one. What a program has stored
(`parse_gate_policy`, the inverse of `GatePolicy.to_mapping`) is complete: gates that are not named are none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

from evaluation.metrics import Kind
from evaluation.policy.gates import DEFAULT_FLOOR, Gate, Rung, Sampling
from evaluation.policy.observed_ranges import parse_range_gates
from evaluation.policy.policy import GatePolicy
from evaluation.policy.values import PolicyError, check_keys, flag, mapping, number, seconds, whole

_NUMBERS = (
    "alpha",
    "promotion_alpha",
    "served_share_alpha",
    "served_rate_hold",
    "served_rate_rollback",
    "proof_canary",
    "session_requests",
    "session_s",
    "restart_share",
    "max_missing",
    "load_ratio",
)
_POLICY_KEYS = frozenset({*_NUMBERS, "base", "name", "units", "gates", "rungs", "observed_ranges"})
_GATE_KEYS = sorted(field.name for field in fields(Gate) if field.name != "name")
_STORED_KEYS = frozenset(_GATE_KEYS) - {"required", "percentile", "covariates"}


def gate_policy_of(given: object) -> GatePolicy:
    """The policy that a policy, a name, a mapping, or None for `default` stands for. Errors: PolicyError.

    A mapping has the words of a policy file: `preset` (or `base`), `session` and `deadline` as `10m` or
    seconds, gates that change those of the preset, null for a gate to remove.
    """
    if given is None:
        return GatePolicy.default()
    if isinstance(given, GatePolicy):
        return given
    if isinstance(given, str):
        return GatePolicy.named(given)
    if isinstance(given, Mapping):
        return parse_gate_policy(_completed(given))
    raise PolicyError(f"policy {given!r} is {type(given).__name__}; give a name, a mapping or a GatePolicy")


def _completed(given: Mapping[str, object]) -> Mapping[str, object]:
    """The mapping of a person as a complete one. Errors: PolicyError."""
    raw = _renamed("policy", mapping("policy", given), {"preset": "base", "session": "session_s"})
    if "session_s" in raw:
        raw["session_s"] = seconds("session", raw["session_s"])
    base = _base(raw)
    gates: dict[str, object] = {gate.name: {} for gate in base.gates}
    for name, change in mapping("gates", raw.get("gates", {})).items():
        if change is None:
            if gates.pop(name, None) is None:
                known = ", ".join(gate.name for gate in base.gates)
                raise PolicyError(f"gates.{name} is null but unknown; known: {known}")
            continue
        changed = _renamed(f"gates.{name}", mapping(f"gates.{name}", change), {"deadline": "deadline_s"})
        if changed.get("deadline_s") is not None:
            changed["deadline_s"] = seconds(f"gates.{name}.deadline", changed["deadline_s"])
        gates[name] = changed
    return {**raw, "base": base.name, "gates": gates} if "gates" in raw else raw


def _renamed(path: str, given: Mapping[str, object], names: Mapping[str, str]) -> dict[str, object]:
    """The mapping with each word of `names` replaced. Errors: PolicyError when both words are given."""
    out: dict[str, object] = {}
    for key, value in given.items():
        name = names.get(key, key)
        if name in out:
            raise PolicyError(f"{path}.{key} is given twice, once by another name; leave one out")
        out[name] = value
    return out


def _base(raw: Mapping[str, object]) -> GatePolicy:
    return GatePolicy.named(str(raw.get("base", "strict" if raw.get("name") == "strict" else "default")))


def parse_gate_policy(raw: Mapping[str, object]) -> GatePolicy:
    """A policy from complete plain values; its key `base` names the preset that the other keys change.
    Errors: PolicyError."""
    for key in mapping("policy", raw):
        if key not in _POLICY_KEYS:
            raise PolicyError(f"policy key {key!r} is unknown; use one of {', '.join(sorted(_POLICY_KEYS))}")
    base = _base(raw)
    changes: dict[str, object] = {key: number(key, raw[key]) for key in _NUMBERS if key in raw}
    for key in ("session_requests", "proof_canary"):
        if key in changes:
            changes[key] = whole(key, raw[key], minimum=0)
    for key in ("name", "units"):
        if key in raw:
            changes[key] = raw[key]
    if "gates" in raw:
        changes["gates"] = _gates(base, mapping("gates", raw["gates"]))
    if "rungs" in raw:
        changes["rungs"] = _rungs(raw["rungs"])
    if "observed_ranges" in raw:
        changes["observed_ranges"] = parse_range_gates(raw["observed_ranges"])
    return replace(base, **changes)  # type: ignore[arg-type]


def _gates(base: GatePolicy, raw: Mapping[str, object]) -> tuple[Gate, ...]:
    """The gates named in `raw`, each changing the base's gate of that name; gates not named are left out."""
    gates = []
    known = {gate.name: gate for gate in base.gates}
    for name, value in raw.items():
        given = mapping(f"gates.{name}", value)
        check_keys(f"gates.{name}", given, _GATE_KEYS)
        gates.append(_gate(name, known.get(name), given, tolerates=base.name != "strict"))
    return tuple(gates)


def _gate(name: str, base: Gate | None, given: Mapping[str, object], *, tolerates: bool) -> Gate:
    """tolerates: a new threshold brings a tolerance of half of it, else of 0."""
    path = f"gates.{name}"
    if base is None:
        for key in ("metric", "kind", "threshold"):
            if key not in given:
                raise PolicyError(f"{path}.{key} is missing; a gate that no preset has needs all three")
    kind = base.kind if base and "kind" not in given else _kind(path, given["kind"])
    numbers = {
        key: number(f"{path}.{key}", given[key])
        for key in ("alpha_share", "threshold", "tolerance", "percentile", "deadline_s")
        if given.get(key) is not None
    }
    threshold = numbers.get("threshold", base.threshold if base else 0.0)
    if "tolerance" not in numbers and (base is None or "threshold" in numbers):
        numbers["tolerance"] = threshold / 2 if tolerates else 0.0
    metric = str(given["metric"]) if "metric" in given else (base.metric if base else "")
    base = base or Gate(name, metric, kind, 0.0, threshold, 0.0)
    return replace(
        base,
        metric=metric,
        kind=kind,
        sampling=_sampling(f"{path}.sampling", given["sampling"]) if "sampling" in given else base.sampling,
        presence_gated=flag(f"{path}.presence_gated", given.get("presence_gated", base.presence_gated)),
        mirrored=flag(f"{path}.mirrored", given.get("mirrored", base.mirrored)),
        covariates=_names(f"{path}.covariates", given.get("covariates", base.covariates)),
        required=flag(f"{path}.required", given.get("required", _is_users(given))),
        **numbers,  # type: ignore[arg-type]
    )


def _is_users(given: Mapping[str, object]) -> bool:
    """Whether a user wrote these settings. A whole gate is a stored one, and holds `required` where it is."""
    return bool(given) and not given.keys() >= _STORED_KEYS


def _kind(path: str, value: object) -> Kind:
    try:
        return Kind(str(value))
    except ValueError as exc:
        raise PolicyError(f"{path}.kind {value!r} is unknown; use one of {', '.join(Kind)}") from exc


def _sampling(path: str, raw: object) -> Sampling:
    shares = mapping(path, raw)
    check_keys(path, shares, ("stable", "canary"))
    return Sampling(**{arm: number(f"{path}.{arm}", share) for arm, share in shares.items()})


def _names(path: str, raw: object) -> tuple[str, ...]:
    if not isinstance(raw, list | tuple):
        raise PolicyError(f"{path} {raw!r} is not a list; write the names of columns, as [body_bytes]")
    return tuple(raw)


def _rungs(raw: object) -> tuple[Rung, ...]:
    if not isinstance(raw, list | tuple):
        raise PolicyError(f"rungs {raw!r} is not a list; give a list of {{min_canary, margins, floor}}")
    rungs = []
    for index, item in enumerate(raw):
        path = f"rungs.{index}"
        entry = mapping(path, item)
        check_keys(path, entry, ("min_canary", "margins", "floor", "own"))
        margins, own = (mapping(f"{path}.{key}", entry.get(key, {})) for key in ("margins", "own"))
        rungs.append(
            Rung(
                min_canary=whole(f"{path}.min_canary", entry.get("min_canary", 0), minimum=0),
                margins={name: number(f"{path}.margins.{name}", value) for name, value in margins.items()},
                floor=number(f"{path}.floor", entry.get("floor", DEFAULT_FLOOR)),
                own={name: number(f"{path}.own.{name}", value) for name, value in own.items()},
            )
        )
    return tuple(rungs)

"""What a table file says, in words: one line a service for `--check`, and one a change for the log. Pure.

Invariant: no key, no digest and no secret is in a line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from serving.messages import FULL_BP
from serving.router.standalone.addresses import server_of
from serving.router.standalone.table_schema import TableSpec, UpstreamSpec

Facts = dict[str, tuple[object, str]]  # by name: the value that is compared, and how it reads


def percent(weight_bp: int) -> str:
    """A weight as people read it: 500 is `5 %`."""
    return f"{weight_bp / 100:g} %"


def summary(spec: TableSpec) -> str:
    """All that the table says of a service, in one line."""
    parts = [f"stable {_upstream(spec.stable)}"]
    if spec.canary is not None:
        weight = f"with {percent(spec.weight_bp)}" if spec.canary.enabled else "off"
        parts.append(f"canary {_upstream(spec.canary)} {weight}")
    if spec.keys:
        is_one = len(spec.keys) == 1
        parts.append(f"{len(spec.keys)} client key{'' if is_one else 's'}{_required(spec)}")
    if first := [key.name for key in spec.keys if key.priority]:
        parts.append(f"priority for {' and '.join(first)}")
    if spec.canary is not None and spec.canary.enabled:
        parts += _canary_rules(spec)
    if spec.affinity is not None:
        parts.append("affinity tokens" + (" and cookies" if spec.affinity.cookie else ""))
    if spec.judge is not None:
        share = f"of {percent(spec.judge.share_bp)}, {spec.judge.per_minute} a minute at most"
        parts.append(f"judge {spec.judge.url} as {spec.judge.model} {share}")
    if given := spec.limits.model_fields_set:
        limits = spec.limits.model_dump(include=given)
        parts.append("limits " + " ".join(f"{name} {value:g}" for name, value in limits.items()))
    return f"{spec.service}: {', '.join(parts)}"


def _required(spec: TableSpec) -> str:
    return ", one is required" if spec.keys_required else ""


def _canary_rules(spec: TableSpec) -> list[str]:
    """Who else gets the canary, and what limits it."""
    rules = [f"audience {name} {percent(bp)}" for name, bp in spec.audience_bp.items()]
    rules += [f"category {name} {percent(bp)}" for name, bp in spec.category_bp.items()]
    if forcing := [key.name for key in spec.keys if key.force]:
        rules.append(f"force by {' and '.join(forcing)}")
    if spec.burst_cap is not None:
        rules.append(f"at most {spec.burst_cap:g} canary requests in 10 s")
    if spec.late_commit != "hold":
        rules.append(f"late_commit {spec.late_commit}")
    return rules


def unused(spec: TableSpec) -> list[str]:
    """A line for a canary that nobody gets: of a check, not of a change, which may be a rollback."""
    canary = spec.canary
    if canary is None or not canary.enabled or spec.weights or any(key.force for key in spec.keys):
        return []
    return [
        f"{spec.service}: nobody gets the canary; give it a weight, an audience, or clients that force it"
    ]


def unasked(spec: TableSpec, *, has_records: bool) -> list[str]:
    """A line for each reason why the judge of a service is asked nothing. has_records: whether the router
    keeps records."""
    if spec.judge is None:
        return []
    found = []
    if not spec.is_canary_in:
        why = "there is no canary" if spec.canary is None else "the canary gets no share of the requests"
        found.append(f"the judge of {spec.service} is not asked: {why}")
    if not has_records:
        found.append(
            f"the judge of {spec.service} is not asked: nobody would read its verdicts; add --records FILE"
        )
    return found


def notes(spec: TableSpec) -> list[str]:
    """What a reader of the table may not expect of a service, each in one line."""
    found = [line for line in (held_streams(spec),) if line is not None]
    canary = spec.canary
    if canary is not None and _is_same(canary, spec.stable):
        found.append(f"{spec.service}: canary and stable are one upstream, so that nothing is compared")
    for upstream in (spec.stable, *([canary] if canary is not None else [])):
        if upstream.url.endswith(f"/{spec.service}/v1"):
            found.append(
                f"{spec.service}: {upstream.url} is a URL as this router has them; if it is its own, "
                "requests go round in a circle (--check --port PORT tells)"
            )
    if canary is not None and canary.enabled:
        weights = [*spec.audience_bp.items(), *spec.category_bp.items()]
        if small := [name for name, bp in weights if bp <= spec.weight_bp]:
            found.append(
                f"{spec.service}: {', '.join(small)} has {percent(spec.weight_bp)} like everybody: the "
                "largest weight of a client counts, so that a smaller one has no effect"
            )
    return found


def held_streams(spec: TableSpec) -> str | None:
    """What users see of the canary's streams, in one line; None: the canary gets no requests.

    No upstream of a table can be continued: none names the ids of its tokens.
    """
    if spec.canary is None or not spec.canary.enabled or spec.weight_bp == FULL_BP:
        return None
    if not (spec.weights or any(key.force for key in spec.keys)):
        return None
    of = f"streams of {spec.service}'s canary"
    if spec.late_commit == "stream":
        return (
            f"{of} are passed on at once (late_commit: stream): users see when the canary dies in mid-stream"
        )
    return (
        f"{of} reach users when they are whole; late_commit: stream passes them on at once, and a canary "
        "that dies in mid-stream is then seen"
    )


def _is_same(one: UpstreamSpec, other: UpstreamSpec) -> bool:
    return one.model == other.model and server_of(one.url) == server_of(other.url)


def _upstream(spec: UpstreamSpec) -> str:
    return spec.url if spec.model is None else f"{spec.url} as {spec.model}"


def changes(before: Mapping[str, TableSpec], after: Mapping[str, TableSpec]) -> Iterator[str]:
    """What an applied file has changed, one line a service: `chat canary 20 % -> 0 %`."""
    for name in before.keys() - after.keys():
        yield f"{name} is no longer served"
    for name, spec in after.items():
        old = before.get(name)
        if old is None:
            yield f"{name} is now served: {summary(spec).partition(': ')[2]}"
        elif parts := [*_differences(_facts(old), _facts(spec)), *_settings(old, spec)]:
            again = "; its since is the one before, so its records go on with that rollout's"
            yield f"{name} {', '.join(parts)}{again if _is_back(old, spec) else ''}"


def _differences(before: Facts, after: Facts) -> Iterator[str]:
    for name, (value, text) in after.items():
        old_value, old_text = before[name]
        if value != old_value:
            yield f"{name} {old_text} -> {text}" if text != old_text else f"{name} changed"


def _facts(spec: TableSpec) -> Facts:
    canary, url, weight = spec.canary, "none", "none"
    if canary is not None:
        url, weight = _upstream(canary), percent(spec.weight_bp) if canary.enabled else "off"
    affinity = spec.affinity
    judge = "none" if spec.judge is None else f"{spec.judge.model} at {spec.judge.url}"
    return {
        "canary": (weight, weight),
        "canary URL": (url, url),
        "stable URL": (_upstream(spec.stable), _upstream(spec.stable)),
        "client keys": (spec.keys, ", ".join(key.name for key in spec.keys) or "none"),
        "keys_required": (spec.keys_required, str(spec.keys_required).lower()),
        "audience_bp": (spec.audience_bp, _weights(spec.audience_bp)),
        "category_bp": (spec.category_bp, _weights(spec.category_bp)),
        "trust": (spec.trust, _trusted(spec)),
        "burst_cap": (spec.burst_cap, "none" if spec.burst_cap is None else f"{spec.burst_cap:g}"),
        "late_commit": (spec.late_commit, spec.late_commit),
        "salt": (spec.salt, spec.salt or "none"),
        "judge": (judge, judge),
        "affinity": (affinity, "none" if affinity is None else "tokens"),
    }


def _settings(before: TableSpec, after: TableSpec) -> Iterator[str]:
    """What else has changed of a part that stays: `canary since 1 -> 2`. No key's place is shown."""
    parts: tuple[tuple[str, BaseModel | None, BaseModel | None], ...] = (
        ("canary", before.canary, after.canary),
        ("stable", before.stable, after.stable),
        ("judge", before.judge, after.judge),
        ("limits", before.limits, after.limits),
    )
    for part, old, new in parts:
        if old is None or new is None:
            continue
        for name, value in new.model_dump(exclude={"url", "model", "enabled"}).items():
            if value != (was := getattr(old, name)):
                shown = "changed" if "key" in name else f"{_shown(was)} -> {_shown(value)}"
                yield f"{part} {name} {shown}"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, int | float) else str(value or "none")


def _trusted(spec: TableSpec) -> str:
    """Whose headers are believed."""
    if spec.trust is None:
        return "none"
    headers = [one for one in (spec.trust.audience_header, spec.trust.category_header) if one]
    return f"{' and '.join(headers)} from {', '.join(spec.trust.networks)}"


def _is_back(before: TableSpec, after: TableSpec) -> bool:
    """Whether a canary that was off is in again, and nothing tells the two apart."""
    old, new = before.canary, after.canary
    if old is None or new is None or old.enabled or not new.enabled:
        return False
    return old.model_dump(exclude={"enabled"}) == new.model_dump(exclude={"enabled"})


def _weights(weights: Mapping[str, int]) -> str:
    return " ".join(f"{name} {percent(bp)}" for name, bp in weights.items()) or "none"

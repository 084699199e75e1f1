"""The records that a standalone router writes (`canaryctl router --records`), as rows of evidence.

They mean what the same records mean to the controller (`evidence/records.py`): who left is no missing value,
and an answer of stable to a canary's request is told.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Collection, Mapping, Sequence

import msgspec

from controller.cli.evidence_formats import RawTable
from controller.errors import BadInput
from controller.evidence.pricing import cost_at, has_own_answer
from controller.evidence.records import OF_SIGNALS, draw_of
from controller.evidence.typical_range import FLAGS, TypicalRanges
from controller.spec.prices import PricesSpec
from serving.answer_signals import Signals
from serving.messages import CANARY, STABLE, RequestRecord
from serving.router.records.counters import ARM_NAMES

_SIGNATURE = frozenset({"request_id", "unit", "arm", "w", "assigned_by", "at_s", "done_at_s", "outcome"})
_ARMS = {"stable": STABLE, "canary": CANARY}
_FIELDS = frozenset({"service", *(one.name for one in dataclasses.fields(RequestRecord))})
REPLAY = "replay"  # the service in the records of a replay (`wiring/replay.py`)
_SIGNALS = tuple(one.name for one in dataclasses.fields(Signals))
_FLAGS = (*OF_SIGNALS, *FLAGS)
NOTE = "records of canaryctl's router: left, failed and fallen back as the controller counts them"


def is_of_router(table: RawTable) -> bool:
    """Whether these are a router's records."""
    if not table.columns.keys() >= _SIGNATURE or "t_s" in table.columns:
        return False
    return all(isinstance(at_s, int | float) for at_s in table.columns["at_s"])


def of_one_rollout(table: RawTable, chosen: str | None) -> tuple[RawTable, str | None]:
    """The records of one rollout, with those of its service from when there was no canary; a line on what is
    left out, None: nothing is. chosen: its id; None: the newest. Raises BadInput for an id of none.

    Two canaries are not one: the second would be promoted, or rolled back, for what the first one did.
    """
    found: dict[tuple[object, object], _Rollout] = {}
    columns = table.columns
    services = columns.get("service", [None] * len(table))
    versions = columns.get("version", [None] * len(table))
    names = list(zip(services, columns.get("rollout", [""] * len(table)), strict=True))
    for row, name in enumerate(names):
        if name[1]:
            one = found.setdefault(name, _Rollout(*name))
            one.add(columns["at_s"][row], columns["arm"][row], versions[row])
    if chosen is not None and chosen not in {one.id for one in found.values()}:
        known = "; ".join(str(one) for one in found.values()) or "none"
        raise BadInput(f"--rollout {chosen}: {table.name} has no record of it; it has {known}")
    newest = sorted(found.values(), key=lambda one: one.last_s, reverse=True)
    judged = [one for one in newest if chosen in (None, one.id)][:1]
    if not judged or len(found) < 2:
        return table, None
    [kept] = judged
    rows = [row for row, name in enumerate(names) if name in ((kept.service, kept.id), (kept.service, ""))]
    others = "; ".join(str(one) for one in newest if one is not kept)
    which = "the newest" if kept is newest[0] else "as asked for"
    return table.pick(rows), (
        f"judged: rollout {kept}, {which} of {len(found)} in {table.name}; left out: {others}; "
        "to judge another: --rollout ID"
    )


@dataclasses.dataclass(slots=True)
class _Rollout:
    """What a file holds of one rollout. service: None: the lines name none."""

    service: object
    id: object
    last_s: float = 0.0  # when its last request was assigned
    requests: int = 0  # of the canary
    versions: dict[str, None] = dataclasses.field(default_factory=dict)  # of the canary

    def add(self, at_s: object, arm: object, version: object) -> None:
        if isinstance(at_s, int | float):
            self.last_s = max(self.last_s, at_s)
        if arm == ARM_NAMES[CANARY]:
            self.requests += 1
            if isinstance(version, str):
                self.versions[version] = None

    def __str__(self) -> str:
        of = [f"of {self.service}"] if self.service is not None else []
        of += [f"version {version}" for version in self.versions]
        until = time.strftime("%Y-%m-%d %H:%M", time.gmtime(self.last_s))
        return f"{self.id} ({', '.join([*of, f'{self.requests} canary requests', f'until {until} UTC'])})"


def rows_of_records(
    table: RawTable, keep: Collection[str] = (), prices: PricesSpec | None = None
) -> RawTable:
    """The evidence of a router's records, by its own names; what was joined to them stays. keep: fields of
    records that are used as they are. prices: of tokens, which give `cost`. Raises BadInput for a line that
    is no record."""
    names = [name for name in table.columns if name in _FIELDS - {"service", "attempts", "signals"}]
    records, signals = [], _signals(table)
    for row in range(len(table)):
        fields = {name: table.columns[name][row] for name in names} | {"signals": signals[row]}
        try:
            records.append(msgspec.convert(_with_arms(fields), RequestRecord))
        except (msgspec.ValidationError, KeyError, TypeError) as exc:
            place = f"{table.name}: {table.place(row)}"
            raise BadInput(f"{place} is no record of a router ({exc}); remove the line") from exc
    ranges = _ranges_of(records)
    rows = [_row(record, ranges) for record in records]
    if prices is not None:
        rows = [{**row, "cost": cost} for row, cost in zip(rows, _costs(records, prices), strict=True)]
    columns = {
        name: cells
        for name, cells in table.columns.items()
        if name in keep or name.partition(".")[0] not in _FIELDS  # attempts.0.arm
    }
    columns |= {name: [one[name] for one in rows] for name in (rows[0] if rows else ())}
    is_replay = bool(rows) and set(table.columns.get("service", ())) == {REPLAY}
    return dataclasses.replace(table, columns=columns, is_replay=is_replay)


def _signals(table: RawTable) -> list[dict[str, object] | None]:
    """The signals of each answer, which a table has in columns of their own: signals.leaked, ...

    None: it has none, or they are of another release.
    """
    columns = [table.columns.get(f"signals.{name}") for name in _SIGNALS]
    cells = [column for column in columns if column is not None]
    if len(cells) < len(_SIGNALS):
        return [None] * len(table)
    rows = zip(*cells, strict=True)
    return [dict(zip(_SIGNALS, row, strict=True)) if row[0] is not None else None for row in rows]


def _ranges_of(records: Sequence[RequestRecord]) -> TypicalRanges:
    """What was usual of stable before the first draw."""
    ranges = TypicalRanges()
    began_s = min((one.at_s for one in records if one.w > 0), default=math.inf)
    for record in sorted(records, key=lambda one: one.at_s):
        if record.w <= 0 and record.at_s < began_s:
            ranges.learn(record)
    ranges.fix()
    return ranges


def _with_arms(fields: Mapping[str, object]) -> dict[str, object]:
    arms = {
        name: _ARMS[str(fields[name])] if fields.get(name) is not None else None
        for name in ("arm", "served_arm", "taken_over_by")
    }
    return {"seq": 0, **fields, **arms}


def _costs(records: Sequence[RequestRecord], prices: PricesSpec) -> list[float | None]:
    """What each answer costs, by the prices of its version, of its arm, or of all. Raises BadInput where a
    version has no price: the costs of the other arm alone would be no evidence."""
    found = {}
    for arm, version in {(record.arm, record.version) for record in records}:
        name = ARM_NAMES[arm]
        if (price := prices.price_of((version, name))) is None:
            raise BadInput(
                f"--prices has none for {version or name}; give input and output, or versions: "
                f"{{{name}: ...}}"
            )
        found[arm, version] = price
    return [
        cost_at(found[record.arm, record.version], record) if has_own_answer(record) else None
        for record in records
    ]


def _row(record: RequestRecord, ranges: TypicalRanges) -> dict[str, object]:
    draw = draw_of(record, ranges)
    flags = dict.fromkeys(("rejected", "rate_limited", "fell_back", *_FLAGS)) | {
        name: int(is_set) for name, is_set in draw.flags.items() if name != "censored"
    }
    return {
        "request_id": draw.request_id,
        "unit": draw.unit,
        "t_s": draw.at_s,
        "arm": draw.arm,
        "w": draw.w,
        "assigned_by": draw.assigned_by,
        "error": None if draw.error is None else int(draw.error),
        "latency_ms": draw.latency_ms,
        "ttft_ms": draw.ttft_ms,
        "itl_ms": draw.itl_ms,
        "tokens": draw.tokens,
        "left_ms": draw.left_ms,
        **flags,
    }

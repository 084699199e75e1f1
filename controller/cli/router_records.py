"""The records that a standalone router writes (`canaryctl router --records`), as rows of evidence.

They mean what the same records mean to the controller (`evidence/records.py`): who left is no missing value,
and an answer of stable to a canary's request is told.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import msgspec

from controller.cli.evidence_formats import RawTable
from controller.errors import BadInput
from controller.evidence.records import draw_of
from controller.evidence.typical_range import FLAGS, TypicalRanges
from serving.messages import CANARY, STABLE, RequestRecord

_SIGNATURE = frozenset({"request_id", "unit", "arm", "w", "assigned_by", "at_s", "done_at_s", "outcome"})
_ARMS = {"stable": STABLE, "canary": CANARY}
_FIELDS = frozenset({"service", *(one.name for one in dataclasses.fields(RequestRecord))})
_OF_SIGNALS = ("refused", "invalid", "leaked", "other_language", *FLAGS)
NOTE = "records of canaryctl's router: left, failed and fallen back as the controller counts them"


def is_of_router(table: RawTable) -> bool:
    """Whether these are a router's records."""
    if not table.columns.keys() >= _SIGNATURE or "t_s" in table.columns:
        return False
    return all(isinstance(at_s, int | float) for at_s in table.columns["at_s"])


def rows_of_records(table: RawTable, keep: Collection[str] = ()) -> RawTable:
    """The evidence of a router's records, by its own names; what was joined to them stays. keep: fields of
    records that are used as they are. Raises BadInput for a line that is no record."""
    names = [name for name in table.columns if name in _FIELDS - {"service", "attempts"}]
    rows, ranges = list[dict[str, object]](), TypicalRanges()
    for row in range(len(table)):
        fields = {name: table.columns[name][row] for name in names}
        try:
            rows.append(_row(msgspec.convert(_with_arms(fields), RequestRecord), ranges))
        except (msgspec.ValidationError, KeyError, TypeError) as exc:
            place = f"{table.name}: {table.place(row)}"
            raise BadInput(f"{place} is no record of a router ({exc}); remove the line") from exc
    columns = {
        name: cells
        for name, cells in table.columns.items()
        if name in keep or name.partition(".")[0] not in _FIELDS  # attempts.0.arm
    }
    columns |= {name: [one[name] for one in rows] for name in (rows[0] if rows else ())}
    return dataclasses.replace(table, columns=columns)


def _with_arms(fields: Mapping[str, object]) -> dict[str, object]:
    arms = {
        name: _ARMS[str(fields[name])] if fields.get(name) is not None else None
        for name in ("arm", "served_arm", "taken_over_by")
    }
    return {"seq": 0, **fields, **arms}


def _row(record: RequestRecord, ranges: TypicalRanges) -> dict[str, object]:
    draw = draw_of(record, ranges)
    flags = dict.fromkeys(("rejected", "fell_back", *_OF_SIGNALS)) | {
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

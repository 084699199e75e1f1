"""What a recorded request came to, read as the router of a live rollout records it.

A status that is no answer, a proxy that asked again, a client that went away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from controller.cli import evidence_cells as cells
from controller.cli.evidence_columns import Column, Reading, holds_status
from controller.cli.evidence_formats import RawTable
from controller.cli.evidence_logs import ANSWERED_BY, ASKED, FALLBACKS
from controller.cli.evidence_sources import Source, Term
from evaluation.offline.cancelled import KNOWN_IF_CANCELLED, if_not_cancelled
from evaluation.records import LEFT_MS

ARM_NAMES = ((0, "stable"), (1, "the canary"))
OF_STATUS = ("error", "rejected", "cancelled", "rate_limited")  # metrics that a status code says something of
MOST_SHOWN = 4  # values of the arm's column, in one note
BAD_GATEWAY = 502  # of an attempt after which the proxy asked another, where its status is not known


def leave_out_no_requests(reading: Reading) -> None:
    """Leave out the rows of a recognised log that asked no version, and say how many of each arm."""
    ignored = reading.options.ignore
    for kind in reading.log.no_requests if reading.log is not None else ():
        table = reading.table
        looked_at = [table.columns[name] for name in kind.columns if name in table.columns.keys() - ignored]
        is_one = [any(kind.is_one(cell) for cell in cells) for cells in zip(*looked_at, strict=True)]
        if any(is_one):
            reading.table = table.pick([row for row, is_out in enumerate(is_one) if not is_out])
            shares = _shares_by_arm(reading, table, is_one)
            reading.notes.append(
                f"{sum(is_one)} rows {kind.what} and are left out"
                + (f" ({shares}{kind.hint})" if shares else "")
            )


def _shares_by_arm(reading: Reading, table: RawTable, is_one: Sequence[bool]) -> str:
    """Of each value of the arm's column; empty: there is no such column, or it has too many."""
    if (source := reading.sources.get("arm")) is None:
        return ""
    words = [str(cell) for cell in table.columns[source.columns[0]]]
    rows, out = Counter(words), Counter(word for word, is_out in zip(words, is_one, strict=True) if is_out)
    if len(rows) > MOST_SHOWN:
        return ""
    return ", ".join(f"{out[word] / rows[word]:.1%} of {word}" for word in sorted(rows))


def read_failure_codes(reading: Reading) -> None:
    """Where a recognised log says `failure` by a word, and its status code elsewhere, read both as one code.

    A failure of 4xx is a rejection, and one of 499 a client that went away: neither is an error.
    """
    source = reading.sources.get("error")
    codes = (
        next((one for one in reading.log.failure_codes if one in reading.table.columns), None)
        if reading.log
        else None
    )
    if source is None or codes is None or len(source.terms) != 1 or source.terms[0].unit is not None:
        return
    word = source.columns[0]
    if word not in (reading.log.sources["error"] if reading.log is not None else ()):
        return  # somebody mapped it
    table, used = reading.table, f"{codes} as its status_code"
    pairs = zip(table.columns[word], table.columns[codes], strict=True)
    read = [_code_of(status, code) for status, code in pairs]
    if all(cells.status_code(code) in (BAD_GATEWAY, None) for code in read):
        return  # no failure has a code
    reading.table = replace(table, columns={**table.columns, used: [*read]})
    reading.sources["error"] = Source(source.text, (Term(used, None),))
    reading.notes.append(f"the failures of {word} are read by their status code in {codes}")


def _code_of(status: object, code: object) -> object:
    """The code of a failure, which had no answer where it has none; of all else the status as it is."""
    return (cells.status_code(code) or BAD_GATEWAY) if cells.event("error", status) == 1.0 else status


def read_status(reading: Reading) -> None:
    """Where a column of statuses says one event, read the others of the same answers from it too.

    A status code that is no error may be a rejection, or a client that went away; so may a word.
    """
    _read_cancelled_words(reading)
    sources = reading.sources
    given = [replace(sources[name], others=()) for name in OF_STATUS if name in sources]
    source = next((found for found in given if holds_status(reading, found)), None)
    if source is None:
        return
    values = reading.table.columns[source.columns[0]]
    added = []
    for name in OF_STATUS:
        happens = any(cells.event(name, value, is_status=True) == 1.0 for value in values)
        if name not in {*sources, *reading.options.ignore} and (happens or name in ("error", "rejected")):
            sources[name] = source
            added.append(name)
    if added:
        reading.notes.append(f"{' and '.join(added)} from {source.text} too: it holds status codes")


def _read_cancelled_words(reading: Reading) -> None:
    """Where the column of the errors says by a word that the client went away, read that from it too.

    It is no error, and no fast answer either.
    """
    source = reading.sources.get("error")
    if source is None or "cancelled" in {*reading.sources, *reading.options.ignore}:
        return
    alone = next(
        (one for one in (replace(source, others=()), *source.others) if _names_cancelled(reading, one)), None
    )
    if alone is not None:
        reading.sources["cancelled"] = alone
        reading.notes.append(f"cancelled from {alone.text} too: it holds the word")


def _names_cancelled(reading: Reading, source: Source) -> bool:
    if len(source.terms) != 1 or source.terms[0].unit is not None or source.is_opposite:
        return False
    words = cells.EVENT_WORDS["cancelled"]
    return any(
        isinstance(value, str) and value.strip().lower() in words
        for value in reading.table.columns[source.columns[0]]
    )


def count_first_attempts(reading: Reading) -> None:
    """Where a proxy asked several upstreams, take the first for the arm, and its failure for the outcome.

    The arm is the upstream that was drawn, whoever answered; the proxy went on because that attempt failed.
    """
    source = reading.sources.get("arm")
    if source is None:
        return
    table, column = reading.table, source.columns[0]
    attempts = [cells.attempts(cell) for cell in table.columns[column]]
    single = {names[0] for names in attempts if len(names) == 1}
    is_upstream = column.lower().startswith("upstream")
    retried = [
        row
        for row, names in enumerate(attempts)
        if len(names) > 1 and (is_upstream or single.issuperset(names))
    ]
    if not retried:
        return
    columns = dict(table.columns)
    drawn, fell_back = list(table.columns[column]), [0] * len(table)
    for row in retried:
        drawn[row], fell_back[row] = attempts[row][0], int(attempts[row][-1] != attempts[row][0])
    columns[column] = drawn
    statuses = table.columns.get("upstream_status", [None] * len(table))
    firsts = {row: (cells.attempts(statuses[row]) or ["-"])[0] for row in retried}
    for name in ("error", "rejected"):
        if name in reading.sources and not reading.sources[name].is_opposite:
            own, used = reading.sources[name], f"{name} of the first attempt"
            columns[used] = list(table.columns[own.columns[0]])
            for row, first in firsts.items():
                columns[used][row] = BAD_GATEWAY if cells.is_missing(first) else first
            reading.sources[name] = replace(own, terms=(Term(used, None),))
    if "fell_back" not in reading.sources:
        columns["fell_back"] = [*fell_back]
        reading.sources["fell_back"] = Source("fell_back", (Term("fell_back", None),))
    reading.table = replace(table, columns=columns)
    reading.notes.append(
        f"{len(retried)} rows list several upstreams in {column}: the first is the arm, its failure counts, "
        "and fell_back says that another answered"
    )


def refuse_answering_arms(reading: Reading) -> None:
    """Raise BadInput where the arm is what answered, and another version answered in place of the drawn one:
    the canary's failures would be stable's successes."""
    arm = reading.sources.get("arm")
    tried = reading.sources.get("fell_back")
    if reading.log is None or arm is None or tried is None or tried.columns != (FALLBACKS,):
        return
    if not ANSWERED_BY.intersection(arm.columns):
        return
    fell_back = [cells.is_present(cell) for cell in reading.table.columns[FALLBACKS]]
    if any(fell_back):
        raise reading.refuse(
            fell_back.index(True),
            f"a fallback answered (so in {sum(fell_back)} of {len(fell_back)} rows), and {arm.text} names "
            f"what answered, not what was drawn; give --map arm={ASKED}",
        )


def name_requests(reading: Reading) -> None:
    """Give the rows of a recognised log that have no id one of their own: its failures may have none."""
    source = reading.sources.get("request_id")
    if source is None or reading.log is None:
        return
    table, name = reading.table, source.columns[0]
    gone = [cells.is_missing(cell) for cell in table.columns[name]]
    if not any(gone) or all(gone):
        return
    used = f"{name} or its own row"
    names = [
        f"({table.place(row)})" if is_gone else cell
        for row, (cell, is_gone) in enumerate(zip(table.columns[name], gone, strict=True))
    ]
    reading.table = replace(table, columns={**table.columns, used: names})
    reading.sources["request_id"] = replace(source, terms=(Term(used, None),))
    reading.notes.append(f"{sum(gone)} of {len(gone)} rows have no {name}: each is a request of its own")


def without_cancelled(reading: Reading, columns: Mapping[str, Column]) -> dict[str, Column]:
    """The columns, where a cancelled request is no error and has no latency; said by arm."""
    if "cancelled" not in columns:
        return dict(columns)
    gone = np.asarray(columns["cancelled"], dtype=np.float64) == 1.0
    out = dict(columns)
    if "latency_ms" in columns and LEFT_MS not in columns and gone.any():
        out[LEFT_MS] = np.where(gone, np.asarray(columns["latency_ms"], dtype=np.float64), np.nan)
    for name in KNOWN_IF_CANCELLED & columns.keys():
        out[name] = if_not_cancelled(name, np.asarray(columns[name], dtype=np.float64), gone)
    if gone.any():
        arm = np.asarray(columns.get("arm", np.zeros(len(gone))))
        shares = [
            f"{gone[arm == side].mean():.1%} of {name}'s" for side, name in ARM_NAMES if (arm == side).any()
        ]
        reading.notes.append(
            f"{int(gone.sum())} requests were cancelled by their client ({', '.join(shares)}): no errors, "
            "but slowest on both arms"
        )
    return out

"""One cell of an evidence file as a value: numbers, percentages, times, yes and no, status codes, arms.

A function returns NaN for a missing cell and None for one that it cannot read, so that the caller names the
line and the remedy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from serving.messages import LIMIT_REASONS

MISSING = frozenset(
    {"", "-", "--", "na", "n/a", "#n/a", "<na>", "nan", "nat", "null", "none", "\\n"}  # \N: of databases
)
EMPTY_JSON = frozenset({"[]", "{}", '""'})
FLAGS = {"true": 1.0, "yes": 1.0, "y": 1.0, "t": 1.0, "false": 0.0, "no": 0.0, "n": 0.0, "f": 0.0}
STABLE_WORDS = ("stable", "control", "baseline", "a")
CANARY_WORDS = ("canary", "treatment", "candidate", "b")
ARMS = {**dict.fromkeys(STABLE_WORDS, 0.0), **dict.fromkeys(CANARY_WORDS, 1.0), "0": 0.0, "1": 1.0}
#: Seconds of one unit, as `--map latency_ms=duration:s` names it.
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
SHEET_DAYS = (36_526.0, 73_051.0)  # of 2000 to 2099, as spreadsheets count from 1900
FIRST_COMPACT, LAST_COMPACT = 19_700_101_000_000, 21_001_231_235_959  # in ms they would be 2594 and later
GO_CLOCK = re.compile(r" m=[+-][\d.]+$")
ZONE_NAME = re.compile(r" (?:(?P<offset>[+-]\d\d:?\d\d) [A-Z]{3,5}|UTC|GMT)$")  # without an offset only UTC
ADDRESS = re.compile(r"unix:.+|\S+:\d+|[\d.]+|\[[0-9a-fA-F:]+\]")  # of a server, as nginx names it
TRIES = re.compile(r",\s+|\s+:\s+")  # a comma alone may be decimal, or of thousands
THOUSANDS = re.compile(r"[1-9]\d{0,2}(\.\d{3})+")
DECIMAL_COMMA = re.compile(r"-?\d+,\d+%?")
NO_RESPONSE = 0  # in a column of status codes, also 000: the request was never answered
CLIENT_CLOSED = 499  # nginx: the client went away before the answer
EPOCH_UNITS = ((1e11, "s"), (1e14, "ms"), (1e17, "us"), (math.inf, "ns"))  # below this: seconds since 1970
STATUS_NAME = re.compile(r"(status|response)_?code$|http_?status$", re.IGNORECASE)
SPAN_NAME = re.compile(r"(^|\.)status\.code$|(^|\.)statusCode$")  # of OpenTelemetry's spans
SPAN_CODES = {0.0: 0.0, 1.0: 0.0, 2.0: 1.0}  # unset, ok, error
#: Words of a status or a finish reason that mean an event, by metric; the words that mean none.
EVENT_WORDS: Mapping[str, frozenset[str]] = {
    "error": frozenset({"error", "failure", "failed", "fail", "timeout", "status_code_error"}),
    "truncated": LIMIT_REASONS,
    "flagged": frozenset({"content_filter"}),
    "cancelled": frozenset({"cancelled", "canceled", "aborted"}),
}
ALL_EVENT_WORDS = frozenset().union(*EVENT_WORDS.values())
PLAIN_WORDS = frozenset(
    {
        "success", "ok", "succeeded", "completed", "default", "debug", "warning", "info",
        "unset", "status_code_unset", "status_code_ok",
        "stop", "end_turn", "stop_sequence", "tool_calls", "tool_use", "function_call",
    }
)  # fmt: skip


def is_missing(value: object) -> bool:
    """Whether the cell holds no value: empty, null, NaN, NA, - ..."""
    if isinstance(value, str):
        return value.strip().lower() in MISSING
    return value is None or value != value


def is_present(value: object) -> bool:
    """Whether the cell says that something is there; an empty list or object, 0 and no say the opposite."""
    if is_missing(value) or value in ([], {}):
        return False
    if isinstance(value, str) and value.strip() in EMPTY_JSON:
        return False
    return number(value) != 0.0


def number(value: object, *, has_decimal_commas: bool = False) -> float | None:
    """The cell as a float; `5%` is 0.05, yes and true are 1. None: not a number."""
    if isinstance(value, float):
        return value  # NaN too
    if isinstance(value, str):
        word = value.strip().lower()
        if word in MISSING:
            return math.nan
        if word in FLAGS:
            return FLAGS[word]
        if has_decimal_commas and word.count(",") == 1:
            word = word.replace(",", ".")
        scale = 0.01 if word.endswith("%") else 1.0
        try:
            return float(word.removesuffix("%").replace("_", "x")) * scale
        except ValueError:
            return None
    if is_missing(value):
        return math.nan
    try:
        return float(value) if isinstance(value, (int, Decimal)) else None
    except OverflowError:
        return None


def ambiguous_thousands(column: Sequence[object], file: Iterable[Sequence[object]]) -> int | None:
    """The first row of a `;` file whose 1.257 may be 1257; None: there is none, or points are decimal.

    A file with decimal commas has points for thousands; so has a column with 898 beside 1.257 and no 0.5.
    """
    words = [value.strip() for value in column if isinstance(value, str)]
    dotted = [word for word in words if "." in word]
    decimal = [word for word in dotted if THOUSANDS.fullmatch(word) is None and "," not in word]
    if len(decimal) > 0 or not any(THOUSANDS.fullmatch(word) for word in dotted):
        return None
    is_whole = any(word.isdigit() for word in words)
    has_commas = any(
        isinstance(value, str) and DECIMAL_COMMA.fullmatch(value.strip()) for cells in file for value in cells
    )
    if not (is_whole or has_commas):
        return None
    return next(
        row
        for row, value in enumerate(column)
        if isinstance(value, str) and THOUSANDS.fullmatch(value.strip())
    )


def length_s(value: object, unit: str, *, has_decimal_commas: bool = False) -> float | None:
    """A length of time in seconds; unit: of a plain number, one of `UNITS`. None: not a length.

    Of several tries (`0.1, 0.7`, as nginx lists them) their sum, for which the user waited.
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str) and len(tries := TRIES.split(value.strip())) > 1:
        each = [length_s(one, unit, has_decimal_commas=has_decimal_commas) for one in tries]
        known = [one for one in each if one is not None and not math.isnan(one)]
        return None if None in each else math.fsum(known) if known else math.nan
    found = number(value, has_decimal_commas=has_decimal_commas)
    return None if found is None else found * UNITS[unit]


def time_s(value: object) -> float | None:
    """Seconds since the epoch of a date, or an ISO or nginx time; UTC unless it has a zone. None: no time.

    A number is no time here: of a column of numbers, `epoch_unit` tells seconds from milliseconds.
    """
    if is_missing(value):
        return math.nan
    if isinstance(value, str):
        value = _parsed_time(value.strip())
    if not isinstance(value, datetime):
        return None
    return (value if value.tzinfo is not None else value.replace(tzinfo=UTC)).timestamp()


def has_zone(value: object) -> bool | None:
    """Whether a time names its zone; None: it is no time."""
    if isinstance(value, str):
        value = _parsed_time(value.strip())
    return value.tzinfo is not None if isinstance(value, datetime) else None


def _parsed_time(text: str) -> datetime | None:
    """A time as ISO, nginx, BigQuery (`... UTC`) or Go (`... +0200 CEST m=+0.5`) write it; None: none."""
    text = GO_CLOCK.sub("", text)
    text = ZONE_NAME.sub(lambda found: found["offset"] or "+0000", text)
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        pass
    try:
        return datetime.strptime(text.strip("[]"), "%d/%b/%Y:%H:%M:%S %z")
    except ValueError:
        return None


def compact_time_s(number: float) -> float | None:
    """Seconds since the epoch of a number such as 20260501235959, a time in UTC; None: it is none."""
    if not FIRST_COMPACT <= number <= LAST_COMPACT or number != int(number):
        return None
    try:
        return datetime.strptime(f"{number:.0f}", "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def epoch_unit(seconds: float) -> str:
    """The unit of a number that is a time since the epoch: 1.78e9 is in s, 1.78e12 in ms."""
    return next(unit for limit, unit in EPOCH_UNITS if abs(seconds) < limit)


def as_mapping(value: object) -> object:
    """A list of pairs as the mapping that it is: a Parquet MAP's, or OpenTelemetry's of `key` and `value`,
    whose value names its type (`{"stringValue": "b"}`). Anything else as it is."""
    if not isinstance(value, list) or not value:
        return value
    if all(isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], str) for one in value):
        return dict(value)
    if not all(isinstance(one, dict) and one.keys() == {"key", "value"} for one in value):
        return value
    pairs = {str(one["key"]): one["value"] for one in value}
    return {key: _untyped(inner) for key, inner in pairs.items()}


def _untyped(value: object) -> object:
    if isinstance(value, dict) and len(value) == 1 and next(iter(value)).endswith("Value"):
        return next(iter(value.values()))
    return value


def attempts(value: object) -> list[str]:
    """The upstreams that a proxy asked in turn, or their statuses: nginx lists `a, b`, or `a : b`."""
    if is_missing(value):
        return []
    return [part.strip() for part in re.split(r",\s*|\s+:\s+", str(value).strip()) if part.strip()]


def says_outcome(value: object) -> bool:
    """Whether a cell says how a request ended: a status code, a status word, yes or no."""
    if status_code(value) is not None:
        return True
    word = str(value).strip().lower()
    return word in FLAGS or word in PLAIN_WORDS or word in ALL_EVENT_WORDS


def opposite(metric: str, value: object) -> float | None:
    """The event of a column that says the opposite, as `success` does of error: 1 where it says no.

    A status word keeps its meaning (`failure` is an error). None: unclear, as is a status code.
    """
    found = number(value)
    if found is None:
        return event(metric, value)
    return 1.0 - found if found in (0.0, 1.0) or math.isnan(found) else None


def event(metric: str, value: object, *, is_status: bool = False) -> float | None:
    """1 where the cell says that the event happened, else 0; a status code or a status word is understood.

    is_status: of a column of status codes, where 0 is no response and not a flag. None: unclear.
    """
    if isinstance(value, str) and (word := value.strip().lower()) not in MISSING:
        if word in EVENT_WORDS.get(metric, ()):
            return 1.0
        if word in PLAIN_WORDS or word in ALL_EVENT_WORDS:
            return 0.0
    found = number(value)
    if found is None or math.isnan(found):
        return found
    code = status_code(found)
    if code is None and is_status and found == NO_RESPONSE and not isinstance(value, bool):
        code = NO_RESPONSE
    if code is None:
        return None if is_status else found
    return _event_of_status(metric, code)


def status_code(value: object) -> int | None:
    """The HTTP status code that a cell holds; None: none, as `000` and 0 are."""
    if isinstance(value, bool):
        return None
    found = number(value)
    if found is None or not 100.0 <= found <= 599.0 or found != int(found):
        return None
    return int(found)


def holds_status_codes(name: str, values: Collection[object]) -> bool:
    """Whether a column holds HTTP status codes: some cell does, or its name says so and all are 0."""
    if any(status_code(value) is not None for value in values if not is_missing(value)):
        return True
    if STATUS_NAME.search(name) is None or "grpc" in name.lower():
        return False
    known = [value for value in values if not is_missing(value)]
    return bool(known) and all(number(value) == NO_RESPONSE and value is not False for value in known)


def holds_span_codes(name: str, values: Collection[object]) -> bool:
    """Whether a column holds the status of OpenTelemetry's spans, by number: 1 is ok there, 2 an error.

    Of `statusCode`, 0 alone is no response, as in any other column of status codes.
    """
    if SPAN_NAME.search(name) is None:
        return False
    known = {number(value) for value in values if not is_missing(value) and not isinstance(value, bool)}
    return known <= SPAN_CODES.keys() and not known <= {0.0}


def span_event(metric: str, value: object) -> float:
    """The event of a span's status, which says of errors alone; one that is left out is unset."""
    found = number(value)
    code = 0.0 if found is None or math.isnan(found) else found
    return SPAN_CODES[code] if metric == "error" else math.nan


def _event_of_status(metric: str, code: int) -> float:
    """What a status code says of an event, as the router of a live rollout records it.

    error: 5xx, 429, a redirect, and 0: no response. rejected: any other 4xx. cancelled: 499 (nginx: the
    client closed), of which nothing else is known. rate_limited: 429, and 529 of Anthropic's API.
    """
    match metric:
        case "cancelled":
            return float(code == CLIENT_CLOSED)
        case "error" | "rejected" | "rate_limited" if code == CLIENT_CLOSED:
            return math.nan
        case "error":
            return float(code == NO_RESPONSE or code >= 500 or code == 429 or 300 <= code < 400)
        case "rate_limited":
            return float(code in (429, 529))
        case "rejected":
            return float(400 <= code < 500 and code != 429)
        case _:
            return float(code)

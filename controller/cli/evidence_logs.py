"""The logs that are recognised by their columns: what each is read from, and what it writes for nothing.

The names are those of LiteLLM's LiteLLM_SpendLogs table, Langfuse's exports of observations and traces,
nginx's log variables, and OpenAI's answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from evaluation.betting.unit_block import Flags, Floats


@dataclass(frozen=True, slots=True)
class Void:
    """Values that a log writes where there is none. is_void: of a metric's values and those of another.

    other: a metric, or COUNTED. of_answers: only of requests that were answered.
    """

    other: str
    is_void: Callable[[Floats, Floats], Flags]
    why: str
    of_answers: bool = False


@dataclass(frozen=True, slots=True)
class NoRequest:
    """Rows that no version was asked for, or no user asked. columns: those that exist are looked at."""

    columns: tuple[str, ...]
    is_one: Callable[[object], bool]  # of a cell
    what: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class KnownLog:
    """A log recognised by its columns. sources: by known column, the first whose columns exist is taken.

    units: columns that may be the randomised unit, the coarsest first. only: keep rows with this cell.
    also: by event, further columns that may say that it happened. void: by metric, values that are none.
    counted: columns with tokens of a request, of its prompt or its answer. instead: by metric, a column that
    has its value where its own says 0.
    no_requests: rows to leave out. failure_codes: columns with the status code of a request that failed by
    its word, of which the first that exists is read.
    """

    title: str
    signature: tuple[tuple[str, ...], ...]  # one column of each must exist
    sources: Mapping[str, Sequence[str]]
    units: tuple[str, ...]
    only: tuple[str, str] | None = None
    also: Mapping[str, Sequence[str]] = field(default_factory=dict)
    void: Mapping[str, tuple[Void, ...]] = field(default_factory=dict)
    counted: tuple[str, ...] = ()
    instead: Mapping[str, str] = field(default_factory=dict)
    no_requests: tuple[NoRequest, ...] = ()
    failure_codes: tuple[str, ...] = ()


FINISH_REASONS = (
    "choices.0.finish_reason", "response.choices.0.finish_reason", "response.body.choices.0.finish_reason",
)  # fmt: skip
ERROR_OBJECTS = tuple(
    f"{place}error.{key}:present"
    for place in ("", "response.", "response.body.", "body.")
    for key in ("message", "code", "type")
)
#: LiteLLM: the group of models that was asked for, and how many others were tried for the answer.
ASKED, FALLBACKS = "metadata.original_model_group", "metadata.attempted_fallbacks"
HEALTH_CHECK = "litellm-internal-health-check"  # its key, team and tag
FIRST_AT_THE_END = Void(
    "latency_ms", lambda own, whole: own >= whole - 0.5, "it was not streamed, but ended then"
)
KINDS = ("input", "output", "total")  # of tokens, in Langfuse
COUNTED = "counted"  # the sum of a row's columns of tokens, NaN where none of them has a value
#: A gateway writes zeros where nothing was counted: no prompt has 0 tokens. Of a cost of 0 nothing is known.
NO_TOKENS = Void(COUNTED, lambda own, sums: (own == 0.0) & ~(sums > 0.0), "no tokens were counted", True)
NO_PRICE = Void(COUNTED, lambda own, sums: (own == 0.0) & (sums > 0.0), "its model has no price", True)
OF_COST = {"cost": (NO_PRICE, NO_TOKENS), "tokens": (NO_TOKENS,)}
#: Columns of a log that name what answered, not what was drawn.
ANSWERED_BY = frozenset({"model", "model_group", "model_id", "api_base", "custom_llm_provider"})

KNOWN_LOGS = (
    KnownLog(
        "LiteLLM spend log",
        (("startTime",), ("endTime",), ("spend", "call_type")),
        {
            "t_s": ("startTime",),
            "latency_ms": ("endTime-startTime",),
            "ttft_ms": ("completionStartTime-startTime",),
            "error": ("status",),
            "tokens": ("completion_tokens",),
            "cost": ("spend",),
            "request_id": ("request_id",),
            "arm": (ASKED,),
            "fell_back": (f"{FALLBACKS}:present",),
        },
        ("end_user", "session_id", "user"),
        failure_codes=(
            "metadata.error_information.error_code", "error_information.error_code", "error_code",
        ),
        void={"ttft_ms": (FIRST_AT_THE_END,), **OF_COST},
        counted=("prompt_tokens", "completion_tokens", "total_tokens"),
        instead={"cost": "metadata.cost_breakdown.total_cost"},
        no_requests=(
            NoRequest(
                ("cache_hit",),
                lambda cell: str(cell).strip().lower() in ("true", "t", "1"),
                "were answered from the gateway's cache",
                "; if these shares differ, the rest is no fair draw: compare with the cache off",
            ),
            NoRequest(
                ("request_tags", "api_key", "team_id"),
                lambda cell: HEALTH_CHECK in str(cell),
                "are the gateway's health checks",
            ),
        ),
    ),
    KnownLog(
        "Langfuse export of observations",
        (("startTime", "start_time"), ("endTime", "end_time"), ("traceId", "trace_id")),
        {
            "t_s": ("startTime", "start_time"),
            "latency_ms": ("endTime-startTime", "end_time-start_time"),
            "ttft_ms": ("completionStartTime-startTime", "completion_start_time-start_time"),
            "error": ("level",),
            "tokens": (
                "usageDetails.output", "usage_details.output", "completionTokens", "completion_tokens",
                "outputUsage",
            ),
            "cost": ("totalCost", "total_cost", "calculatedTotalCost", "calculated_total_cost"),
            "request_id": ("id",),
        },
        ("userId", "user_id", "sessionId", "session_id", "traceId", "trace_id"),
        ("type", "GENERATION"),
        void={"ttft_ms": (FIRST_AT_THE_END,), **OF_COST},
        counted=(
            *(f"{place}.{kind}" for place in ("usageDetails", "usage_details") for kind in KINDS),
            "promptTokens", "completionTokens", "totalTokens", "prompt_tokens", "completion_tokens",
            "total_tokens", "inputUsage", "outputUsage", "totalUsage",
        ),
    ),
    KnownLog(
        "Langfuse export of traces",
        (("timestamp",), ("latency",), ("userId", "user_id", "sessionId", "session_id")),
        {
            "t_s": ("timestamp",),
            "latency_ms": ("latency:s",),
            "error": ("level",),
            "tokens": ("usage.output", "outputTokens"),
            "cost": ("totalCost", "total_cost"),
            "request_id": ("id",),
        },
        ("userId", "user_id", "sessionId", "session_id"),
        void=OF_COST,
        counted=(*(f"usage.{kind}" for kind in KINDS), "inputTokens", "outputTokens", "totalTokens"),
    ),
    KnownLog(
        "nginx log",
        (("request_time",), ("status",), ("msec", "time_iso8601", "time_local", "time")),
        {
            # nginx writes the time of the end; the draw was at the start.
            "t_s": tuple(f"{end}-request_time:s" for end in ("msec", "time_iso8601", "time_local", "time")),
            "latency_ms": ("request_time:s",),
            "error": ("status",),
            "rejected": ("status",),
            "cancelled": ("status",),
            "request_id": ("request_id",),
        },
        ("http_x_session_id", "cookie_session", "remote_user"),
    ),
    KnownLog(
        "OpenAI-style log",
        (
            ("usage.completion_tokens", "response.usage.completion_tokens",
             "response.body.usage.completion_tokens"),
            ("created", "timestamp", "response.created", "response.body.created"),
        ),
        {
            "t_s": ("timestamp", "created", "response.created", "response.body.created"),
            "latency_ms": ("duration_ms", "elapsed_ms", "response_ms"),
            "error": ("status_code", "response.status_code", "error.message:present"),
            "rejected": ("status_code", "response.status_code"),
            "tokens": (
                "usage.completion_tokens", "response.usage.completion_tokens",
                "response.body.usage.completion_tokens",
            ),
            "truncated": FINISH_REASONS,
            "request_id": ("id", "request_id"),
        },
        ("user", "request.user", "metadata.user_id", "metadata.session_id"),
        also={"error": (*ERROR_OBJECTS, *FINISH_REASONS)},
        void={"tokens": (NO_TOKENS,)},
        counted=tuple(
            f"{place}usage.{kind}_tokens"
            for place in ("", "response.", "response.body.")
            for kind in ("prompt", "completion", "total")
        ),
    ),
)  # fmt: skip

"""Which requests are copied to a mirrored canary, and what the copy is. Pure.

A list of what may be copied, not of what may not: a field that is unknown here may make a server do something
(store the answer, search the web, fetch another engine's cache), and a copy must do nothing but answer.
"""

from __future__ import annotations

from typing import Any

import msgspec

from serving.messages import FULL_BP, STABLE, Arm, RouteTable
from serving.router.assignment.assignment import hash64
from serving.router.bodies.continuable import PATHS, fields_of
from serving.router.bodies.model_name import NotRenamed, body_with_model
from serving.router.exchange.context import Start
from serving.router.headers import RawHeaders, value_of

BODY_LIMIT = 256 << 10  # bytes of a request that is copied
LOW_PRIORITY = 1_000_000  # engines serve lower numbers first; a request without one has 0

_DRAWN_BY = frozenset({"request", "sticky", "conversation", "heavy"})
_COPIED = frozenset(
    {
        *("model", "messages", "prompt", "stream", "stream_options", "priority"),
        *("temperature", "top_p", "top_k", "min_p", "seed", "n", "best_of", "max_tokens", "min_tokens"),
        *("max_completion_tokens", "stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos"),
        *("repetition_penalty", "frequency_penalty", "presence_penalty", "length_penalty", "logit_bias"),
        *("bad_words", "allowed_token_ids", "use_beam_search", "skip_special_tokens", "suffix", "echo"),
        *("spaces_between_special_tokens", "logprobs", "top_logprobs", "prompt_logprobs", "return_token_ids"),
        *("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice"),
        *("guided_grammar", "tools", "tool_choice", "functions", "function_call", "parallel_tool_calls"),
        *("reasoning_effort", "include_reasoning", "thinking_token_budget", "add_generation_prompt"),
        *("continue_final_message", "add_special_tokens", "chat_template", "chat_template_kwargs"),
        *("documents", "modalities", "metadata", "service_tier", "safety_identifier", "user"),
        *("prompt_cache_key", "prompt_cache_retention", "cache_salt", "request_id", "verbosity", "store"),
    }
)
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TOOLS = msgspec.json.Decoder(list[dict[str, Any]], float_hook=str)  # as in `json_value.py`


def is_drawn(table: RouteTable, request_id: str) -> bool:
    """True for the table's share of requests, drawn at random."""
    return hash64("mirror" + table.rollout, request_id) % FULL_BP < table.mirror_bp


def is_copied(start: Start) -> bool:
    """True when this request may be copied: one of stable's that asks for an answer and does nothing else."""
    request, assignment = start.request, start.assignment
    return (
        start.is_eligible
        and assignment.arm == STABLE
        and not assignment.is_lookup
        and assignment.assigned_by in _DRAWN_BY
        and request.path in PATHS
        and not request.target.query
        and len(request.body) <= BODY_LIMIT
        and value_of(request.headers, b"content-encoding") is None
        and _only_answers(bytes(request.body))
    )


def _only_answers(body: bytes) -> bool:
    """True when every field of the body is known to ask for an answer only."""
    try:
        fields = fields_of(body)
        if not fields.keys() <= _COPIED or bytes(fields.get("store", b"null")) not in (b"null", b"false"):
            return False
        tools = fields.get("tools")
        if tools is None or bytes(tools) == b"null":
            return True
        # Servers execute tools of other kinds themselves; a function is only named to the client.
        return all(one.get("type") == "function" for one in _TOOLS.decode(tools))
    except (ValueError, RecursionError):
        return False


def copied_body(body: bytes, headers: RawHeaders, arm: Arm) -> bytes | None:
    """The body of the copy for this canary: the client's own, at low priority where its engines have one.

    None: it cannot be written. Nothing else changes, so a greedy or seeded request stays what it is.
    """
    try:
        if arm.takes_priority:
            body = msgspec.json.encode({**_FIELDS.decode(body), "priority": LOW_PRIORITY})
        return body if arm.model is None else body_with_model(body, headers, arm.model)
    except (ValueError, RecursionError, TypeError, NotRenamed):
        return None
